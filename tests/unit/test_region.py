"""Region normalisation: hole and surroundings apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_style import convolve
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from deeptransfer.normalization import LearnedRegionNorm2d, RegionNorm2d

C = 3


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(**options):
    made = RegionNorm2d(C, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.linspace(0.5, 2, 2 * C).view(2, C))
    return made


X = draw(2, C, 7, 5) * 2 + 1
MASK = torch.zeros(2, 1, 7, 5)
MASK[0, 0, 2:5, 1:4], MASK[1, 0, :3, :] = 1, 1


def reference(x, mask, weight, bias, eps=1e-5):
    out = np.empty_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            for region in (0, 1):
                where = mask[i, 0] == region
                values = x[i, c][where]
                if len(values):
                    mean = values.sum() / len(values)
                    var = ((values - mean) ** 2).sum() / len(values)
                    out[i, c][where] = weight[region, c] * (values - mean) / np.sqrt(var + eps) + bias[region, c]
    return out


def test_it_follows_the_formula():
    made = layer()
    want = reference(X.numpy(), MASK.numpy(), made.weight.detach().numpy(), made.bias.detach().numpy())
    np.testing.assert_allclose(made(X, MASK).detach().numpy(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [0, 1])
def test_one_region_is_instance_norm(value):
    """The mask all 0 or all 1: the other region is empty, and nothing comes of it."""
    x = X.clone().requires_grad_()
    got = RegionNorm2d(C).double()(x, torch.full_like(MASK, value))
    assert_close(got, F.instance_norm(X))
    got.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_swapping_hole_and_surroundings_with_their_affines_changes_nothing():
    one, other = layer(), layer()
    with torch.no_grad():
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            theirs.copy_(mine.flip(0))
    assert_close(one(X, MASK), other(X, 1 - MASK))


def test_each_region_has_mean_zero_and_variance_one():
    y = RegionNorm2d(C, eps=1e-12, affine=False).double()(X, MASK)
    for i in range(2):
        for region in (0, 1):
            values = y[i][:, MASK[i, 0] == region]
            assert_close(values.mean(1), torch.zeros(C, dtype=torch.float64))
            assert_close(values.var(1, correction=0), torch.ones(C, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 10.0, float("nan")])
def test_what_fills_the_hole_changes_nothing_outside(value):
    """BatchNorm and InstanceNorm fail this: it is the point of the method."""
    corrupted = torch.where(MASK.bool(), value, X)
    outside = ~MASK.bool().expand_as(X)
    made = layer()
    assert_close(made(corrupted, MASK)[outside], made(X, MASK)[outside], rtol=0, atol=0)
    for plain in (nn.BatchNorm2d(C).double(), nn.InstanceNorm2d(C)):
        assert not torch.allclose(plain(corrupted)[outside], plain(X)[outside], atol=0.05)
    x = corrupted.clone().requires_grad_()
    made(x, MASK)[outside].square().sum().backward()
    assert torch.isfinite(x.grad[outside]).all()


def test_each_affine_reaches_its_own_region_only():
    """In the release both shifts reach every position."""
    made = layer()
    before = made(X, MASK).detach()
    with torch.no_grad():
        made.bias[1] += 1
    moved = made(X, MASK) - before
    assert_close(moved, MASK.double().expand_as(X))


def test_neighbours_do_not_matter_in_training_nor_in_evaluation():
    for made in (layer().train(), layer().eval()):
        assert_close(made(X, MASK)[:1], made(X[:1], MASK[:1]))


def test_a_hole_of_one_position_becomes_its_shift():
    mask = torch.zeros(1, 1, 7, 5)
    mask[0, 0, 3, 3] = 1
    made = layer()
    assert_close(made(X, mask)[:, :, 3, 3], made.bias[1].expand(2, C))


def test_a_mask_of_another_size_takes_the_nearest_pixel():
    large = MASK.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert_close(layer()(X, large), layer()(X, MASK))
    assert_close(layer()(X, MASK.bool()), layer()(X, MASK))
    assert_close(layer()(X, MASK[:1]), layer()(X, MASK[:1].expand_as(MASK)))


def test_gradients():
    made = layer()
    x = X.clone().requires_grad_()
    assert gradcheck(lambda x: made(x, MASK), x)
    assert gradcheck(lambda w, b: torch.func.functional_call(made, {"weight": w, "bias": b}, (X, MASK)),
                     (made.weight, made.bias))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_memory_format_and_state(dtype):
    made = layer().float()
    got = made(X.to(dtype) * 50, MASK)
    assert got.dtype == dtype
    assert_close(got, made(X.to(dtype).float() * 50, MASK).to(dtype), rtol=0.02, atol=0.02)
    assert_close(made(X.float().contiguous(memory_format=torch.channels_last), MASK), made(X.float(), MASK))
    again = RegionNorm2d(C)
    again.load_state_dict(made.state_dict())
    assert_close(again(X.float(), MASK), made(X.float(), MASK))


def learned():
    torch.manual_seed(0)
    return LearnedRegionNorm2d(C, threshold=0.5, kernel_size=3).double()


def test_the_learned_form_follows_the_formula():
    made = learned()
    got = made(X).detach()
    for i in range(2):
        x = X[i].numpy()
        weight = {name: p.detach().numpy() for name, p in made.named_parameters()}
        s = 1 / (1 + np.exp(-convolve(np.stack([x.mean(0), x.max(0)]), weight["detect.weight"], padding=1)))
        mask = (s >= 0.5).astype(int)
        assert 0 < mask.mean() < 1
        y = reference(x[None], mask[None], np.ones((2, C)), np.zeros((2, C)))[0]
        gamma, beta = (convolve(s, weight[f"{n}.weight"], padding=1) + weight[f"{n}.bias"] for n in ("gamma", "beta"))
        np.testing.assert_allclose(got[i].numpy(), (1 + gamma) * y + beta, rtol=1e-9, atol=1e-9)


def test_the_learned_form_is_the_basic_one_where_gamma_and_beta_are_zero():
    made = learned()
    for name in ("gamma", "beta"):
        for parameter in getattr(made, name).parameters():
            nn.init.zeros_(parameter)
    assert_close(made(X), made.norm(X, made.map(X) >= 0.5))
    again = learned()
    again.load_state_dict(made.state_dict())
    assert_close(again(X), made(X))


def test_the_map_learns_through_gamma_and_beta():
    made = learned()
    made(X).square().sum().backward()
    assert made.detect.weight.grad.abs().sum() > 0
    assert gradcheck(made, X.clone().requires_grad_(), atol=1e-4)


def test_errors_name_the_value():
    for call, message in [
        (lambda: layer()(X[:, :2], MASK), r"expected \(N, 3, H, W\)"),
        (lambda: layer()(X, MASK[:, 0]), "mask must be"),
        (lambda: layer()(X, MASK.expand(2, C, 7, 5)), "mask must be"),
        (lambda: layer()(X, MASK.repeat(2, 1, 1, 1)), "mask must be"),
        (lambda: learned()(X[:, :2]), r"expected \(N, 3, H, W\)"),
        (lambda: LearnedRegionNorm2d(C, kernel_size=4), "must be odd.* got 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
