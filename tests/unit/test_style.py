"""Style transfer against NumPy, its gradients, and what it does with images that have little in them."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_discrepancy import central_differences
from reference_style import adain, convolve, gdwct, gram, instance_norm, power, wct
from torch.autograd import gradcheck
from torch.testing import assert_close

from deeptransfer.backbones import mobilenet_025
from deeptransfer.style import (
    AdaptiveResidualBlock,
    ContentLoss,
    GroupwiseWhitenColor,
    StyleFeatures,
    StyleLoss,
    adaptive_instance_norm,
    channel_moments,
    dynamic_instance_norm,
    gram_matrix,
    matrix_power_psd,
    mosaic,
    orthogonality,
    swirls,
    whiten_color,
    whitening_penalty,
)

TRANSFERS = [adaptive_instance_norm, whiten_color]
REFERENCES = {adaptive_instance_norm: adain, whiten_color: wct}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def image(*shape, seed=0):
    """Channels that are correlated, of different means and variances."""
    mixing = draw(shape[1], shape[1], seed=seed + 100) + torch.eye(shape[1], dtype=torch.float64)
    return torch.einsum("dc,nc...->nd...", mixing, draw(*shape, seed=seed)) + seed + 1


# Values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("shapes", [((3, 4, 5, 7), (3, 4, 6, 3)), ((3, 4, 5, 7), (1, 4, 9, 9)), ((2, 3, 11), (1, 3, 8)),
                                    ((1, 3, 3, 3, 2), (1, 3, 5, 5))])  # fmt: skip
@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0, 1.5])
def test_transfer_follows_the_formula(transfer, shapes, alpha):
    content, style = image(*shapes[0]), image(*shapes[1], seed=1)
    got = transfer(content, style, alpha)
    want = REFERENCES[transfer](content.numpy(), style.numpy(), alpha)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 5),
    side=st.integers(1, 5),
    shift=st.floats(-50, 50),
    scale=st.floats(0.01, 20),
    transfer=st.sampled_from(TRANSFERS),
)
def test_any_shape_and_scale_follows_the_formula(n, c, side, shift, scale, transfer):
    content, style = draw(n, c, side, side) * scale + shift, image(1, c, side + 1, 3, seed=1)
    got = transfer(content, style, eps=1e-3)
    want = REFERENCES[transfer](content.numpy(), style.numpy(), eps=1e-3)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("p", [0.5, -0.5, 1.0, -1.0, 0.3])
def test_power_is_that_of_the_singular_values(p):
    factor = draw(2, 5, 3)
    a = factor @ factor.mT  # rank 3 of 5
    got = matrix_power_psd(a, p)
    for i in range(2):
        np.testing.assert_allclose(got[i].numpy(), power(a[i].numpy(), p), rtol=1e-9, atol=1e-9)


def test_power_in_float32_has_eigenvalues_of_float64():
    """A root of a root squares the condition twice: float32 throughout would lose the small direction."""
    q = torch.linalg.qr(draw(6, 6))[0]
    a = (q * torch.tensor([1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-4], dtype=torch.float64)) @ q.T
    white = matrix_power_psd(a.float(), -0.5)
    assert white.dtype == torch.float32
    assert_close(white.double(), matrix_power_psd(a, -0.5), rtol=0, atol=0.02)
    assert matrix_power_psd(a.bfloat16(), 0.5).dtype == torch.float32


def test_gram_and_moments_follow_the_formula():
    x = image(2, 3, 4, 5)
    for i in range(2):
        np.testing.assert_allclose(gram_matrix(x)[i].numpy(), gram(x[i].numpy()), rtol=1e-12)
        flat = x[i].reshape(3, -1).numpy()
        want = np.stack([flat.mean(1), np.sqrt(flat.var(1) + 1e-5)])
        np.testing.assert_allclose(channel_moments(x)[i].numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("relative", [False, True])
def test_losses_follow_the_formula(relative):
    features = [image(2, 3, 4, 5), image(2, 2, 3, 3, seed=1)]
    style = [image(1, 3, 6, 6, seed=2), image(1, 2, 2, 5, seed=3)]
    weights = [0.5, 2.0]
    want = 0.0
    for x, s, w in zip(features, style, weights, strict=True):
        target = gram(s[0].numpy())
        scale = 1 / (target**2).sum() if relative else 1.0
        want += w * scale * np.mean([((gram(one.numpy()) - target) ** 2).sum() for one in x])
    assert StyleLoss(style, weights, relative)(features).item() == pytest.approx(want, rel=1e-10)
    content = [x + 1 for x in features]
    want = 0.0
    for x, c, w in zip(features, content, weights, strict=True):
        norm = np.mean([(one.numpy() ** 2).sum() for one in c])
        want += (
            w
            * (1 / norm if relative else 0.5)
            * np.mean([((a - b).numpy() ** 2).sum() for a, b in zip(x, c, strict=True)])
        )
    assert ContentLoss(content, weights, relative)(features).item() == pytest.approx(want, rel=1e-10)


def test_colouring_follows_the_formula():
    layer = GroupwiseWhitenColor(6, groups=2).double()
    content, mean, factor = image(2, 6, 4, 3), draw(2, 6, seed=1), draw(2, 2, 3, 3, seed=2)
    factor[0, 0, :, 1] = 0  # a direction that is absent
    got = layer(content, mean, factor)
    for i in range(2):
        want = gdwct(content[i].numpy(), mean[i].numpy(), factor[i].numpy(), layer.alpha.item())
        np.testing.assert_allclose(got[i].detach().numpy(), want, rtol=1e-10, atol=1e-10)


def test_penalties_follow_the_formula():
    x, factor = image(2, 4, 5, 5), draw(2, 2, 3, 3, seed=2)
    want = 0.0
    for one in x:
        for g in range(2):
            want += np.abs(np.cov(one[2 * g : 2 * g + 2].reshape(2, -1).numpy(), ddof=0) - np.eye(2)).sum()
    assert whitening_penalty(x, 2).item() == pytest.approx(want / (2 * 2 * 4), rel=1e-10)
    want = 0.0
    for s in factor.flatten(0, 1).numpy():
        u = s / np.sqrt((s**2).sum(0))
        want += np.abs(u.T @ u - np.eye(3)).sum()
    assert orthogonality(factor).item() == pytest.approx(want / 36, rel=1e-10)


def test_munits_block_follows_the_formula():
    block = AdaptiveResidualBlock(3).double()
    x, gamma, beta = draw(2, 3, 4, 5), draw(2, 2, 3, seed=1), draw(2, 2, 3, seed=2)
    got = block(x, gamma, beta).detach()
    for i in range(2):
        h = x[i].numpy()
        for k, convolution in enumerate((block.conv1, block.conv2)):
            padded = np.pad(h, ((0, 0), (1, 1), (1, 1)), mode="reflect")
            h = instance_norm(convolve(padded, convolution.weight.detach().numpy()))
            h = gamma[i, k].numpy()[:, None, None] * h + beta[i, k].numpy()[:, None, None]
            h = np.maximum(h, 0) if k == 0 else h
        np.testing.assert_allclose(got[i].numpy(), x[i].numpy() + h, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_dynamic_filters_follow_the_formula(groups):
    content, weight, bias = draw(2, 4, 5, 6), draw(2, 6, 4 // groups, 3, 3, seed=1), draw(2, 6, seed=2)
    got = dynamic_instance_norm(content, weight, bias, padding=1)
    for i in range(2):
        normalised, parts = instance_norm(content[i].numpy()), []
        for g in range(groups):
            into, out = 4 // groups, 6 // groups
            rows = normalised[g * into : (g + 1) * into]
            parts.append(convolve(rows, weight[i, g * out : (g + 1) * out].numpy(), padding=1))
        want = np.concatenate(parts) + bias[i].numpy()[:, None, None]
        np.testing.assert_allclose(got[i].numpy(), want, rtol=1e-9, atol=1e-9)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("styles", [1, 2])
def test_gradients_of_transfer(transfer, alpha, styles):
    content, style = image(2, 3, 3, 4).requires_grad_(), image(styles, 3, 2, 5, seed=1).requires_grad_()
    assert gradcheck(lambda c, s: transfer(c, s, alpha), (content, style), atol=1e-4, rtol=1e-3)


REPEATED = [(2.0, 2.0, 1.0, 0.5), (1.0, 1.0, 1.0, 1.0), (3.0, 3.0, 3.0, 1e-3), (1.0, 1.0, 0.0, 0.0)]


@pytest.mark.parametrize("values", REPEATED)
@pytest.mark.parametrize("p", [0.5, -0.5, 0.3])
def test_power_has_the_gradient_of_differences_at_repeated_eigenvalues(values, p):
    """Autograd through eigh gives NaN or infinity there. Where eigenvalues are cut, along directions that keep them."""
    q = torch.linalg.qr(draw(4, 4))[0]
    root = q[:, : sum(v > 0 for v in values)] * torch.tensor([v for v in values if v > 0], dtype=torch.float64).sqrt()
    weight = draw(4, 4, seed=1)

    def f(root):
        return (matrix_power_psd(root @ root.mT, p) * weight).sum()

    root.requires_grad_()
    (got,) = torch.autograd.grad(f(root), root)
    want = central_differences(lambda r: f(torch.from_numpy(r)).item(), root.detach().numpy().copy(), 1e-6)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("p", [0.5, -0.5, 1.0])
def test_gradcheck_of_the_power_at_repeated_eigenvalues(p):
    q = torch.linalg.qr(draw(4, 4))[0]
    a = ((q * torch.tensor([2.0, 2.0, 1.0, 0.5], dtype=torch.float64)) @ q.T).requires_grad_()
    assert gradcheck(lambda a: matrix_power_psd(a, p), a)


def test_autograd_through_eigh_is_not_finite_where_ours_is():
    """The reason for a backward of our own; when this fails, torch has one, too."""
    a = torch.diag(torch.tensor([2.0, 2.0, 1.0, 0.5], dtype=torch.float64)).requires_grad_()
    values, vectors = torch.linalg.eigh(a)
    weight = draw(4, 4)
    (theirs,) = torch.autograd.grad((((vectors * values.rsqrt()) @ vectors.mT) * weight).sum(), a)
    (ours,) = torch.autograd.grad((matrix_power_psd(a, -0.5) * weight).sum(), a)
    assert not torch.isfinite(theirs).all()
    assert torch.isfinite(ours).all()


def test_wct_of_white_features_has_the_gradient_of_differences():
    """The covariance is the identity: every eigenvalue repeats."""
    x = draw(3, 12)
    x = torch.linalg.qr((x - x.mean(1, keepdim=True)).T)[0].T * 12**0.5
    content, style = x.view(1, 3, 3, 4).clone().requires_grad_(), image(1, 3, 2, 5, seed=1)
    assert_close(x @ x.T / 12, torch.eye(3, dtype=torch.float64))
    assert gradcheck(lambda c: whiten_color(c, style), content, atol=1e-5)


def test_gradients_of_the_losses_and_layers():
    x = image(2, 4, 3, 3).requires_grad_()
    losses = [StyleLoss([image(1, 4, 2, 5, seed=1)]), StyleLoss([image(1, 4, 2, 5, seed=1)], statistic=channel_moments),
              ContentLoss([image(2, 4, 3, 3, seed=1)], relative=True)]  # fmt: skip
    for loss in losses:
        assert gradcheck(lambda x, loss=loss: loss([x]), x)
    layer = GroupwiseWhitenColor(4, 2).double()
    inputs = (x, draw(2, 4).requires_grad_(), draw(2, 2, 2, 2).requires_grad_())
    assert gradcheck(lambda *a: layer(*a), inputs)
    assert gradcheck(lambda x: whitening_penalty(x, 2), x)
    assert gradcheck(orthogonality, inputs[2])
    weight = draw(2, 4, 1, 1, 1, seed=3).requires_grad_()
    assert gradcheck(dynamic_instance_norm, (x, weight, draw(2, 4, seed=4).requires_grad_()), atol=1e-4)
    block = AdaptiveResidualBlock(4).double()
    assert gradcheck(block, (x, draw(2, 2, 4).requires_grad_(), draw(2, 2, 4, seed=1).requires_grad_()), atol=1e-4)


def test_gradient_of_the_style_loss_is_gatys():
    """∂E/∂F = (G − A) F / (N² M²) for his E; his mask [F > 0] is the ReLU's."""
    f, s = image(1, 3, 4, 4).requires_grad_(), image(1, 3, 4, 4, seed=1)
    n, m = 3, 16
    (got,) = torch.autograd.grad(StyleLoss([s])([f]) / (4 * n**2), f)
    flat, other = f.detach().flatten(2)[0], s.flatten(2)[0]
    want = (flat @ flat.T - other @ other.T) @ flat / (n**2 * m**2)
    assert_close(got.flatten(2)[0], want)


def test_targets_are_constants():
    style = image(1, 3, 4, 4).requires_grad_()
    assert not any(
        buffer.requires_grad for loss in (StyleLoss([style]), ContentLoss([style])) for buffer in loss.buffers()
    )


def test_second_derivatives():
    """AdaIN has them; WCT says that it has none."""
    content, style = image(1, 2, 2, 3).requires_grad_(), image(1, 2, 2, 3, seed=1)
    (grad,) = torch.autograd.grad(adaptive_instance_norm(content, style).square().sum(), content, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(grad.square().sum(), content)[0]).all()
    (grad,) = torch.autograd.grad(whiten_color(content, style).square().sum(), content, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


# Formats and little data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_statistics_in_float32(transfer, dtype):
    content, style = image(2, 4, 16, 16).to(dtype) * 100, image(1, 4, 16, 16, seed=1).to(dtype)
    got = transfer(content, style)
    assert got.dtype == dtype
    assert_close(got, transfer(content.float(), style.float()).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(transfer(content.float(), style.float()), transfer(content.double(), style.double()).float(),
                     rtol=1e-3, atol=1e-3)  # fmt: skip


def test_gram_does_not_overflow_in_half_precision():
    x = torch.full((1, 2, 64, 64), 300.0, dtype=torch.float16)
    assert_close(gram_matrix(x), torch.full((1, 2, 2), 90_000.0))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_memory_format_does_not_matter(transfer):
    content, style = image(2, 4, 5, 7), image(2, 4, 5, 7, seed=1)
    last = [x.contiguous(memory_format=torch.channels_last) for x in (content, style)]
    assert_close(transfer(*last), transfer(content, style))
    assert_close(transfer(content[:, :, ::2, 1:], style.mT), transfer(content[:, :, ::2, 1:].clone(), style.mT.clone()))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_constant_content_becomes_the_mean_of_the_style(transfer):
    content, style = torch.ones(1, 3, 4, 4, dtype=torch.float64, requires_grad=True), image(1, 3, 4, 5, seed=1)
    got = transfer(content, style)
    assert_close(got, style.mean((2, 3), keepdim=True).expand_as(got))
    got.square().sum().backward()
    assert torch.isfinite(content.grad).all()


def test_wct_with_a_constant_channel_and_no_ridge_is_finite():
    content, style = image(1, 3, 6, 6).clone(), image(1, 3, 4, 5, seed=1)
    content[:, 1] = 2.0
    content.requires_grad_()
    got = whiten_color(content, style, eps=0.0)
    got.square().sum().backward()
    assert torch.isfinite(got).all()
    assert torch.isfinite(content.grad).all()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wct_of_an_image_with_fewer_positions_than_channels(eps, dtype):
    """Its covariance has rank P − 1; the result is finite, and so is the gradient; rank is not invented."""
    content = draw(1, 12, 2, 3, dtype=dtype).requires_grad_()
    style = draw(1, 12, 9, 9, seed=1, dtype=dtype)
    got = whiten_color(content, style, eps=eps)
    got.square().sum().backward()
    assert torch.isfinite(content.grad).all()
    assert content.grad.abs().max() < 100
    flat = got.detach().flatten(2)[0].double()
    assert torch.linalg.matrix_rank(flat - flat.mean(1, keepdim=True), rtol=1e-4) <= 5
    assert_close(whiten_color(content, content, eps=eps), content, rtol=1e-3, atol=1e-3)


def test_one_position_becomes_the_mean_of_the_style():
    for transfer in TRANSFERS:
        got = transfer(draw(2, 3, 1, 1), image(1, 3, 4, 4))
        assert_close(got, image(1, 3, 4, 4).mean((2, 3), keepdim=True).expand_as(got))


def test_nan_stays_in_its_image_and_channel_of_adain_and_wct_refuses_it():
    content, style = image(2, 3, 4, 4).clone(), image(1, 3, 4, 4, seed=1)
    content[0, 1, 2, 2] = float("nan")
    got = adaptive_instance_norm(content, style)
    assert got[0, 1].isnan().all()
    assert torch.isfinite(got[1]).all()
    assert torch.isfinite(got[0, [0, 2]]).all()
    with pytest.raises(ValueError, match="NaN or infinity"):
        whiten_color(content, style)


@pytest.mark.parametrize(
    ("content", "style", "message"),
    [
        (draw(2, 3, 4, 4), draw(2, 4, 4, 4), "3 channels and style 4"),
        (draw(2, 3, 4, 4), draw(3, 3, 4, 4), "3 styles for 2 contents"),
        (draw(2, 3), draw(2, 3), "positions"),
        (draw(2, 3, 0, 4), draw(2, 3, 4, 4), "no values to measure"),
        (torch.ones(1, 3, 2, 2, dtype=torch.uint8), draw(1, 3, 4, 4), "divide bytes by 255"),
    ],
)
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_what_does_not_fit_is_refused(transfer, content, style, message):
    with pytest.raises(ValueError, match=message):
        transfer(content, style)


def test_other_errors_name_the_value():
    x = image(2, 4, 3, 3)
    cases = [
        (lambda: whiten_color(x, x, eps=-1.0), "eps must be 0 or more, got -1"),
        (lambda: matrix_power_psd(draw(3, 4), 0.5), r"square matrices .* got shape \(3, 4\)"),
        (lambda: matrix_power_psd(draw(3, 3), 0.5, cut=-1), "cut must be 0 or more"),
        (lambda: gram_matrix(draw(3, 4)), "positions"),
        (lambda: StyleLoss([]), "one layer or more"),
        (lambda: ContentLoss(x), "one layer or more"),
        (lambda: StyleLoss([x], weights=[1, 2]), "2 weights for the features of 1 layers"),
        (lambda: StyleLoss([torch.zeros(1, 2, 3, 3)], relative=True), "target0 are zero"),
        (lambda: StyleLoss([x])([x, x]), "1 layers"),
        (lambda: ContentLoss([x])([x[:, :2]]), "does not fit"),
        (lambda: GroupwiseWhitenColor(4, 3), "groups must divide the 4 channels"),
        (lambda: GroupwiseWhitenColor(4, 2)(x, draw(2, 4), draw(2, 4, 2, 2)), "factor"),
        (lambda: AdaptiveResidualBlock(4)(x.float(), draw(2, 2, 3), draw(2, 2, 4)), "gamma must be"),
        (lambda: dynamic_instance_norm(x, draw(2, 4, 3, 1, 1), draw(2, 4)), "do not divide 4"),
        (lambda: dynamic_instance_norm(x, draw(1, 4, 1, 1, 1), draw(1, 4)), "needs filters"),
        (lambda: whitening_penalty(x, 3), "groups"),
        (lambda: orthogonality(draw(2, 3)), "square"),
        (lambda: swirls(0, 4), "height is too small"),
        (lambda: mosaic(4, 4, tiles=1), "tiles is too small"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_losses_reload_their_targets():
    features = [image(1, 3, 4, 4)]
    loss, other = (StyleLoss([image(1, 3, 5, 5, seed=s)], relative=True) for s in (1, 2))
    want = loss(features)
    assert not torch.isclose(other(features), want)
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert_close(other(features), want)
    layer = GroupwiseWhitenColor(4, 2)
    with torch.no_grad():
        layer.alpha.fill_(0.25)
    again = GroupwiseWhitenColor(4, 2)
    again.load_state_dict(layer.state_dict())
    assert again.alpha.item() == 0.25


def test_one_image_does_not_change_its_neighbour():
    content, style = image(3, 4, 5, 5), image(3, 4, 5, 5, seed=1)
    for transfer in TRANSFERS:
        assert_close(transfer(content, style)[1:2], transfer(content[1:2], style[1:2]))
    layer, mean, factor = GroupwiseWhitenColor(4, 2).double(), draw(3, 4), draw(3, 2, 2, 2)
    assert_close(layer(content, mean, factor)[1:2], layer(content[1:2], mean[1:2], factor[1:2]))


# Features ------------------------------------------------------------------------------------------------------------


def test_features_follow_the_convolutions_one_by_one():
    """Plain loops in float64: pad, multiply, add the bias, cut at 0 and 6; stride 2 in three layers."""
    picture = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = StyleFeatures(["conv1", "pw1", "dw2", "pw2"])
    stored = {name: value.double().numpy() for name, value in network.state_dict().items()}
    x, want = 2 * picture[0].numpy() - 1, {}
    for name, halves in (("conv1", True), ("dw1", False), ("pw1", False), ("dw2", True), ("pw2", False)):
        weight, bias = stored[f"{name}_weight"], stored[f"{name}_bias"]
        if halves:
            x = np.pad(x, ((0, 0), (0, 1), (0, 1)))
        padding = 1 if weight.shape[2] == 3 and not halves else 0
        if name.startswith("dw"):
            x = np.concatenate([convolve(x[c : c + 1], weight[c : c + 1], padding) for c in range(len(x))])
        else:
            x = convolve(x, weight, padding)
        x = np.clip(x[:, :: 1 + halves, :: 1 + halves] + bias[:, None, None], 0, 6)
        want[name] = x
    for name, got in zip(network.layers, network(picture), strict=True):
        np.testing.assert_allclose(got[0].numpy(), want[name], atol=1e-10)


def test_features_are_those_of_the_network_that_they_were_cut_from():
    path = Path(os.environ.get("DEEPTRANSFER_DATA", "nowhere"), "weights", "mobilenet_v1_0.25_224_imagenet.npz")
    if not path.is_file():
        pytest.skip("no MobileNet weights in DEEPTRANSFER_DATA")
    network = mobilenet_025(path, classes=1).eval()
    picture = torch.rand(2, 3, 33, 48, generator=torch.Generator().manual_seed(0))
    x = 2 * picture - 1
    for block in list(network.features.children())[:6]:
        x = block(x)
    assert_close(StyleFeatures(["pw5"])(picture)[0], x, rtol=1e-4, atol=1e-4)


def test_features_have_no_parameters_pass_gradients_and_name_their_layers():
    network = StyleFeatures(("pw5", "conv1"))
    assert not list(network.parameters())
    picture = torch.rand(1, 3, 17, 16, requires_grad=True)
    deep, first = network(picture)
    assert (deep.shape[1], first.shape[1]) == (64, 8)
    deep.sum().backward()
    assert picture.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"unknown layers \['pw6'\]: there are conv1, dw1"):
        StyleFeatures(["pw6"])
    with pytest.raises(ValueError, match="colour images"):
        network(torch.rand(1, 1, 8, 8))


# Pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [swirls, mosaic])
def test_pictures_are_the_same_for_a_seed_and_in_range(picture):
    one, again, other = picture(33, 41, 3), picture(33, 41, 3), picture(33, 41, 4)
    assert one.shape == (3, 33, 41)
    assert one.dtype == torch.float32
    assert 0 <= one.min() < 0.3 < 0.7 < one.max() <= 1
    assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one, other)
    picture(1, 1)


def test_strokes_follow_lines():
    """A pixel is more like its neighbours of one stroke than like independent noise."""
    fine = swirls(64, 64, length=12)
    noise = swirls(64, 64, length=1)
    changes = [(x[:, :, 1:] - x[:, :, :-1]).abs().mean() for x in (fine, noise)]
    assert changes[0] < changes[1]
