"""Style as a domain of one image: what ties style transfer to the rest of the library, with the conditions."""

from __future__ import annotations

import numpy as np
import pytest
import reference_discrepancy as discrepancy
import torch
from reference_style import covariance, power
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from deeptransfer.normalization import adapt_statistics
from deeptransfer.style import (
    AdaptiveResidualBlock,
    GroupwiseWhitenColor,
    StyleLoss,
    adaptive_instance_norm,
    channel_moments,
    dynamic_instance_norm,
    gram_matrix,
    matrix_power_psd,
    orthogonality,
    whiten_color,
)

TRANSFERS = [adaptive_instance_norm, whiten_color]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image(*shape, seed=0):
    mixing = draw(shape[1], shape[1], seed=seed + 100) + torch.eye(shape[1], dtype=torch.float64)
    return torch.einsum("dc,nc...->nd...", mixing, draw(*shape, seed=seed)) + seed + 1


CONTENT, STYLE = image(1, 4, 9, 11), image(1, 4, 10, 8, seed=1)


def moments(x):
    flat = x.flatten(2)
    return flat.mean(2), flat.var(2, correction=0), torch.stack([torch.cov(one, correction=0) for one in flat])


# AdaIN ----------------------------------------------------------------------------------------------------------------


def test_adain_is_adabn_with_the_content_image_as_target():
    """γ = √(v_style + ε) and β = μ_style; one image, so that the domain's statistics are the image's."""
    mean, var, _ = moments(STYLE)
    layer = nn.BatchNorm2d(4, dtype=torch.float64)
    layer.load_state_dict({"weight": (var[0] + layer.eps).sqrt(), "bias": mean[0]}, strict=False)
    adapt_statistics(layer, CONTENT)
    assert_close(layer.eval()(CONTENT), adaptive_instance_norm(CONTENT, STYLE))
    two = torch.cat([CONTENT, image(1, 4, 9, 11, seed=2)])
    adapt_statistics(layer, two)  # two images are another domain
    assert not torch.allclose(layer(two), adaptive_instance_norm(two, STYLE))


def test_adain_is_instance_norm_then_the_style_as_scale_and_shift():
    mean, var, _ = moments(STYLE)
    want = F.instance_norm(CONTENT, weight=(var[0] + 1e-5).sqrt(), bias=mean[0])
    assert_close(adaptive_instance_norm(CONTENT, STYLE), want)


def test_adain_has_the_moments_of_the_style():
    mean, var, _ = moments(adaptive_instance_norm(CONTENT, STYLE, eps=1e-12))
    want_mean, want_var, _ = moments(STYLE)
    assert_close(mean, want_mean)
    assert_close(var, want_var)


def test_adain_ignores_a_positive_affine_map_of_the_content_and_follows_one_of_the_style():
    scale, shift = torch.tensor([0.5, 2.0, 3.0, 1.0]).view(4, 1, 1), torch.tensor([1.0, -2.0, 0.0, 3.0]).view(4, 1, 1)
    got = adaptive_instance_norm(scale * CONTENT + shift, STYLE, eps=1e-13)
    assert_close(got, adaptive_instance_norm(CONTENT, STYLE, eps=1e-13), rtol=1e-9, atol=1e-9)
    got = adaptive_instance_norm(CONTENT, 3 * STYLE - 2, eps=1e-13)
    assert_close(got, 3 * adaptive_instance_norm(CONTENT, STYLE, eps=1e-13) - 2, rtol=1e-9, atol=1e-9)


def test_a_blend_of_styles_is_one_adain_with_blended_statistics():
    """Standard deviations and means blend, weights sum to 1."""
    other = image(1, 4, 6, 6, seed=5)
    blend = 0.3 * adaptive_instance_norm(CONTENT, STYLE) + 0.7 * adaptive_instance_norm(CONTENT, other)
    (m1, v1, _), (m2, v2, _) = moments(STYLE), moments(other)
    scale = 0.3 * (v1[0] + 1e-5).sqrt() + 0.7 * (v2[0] + 1e-5).sqrt()
    assert_close(blend, F.instance_norm(CONTENT, weight=scale, bias=(0.3 * m1 + 0.7 * m2)[0]))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_the_content_as_its_own_style_changes_nothing_whatever_the_ridge(transfer):
    for eps in (1e-5, 1.0):
        assert_close(transfer(CONTENT, CONTENT, eps=eps), CONTENT)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_strength_zero_is_the_content_and_strengths_mix_linearly(transfer):
    whole = transfer(CONTENT, STYLE)
    assert_close(transfer(CONTENT, STYLE, 0.0), CONTENT)
    assert_close(transfer(CONTENT, STYLE, 0.3), 0.3 * whole + 0.7 * CONTENT)


def test_dynamic_filters_of_one_pixel_and_channel_are_adain():
    """W = σ(s), b = μ(s), each image its own."""
    content, style = image(2, 4, 5, 5), image(2, 4, 6, 3, seed=1)
    mean, var, _ = moments(style)
    weight = (var + 1e-5).sqrt().view(2, 4, 1, 1, 1)
    assert_close(dynamic_instance_norm(content, weight, mean), adaptive_instance_norm(content, style))


def test_munits_block_normalises_as_adain_and_zero_affines_are_the_identity():
    block = AdaptiveResidualBlock(4).double()
    zero = torch.zeros(1, 2, 4, dtype=torch.float64)
    assert_close(block(CONTENT, zero, zero), CONTENT)
    mean, var, _ = moments(STYLE)
    gamma, beta = (var + 1e-5).sqrt(), mean
    got = block(CONTENT, gamma.expand(1, 2, 4), beta.expand(1, 2, 4))
    h = adaptive_instance_norm(block.conv1(CONTENT), STYLE).relu()
    assert_close(got, CONTENT + adaptive_instance_norm(block.conv2(h), STYLE))
    assert_close(block.train()(CONTENT, zero + 1, zero), block.eval()(CONTENT, zero + 1, zero))


# WCT ------------------------------------------------------------------------------------------------------------------


def test_wct_has_the_moments_of_the_style():
    mean, _, cov = moments(whiten_color(CONTENT, STYLE, eps=0.0, cut=0.0))
    want_mean, _, want = moments(STYLE)
    assert_close(mean, want_mean)
    assert_close(cov, want, rtol=1e-10, atol=1e-10)


def test_wct_is_coral_with_one_image():
    """Sun et al.: whiten the source rows, colour them by the target; rows are pixels, centred, without their +I."""
    source, target = CONTENT[0].flatten(1).numpy(), STYLE[0].flatten(1).numpy()
    centred = (source - source.mean(1, keepdims=True)).T  # (rows, C)
    coral = centred @ power(covariance(source), -0.5) @ power(covariance(target), 0.5)
    want = coral.T + target.mean(1, keepdims=True)
    np.testing.assert_allclose(whiten_color(CONTENT, STYLE, eps=0.0)[0].flatten(1).numpy(), want, rtol=1e-9, atol=1e-9)


def test_wct_of_independent_channels_is_adain():
    """Both covariances diagonal; the same ridge in both."""
    rows = torch.linalg.qr(torch.cat([torch.ones(30, 1, dtype=torch.float64), draw(30, 4)], 1))[0][:, 1:].T
    content = (rows * torch.tensor([[1.0], [2.0], [3.0], [4.0]])).view(1, 4, 5, 6) + 1
    style = (rows.flip(1) * torch.tensor([[2.0], [0.5], [1.0], [3.0]])).view(1, 4, 5, 6) - 2
    assert_close(whiten_color(content, style), adaptive_instance_norm(content, style))
    assert not torch.allclose(whiten_color(CONTENT, STYLE), adaptive_instance_norm(CONTENT, STYLE))


def test_one_channel_makes_wct_adain():
    assert_close(whiten_color(CONTENT[:, :1], STYLE[:, :1]), adaptive_instance_norm(CONTENT[:, :1], STYLE[:, :1]))


def test_a_linear_map_of_the_content_changes_wct_by_a_rotation_only():
    mixed = torch.einsum("dc,ncij->ndij", draw(4, 4, seed=7), CONTENT)
    one, other = (whiten_color(x, STYLE, eps=0.0, cut=0.0) for x in (CONTENT, mixed))
    white = [matrix_power_psd(moments(STYLE)[2][0], -0.5, 0.0) @ (x - x.mean((2, 3), keepdim=True)).flatten(2)[0]
             for x in (one, other)]  # fmt: skip
    rotation = white[1] @ white[0].T / white[0].shape[1]
    assert_close(rotation @ rotation.T, torch.eye(4, dtype=torch.float64))
    assert not torch.allclose(rotation, torch.eye(4, dtype=torch.float64), atol=1e-3)


def test_the_symmetric_root_moves_the_features_least():
    """Among all maps that whiten: here against the Cholesky factor and against PCA."""
    centred = (CONTENT - CONTENT.mean((2, 3), keepdim=True)).flatten(2)[0]
    cov = centred @ centred.T / centred.shape[1]
    values, vectors = torch.linalg.eigh(cov)
    maps = [matrix_power_psd(cov, -0.5), torch.linalg.inv(torch.linalg.cholesky(cov)), (vectors * values.rsqrt()).T]
    moved = [(w @ centred - centred).square().sum() for w in maps]
    assert moved[0] < min(moved[1:])


def test_the_scale_of_the_encoder_does_not_decide_how_many_directions_survive():
    """The cut is relative; released code cuts at 1e-5, whatever the scale."""
    flat = CONTENT.clone()
    flat[:, 3] = flat[:, 0] + 1e-2 * flat[:, 3]  # a direction that is small, not absent
    one = whiten_color(flat, STYLE, eps=0.0)
    for scale in (1e-3, 1e3):
        assert_close(whiten_color(scale * flat, STYLE, eps=0.0), one, rtol=1e-7, atol=1e-7)


def test_colouring_by_the_root_of_the_styles_covariance_is_wct_of_white_content():
    """The condition of GDWCT: the penalty on the layer before is zero, so there is nothing to whiten."""
    white = torch.linalg.qr(torch.cat([torch.ones(30, 1, dtype=torch.float64), draw(30, 4)], 1))[0][:, 1:].T * 30**0.5
    content = white.view(1, 4, 5, 6)
    mean, _, cov = moments(STYLE)
    values, vectors = torch.linalg.eigh(cov[0])
    factor = (vectors * values.sqrt()).view(1, 1, 4, 4)  # U D U^T = Σ^½: U the eigenvectors, D their roots
    layer = GroupwiseWhitenColor(4, 1).double()
    with torch.no_grad():
        layer.alpha.fill_(1.0)
    assert_close(layer(content, mean, factor), whiten_color(content, STYLE, eps=0.0))
    assert orthogonality(factor).item() < 1e-14


def test_one_channel_per_group_is_a_scale_by_the_absolute_value():
    layer = GroupwiseWhitenColor(4, 4).double()
    with torch.no_grad():
        layer.alpha.fill_(1.0)
    factor = torch.tensor([1.0, -2.0, 0.5, -1.0], dtype=torch.float64)
    mean = draw(1, 4)
    got = layer(CONTENT, mean, factor.view(1, 4, 1, 1))
    centred = CONTENT - CONTENT.mean((2, 3), keepdim=True)
    assert_close(got, factor.abs().view(4, 1, 1) * centred + mean.view(1, 4, 1, 1))


# Gram -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((1, 4, 3, 4), (1, 4, 3, 4)), ((1, 4, 3, 4), (1, 4, 2, 5))])
def test_the_gram_loss_is_mmd_under_the_squared_product(shapes):
    """Biased, positions as samples; sizes may differ since G is divided by the number of positions."""
    x, s = image(*shapes[0]), image(*shapes[1], seed=1)
    rows = [y[0].flatten(1).T.numpy() for y in (x, s)]
    want = discrepancy.mmd2(*rows, lambda a, b: float(a @ b) ** 2)
    assert StyleLoss([s])([x]).item() == pytest.approx(want, rel=1e-12)


def test_gatys_loss_is_that_mmd_over_four_n_squared():
    """His G is not divided and both images have one size: E = ‖M G − M A‖² / (4 N² M²)."""
    x, s, n, m = image(1, 4, 3, 4), image(1, 4, 3, 4, seed=1), 4, 12
    theirs = ((m * gram_matrix(x) - m * gram_matrix(s)) ** 2).sum() / (4 * n**2 * m**2)
    assert_close(theirs, StyleLoss([s])([x]) / (4 * n**2))


def test_the_gram_loss_does_not_see_where_things_are():
    shuffled = CONTENT.flatten(2)[:, :, torch.randperm(99, generator=torch.Generator().manual_seed(0))].view_as(CONTENT)
    assert_close(gram_matrix(shuffled), gram_matrix(CONTENT))
    assert StyleLoss([CONTENT])([shuffled]).item() < 1e-20


def test_the_loss_of_moments_is_zero_after_adain_and_the_gram_loss_after_wct():
    adain, wct = adaptive_instance_norm(CONTENT, STYLE, eps=1e-13), whiten_color(CONTENT, STYLE, eps=0.0, cut=0.0)
    assert StyleLoss([STYLE], statistic=channel_moments)([adain]).item() < 1e-18
    assert StyleLoss([STYLE])([wct]).item() < 1e-18
    assert StyleLoss([STYLE])([adain]).item() > 1e-3
