"""Normalised weights, and what a convolution amplifies, against NumPy and the dense matrix."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from reference_style import convolve
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

from deeptransfer.normalization import adapt_statistics
from deeptransfer.style import adaptive_instance_norm
from deeptransfer.weights import (
    NewtonOrthogonal,
    circular_convolution_norm,
    convolution_norm,
    modulated_conv2d,
    noisy_weights,
    reshaped_bound,
    reshaped_norm,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Orthogonality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (8, 4, 1, 1), (5, 7), (6, 6)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("iterations", [0, 1, 3, 5])
def test_singular_values_follow_the_polynomial(shape, center, iterations):
    """p(s) = s (3 − s²) / 2, T times, from those of Z over the root of the norm of its Gram matrix; (8, 4) is tall."""
    weight = draw(*shape)
    z = weight.flatten(1).numpy()
    z = z - z.mean(1, keepdims=True) if center else z
    s = np.linalg.svd(z, compute_uv=False)
    s = s / np.sqrt(np.sqrt((s**4).sum()))
    for _ in range(iterations):
        s = s * (3 - s**2) / 2
    got = NewtonOrthogonal(iterations, scale=1.5, center=center)(weight)
    assert got.shape == shape
    np.testing.assert_allclose(np.linalg.svd(got.flatten(1).numpy(), compute_uv=False), 1.5 * s, atol=1e-12)


def test_it_keeps_the_directions_of_the_weight():
    """W = U p(S) Vᵀ, where Z = U S Vᵀ."""
    z = draw(3, 5)
    u, s, vt = np.linalg.svd(z.numpy(), full_matrices=False)
    s = s / np.sqrt(np.sqrt((s**4).sum()))
    want = u @ np.diag(s * (3 - s**2) / 2) @ vt
    np.testing.assert_allclose(NewtonOrthogonal(1, center=False)(z).numpy(), want, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_many_iterations_reach_torchs_orthogonal_space(shape):
    """The nearest matrix with orthonormal rows, or columns: the polar factor."""
    got = NewtonOrthogonal(40, center=False)(draw(*shape))
    u, _, vt = np.linalg.svd(draw(*shape).numpy(), full_matrices=False)
    np.testing.assert_allclose(got.numpy(), u @ vt, atol=1e-10)
    layer = parametrizations.orthogonal(nn.Linear(shape[1], shape[0], dtype=torch.float64))
    small = min(shape)
    for w in (got, layer.weight.detach()):
        gram = w @ w.T if shape[0] == small else w.T @ w
        assert_close(gram, torch.eye(small, dtype=torch.float64))


def test_centring_costs_a_square_matrix_a_rank():
    weight = draw(4, 4)
    for center, smallest in ((True, 0.0), (False, 1.0)):
        values = torch.linalg.svdvals(NewtonOrthogonal(40, center=center)(weight))
        assert values[-1].item() == pytest.approx(smallest, abs=1e-7)
        assert_close(values[:-1], torch.ones(3, dtype=torch.float64))


def test_orthogonality_as_parametrisation_trains_reloads_and_is_alike_in_evaluation():
    layer = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    parametrize.register_parametrization(layer, "weight", NewtonOrthogonal())
    layer(draw(1, 3, 5, 5)).square().sum().backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0
    assert_close(layer.train().weight, layer.eval().weight, rtol=0, atol=0)
    again = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    parametrize.register_parametrization(again, "weight", NewtonOrthogonal())
    again.load_state_dict(layer.state_dict())
    assert_close(again.weight, layer.weight, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 3, 1, 2), (5, 3)])
def test_gradients_of_orthogonality(shape):
    assert gradcheck(NewtonOrthogonal(3), draw(*shape).requires_grad_())


def test_weights_of_zeros_and_half_precision():
    zero = torch.zeros(3, 4, requires_grad=True)
    got = NewtonOrthogonal()(zero)
    got.sum().backward()
    assert (got == 0).all()
    assert torch.isfinite(zero.grad).all()
    half = NewtonOrthogonal(20, center=False)(draw(4, 6).to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert_close(torch.linalg.svdvals(half.float()), torch.ones(4), rtol=0.01, atol=0.01)


# Demodulation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_follows_the_formula(demodulate):
    x, weight, style = draw(2, 3, 5, 6), draw(4, 3, 3, 3, seed=1), draw(2, 3, seed=2)
    got = modulated_conv2d(x, weight, style, demodulate, padding=1)
    for i in range(2):
        w = weight.numpy() * style[i].numpy()[None, :, None, None]
        if demodulate:
            w = np.stack([one / np.sqrt((one**2).sum() + 1e-8) for one in w])
        np.testing.assert_allclose(got[i].numpy(), convolve(x[i].numpy(), w, padding=1), rtol=1e-9, atol=1e-9)


def test_modulating_the_weights_is_scaling_inputs_and_outputs():
    """The form that is not fused: scale the inputs by s, convolve, scale the outputs by the demodulation."""
    x, weight, style = draw(2, 3, 5, 6), draw(4, 3, 3, 3, seed=1), draw(2, 3, seed=2)
    scaled = torch.nn.functional.conv2d(x * style[:, :, None, None], weight)
    d = ((weight[None] * style[:, None, :, None, None]).square().sum((2, 3, 4)) + 1e-8).rsqrt()
    assert_close(modulated_conv2d(x, weight, style), scaled * d[:, :, None, None])


def test_demodulated_outputs_have_variance_one_in_expectation_and_ignore_a_scale_of_the_style():
    x, weight, style = draw(8, 16, 34, 34), draw(32, 16, 3, 3, seed=1), draw(8, 16, seed=2).abs() + 0.1
    got = modulated_conv2d(x, weight, style)
    assert got.std().item() == pytest.approx(1, abs=0.02)
    assert_close(modulated_conv2d(x, weight, 7 * style), got, rtol=1e-6, atol=1e-6)


def test_a_spike_survives_demodulation_and_not_adain():
    """Why StyleGAN2 left instance normalisation: what one channel is relative to another is information."""
    x = draw(1, 2, 16, 16)
    x[:, 0] *= 100
    style = torch.ones(1, 2, dtype=torch.float64)
    weight = torch.eye(2, dtype=torch.float64).view(2, 2, 1, 1)
    outputs = modulated_conv2d(x, weight, style), adaptive_instance_norm(x, draw(1, 2, 16, 16, seed=1))
    ratios = [y[0, 0].std() / y[0, 1].std() for y in outputs]
    assert ratios[0] > 80
    assert ratios[1] < 1.3


def test_gradients_stride_and_half_precision_of_modulation():
    inputs = (draw(2, 2, 4, 4), draw(3, 2, 2, 2, seed=1), draw(2, 2, seed=2))
    assert gradcheck(modulated_conv2d, tuple(x.requires_grad_() for x in inputs))
    strided = modulated_conv2d(*inputs, stride=2)
    assert_close(strided, modulated_conv2d(*inputs)[:, :, ::2, ::2])
    half = modulated_conv2d(inputs[0].bfloat16(), inputs[1] * 1e4, inputs[2])
    assert half.dtype == torch.bfloat16
    assert_close(half.double(), modulated_conv2d(*inputs), rtol=0.05, atol=0.05)
    zeros = modulated_conv2d(inputs[0], inputs[1], torch.zeros(2, 2, dtype=torch.float64))
    assert (zeros == 0).all()
    last = inputs[0].detach().contiguous(memory_format=torch.channels_last)
    assert_close(modulated_conv2d(last, *inputs[1:]), modulated_conv2d(*inputs))


# What a layer amplifies --------------------------------------------------------------------------------------------


def dense_norm(layer, size):
    """The largest singular value of the convolution's matrix, an image of one pixel at a time."""
    basis = torch.eye(layer.in_channels * size[0] * size[1], dtype=torch.float64).view(-1, layer.in_channels, *size)
    plain = copy.deepcopy(layer).double()
    plain.bias = None
    return np.linalg.svd(plain(basis).flatten(1).detach().numpy(), compute_uv=False)[0]


torch.manual_seed(0)  # how many iterations a layer needs depends on its weights
LAYERS = [
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(2, 3, 3),
    nn.Conv2d(2, 4, 3, stride=2, padding=1),
    nn.Conv2d(2, 3, 4, stride=2, padding=1),
    nn.Conv2d(4, 4, 3, padding=1, groups=2),
    nn.Conv2d(2, 2, 3, dilation=2, padding=2),
    nn.Conv2d(2, 2, (3, 2), stride=(3, 2)),
    nn.Conv2d(2, 2, 3, stride=2, dilation=2, padding=2),
    nn.Conv2d(2, 3, 1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_power_iteration_finds_the_norm_and_the_bound_holds(layer):
    exact = dense_norm(layer, (6, 6))
    found = convolution_norm(layer, (6, 6), iterations=2000)
    assert found == pytest.approx(exact, rel=1e-4)
    assert found <= exact * (1 + 1e-12)
    assert convolution_norm(layer, (6, 6), iterations=3) <= found
    assert exact <= reshaped_bound(layer) * (1 + 1e-12)
    if layer.kernel_size in ((1, 1), (3, 2)):  # patches do not overlap
        assert exact == pytest.approx(reshaped_norm(layer.weight), rel=1e-6)


@pytest.mark.parametrize("mode", ["circular", "reflect"])
def test_other_paddings(mode):
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    assert convolution_norm(layer, (5, 5), iterations=2000) == pytest.approx(dense_norm(layer, (5, 5)), rel=1e-4)
    with pytest.raises(ValueError, match="padding with zeros"):
        reshaped_bound(layer)


def test_on_a_ring_the_spectrum_is_exact_and_bounds_padding_with_zeros():
    ring = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    assert circular_convolution_norm(ring.weight, (5, 7)) == pytest.approx(dense_norm(ring, (5, 7)), rel=1e-6)
    padded = nn.Conv2d(2, 3, 3, padding=1)
    bound = circular_convolution_norm(padded.weight, (7, 7))
    assert 0.7 * bound < dense_norm(padded, (5, 5)) <= bound * (1 + 1e-12)


def test_a_constant_kernel_comes_near_the_bound_that_spectral_norm_does_not_see():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    normalised = parametrizations.spectral_norm(layer).eval()
    assert reshaped_norm(normalised.weight) == pytest.approx(1, abs=1e-4)
    assert 2.9 < convolution_norm(normalised, (32, 32)) <= reshaped_bound(normalised)
    assert reshaped_bound(normalised) == pytest.approx(3, abs=1e-3)


def test_with_stride_and_dilation_alike_a_pixel_lies_in_every_tap():
    """Half of the pixels are read, by all nine taps: a constant kernel exceeds what the stride alone would allow."""
    layer = nn.Conv2d(1, 1, 3, stride=2, dilation=2, padding=2, bias=False)
    nn.init.ones_(layer.weight)
    found = convolution_norm(layer, (32, 32))
    assert math.sqrt(4) * reshaped_norm(layer.weight) < found <= reshaped_bound(layer)
    assert reshaped_bound(layer) == pytest.approx(9)


def test_norms_of_nothing():
    layer = nn.Conv2d(1, 1, 3)
    nn.init.zeros_(layer.weight)
    assert convolution_norm(layer, (4, 4)) == 0.0
    assert circular_convolution_norm(layer.weight, (4, 4)) == 0.0


# Noise -------------------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double()


def test_noise_is_there_inside_only_and_a_seed_is_a_chip():
    model = net()
    before = copy.deepcopy(model.state_dict())
    inside = {}
    for seed in (0, 1, 0):
        with noisy_weights(model, 0.1, seed) as noisy:
            assert noisy is model
            inside.setdefault(seed, model[0].weight.detach().clone())
            assert_close(model[0].weight.detach(), inside[seed], rtol=0, atol=0)
            assert_close(model[0].bias, before["0.bias"], rtol=0, atol=0)
    assert not torch.equal(inside[0], inside[1])
    for name, value in model.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)
    with pytest.raises(KeyError), noisy_weights(model, 0.1):
        raise KeyError
    assert_close(model[0].weight.detach(), before["0.weight"], rtol=0, atol=0)


def test_noise_has_the_share_of_the_largest_weight():
    model = nn.Linear(300, 300)
    weight = model.weight.detach().clone()
    with noisy_weights(model, 0.2):
        noise = model.weight.detach() - weight
    assert noise.std().item() == pytest.approx(0.2 * weight.abs().max().item(), rel=0.02)
    assert abs(noise.mean().item()) < 0.001


def test_a_shared_weight_gets_its_errors_once():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    with noisy_weights(model[0], 0.2):
        want = model[0].weight.detach().clone()
    model[1].weight = model[0].weight
    with noisy_weights(model, 0.2):
        assert_close(model[1].weight.detach(), want, rtol=0, atol=0)


def test_a_fixed_chip_adds_the_spread_of_its_inputs_and_fresh_noise_their_size():
    """To the variance of a pre-activation over images: τ² tr Cov(x), against τ² Σ E[x²]."""
    x = draw(500, 20) * 0.5 + 2
    layer = nn.Linear(20, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, 1.0)
    clean, fixed, outputs = layer(x).var(correction=0).item(), [], []
    for seed in range(400):
        with noisy_weights(layer, 0.1, seed), torch.no_grad():
            outputs.append(layer(x)[:, 0])
            fixed.append(outputs[-1].var(correction=0))
    tau2 = 0.01
    want = clean + tau2 * x.var(0, correction=0).sum().item()
    assert torch.stack(fixed).mean().item() == pytest.approx(want, rel=0.02)
    fresh = clean + tau2 * x.square().mean(0).sum().item()
    assert torch.stack(outputs).var(correction=0).item() == pytest.approx(fresh, rel=0.1)


def test_adapt_statistics_inside_is_adabn_with_the_device_as_domain():
    model, x = net(), draw(64, 1, 8, 8)
    adapt_statistics(model, x)
    model.eval()
    with torch.no_grad(), noisy_weights(model, 0.5):
        adapt_statistics(model, x)
        z = model[1](model[0](x))
        assert_close(z.mean((0, 2, 3)), torch.zeros(8, dtype=torch.float64), atol=1e-12, rtol=0)
        assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)))


def test_errors_name_the_value():
    parametrised = parametrizations.spectral_norm(nn.Linear(3, 3))
    for call, message in [
        (lambda: NewtonOrthogonal(-1), "iterations must be 0 or more, got -1"),
        (lambda: NewtonOrthogonal()(draw(3)), r"shape \(3,\)"),
        (lambda: modulated_conv2d(draw(1, 2, 3, 3), draw(1, 2, 1, 1), draw(1, 3)), "do not fit"),
        (lambda: convolution_norm(LAYERS[0], (4, 4), 0), "iterations"),
        (lambda: convolution_norm(LAYERS[1], (2, 2)), "does not fit into an image"),
        (lambda: circular_convolution_norm(draw(1, 1, 3, 3), (2, 4)), "ring"),
        (lambda: reshaped_norm(draw(3)), "expected a weight"),
        (lambda: reshaped_norm(draw(3, 3), 2), "2 groups"),
        (lambda: noisy_weights(nn.Linear(1, 1), -0.1).__enter__(), "sigma must be 0 or more"),
        (lambda: noisy_weights(nn.ReLU(), 0.1).__enter__(), "no convolution"),
        (lambda: noisy_weights(parametrised, 0.1).__enter__(), "computes its weight"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert math.isfinite(convolution_norm(LAYERS[0], (1, 1)))
