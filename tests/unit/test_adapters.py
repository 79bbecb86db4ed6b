"""Residual adapters and CovNorm against NumPy and their limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from deeptransfer.adapters import CovNorm, ResidualAdapter
from deeptransfer.normalization import DomainBatchNorm2d, forward_domains, use_domain

K = ("print", "pen", "scene")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def conv(stride=1, kernel=3):
    return nn.Conv2d(3, 4, kernel, stride=stride, padding=kernel // 2, bias=False, dtype=torch.float64)


def make(mode, stride=1, zero=False):
    layer = ResidualAdapter(conv(stride), K, mode)
    with torch.no_grad():
        for i, (name, p) in enumerate(layer.named_parameters()):
            if not (zero and name.startswith("adapters")):
                p.copy_(draw(*p.shape, seed=i) + (1 if name.endswith("norm.weight") else 0))
    return layer


def batchnorm(x, norm, row):
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    weight, bias = (p[row].detach().numpy().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return weight * (x - mean) / np.sqrt(var + norm.eps) + bias


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["parallel", "series"])
def test_each_domain_is_adapted_by_its_own_map(mode, stride):
    layer = make(mode, stride)
    batches = [draw(n, 3, 5, 4, seed=n) for n in (4, 3, 2)]
    for row, (x, y) in enumerate(zip(batches, forward_domains(layer, *batches), strict=True)):
        a = layer.adapters[row].weight.detach().numpy()[:, :, 0, 0]
        z = layer.conv(x).detach().numpy()
        if mode == "parallel":
            inner = z + np.einsum("oc,nchw->nohw", a, x.numpy()[:, :, ::stride, ::stride])
        else:
            inner = z + np.einsum("oc,nchw->nohw", a, batchnorm(z, layer.inner, row))
        np.testing.assert_allclose(y.detach().numpy(), batchnorm(inner, layer.norm, row), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mode", ["parallel", "series"])
def test_adapters_at_zero_are_the_base_network_with_a_gradient(mode):
    layer, batches = make(mode, zero=True), [draw(n, 3, 5, 4, seed=n) for n in (4, 3, 2)]
    plain = DomainBatchNorm2d(4, domains=K, shared_affine=False, dtype=torch.float64)
    plain.load_state_dict(layer.norm.state_dict())
    outputs = forward_domains(layer, *batches)
    assert_close(outputs, forward_domains(nn.Sequential(layer.conv, plain), *batches))
    sum((y**3).sum() for y in outputs).backward()
    assert all(adapter.weight.grad.abs().sum() > 0 for adapter in layer.adapters)


@pytest.mark.parametrize("mode", ["parallel", "series"])
def test_only_the_domains_own_parameters_learn_from_it(mode):
    layer, x = make(mode), draw(4, 3, 5, 4)
    layer.conv.requires_grad_(False)
    with use_domain(layer, "pen"):
        layer(x).pow(3).sum().backward()
    assert layer.conv.weight.grad is None
    assert [adapter.weight.grad is not None for adapter in layer.adapters] == [False, True, False]
    for norm in (layer.norm, layer.inner) if mode == "series" else (layer.norm,):
        assert (norm.weight.grad.abs().sum(1) > 0).tolist() == [False, True, False]
        assert norm.num_batches_tracked.tolist() == [0, 1, 0]


@pytest.mark.parametrize("mode", ["parallel", "series"])
def test_gradients_domains_absent_one_row_and_nan(mode):
    layer = make(mode)
    index = torch.tensor([2, 0, 2])
    parameters = [p for name, p in layer.named_parameters() if "adapters.1" not in name]
    x = draw(3, 3, 3, 2)
    assert torch.autograd.gradcheck(
        lambda x, *_: forward_domains(layer, x, domain=index), (x.clone().requires_grad_(), *parameters)
    )
    y = forward_domains(layer, x, domain=index)
    with use_domain(layer, "scene"):
        assert_close(y[index == 2], layer(x[index == 2]))
        layer.eval()
        alone = layer(x[:1])
        assert_close(alone, layer(x)[:1])
        x[1] = torch.nan
        assert layer(x)[[0, 2]].isfinite().all()
    with pytest.raises(ValueError, match="no 'target' to evaluate unasked"):
        layer(x)
    twin = ResidualAdapter(conv(), K, mode).eval()
    twin.load_state_dict(layer.state_dict())
    with use_domain(twin, 2):
        assert_close(twin(x[:1]), alone)


def test_a_parallel_adapter_is_one_convolution_and_a_serial_one_in_evaluation():
    x = draw(4, 3, 5, 4)
    layer = make("parallel")
    kernel = layer.conv.weight.detach().clone()
    kernel[:, :, 1, 1] += layer.adapters[1].weight[:, :, 0, 0].detach()
    assert_close(F.conv2d(x, kernel, padding=1), layer.conv(x) + layer.adapters[1](x))
    layer = make("series")
    with use_domain(layer, "pen"):
        layer(x)
        layer.eval()
        z, inner = layer.conv(x), layer.inner
        scale = inner.weight[1] / (inner.running_var[1] + inner.eps).sqrt()
        shift = inner.bias[1] - scale * inner.running_mean[1]
        a = layer.adapters[1].weight[:, :, 0, 0]
        kernel = torch.einsum("oc,cikl->oikl", torch.eye(4, dtype=torch.float64) + a * scale, layer.conv.weight)
        assert_close(F.conv2d(x, kernel, a @ shift, padding=1), z + layer.adapters[1](inner(z)))


def test_autocast_and_wrong_convolutions():
    layer = ResidualAdapter(nn.Conv2d(3, 4, 3, padding="same"), ("target",))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(draw(4, 3, 5, 4, dtype=torch.float32)).isfinite().all()
    assert layer.norm.running_mean.dtype == torch.float32
    for bad in (nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 2, padding=1), nn.Conv2d(3, 4, 3, padding=1, dilation=2)):
        with pytest.raises(ValueError, match="output of another size"):
            ResidualAdapter(bad)
        ResidualAdapter(bad, mode="series")
    with pytest.raises(ValueError, match="got 'sequential'"):
        ResidualAdapter(conv(), mode="sequential")
    assert sum(p.numel() for p in ResidualAdapter(conv(), 2).adapters.parameters()) * 9 == 2 * conv().weight.numel()


# CovNorm -----------------------------------------------------------------------------------------------------------


def correlated(n=300, d=6, seed=0):
    turn = torch.linalg.qr(draw(d, d, seed=5)).Q
    return draw(n, d, seed=seed) * torch.tensor([3.0, 2, 1, 0.5, 0.2, 0.1]).double() @ turn + 2


def by_hand(a, x, k_x, k_y, new):
    mean = x.mean(0)
    outputs = (x - mean) @ a.T
    parts = []
    for samples, k in ((x - mean, k_x), (outputs, k_y)):
        values, vectors = np.linalg.eigh(samples.T @ samples / len(samples))
        parts.append((values[::-1][:k], vectors[:, ::-1][:, :k]))
    (l_x, u_x), (l_y, u_y) = parts
    whiten, colour = np.diag(l_x**-0.5) @ u_x.T, u_y @ np.diag(l_y**0.5)
    mixing = np.diag(l_y**-0.5) @ u_y.T @ a @ u_x @ np.diag(l_x**0.5)
    return (new - mean) @ (colour @ mixing @ whiten).T + a @ mean


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_covnorm_follows_the_formula(rank):
    a, x, new = draw(5, 6, seed=1), correlated(), draw(7, 6, seed=2)
    layer = CovNorm(a, x, rank=rank)
    want = by_hand(a.numpy(), x.numpy(), rank, min(rank, 5), new.numpy())
    np.testing.assert_allclose(layer(new).detach().numpy(), want, rtol=1e-8, atol=1e-10)
    assert [tuple(layer.mixing.shape), len(list(layer.parameters()))] == [(min(rank, 5), rank), 1]
    assert torch.autograd.gradcheck(lambda new, m: layer(new), (new.requires_grad_(), layer.mixing))


def test_with_all_directions_it_is_the_adapter():
    a, x, new = draw(6, 6, seed=1), correlated(), draw(7, 6, seed=2)
    assert_close(CovNorm(a, x, energy=1.0)(new), new @ a.T, rtol=1e-8, atol=1e-8)
    images = x[:48].reshape(4, 12, 6).transpose(1, 2).reshape(4, 6, 3, 4)
    layer = CovNorm(a[..., None, None], images, energy=1.0)
    assert_close(layer(images), F.conv2d(images, a[..., None, None]), rtol=1e-8, atol=1e-8)
    assert_close(layer(images[:1]), layer(images)[:1])


def test_the_error_is_bounded_by_the_energy_left_out():
    a, x = draw(6, 6, seed=1), correlated()
    y = x @ a.T
    spread = (y - y.mean(0)).square().sum()
    errors = []
    for energy in (0.5, 0.9, 0.99, 0.9999):
        layer = CovNorm(a, x, energy=energy)
        errors.append(((layer(x) - y).square().sum() / spread).item())
        u = torch.linalg.svd((x - x.mean(0)).T, full_matrices=False).U[:, : layer.mixing.shape[1]]
        lost = (x - x.mean(0)) - (x - x.mean(0)) @ u @ u.T
        bound = ((1 - energy) ** 0.5 + ((lost @ a.T).square().sum() / spread).sqrt()) ** 2
        assert errors[-1] <= bound + 1e-9
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]


def test_rotating_the_inputs_leaves_the_output_and_the_mixing_alone_is_trained():
    a, x = draw(6, 6, seed=1), correlated()
    q = torch.linalg.qr(draw(6, 6, seed=3)).Q
    assert_close(CovNorm(a, x, rank=3)(x), CovNorm(a @ q.T, x @ q.T, rank=3)(x @ q.T), rtol=1e-6, atol=1e-8)
    layer = CovNorm(a, x, rank=3)
    assert [name for name, _ in layer.named_parameters()] == ["mixing"]
    twin = CovNorm(a * 2, x + 1, rank=3)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    assert repr(layer) == "CovNorm(6 → 3 → 3 → 6)"


def test_a_diagonal_covariance_is_batch_norm_with_scale_and_shift():
    x = draw(400, 4)
    x = torch.linalg.qr(x - x.mean(0)).Q * 20 * torch.tensor([4.0, 3, 2, 1]).double()  # uncorrelated, mean 0
    x = x - x.mean(0)
    scale = torch.tensor([0.5, 2.0, 4.0, 1.0]).double()
    layer = CovNorm(torch.diag(scale), x, energy=1.0)
    with torch.no_grad():
        turned = layer.mixing.abs()
        assert_close(turned.sort(1).values[:, -1], torch.ones(4).double(), rtol=1e-2, atol=1e-2)  # a permutation
    z = F.batch_norm(x, None, None, training=True, eps=0.0 + 1e-12)
    assert_close(layer(x), z * scale * x.std(0, correction=0), rtol=1e-6, atol=1e-6)


def test_directions_without_variance_are_left_out_and_nonsense_is_refused():
    a, x = draw(5, 6, seed=1), correlated()
    x[:, 5] = x[:, 4]
    layer = CovNorm(a, x, energy=1.0)
    assert layer.mixing.shape == (5, 5)
    assert_close(layer(x), x @ a.T, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(layer).float()(x.float()).isfinite().all()
    assert layer(x * torch.nan).isnan().all()
    for bad in (x[:1], x * torch.nan):
        with pytest.raises(ValueError, match="finite samples"):
            CovNorm(a, bad)
    for matrix, data in ((a, x * 0 + 1), (a * 0, x)):
        with pytest.raises(ValueError, match="no variance"):
            CovNorm(matrix, data)
    with pytest.raises(ValueError, match=r"\(5, 6\) and \(300, 5\)"):
        CovNorm(a, x[:, :5])
    for wrong in ({"energy": 0.0}, {"energy": 1.1}, {"rank": 0}):
        with pytest.raises(ValueError, match="energy must lie"):
            CovNorm(a, x, **wrong)
