"""The template and its building blocks: moments of each image, weights in place of parts, layers made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deeptransfer.normalization import DomainBatchNorm2d, DomainNorm, Moments, forward_domains, use_domain
from deeptransfer.normalization.passes import (
    measure,
    measure_images,
    measure_weighted,
    scale_and_shift_images,
)

SHAPES = [(5, 3), (5, 3, 7), (5, 3, 4, 2), (5, 3, 2, 3, 2)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def membership(n=5, k=3, seed=3):
    return draw(n, k, seed=seed).softmax(1)


def weighted_by_hand(x, weights):
    """Each value of an image counts with the image's weight."""
    mean, var, n = np.zeros((weights.shape[1], x.shape[1])), np.zeros((weights.shape[1], x.shape[1])), []
    for d in range(weights.shape[1]):
        w = np.repeat(weights[:, d], x[0, 0].size)
        for c in range(x.shape[1]):
            values = x[:, c].reshape(-1)
            mean[d, c] = sum(w * values) / sum(w)
            var[d, c] = sum(w * (values - mean[d, c]) ** 2) / sum(w)
        n.append(sum(w) ** 2 / sum(w**2))
    return mean, var, np.array(n)


# Building blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}D")
def test_moments_of_each_image(shape):
    x = draw(*shape)
    mean, var = measure_images(x)
    flat = x.numpy().reshape(5, 3, -1)
    np.testing.assert_allclose(mean.numpy(), flat.mean(2), rtol=1e-12)
    np.testing.assert_allclose(var.numpy(), flat.var(2), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}D")
def test_moments_under_weights(shape):
    x, weights = draw(*shape), membership() * 3  # only proportions matter
    for got, want in zip(measure_weighted(x, weights), weighted_by_hand(x.numpy(), weights.numpy()), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}D")
def test_vectors_for_each_image(shape):
    x, mean, scale, shift = draw(*shape), *(draw(5, 3, seed=s) for s in (1, 2, 3))
    by_hand = x.clone()
    for i in range(5):
        for c in range(3):
            by_hand[i, c] = (x[i, c] - mean[i, c]) * scale[i, c] + shift[i, c]
    assert_close(scale_and_shift_images(x, mean, scale, shift), by_hand)


def test_weights_of_zero_and_one_are_the_parts_of_a_batch():
    x = draw(5, 3, 4, 2)
    weights = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    _, mean, var = measure(x, [2, 3])
    assert_close(measure_weighted(x, weights), (mean, var, torch.tensor([16.0, 24.0], dtype=torch.float64)))


def test_a_domain_without_weight_is_zero_and_its_gradient_finite():
    x, weights = draw(5, 3, 2, 2).requires_grad_(), membership()
    weights[:, 1] = 0
    weights.requires_grad_()
    mean, var, n = measure_weighted(x, weights)
    assert mean[1].abs().sum() == var[1].abs().sum() == n[1] == 0
    (mean.sum() + var.square().sum() + n.sum()).backward()
    assert x.grad.abs().max() < 1e3
    assert weights.grad.abs().max() < 1e3


@pytest.mark.parametrize("shape", SHAPES[::2], ids=["2D", "4D"])
def test_gradients_of_the_building_blocks(shape):
    x, weights = draw(*shape).requires_grad_(), membership().requires_grad_()
    vectors = [draw(5, 3, seed=s).requires_grad_() for s in (1, 2, 3)]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(measure_images, (x,))
        assert check(measure_weighted, (x, weights))
        assert check(scale_and_shift_images, (x, *vectors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_building_blocks_are_accurate_for_a_large_mean(dtype):
    """Mean 1000 (8 where there are few digits), deviation 1: E[x²] − E[x]² would be off by per cents."""
    x = (draw(16, 4, 20, 20) + (1000 if dtype == torch.float32 else 8)).to(dtype)
    weights = membership(16)
    for got, want in [
        *zip(measure_images(x), measure_images(x.double()), strict=True),
        *zip(measure_weighted(x, weights), measure_weighted(x.double(), weights), strict=True),
    ]:
        assert got.dtype == torch.float32
        assert_close(got.double(), want, rtol=2e-6, atol=0)
    mean, var = measure_images(x)
    y = scale_and_shift_images(x, mean, var.rsqrt(), mean * 0)
    assert y.dtype == dtype
    exact = (x.double() - mean.double()[..., None, None]) / var.double().sqrt()[..., None, None]
    tolerance = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)


def test_channels_last_images_have_the_same_numbers():
    x, vectors = draw(5, 3, 4, 2), [draw(5, 3, seed=s) for s in (1, 2, 3)]
    twin = x.contiguous(memory_format=torch.channels_last)
    assert_close(scale_and_shift_images(twin, *vectors), scale_and_shift_images(x, *vectors))
    assert_close(measure_weighted(twin, membership()), measure_weighted(x, membership()))


# Layers that are one override --------------------------------------------------------------------------------------


class Dson(DomainNorm):
    """Seo et al. 2020: a mixture of the image's and the domain's moments."""

    def __init__(self, num_features, **options):
        super().__init__(num_features, **options)
        self.mix_mean = nn.Parameter(torch.ones_like(self.running_mean[:, :1]).repeat(1, 2))
        self.mix_var = nn.Parameter(self.mix_mean.detach().clone())

    def blend(self, x, row, moments):
        mean, var = measure_images(x)
        a, b = self.mix_mean[row].softmax(0), self.mix_var[row].softmax(0)
        return Moments(a[0] * mean + a[1] * moments.mean, b[0] * var + b[1] * moments.var, moments.n)


class Ibn(DomainNorm):
    """Pan et al. 2018: the first half of the channels by the image."""

    def blend(self, x, row, moments):
        first = torch.arange(x.shape[1]) < x.shape[1] // 2
        images = measure_images(x)
        mean, var = (torch.where(first, i, b) for i, b in zip(images, moments[:2], strict=True))
        return Moments(mean, var, moments.n)


class InstanceAware(DomainNorm):
    """Gong et al. 2022: the domain's moments, moved where the image's are too far away to be chance."""

    def blend(self, x, row, moments, k=1.0):
        mean, var = measure_images(x)
        positions = x[0, 0].numel()
        shrink = lambda d, limit: d.sign() * (d.abs() - limit).relu()  # noqa: E731
        limit_mean = k * ((moments.var + self.eps) / positions).sqrt()
        limit_var = k * (moments.var + self.eps) * (2 / (positions - 1)) ** 0.5
        moved = moments.mean + shrink(mean - moments.mean, limit_mean)
        return Moments(moved, (moments.var + shrink(var - moments.var, limit_var)).relu(), moments.n)


class Weighted(DomainNorm):
    """Mancini et al. 2018: every image is normalised by all domains, each with its weight."""

    def forward(self, x, weights):
        if self.training:
            mean, var, n = measure_weighted(x, weights)
            self.track([Moments(m, v / (1 - 1 / i), i) for m, v, i in zip(mean, var, n, strict=True)], (n > 1).tolist())
        else:
            mean, var = self.running_mean, self.running_var
        rate = (var + self.eps).rsqrt()
        centre, scale = weights @ mean, weights @ rate
        shift = (weights.unsqueeze(2) * rate * (centre.unsqueeze(1) - mean)).sum(1)
        return scale_and_shift_images(x, centre, scale * self.weight, shift * self.weight + self.bias)


class MixStyle(nn.Module):
    """Zhou et al. 2021: each image in the style of a mixture of its own and its partner's."""

    def __init__(self, partner, share):
        super().__init__()
        self.partner, self.share = partner, share

    def forward(self, x, eps=1e-6):
        mean, var = measure_images(x)
        deviation = (var + eps).sqrt()
        other_mean, other_deviation = mean[self.partner].detach(), deviation[self.partner].detach()
        mean, deviation = mean.detach(), deviation.detach()
        scale = (self.share * deviation + (1 - self.share) * other_deviation) / deviation
        return scale_and_shift_images(x, mean, scale, self.share * mean + (1 - self.share) * other_mean)


def per_position(vectors, x):
    return vectors.reshape(*vectors.shape, *[1] * (x.ndim - 2))


def numpy_moments(x):
    axes = tuple(range(2, x.ndim))
    return x.mean(axes), x.var(axes)


def dson_by_hand(parts, layer):
    for d, x in enumerate(parts):
        m, b = numpy_moments(x)
        mean, var = m.mean(0), (b + (m - m.mean(0)) ** 2).mean(0)
        a, c = (p[d].softmax(0).detach().numpy() for p in (layer.mix_mean, layer.mix_var))
        mean, var = a[0] * m + a[1] * mean, c[0] * b + c[1] * var
        yield (x - per_position(mean, x)) / np.sqrt(per_position(var, x) + layer.eps)


def ibn_by_hand(parts, layer):
    for x in parts:
        m, b = numpy_moments(x)
        y = np.empty_like(x)
        for c in range(x.shape[1]):
            for i in range(len(x)):
                mean, var = (m[i, c], b[i, c]) if c < x.shape[1] // 2 else (x[:, c].mean(), x[:, c].var())
                y[i, c] = (x[i, c] - mean) / np.sqrt(var + layer.eps)
        yield y


def instance_aware_by_hand(parts, layer):
    for x in parts:
        m, b = numpy_moments(x)
        y, p = np.empty_like(x), x[0, 0].size
        for c in range(x.shape[1]):
            mean, var = x[:, c].mean(), x[:, c].var()
            s_mean, s_var = np.sqrt((var + layer.eps) / p), (var + layer.eps) * np.sqrt(2 / (p - 1))
            for i in range(len(x)):
                d, e = m[i, c] - mean, b[i, c] - var
                own = mean + np.sign(d) * max(abs(d) - s_mean, 0)
                v = max(var + np.sign(e) * max(abs(e) - s_var, 0), 0)
                y[i, c] = (x[i, c] - own) / np.sqrt(v + layer.eps)
        yield y


BY_HAND = {Dson: dson_by_hand, Ibn: ibn_by_hand, InstanceAware: instance_aware_by_hand}


@pytest.mark.parametrize("cls", BY_HAND)
def test_layers_with_moments_of_each_image(cls):
    """In training for three domains, in evaluation, and by gradcheck; the running rows are the domains'."""
    layer = cls(4, domains=3, momentum=1.0, dtype=torch.float64)
    plain = DomainBatchNorm2d(4, domains=3, momentum=1.0, dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.linspace(0.5, 1.5, p.numel()).view_as(p))
    parts = [draw(n, 4, 3, 2, seed=n) * (1 + n) for n in (4, 2, 3)]
    outputs = forward_domains(layer, *parts)
    forward_domains(plain, *parts)
    weight, bias = (p.detach().numpy()[:, None, None] for p in (layer.weight, layer.bias))
    for got, want in zip(outputs, BY_HAND[cls]([x.numpy() for x in parts], layer), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want * weight + bias, rtol=1e-10, atol=1e-10)
    assert_close(dict(layer.named_buffers()), dict(plain.named_buffers()))
    leaves = [x.requires_grad_() for x in parts]
    assert torch.autograd.gradcheck(lambda *x: forward_domains(layer, *x[:3]), (*leaves, *layer.parameters()))
    # Evaluation is training with the running row in the batch's place.
    layer.eval()
    x = draw(5, 4, 3, 2, seed=9)
    with use_domain(layer, 1):
        y = layer(x)
    moments = layer.blend(x, 1, layer.stored(1))
    mean, var = (v.expand(5, 4)[..., None, None] for v in moments[:2])
    want = (x - mean) / (var + layer.eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]
    assert_close(y, want)
    with use_domain(layer, 1):
        assert_close(torch.cat([layer(x[:2]), layer(x[2:])]), y)  # images do not see each other


def test_a_layer_with_weights_in_place_of_parts():
    layer = Weighted(3, domains=2, momentum=1.0, dtype=torch.float64)
    x, weights = draw(5, 3, 2, 2), membership(k=2)
    mean, var, n = weighted_by_hand(x.numpy(), weights.numpy())
    z = [(x.numpy() - m[:, None, None]) / np.sqrt(v + layer.eps)[:, None, None] for m, v in zip(mean, var, strict=True)]
    want = sum(w[:, None, None, None] * each for w, each in zip(weights.numpy().T, z, strict=True))
    np.testing.assert_allclose(layer(x, weights).detach().numpy(), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), var / (1 - 1 / n)[:, None], rtol=1e-12)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(), weights.requires_grad_()))
    # Equal weights are one BatchNorm, weights of 0 and 1 are two.
    plain, pair = nn.BatchNorm2d(3, dtype=torch.float64), DomainBatchNorm2d(3, dtype=torch.float64)
    assert_close(layer(x, torch.full_like(weights, 0.5)), plain(x))
    hard = nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1])).double()
    assert_close(layer(x, hard), torch.cat(forward_domains(pair, x[:2], x[2:])))
    assert_close(layer.eval()(x, hard)[:2], (layer(x, hard * 0 + torch.tensor([1.0, 0.0])))[:2])


def test_a_layer_that_mixes_styles():
    x, share = draw(4, 3, 5, 2), torch.tensor([[0.2], [0.5], [0.9], [1.0]], dtype=torch.float64)
    partner = torch.tensor([2, 0, 3, 1])
    y = MixStyle(partner, share)(x).numpy()
    m, b = numpy_moments(x.numpy())
    for i in range(4):
        for c in range(3):
            lam, j = share[i].item(), partner[i].item()
            own, other = np.sqrt(b[i, c] + 1e-6), np.sqrt(b[j, c] + 1e-6)
            want = (x[i, c].numpy() - m[i, c]) / own * (lam * own + (1 - lam) * other)
            np.testing.assert_allclose(y[i, c], want + lam * m[i, c] + (1 - lam) * m[j, c], rtol=1e-10)
