"""MixStyle, CrossNorm and SelfNorm against NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deeptransfer.normalization import CrossNorm, MixStyle, SelfNorm2d
from deeptransfer.normalization.exchange import restyle, style


def draw(*shape, seed=0, dtype=torch.float64):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x * torch.linspace(0.5, 3, shape[0], dtype=dtype).view(-1, *[1] * (len(shape) - 1)) + 1


def by_hand(x, order, shares, eps):
    """Each channel of each image, restyled to the mixture with its partner's."""
    y = np.empty_like(x)
    for i in range(len(x)):
        for c in range(x.shape[1]):
            own, other, share = x[i, c], x[order[i], c], shares[i]
            deviations = [np.sqrt(v.var(ddof=1) + eps) for v in (own, other)]
            mean = share * own.mean() + (1 - share) * other.mean()
            deviation = share * deviations[0] + (1 - share) * deviations[1]
            y[i, c] = deviation * (own - own.mean()) / deviations[0] + mean
    return y


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 4, 2), (6, 3, 2, 3, 2)])
@pytest.mark.parametrize("across", [False, True])
def test_mixstyle_follows_the_formula(shape, across):
    x, layer = draw(*shape), MixStyle(p=1.0, alpha=0.4, across=across)
    torch.manual_seed(3)
    got = layer(x)
    torch.manual_seed(3)
    torch.rand(())
    order = torch.cat([3 + torch.randperm(3), torch.randperm(3)]) if across else torch.randperm(6)
    shares = torch.distributions.Beta(0.4, 0.4).sample((6, 1)).flatten().numpy()
    np.testing.assert_allclose(got.numpy(), by_hand(x.numpy(), order.tolist(), shares, 1e-6), rtol=1e-6)
    if across:
        assert all((i < 3) != (j < 3) for i, j in enumerate(order.tolist()))


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 4, 2)])
def test_crossnorm_follows_the_formula(shape):
    x = draw(*shape)
    torch.manual_seed(3)
    got = CrossNorm(p=1.0)(x)
    torch.manual_seed(3)
    torch.rand(())
    order = torch.randperm(6).tolist()
    np.testing.assert_allclose(got.numpy(), by_hand(x.numpy(), order, np.zeros(6), 1e-5), rtol=1e-9)


def test_gradients_pass_through_crossnorms_statistics_and_not_through_mixstyles():
    x = draw(4, 2, 3).requires_grad_()

    def run(layer, x):
        torch.manual_seed(1)
        return layer(x)

    assert torch.autograd.gradcheck(lambda x: run(CrossNorm(p=1.0), x), (x,))
    mean, deviation = (t.detach() for t in style(x, 1e-6)[1:])
    torch.manual_seed(1)
    torch.rand(())
    order = torch.randperm(4)
    share = torch.distributions.Beta(0.1, 0.1).sample((4, 1)).double()
    new = [share * t + (1 - share) * t[order] for t in (mean, deviation)]
    fixed = restyle(x, mean, deviation, *new).sin().sum()
    mixed = run(MixStyle(p=1.0), x).sin().sum()
    assert_close(torch.autograd.grad(mixed, x), torch.autograd.grad(fixed, x))
    assert torch.autograd.gradcheck(lambda x: restyle(x, mean, deviation, *new), (x,))


@pytest.mark.parametrize("make", [MixStyle, CrossNorm])
def test_equal_styles_evaluation_single_images_and_p_0_change_nothing(make):
    x = draw(6, 3, 4, 2)
    assert make(p=1.0).eval()(x) is x
    assert make(p=0.0)(x) is x
    assert make(p=1.0)(x[:1]) is x[:1] or torch.equal(make(p=1.0)(x[:1]), x[:1])
    same = x[:1].expand(6, -1, -1, -1)
    assert_close(make(p=1.0)(same), same)
    torch.manual_seed(0)
    acted = sum(not torch.equal(make(p=0.3)(x), x) for _ in range(200))
    assert 35 < acted < 85
    assert make(p=1.0)(x[:0]).shape == (0, 3, 4, 2)


@pytest.mark.parametrize("gates", [1, 2])
def test_selfnorm_follows_the_formula(gates):
    layer = SelfNorm2d(3, gates).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    x = draw(5, 3, 4, 2)
    y = layer(x).detach().numpy()
    w, bn = layer.weight.detach().numpy(), layer.norm
    logits = np.empty((5, gates, 3))
    for i in range(5):
        for g in range(gates):
            for c in range(3):
                own = x[i, c].numpy()
                logits[i, g, c] = w[g, c, 0] * own.mean() + w[g, c, 1] * np.sqrt(own.var(ddof=1) + 1e-5)
    z = (logits - logits.mean(0)) / np.sqrt(logits.var(0) + bn.eps)
    z = z * bn.weight.detach().numpy().reshape(gates, 3) + bn.bias.detach().numpy().reshape(gates, 3)
    gate = 1 / (1 + np.exp(-z))
    for i in range(5):
        for c in range(3):
            own = x[i, c].numpy()
            want = gate[i, -1, c] * (own - own.mean()) + gate[i, 0, c] * own.mean()
            np.testing.assert_allclose(y[i, c], want, rtol=1e-8)
    if gates == 1:
        np.testing.assert_allclose(y, gate[:, 0, :, None, None] * x.numpy(), rtol=1e-8)  # y = g x
    layer.norm.momentum = 0.0
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x[:3].clone().requires_grad_(), *layer.parameters()))
    assert layer.eval()(x[:1]).isfinite().all()


def test_selfnorm_state_autocast_and_nan():
    layer, twin = SelfNorm2d(3), SelfNorm2d(3)
    x = draw(6, 3, 4, 2, dtype=torch.float32)
    layer(x)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), twin.eval()(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer(x.bfloat16()).float(), layer(x), rtol=0.05, atol=0.1)
        assert MixStyle(p=1.0)(x.bfloat16()).dtype == torch.bfloat16
    x[2] = torch.nan
    assert layer(x)[torch.arange(6) != 2].isfinite().all()


@pytest.mark.parametrize("layer", [MixStyle(p=0.0), CrossNorm(p=0.0), SelfNorm2d(3)])
def test_one_position_is_an_error_whatever_chance_says(layer):
    with pytest.raises(ValueError, match=r"more than one position, got shape \(4, 3, 1, 1\)"):
        copy.deepcopy(layer).train()(torch.zeros(4, 3, 1, 1))


def test_wrong_use_is_refused():
    for make in (MixStyle, CrossNorm):
        with pytest.raises(ValueError, match=r"\[0, 1\].*1.5"):
            make(p=1.5)
    with pytest.raises(ValueError, match="alpha be positive"):
        MixStyle(alpha=0.0)
    with pytest.raises(ValueError, match="two halves, got 5 images"):
        MixStyle(p=0.0, across=True)(torch.zeros(5, 3, 2, 2))
    with pytest.raises(ValueError, match="gates must be 1 or 2, got 3"):
        SelfNorm2d(3, 3)
    with pytest.raises(ValueError, match=r"more than one image, got 1: call .eval\(\)"):
        SelfNorm2d(3)(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"images \(N, 3, H, W\), got shape \(4, 2, 2, 2\)"):
        SelfNorm2d(3)(torch.zeros(4, 2, 2, 2))
    assert repr(MixStyle(across=True)) == "MixStyle(p=0.5, alpha=0.1, across=True)"
