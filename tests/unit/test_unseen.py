"""Predictions for an unseen domain: averages of the domains' branches, and BatchNorm embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support_statistics import images, network
from torch import nn
from torch.testing import assert_close

from deeptransfer.networks import small_cnn
from deeptransfer.normalization import (
    Branches,
    DomainBatchNorm2d,
    DSON2d,
    average_domains,
    convert_norm,
    domain_branches,
    forward_domains,
    use_domain,
)

K = ("print", "pen", "scene")


def trained(family=DomainBatchNorm2d, **options):
    model = convert_norm(network(), family, domains=K, **options)
    forward_domains(model, images(8), images(7, 1) * 2, images(6, 2) + 1)
    return model.eval()


@pytest.mark.parametrize("relative", [False, True])
def test_probabilities_and_distances_follow_the_formula(relative):
    model, x = trained(), images(4, 9)
    branches = domain_branches(model, x, relative)
    for k, name in enumerate(K):
        seen = []
        layers = [m for m in model.modules() if isinstance(m, DomainBatchNorm2d)]
        hooks = [m.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].numpy())) for m in layers]
        with use_domain(model, name), torch.no_grad():
            logits = model(x).numpy()
        for hook in hooks:
            hook.remove()
        p = np.exp(logits)
        np.testing.assert_allclose(branches.probabilities[k].numpy(), p / p.sum(1, keepdims=True), rtol=1e-10)
        distance = np.zeros(4)
        for layer, values in zip(layers, seen, strict=False):
            for i in range(4):
                for c in range(values.shape[1]):
                    mean, var = layer.running_mean[k, c].item(), layer.running_var[k, c].item()
                    own = values[i, c]
                    term = (own.mean() - mean) ** 2 + (own.std() - np.sqrt(var)) ** 2
                    distance[i] += term / (var + layer.eps) if relative else term
        np.testing.assert_allclose(branches.distances[:, k].numpy(), distance, rtol=1e-9)
    inverse = 1 / branches.distances.numpy()
    weights = inverse / inverse.sum(1, keepdims=True)
    np.testing.assert_allclose(branches.weights().numpy(), weights, rtol=1e-12)
    want = sum(weights[:, k, None] * branches.probabilities[k].numpy() for k in range(3))
    np.testing.assert_allclose(branches.average(branches.weights()).numpy(), want, rtol=1e-12)
    assert_close(branches.average(), branches.probabilities.mean(0))
    assert_close(average_domains(model, x), branches.average())


def test_equal_domains_share_the_weight_and_one_domain_is_batch_norm():
    plain = network().eval()
    expected = plain(images(4)).softmax(1)
    model = convert_norm(network(), DomainBatchNorm2d, domains=3).eval()
    branches = domain_branches(model, images(4))
    assert_close(branches.weights(), torch.full((4, 3), 1 / 3, dtype=torch.float64))
    assert_close(branches.average(branches.weights()), expected)
    one = convert_norm(network(), DomainBatchNorm2d, domains=1).eval()
    branches = domain_branches(one, images(4))
    assert_close(branches.weights(), torch.ones(4, 1, dtype=torch.float64))
    assert_close(branches.average(), expected)


def test_a_domain_at_distance_zero_has_all_the_weight():
    p = torch.eye(2).expand(3, 2, 2)
    distances = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 1.0]])
    weights = Branches(p, distances).weights()
    assert_close(weights, torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]]))


def test_scaling_a_layers_channels_scales_its_distance_by_the_square():
    layer = DomainBatchNorm2d(3, domains=2, dtype=torch.float64)
    x, other = (torch.randn(5, 3, 4, 4, dtype=torch.float64) for _ in range(2))

    def distances(scale):
        layer.reset_running_stats()
        layer.momentum = 1.0
        layer.train()
        forward_domains(layer, scale * x, scale * other + scale)
        flat = nn.Sequential(layer.eval(), nn.Flatten())
        return domain_branches(flat, scale * x).distances

    assert_close(distances(3.0), 9 * distances(1.0))


def test_dson_and_the_books_networks():
    model, x = trained(DSON2d), images(4)
    assert_close(average_domains(model, x).sum(1), torch.ones(4, dtype=torch.float64))
    book = convert_norm(small_cnn(size=8, widths=(2,), hidden=(4,)), DomainBatchNorm2d, domains=2).eval()
    assert average_domains(book, torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_wrong_weights_and_models_are_refused():
    model, x = trained(), images(4)
    branches = domain_branches(model, x)
    for weights, message in (
        (torch.full((4, 3), 0.5), "sums from 1.5"),
        (torch.full((4, 2), 0.5), r"floating point \(4, 3\)"),
        (torch.tensor([[2.0, -1.0, 0.0]]).expand(4, 3), "at least 0"),
        (torch.full((4, 3), torch.nan), "at least 0"),
        (torch.ones(4, 3, dtype=torch.long), "int64"),
    ):
        with pytest.raises(ValueError, match=message):
            branches.average(weights)
    with pytest.raises(ValueError, match="no domain layer"):
        average_domains(network().eval(), x)
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        average_domains(model.train(), x)
    mixed = nn.Sequential(DomainBatchNorm2d(1), DomainBatchNorm2d(1, domains=3)).eval()
    with pytest.raises(ValueError, match="differ in their domains"):
        average_domains(mixed, x)


def test_an_image_of_nan_spoils_no_other():
    model, x = trained(), images(4)
    x[1] = torch.nan
    branches = domain_branches(model, x)
    others = torch.arange(4) != 1
    assert branches.probabilities[:, others].isfinite().all()
    assert branches.weights()[others].isfinite().all()
    assert branches.weights()[1].isnan().all()
