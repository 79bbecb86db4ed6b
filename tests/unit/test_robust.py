"""RoTTA's robust batch normalisation against NumPy and its limits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from support_statistics import images, network, randomize
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from deeptransfer.normalization import (
    DSON2d,
    RobustBatchNorm1d,
    RobustBatchNorm2d,
    Tent,
    adapt_statistics,
    convert_norm,
    forward_domains,
    mixes_domains,
    to_batchnorm,
    use_domain,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 1


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2), (40, 4, 20, 20)])
def test_each_batch_enters_the_average_and_the_average_normalises(shape):
    plain = randomize(nn.BatchNorm1d(4) if len(shape) < 4 else nn.BatchNorm2d(4)).double()
    mean, var = plain.running_mean.numpy().copy(), plain.running_var.numpy().copy()
    weight, bias = plain.weight.detach().numpy(), plain.bias.detach().numpy()
    layer = convert_norm(plain, RobustBatchNorm2d, alpha=0.1)
    for seed in range(3):
        x = draw(*shape, seed=seed)
        values = np.moveaxis(x.numpy(), 1, 0).reshape(4, -1)
        mean, var = 0.9 * mean + 0.1 * values.mean(1), 0.9 * var + 0.1 * values.var(1)
        z = (values - mean[:, None]) / np.sqrt(var + layer.eps)[:, None] * weight[:, None] + bias[:, None]
        want = np.moveaxis(z.reshape(4, shape[0], *shape[2:]), 0, 1)
        np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(layer.running_mean[0].numpy(), mean, rtol=1e-10)
        np.testing.assert_allclose(layer.running_var[0].numpy(), var, rtol=1e-10)
    before = layer.running_mean.clone()
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), want, rtol=1e-10, atol=1e-12)
    assert torch.equal(layer.running_mean, before)


def test_all_and_nothing_of_the_batch_are_batch_norm_and_the_source():
    plain, x = randomize(nn.BatchNorm2d(4).double()), draw(6, 4, 3, 2)
    source = copy.deepcopy(plain).eval()(x)
    batch = copy.deepcopy(plain).train()(x)
    for alpha, want in ((0.0, source), (1.0, batch)):
        assert_close(convert_norm(copy.deepcopy(plain), RobustBatchNorm2d, alpha=alpha)(x), want)


def test_the_gradient_passes_through_the_batchs_share():
    layer = RobustBatchNorm2d(3, alpha=0.3, dtype=torch.float64)

    def run(x, *_):
        layer.reset_running_stats()
        return layer(x)

    assert torch.autograd.gradcheck(run, (draw(4, 3, 2, 2).requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("cls", [RobustBatchNorm2d, DSON2d])
def test_compiles_as_one_graph(cls):
    torch._dynamo.reset()
    layer = cls(4, domains=("target",))
    fast = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x = draw(6, 4, 3, 3, dtype=torch.float32)
    assert_close(fast(x), layer(x))
    assert_close(fast.eval()(x), layer.eval()(x))


def test_domains_have_averages_of_their_own():
    layer = RobustBatchNorm2d(3, domains=("left", "right"), dtype=torch.float64)
    left, right = draw(4, 3, 2, 2), draw(5, 3, 2, 2, seed=1)
    outputs = forward_domains(layer, left, right)
    for row, (x, y) in enumerate(((left, outputs[0]), (right, outputs[1]))):
        alone = RobustBatchNorm2d(3, dtype=torch.float64)
        assert_close(alone(x), y)
        assert_close(alone.running_var[0], layer.running_var[row])
    before = layer.running_mean.clone()
    with use_domain(layer, "right"):
        layer(right)
    assert torch.equal(before[0], layer.running_mean[0])
    assert not torch.equal(before[1], layer.running_mean[1])
    assert not mixes_domains(layer)


def test_networks_one_image_and_what_follows():
    model, x = convert_norm(network(), RobustBatchNorm2d), images(10)
    assert model.train()(x).shape == (10, 3)
    with pytest.raises(ValueError, match="more than one value per channel"):
        model(x[:1])  # the vectors
    assert model[:6](x[:1]).isfinite().all()  # the images
    assert_close(to_batchnorm(model)(x), model.eval()(x))
    adapt_statistics(model, x)
    assert Tent(model)(x).isfinite().all()
    twin = convert_norm(network(), RobustBatchNorm2d)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_bf16_autocast_and_nan():
    layer, x = RobustBatchNorm2d(4), draw(6, 4, 3, 3, dtype=torch.float32)
    want = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer(x.bfloat16()).float(), want, rtol=0.05, atol=0.05)
    assert layer.running_mean.dtype == torch.float32
    x[0, 1] = math.nan
    y = layer(x)
    assert y[:, 1].isnan().all()
    assert y[:, 0].isfinite().all()
    assert layer.running_mean.isnan().tolist() == [[False, True, False, False]]


def test_a_gradient_checkpoint_and_wrong_options_are_refused():
    layer, x = RobustBatchNorm2d(3), draw(4, 3, 2, 2, dtype=torch.float32).requires_grad_()
    y = checkpoint(layer, x, use_reentrant=False)
    with pytest.raises(ValueError, match="no gradient checkpoint can repeat"):
        y.sum().backward()
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got"):
            RobustBatchNorm1d(3, alpha=alpha)
    assert "alpha=0.05" in repr(layer)
