"""Pruning: the smaller network computes what the masked one does, and the shift of a dropped channel is not lost."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.testing import assert_close

from deeptransfer.networks import small_cnn
from deeptransfer.normalization import DomainBatchNorm2d, adapt_statistics, convert_norm
from deeptransfer.pruning import (
    mask_channels,
    multiply_adds,
    prune_channels,
    random_channels,
    slimmest_channels,
    sparsify_,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(model, seed=0):
    """Nothing is left at 0 or 1, and scales differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                n = module.num_features
                module.weight.copy_(torch.randn(n, generator=generator))
                module.bias.copy_(torch.randn(n, generator=generator))
                module.running_mean.copy_(torch.randn(n, generator=generator))
                module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
    return model.double().eval()


def chain(padding=0, bias=False, activation=nn.ReLU):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, 3, padding=padding, bias=bias), nn.BatchNorm2d(6), activation()),
        nn.Sequential(nn.Conv2d(6, 5, 2, padding=padding), nn.BatchNorm2d(5), activation(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(5 * 9 if padding else 5 * 4, 8, bias=False),
        nn.BatchNorm1d(8),
        activation(),
        nn.Linear(8, 3),
    )
    return trained(model)


SIZE = {0: 7, 1: 5}
KEEP = {
    "0.1": torch.tensor([True, False, True, True, False, True]),
    "1.1": torch.tensor([False, True, True, False, True]),
    "4": torch.tensor([True] * 5 + [False] * 3),
}


def inputs(padding=0, seed=0):
    return draw(4, 2, SIZE[padding], SIZE[padding], seed=seed)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# The smaller network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Sigmoid])
@pytest.mark.parametrize("bias", [False, True])
def test_folded_it_equals_the_network_with_scales_at_zero(activation, bias):
    """Valid convolutions; the shift of a dropped channel goes on through the activation."""
    model = chain(bias=bias, activation=activation)
    small = prune_channels(model, KEEP)
    assert_close(small(inputs()), mask_channels(model, KEEP, shift=False)(inputs()))
    assert not torch.allclose(small(inputs()), model(inputs()))


def test_unfolded_it_equals_the_network_with_scales_and_shifts_at_zero():
    """With ReLU, of which 0 gives 0; with padding, too."""
    for padding in (0, 1):
        model = chain(padding)
        assert_close(
            prune_channels(model, KEEP, fold=False)(inputs(padding)), mask_channels(model, KEEP)(inputs(padding))
        )


def test_channels_that_emit_nothing_leave_no_trace():
    """γ = β = 0 exactly: smaller, masked and whole network agree, whatever the padding."""
    for padding in (0, 1):
        model = mask_channels(chain(padding), KEEP)
        for fold in (True, False):
            assert_close(prune_channels(model, KEEP, fold)(inputs(padding)), model(inputs(padding)))


def test_padding_with_zeros_makes_folding_wrong_at_the_border_only():
    model = chain(1)[:2]
    model = nn.Sequential(model[0], nn.Sequential(model[1][0], nn.Identity()))  # no pooling, no norm: into the bias
    keep = {"0.1": KEEP["0.1"]}
    x = draw(1, 2, 9, 9)
    got, want = prune_channels(model, keep)(x), mask_channels(model, keep, shift=False)(x)
    assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1])
    assert not torch.allclose(got, want)


def test_the_three_cures_of_the_shift():
    """Ignored, the next layer receives another mean; folded, the right one; measured, the right variance, too."""
    x = draw(512, 4)
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5),
                                  nn.ReLU(), nn.Linear(5, 2)))  # fmt: skip
    model[1].bias.data.abs_()
    adapt_statistics(model, x)
    keep = {"1": torch.tensor([True, True, False, True, False, True])}

    def second(network):
        z = network[:5](x)  # after the second BatchNorm, before whose scale it should be centred
        z = (z - network[4].bias) / network[4].weight
        return z.mean(0).abs().max().item(), (z.var(0, correction=0) - 1).abs().max().item()

    model[1].weight.data[[2, 4]] = 0.0  # exactly zero: the mean is all that is lost
    adapt_statistics(model, x)
    ignored, folded = (second(prune_channels(model, keep, fold)) for fold in (False, True))
    assert ignored[0] > 0.1
    assert folded[0] < 1e-12
    assert folded[1] < 1e-3  # ε
    model[1].weight.data[[2, 4]] = 0.7  # small, not zero: variance is lost, too
    adapt_statistics(model, x)
    folded = prune_channels(model, keep)
    assert second(folded)[1] > 0.05
    measured = second(adapt_statistics(folded, x))
    assert measured[0] < 1e-12
    assert measured[1] < 1e-3


def test_it_is_really_smaller():
    model = chain()
    small = prune_channels(model, KEEP)
    assert parameters(small) == (4 * 2 * 9 + 2 * 4) + (3 * 4 * 4 + 3 + 2 * 3) + (5 * 3 * 4 + 2 * 5) + (3 * 5 + 3)
    assert [tuple(m.weight.shape) for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == [
        (4, 2, 3, 3), (3, 4, 2, 2), (5, 12), (3, 5)
    ]  # fmt: skip
    assert multiply_adds(small, inputs()) == 25 * 4 * 18 + 16 * 3 * 16 + 5 * 12 + 3 * 5
    assert small[0][0].out_channels == small[1][0].in_channels == small[0][1].num_features == 4
    assert "num_features" not in small.state_dict()


def test_a_network_of_the_book_is_pruned_and_trains():
    model = trained(small_cnn(widths=(4, 6), hidden=(8,), classes=3, size=8))
    keep = slimmest_channels(model, 0.5)
    assert list(keep) == ["features.block1.1", "features.block2.1", "features.fc1.2"]
    x = draw(6, 1, 8, 8).abs().clamp(max=1)
    small = prune_channels(model, keep, fold=False)
    assert_close(small(x).logits, mask_channels(model, keep)(x).logits)
    small.train()(x).logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in small.parameters())
    assert model.features.block1[0].weight.grad is None
    again = prune_channels(model, keep, fold=False)
    again.load_state_dict(small.state_dict())
    assert_close(again.eval()(x).logits, small.eval()(x).logits)


def test_a_batchnorm_elsewhere_in_the_chain_is_cut_along():
    """Convolution, BatchNorm, ReLU, another BatchNorm: a dropped channel emits a constant through that one, too."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(2), nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Sigmoid()]
    model = trained(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    keep = {"2": torch.tensor([True, False, False, True])}
    assert_close(prune_channels(model, keep)(inputs()), mask_channels(model, keep, shift=False)(inputs()))


def test_without_a_shift_a_dropped_channel_emits_the_activation_of_zero():
    """BatchNorm without affine: what is folded is the sigmoid's ½, as if the next layer had a bias for it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, affine=False)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Sigmoid(), nn.Conv2d(3, 2, 2)).double().eval()
    mask = torch.tensor([True, False, True])
    z = model[2](norm(model[0](inputs())))
    z[:, 1] = 0.5
    assert_close(prune_channels(model, {"1": mask})(inputs()), model[3](z))


def test_half_precision_and_channels_last():
    model = chain().bfloat16()
    small = prune_channels(model, KEEP)
    assert all(p.dtype == torch.bfloat16 for p in small.parameters())
    x = inputs().bfloat16().contiguous(memory_format=torch.channels_last)
    assert_close(small(x), mask_channels(model, KEEP, shift=False)(x), rtol=0.1, atol=0.1)


# Which channels ----------------------------------------------------------------------------------------------------


def test_the_smallest_scales_go_whatever_their_layer():
    model = chain()
    scales = {path: model.get_submodule(path).weight.detach().abs() for path in KEEP}
    with torch.no_grad():
        for i, path in enumerate(KEEP):
            norm = model.get_submodule(path)
            norm.weight.copy_(torch.linspace(0.1, 1, norm.num_features) * (10 if i == 1 else 1))
    keep = slimmest_channels(model, 0.5)
    dropped = [int((~mask).sum()) for mask in keep.values()]
    assert sum(dropped) == int(19 * 0.5)
    assert dropped[1] == 0  # its scales are ten times the others'
    largest = max(model.get_submodule(p).weight[~keep[p]].abs().max().item() for p in ("0.1", "4"))
    smallest = min(model.get_submodule(p).weight[keep[p]].abs().min().item() for p in keep)
    assert largest <= smallest
    assert set(scales) == set(keep)


def test_share_zero_is_the_same_network_and_every_layer_keeps_some():
    model = chain()
    keep = slimmest_channels(model, 0.0)
    assert all(mask.all() for mask in keep.values())
    assert_close(prune_channels(model, keep)(inputs()), model(inputs()), rtol=0, atol=0)
    with torch.no_grad():
        model[0][1].weight.mul_(1e-6)  # the layer that would vanish
    assert slimmest_channels(model, 0.6)["0.1"].sum() == 1
    assert slimmest_channels(model, 0.6, least=0.5)["0.1"].sum() == 3


def test_random_shares_take_the_smallest_filters():
    model = chain()
    keep, again, other = (random_channels(model, 0.2, 0.8, seed) for seed in (0, 0, 1))
    assert all(torch.equal(keep[path], again[path]) for path in keep)
    assert any(not torch.equal(keep[path], other[path]) for path in keep)
    for path, layer in (("0.1", model[0][0]), ("1.1", model[1][0]), ("4", model[3])):
        norms = layer.weight.detach().flatten(1).abs().sum(1)
        if not keep[path].all():
            assert norms[~keep[path]].max() <= norms[keep[path]].min()
        assert 0.2 - 1 / len(norms) <= (~keep[path]).double().mean() <= 0.8
    shares = np.array([(~random_channels(model, 0.0, 0.9, s)["4"]).double().mean() for s in range(200)])
    assert shares.min() == 0
    assert 0.3 < shares.mean() < 0.5


def test_sparsify_adds_the_subgradient_once_for_each_scale():
    model = chain().train()
    model[0][1].weight.data[2] = 0
    F.cross_entropy(model(inputs()), torch.tensor([0, 1, 2, 0])).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    sparsify_(model, 0.1)
    for name, p in model.named_parameters():
        scale = name in ("0.1.weight", "1.1.weight", "4.weight")
        assert_close(p.grad, before[name] + 0.1 * p.detach().sign() * scale)


# EagleEye and folding ----------------------------------------------------------------------------------------------


def test_eagleeye_scores_a_candidate_by_adapt_statistics_as_it_is():
    """Recalibrating the smaller network is AdaBN on training images: the statistics of each layer's own inputs."""
    model, x = chain(), draw(64, 2, 7, 7)
    small = prune_channels(model, random_channels(model, 0.3, 0.6, 3))
    adapt_statistics(small, x)
    z = small[0][0](x)
    assert_close(small[0][1].running_mean, z.mean((0, 2, 3)))
    z = small[1][0](small[0](x))
    assert_close(small[1][1].running_var, z.var((0, 2, 3), correction=0))
    assert_close(model[0][1].running_mean, chain()[0][1].running_mean, rtol=0, atol=0)


def digit_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def test_recalibration_saves_what_pruning_broke():
    """On digits: cut by random shares, inherited statistics against measured ones. Training takes a second."""
    data = load_digits()
    x = torch.from_numpy(data.images / 16).float().unsqueeze(1)
    y = torch.from_numpy(data.target)
    model = digit_net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        rows = torch.randint(1200, (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model.eval()

    def accuracy(network):
        with torch.no_grad():
            return (network(x[1200:]).argmax(1) == y[1200:]).double().mean().item()

    inherited, measured = [], []
    for seed in range(5):
        small = prune_channels(model, random_channels(model, 0.3, 0.6, seed), fold=False)
        inherited.append(accuracy(small))
        measured.append(accuracy(adapt_statistics(small, x[:1200])))
    assert accuracy(model) > 0.85
    assert np.mean(measured) > np.mean(inherited) + 0.1


def test_statistics_are_measured_before_a_norm_is_folded_into_its_layer():
    """Folding is torch's; what is folded has no statistics left to adapt."""
    model, x = chain(), inputs()
    adapt_statistics(model, x)
    folded = nn.Sequential(
        fuse_conv_bn_eval(model[0][0], model[0][1]), model[0][2],
        fuse_conv_bn_eval(model[1][0], model[1][1]), *model[1][2:], model[2],
        fuse_linear_bn_eval(model[3], model[4]), *model[5:],
    ).eval()  # fmt: skip
    assert_close(folded(x), model(x))
    with pytest.raises(ValueError, match="nothing to adapt"):
        adapt_statistics(folded, x)


# Errors ------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def forward(self, x):
        return x


def test_errors_name_the_layer():
    model = chain()
    shared = nn.Conv2d(2, 2, 1)
    cases = [
        (lambda: prune_channels(model, {"7": KEEP["4"]}), "no BatchNorm '7'.*0.1, 1.1, 4"),
        (lambda: prune_channels(model, {"4": KEEP["0.1"]}), r"mask of 4 must be a bool tensor \(8,\)"),
        (lambda: prune_channels(model, {"4": KEEP["4"].int()}), "bool"),
        (lambda: prune_channels(model, {"4": torch.zeros(8, dtype=torch.bool)}), "keeps no channel"),
        (lambda: prune_channels(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), {"1": torch.tensor([True, False])}),
         "the network's output"),
        (lambda: prune_channels(nn.Sequential(nn.Conv2d(2, 2, 1), Residual()), {}), r"1 \(Residual\) is not underst"),
        (lambda: prune_channels(convert_norm(chain(), DomainBatchNorm2d), {}), "to_batchnorm"),
        (lambda: prune_channels(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), {}), "2 groups"),
        (lambda: prune_channels(nn.Sequential(shared, nn.ReLU(), shared), {}), "occurs twice"),
        (lambda: prune_channels(nn.Sequential(parametrizations.spectral_norm(nn.Linear(2, 2))), {}), "not understood"),
        (lambda: prune_channels(nn.Sequential(nn.ReLU()), {}), "no convolution"),
        (lambda: prune_channels(nn.Linear(2, 2), {}), "the model"),
        (lambda: slimmest_channels(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.5), "nothing to cut"),
        (lambda: slimmest_channels(model, 1.0), r"share must lie in \[0, 1\)"),
        (lambda: random_channels(model, 0.5, 0.2, 0), "lowest ≤ highest"),
        (lambda: mask_channels(model, {"x": KEEP["4"]}), "no BatchNorm 'x'"),
        (lambda: sparsify_(model, -1), "strength must be 0 or more"),
        (lambda: sparsify_(copy.deepcopy(model), 0.1), "scale of 0.1 has no gradient"),
        (lambda: sparsify_(nn.ReLU(), 0.1), "no BatchNorm"),
        (lambda: multiply_adds(model, inputs()[:0]), "one image"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
