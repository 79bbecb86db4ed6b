"""Instance (selective) whitening against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deeptransfer.normalization import (
    InstanceWhitening2d,
    PositionNorm2d,
    instance_correlation,
    sensitive_pairs,
    whitening_loss,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 1


def correlation(x, eps=1e-5):
    out = np.empty((len(x), x.shape[1], x.shape[1]))
    for i, image in enumerate(x):
        flat = image.reshape(len(image), -1)
        z = np.array([(v - v.mean()) / np.sqrt(v.var() + eps) for v in flat])
        for j, k in np.ndindex(len(z), len(z)):
            out[i, j, k] = sum(z[j] * z[k]) / (flat.shape[1] - 1)
    return out


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 4, 3, 2), (2, 4, 2, 2, 2)])
def test_correlations_and_losses_follow_the_formula(shape):
    x = draw(*shape)
    r = correlation(x.numpy())
    np.testing.assert_allclose(instance_correlation(x).numpy(), r, rtol=1e-9)
    pairs = list(itertools.combinations(range(4), 2))
    for margin in (0.0, 1.0, 2.0):
        want = np.mean([max(0, (sum(abs(r[i, j, k]) for j, k in pairs) - margin) / 6) for i in range(len(r))])
        assert whitening_loss(x, margin=margin).item() == pytest.approx(want)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 2] = mask[1, 3] = True
    want = np.mean([(abs(r[i, 0, 2]) + abs(r[i, 1, 3])) / 2 for i in range(len(r))])
    assert whitening_loss(x, mask).item() == pytest.approx(want)
    assert torch.autograd.gradcheck(instance_correlation, (x.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda x: whitening_loss(x, mask), (x,))


def test_the_loss_forgets_scale_and_shift_of_each_channel_and_image():
    x = draw(3, 4, 5, 5)
    a, b = draw(3, 4, 1, 1, seed=1), draw(3, 4, 1, 1, seed=2)
    assert_close(whitening_loss(a * x + b, eps=0.0), whitening_loss(x, eps=0.0))
    assert_close(instance_correlation(a.abs() * x + b, 0.0), instance_correlation(x, 0.0))


def test_a_margin_above_what_correlation_can_reach_is_zero_with_zero_gradient():
    """|R| reaches P / (P − 1): 4/3 on a map of 2 × 2 whose channels are equal."""
    x = draw(2, 1, 2, 2).expand(2, 3, 2, 2).clone().requires_grad_()
    assert instance_correlation(x, 0.0).max().item() == pytest.approx(4 / 3)
    loss = whitening_loss(x, margin=3 * 4 / 3)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, x)[0].abs().sum() == 0
    assert whitening_loss(x, margin=3 * 4 / 3 - 0.1) > 0
    waves = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]).view(1, 3, 2, 2)
    assert whitening_loss(waves).item() == 0  # uncorrelated


def test_a_mask_without_a_pair_gives_zero_and_can_be_differentiated():
    x = draw(2, 3, 2, 2).requires_grad_()
    for mask in (torch.zeros(3, 3, dtype=torch.bool),):
        loss = whitening_loss(x, mask)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, x)[0].abs().sum() == 0
    assert whitening_loss(draw(2, 1, 2, 2)).item() == 0  # one channel has no pair
    layer = InstanceWhitening2d(3)
    layer.mask.zero_()
    assert layer.loss(layer(x)).item() == 0


def best_cut(values, clusters):
    """The one-dimensional k-means by trying all cuts; the members of the lowest cluster."""
    v = np.sort(values)
    best = min(
        itertools.combinations(range(1, len(v)), clusters - 1),
        key=lambda cuts: sum(((p - p.mean()) ** 2).sum() for p in np.split(v, cuts)),
    )
    return v[best[0] - 1]


@pytest.mark.parametrize("clusters", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_sensitive_pairs_are_all_but_the_lowest_cluster_of_the_upper_triangle(clusters, seed):
    x = draw(5, 6, 4, 4, seed=seed)
    mixing = torch.eye(6, dtype=torch.float64) + draw(6, 6, seed=9) * torch.rand(6, 1) * 0.2
    first, second = instance_correlation(x), instance_correlation(torch.einsum("jk,nkhw->njhw", mixing, x))
    values = np.zeros((6, 6))
    for j, k in itertools.combinations(range(6), 2):
        values[j, k] = np.mean([np.var([first[i, j, k].item(), second[i, j, k].item()]) for i in range(5)])
    upper = np.triu(np.ones((6, 6), bool), 1)
    want = upper & (values > best_cut(values[upper], clusters))
    mask = sensitive_pairs(first, second, clusters)
    assert mask.tolist() == want.tolist()
    assert 0 < mask.sum() < 15


def test_what_instance_norm_removes_is_never_selected():
    x = draw(4, 5, 4, 4)
    r = instance_correlation(x, 0.0)
    assert not sensitive_pairs(r, r).any()
    brighter = instance_correlation(2.0 * x + 0.25, 0.0)  # powers of two: exactly the same numbers but for the shift
    assert (brighter - r).abs().max() < 1e-12
    one = instance_correlation(draw(2, 1, 3, 3))
    assert sensitive_pairs(one, one).tolist() == [[False]]
    two = instance_correlation(draw(2, 2, 3, 3))
    assert not sensitive_pairs(two, two * 0.5).any()  # a single pair: nothing to compare it with


def test_the_layer_is_instance_norm_and_its_mask_is_state_that_only_shrinks():
    layer, x = InstanceWhitening2d(4).double(), draw(3, 4, 5, 5)
    assert_close(layer(x), torch.nn.functional.instance_norm(x))
    assert_close(layer.loss(layer(x)), whitening_loss(x), rtol=1e-4, atol=1e-6)
    other = instance_correlation(x + draw(3, 1, 5, 5, seed=4) * torch.tensor([0, 0.1, 1, 3.0]).view(4, 1, 1))
    layer.select(instance_correlation(x), other)
    first = layer.mask.clone()
    assert 0 < first.sum() < 6
    twin = InstanceWhitening2d(4)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.mask, first)
    layer.mask |= torch.ones(4, 4, dtype=torch.bool).triu(1)
    layer.mask[0] = False
    layer.select(instance_correlation(x), other)
    assert (layer.mask <= first).all()
    assert not layer.mask[0].any()


def test_autocast_nan_and_wrong_use():
    x = draw(3, 4, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = whitening_loss(x.bfloat16())
    assert loss.dtype == torch.float32
    assert_close(loss, whitening_loss(x), rtol=0.05, atol=0.01)
    x[0, 0, 0, 0] = torch.nan
    assert whitening_loss(x).isnan()
    with pytest.raises(ValueError, match="NaN or infinity"):
        sensitive_pairs(instance_correlation(x), instance_correlation(x))
    with pytest.raises(ValueError, match=r"more than one position, got shape \(2, 3, 1, 1\)"):
        instance_correlation(torch.zeros(2, 3, 1, 1))
    for mask in (torch.ones(3, 3), torch.ones(4, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"mask must be bool \(3, 3\), got"):
            whitening_loss(torch.zeros(2, 3, 2, 2), mask)
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        whitening_loss(x, margin=-1.0)
    r = instance_correlation(draw(2, 3, 2, 2))
    with pytest.raises(ValueError, match="clusters must be 2 or more, got 1"):
        sensitive_pairs(r, r, 1)
    with pytest.raises(ValueError, match="the same images"):
        sensitive_pairs(r, r[:1])
    for shape in ((2, 3, 2, 2), (2, 4, 1, 1)):
        with pytest.raises(ValueError, match="got shape"):
            InstanceWhitening2d(4)(torch.zeros(shape))


# DSMNet's normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [True, False])
def test_position_norm_follows_the_formula(l2):
    layer, x = PositionNorm2d(4, l2=l2).double(), draw(3, 4, 3, 2)
    with torch.no_grad():
        layer.weight.copy_(draw(4, seed=1))
        layer.bias.copy_(draw(4, seed=2))
    want = np.empty(x.shape)
    for i, image in enumerate(x.numpy()):
        z = np.stack([(v - v.mean()) / np.sqrt(v.var() + 1e-5) for v in image])
        for p in np.ndindex(3, 2):
            at = z[(slice(None), *p)]
            length = max(np.sqrt((at**2).sum()), 1e-12) if l2 else 1
            want[(i, slice(None), *p)] = layer.weight.detach().numpy() * at / length + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), want, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x.requires_grad_(), *layer.parameters()))


def test_position_norm_has_length_one_and_forgets_affine_maps_of_a_channel():
    layer, x = PositionNorm2d(4, eps=1e-12).double(), draw(3, 4, 3, 2)
    y = layer(x)
    assert_close(y.norm(dim=1), torch.ones(3, 3, 2, dtype=torch.float64))
    scale = draw(3, 4, 1, 1, seed=1).abs() + 0.1
    assert_close(layer(scale * x + draw(3, 4, 1, 1, seed=2)), y)
    one = PositionNorm2d(1).double()
    assert_close(one(x[:, :1]), (x[:, :1] - x[:, :1].mean((2, 3), keepdim=True)).sign())
    assert torch.equal(layer(torch.ones(2, 4, 3, 2, dtype=torch.float64)), torch.zeros(2, 4, 3, 2, dtype=torch.float64))
    assert_close(
        PositionNorm2d(4, l2=False)(x.float()), torch.nn.functional.instance_norm(x.float()), rtol=1e-4, atol=1e-5
    )


def test_position_norm_state_autocast_nan_one_image_and_wrong_input():
    layer, x = PositionNorm2d(4), draw(3, 4, 3, 2, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.mul_(2)
    twin = PositionNorm2d(4)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), twin(x))
    assert torch.equal(layer(x[:1]), layer(x)[:1])
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    x[1] = torch.nan
    assert layer(x)[[0, 2]].isfinite().all()
    with pytest.raises(ValueError, match=r"images \(N, 4, H, W\), got shape \(3, 4\)"):
        layer(torch.zeros(3, 4))
