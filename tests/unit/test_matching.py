"""Matching BatchNorm statistics against the formula in NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support_statistics import images, network, randomize
from torch import nn

from deeptransfer.normalization import (
    DomainBatchNorm2d,
    Moments,
    adapt_statistics,
    convert_norm,
    gaussian_divergence,
    information_maximization,
    prediction_time,
    statistics_divergences,
    use_domain,
)


def by_hand(x, mean, var, eps=1e-5):
    rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    m, b = rows.mean(1), np.maximum(rows.var(1), eps)
    v = np.maximum(var, eps)
    return np.mean(0.5 * np.log(v / b) + (b + (m - mean) ** 2) / (2 * v) - 0.5)


def test_the_loss_of_each_layer_follows_the_formula():
    model, x = network().eval(), images(8)
    inputs = []
    for layer in (model[1], model[4], model[9]):
        layer.register_forward_pre_hook(lambda layer, args: inputs.append(args[0].detach().numpy()))
    with statistics_divergences(model) as divergences:
        logits = model(x)
    torch.testing.assert_close(logits, model(x))
    assert len(divergences) == 3
    for layer, got, seen in zip((model[1], model[4], model[9]), divergences, inputs, strict=False):
        want = by_hand(seen, layer.running_mean.numpy(), layer.running_var.numpy())
        np.testing.assert_allclose(got.item(), want, rtol=1e-10)


def test_it_is_the_divergence_of_two_gaussians():
    """Against ``torch.distributions``; at least 0, and 0 for equal moments."""
    generator = torch.Generator().manual_seed(0)
    m, mu = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    b, v = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.1
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(m, b.sqrt()), normal(mu, v.sqrt())).mean()
    torch.testing.assert_close(gaussian_divergence(Moments(m, b, 4), Moments(mu, v, 4)), want)
    assert gaussian_divergence(Moments(m, b, 4), Moments(m, b, 4)).abs() < 1e-15
    assert want > 0
    inputs = tuple(t.clone().requires_grad_() for t in (m, b))
    assert torch.autograd.gradcheck(lambda m, b: gaussian_divergence(Moments(m, b, 4), Moments(mu, v, 4)), inputs)
    assert gaussian_divergence(Moments(m, b * 0, 4), Moments(mu, v, 4)).isfinite()


def test_gradients_reach_the_encoder_beside_those_of_the_logits():
    """The measured batch and the normalised one are the same tensor: their gradients add, and neither is lost."""
    for shape in ((5, 3), (4, 3, 2, 2), (40, 3, 10, 10)):  # the last: derivatives by hand
        layer = randomize((nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double()).eval()
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with statistics_divergences(layer) as divergences:
            y = layer(x)
        both = torch.autograd.grad(y.square().mean() + sum(divergences), x, retain_graph=True)[0]
        apart = [torch.autograd.grad(t, x, retain_graph=True)[0] for t in (y.square().mean(), divergences[0])]
        torch.testing.assert_close(both, apart[0] + apart[1])
        axes = [0, *range(2, x.dim())]
        v, m = torch.var_mean(x, axes, correction=0)
        plain = gaussian_divergence(Moments(m, v, 1), Moments(layer.running_mean, layer.running_var, 1))
        torch.testing.assert_close(torch.autograd.grad(plain, x)[0], apart[1])


def test_an_affine_map_before_the_layer_drives_it_to_zero_and_that_is_adabn():
    layer, x = randomize(nn.BatchNorm2d(3).double()).eval(), torch.randn(6, 3, 4, 4, dtype=torch.float64)
    v, m = torch.var_mean(x, (0, 2, 3), correction=0)
    scale = (layer.running_var / v).sqrt()
    moved = x * scale.view(-1, 1, 1) + (layer.running_mean - scale * m).view(-1, 1, 1)
    with statistics_divergences(layer) as divergences:
        layer(moved)
    assert divergences[0] < 1e-12
    layer.eps = 0.0
    torch.testing.assert_close(layer(moved), adapt_statistics(copy.deepcopy(layer), x)(x))


def test_the_source_row_of_a_domain_layer_is_the_stored_one():
    model, x = randomize(convert_norm(network(), DomainBatchNorm2d)).eval(), images(8)
    for domain in ("source", "target"):
        with statistics_divergences(model, domain) as divergences, use_domain(model, "source"):
            model(x)
        inner, row = model[1], model[1].row(domain)
        want = by_hand(model[0](x).detach().numpy(), inner.running_mean[row].numpy(), inner.running_var[row].numpy())
        assert divergences[0].item() == pytest.approx(want)


def test_information_maximization_is_minus_the_mutual_information():
    logits = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1).numpy()
    mean = p.mean(0)
    want = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean)).sum()
    assert information_maximization(logits).item() == pytest.approx(want)
    assert torch.autograd.gradcheck(information_maximization, (logits.requires_grad_(),))
    certain = torch.eye(3, dtype=torch.float64) * 1e6
    assert information_maximization(certain).item() == pytest.approx(-np.log(3))
    assert information_maximization(torch.zeros(4, 3)).item() == pytest.approx(0, abs=1e-6)
    assert information_maximization(certain.bfloat16()).dtype == torch.float32


def test_nothing_of_it_stays_and_wrong_use_is_refused():
    model = network().eval()
    with pytest.raises(RuntimeError, match="stop"), statistics_divergences(model):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in model.modules())
    with (
        pytest.raises(ValueError, match="Linear has no layer with running statistics"),
        statistics_divergences(nn.Linear(2, 2)),
    ):
        pass
    layer = nn.BatchNorm1d(3).eval()
    with statistics_divergences(layer) as divergences, pytest.raises(ValueError, match=r"\(1, 3\) has no variance"):
        layer(torch.zeros(1, 3))
    assert not divergences


def test_bf16_autocast_and_nan():
    model, x = network().float().eval(), images(8).float()
    with statistics_divergences(model) as divergences, torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
    assert all(d.dtype == torch.float32 and d.isfinite() for d in divergences)
    x[0] = torch.nan
    with statistics_divergences(model) as divergences, prediction_time(model):
        model(x)
    assert all(d.isnan() for d in divergences)
