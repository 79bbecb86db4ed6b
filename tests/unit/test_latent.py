"""Latent domains: weighted BatchNorm against NumPy, its gradient by hand, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deeptransfer.normalization import DomainBatchNorm2d, WeightedBatchNorm2d, assignment_loss, forward_domains


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 1


def membership(n=5, k=3, seed=3):
    return draw(n, k, seed=seed).softmax(1)


def make(k=3, **options):
    layer = WeightedBatchNorm2d(4, k, **options).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, 4))
        layer.bias.copy_(torch.linspace(-1, 1, 4))
    return layer


def by_hand(x, w, eps):
    """Σ_d w_d x̂_d, the statistics, and the effective numbers of values."""
    n, c, *size = x.shape
    p = int(np.prod(size))
    y, mean, var, count = np.zeros(x.shape), np.zeros((w.shape[1], c)), np.zeros((w.shape[1], c)), []
    for d in range(w.shape[1]):
        total = p * w[:, d].sum()
        count.append(p * w[:, d].sum() ** 2 / (w[:, d] ** 2).sum())
        for j in range(c):
            mean[d, j] = sum(w[i, d] * x[i, j].sum() for i in range(n)) / total
            var[d, j] = sum(w[i, d] * ((x[i, j] - mean[d, j]) ** 2).sum() for i in range(n)) / total
            for i in range(n):
                y[i, j] += w[i, d] * (x[i, j] - mean[d, j]) / np.sqrt(var[d, j] + eps)
    return y, mean, var, np.array(count)[:, None]


def test_training_and_evaluation_follow_the_formula():
    layer, x, w = make(), draw(5, 4, 3, 2), membership()
    y, mean, var, n = by_hand(x.numpy(), w.numpy(), layer.eps)
    gamma, beta = (p.detach().numpy().reshape(-1, 1, 1) for p in (layer.weight, layer.bias))
    np.testing.assert_allclose(layer(x, w).detach().numpy(), gamma * y + beta, rtol=1e-9)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-9)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * var / (1 - 1 / n), rtol=1e-9)
    assert layer.num_batches_tracked.tolist() == [1, 1, 1]
    layer.eval()
    want = np.zeros(x.shape)
    for i, d, c in np.ndindex(5, 3, 4):
        z = (x[i, c].numpy() - layer.running_mean[d, c].item()) / np.sqrt(layer.running_var[d, c].item() + layer.eps)
        want[i, c] += w[i, d].item() * z
    np.testing.assert_allclose(layer(x, w).detach().numpy(), gamma * want + beta, rtol=1e-9)


def test_gradients_reach_images_weights_and_parameters():
    layer, x, logits = make(), draw(4, 4, 2, 2).requires_grad_(), draw(4, 3).requires_grad_()
    layer.momentum = 0.0
    for mode in (True, False):
        layer.train(mode)
        assert torch.autograd.gradcheck(lambda x, z, *_: layer(x, z.softmax(1)), (x, logits, *layer.parameters()))


def test_the_gradient_of_the_weights_by_hand():
    """∂L/∂w = Σ x̂ g − (1/W)[Σ x̂ · Σ w g + ½ Σ (x̂² − v/(v + ε)) · Σ w x̂ g], W = P Σ w."""
    x, w = draw(5, 4, 3, 2), membership().requires_grad_()
    layer, g = WeightedBatchNorm2d(4, 3).double(), draw(5, 4, 3, 2, seed=8)
    (layer(x, w) * g).sum().backward()
    _, mean, var, _ = by_hand(x.numpy(), w.detach().numpy(), layer.eps)
    x, v, gradient, weights = x.numpy(), g.numpy(), np.zeros((5, 3)), w.detach().numpy()
    for d in range(3):
        total = 6 * weights[:, d].sum()
        for c in range(4):
            z = (x[:, c] - mean[d, c]) / np.sqrt(var[d, c] + layer.eps)
            share = var[d, c] / (var[d, c] + layer.eps)
            pull = sum(weights[i, d] * v[i, c].sum() for i in range(5))
            turn = sum(weights[i, d] * (z[i] * v[i, c]).sum() for i in range(5))
            for i in range(5):
                through = z[i].sum() * pull + 0.5 * (z[i] ** 2 - share).sum() * turn
                gradient[i, d] += (z[i] * v[i, c]).sum() - through / total
    np.testing.assert_allclose(w.grad.numpy(), gradient, rtol=1e-8)


def test_equal_weights_and_one_domain_are_batch_norm():
    x, plain = draw(5, 4, 3, 2), nn.BatchNorm2d(4).double()
    want = plain(x)
    for k in (1, 2, 3):
        layer = WeightedBatchNorm2d(4, k).double()
        assert_close(layer(x, torch.full((5, k), 1 / k, dtype=torch.float64)), want)
        assert_close(layer.running_var, plain.running_var.expand(k, -1))
        assert_close(layer.eval()(x, membership(5, k)), plain.eval()(x))
        plain.train()


def test_weights_of_0_and_1_are_the_batch_norm_of_each_domain():
    x, index = draw(6, 4, 3, 2), torch.tensor([0, 2, 1, 2, 0, 1])
    layer, plain = WeightedBatchNorm2d(4, 3).double(), DomainBatchNorm2d(4, domains=3, dtype=torch.float64)
    w = nn.functional.one_hot(index, 3).double()
    assert_close(layer(x, w), forward_domains(plain, x, domain=index))
    assert_close(layer.running_mean, plain.running_mean)
    assert_close(layer.running_var, plain.running_var)


def test_relabelling_domains_changes_nothing():
    x, w, order = draw(5, 4, 3, 2), membership(), [2, 0, 1]
    first, second = make(), make()
    assert_close(first(x, w), second(x, w[:, order]))
    assert_close(first.running_var[order], second.running_var)


def test_a_domain_without_weight_adds_nothing_and_keeps_its_rows():
    x, w = draw(5, 4, 3, 2).requires_grad_(), torch.zeros(5, 3, dtype=torch.float64)
    w[:, 0], w[:, 2] = 0.25, 0.75
    w.requires_grad_()
    layer = WeightedBatchNorm2d(4, 3).double()
    y = layer(x, w)
    assert_close(y, nn.functional.batch_norm(x, None, None, training=True))
    assert layer.num_batches_tracked.tolist() == [1, 0, 1]
    assert layer.running_mean[1].abs().sum() == 0
    assert torch.equal(layer.running_var[1], torch.ones(4, dtype=torch.float64))
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert w.grad[:, 0].isfinite().all()
    assert w.grad[:, 1].abs().sum() == 0  # and not the 1/√ε of a variance of 0


def test_a_large_mean_is_accurate_in_float32():
    x, w = draw(16, 4, 20, 20) / 2 + 1000, membership(16)
    layer = WeightedBatchNorm2d(4, 3)
    want = WeightedBatchNorm2d(4, 3).double()(x.float().double(), w)
    assert_close(layer(x.float(), w.float()).double(), want, rtol=0, atol=2e-3)


def test_one_image_state_autocast_and_nan():
    layer, x, w = WeightedBatchNorm2d(4, 3), draw(5, 4, 3, 2, dtype=torch.float32), membership().float()
    assert layer(x[:1], w[:1]).isfinite().all()
    layer(x, w)
    twin = WeightedBatchNorm2d(4, 3)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x, w), twin.eval()(x, w))
    assert_close(layer(x[:1], w[:1]), layer(x, w)[:1])
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16(), w.bfloat16())
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), layer(x, w), rtol=0.05, atol=0.1)
    x[1] = torch.nan
    assert layer(x, w)[[0, 2, 3, 4]].isfinite().all()


def test_wrong_weights_and_images_are_refused():
    layer, x, w = WeightedBatchNorm2d(4, 3), draw(5, 4, 3, 2, dtype=torch.float32), membership().float()
    for bad, message in (
        (w * 2, "sums from 2 to 2"),
        (w[:, :2], r"\(5, 3\), got torch.float32 \(5, 2\)"),
        (w[:4], r"got torch.float32 \(4, 3\)"),
        (w * torch.nan, "at least 0 and sum to 1"),
        (torch.tensor([[1.5, -0.5, 0]]).expand(5, 3), "at least 0"),
        (torch.eye(3)[[0, 1, 2, 0, 1]].long(), "int64"),
    ):
        for mode in (True, False):
            with pytest.raises(ValueError, match=message):
                layer.train(mode)(x, bad)
    with pytest.raises(ValueError, match=r"images \(N, 4, H, W\), got shape \(5, 3, 3, 2\)"):
        layer(x[:, :3], w)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer.train()(x[:1, :, :1, :1], w[:1])
    with pytest.raises(ValueError, match="domains must be 1 or more, got 0"):
        WeightedBatchNorm2d(4, 0)


def test_the_assignment_loss_and_its_trivial_minimum():
    w = membership()
    p, mean = w.numpy(), w.numpy().mean(0)
    want = -(p * np.log(p)).sum() / 5 + 0.5 * (mean * np.log(mean)).sum()
    assert assignment_loss(w, 0.5).item() == pytest.approx(want)
    logits = draw(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: assignment_loss(z.softmax(1)), (logits,))
    one = torch.tensor([[1.0, 0, 0]]).expand(6, 3)
    each = torch.eye(3).repeat(2, 1)
    assert assignment_loss(one, 0.0).item() == assignment_loss(each, 0.0).item() == pytest.approx(0)
    assert assignment_loss(one).item() == pytest.approx(0)
    assert assignment_loss(each).item() == pytest.approx(-np.log(3))
    with pytest.raises(ValueError, match="sums from 2"):
        assignment_loss(2 * w)
    hard = each.clone().requires_grad_()
    assert torch.autograd.grad(assignment_loss(hard), hard)[0].isfinite().all()
