"""Layers in which an image's own statistics take part: IABN, DSON and IBN, against NumPy and their limits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_normalization import few_and_many  # noqa: F401
from support_statistics import images, network, randomize
from torch import nn
from torch.testing import assert_close

from deeptransfer import normalization as norm
from deeptransfer.normalization import (
    DomainBatchNorm2d,
    DSON1d,
    DSON2d,
    IBN1d,
    IBN2d,
    InstanceAwareBatchNorm1d,
    InstanceAwareBatchNorm2d,
    adapt_statistics,
    convert_norm,
    forward_domains,
    prediction_time,
    to_batchnorm,
    use_domain,
)

LAYERS = [InstanceAwareBatchNorm2d, DSON2d, IBN2d]
OPTIONS = [
    ("InstanceAwareBatchNorm", {"k": 1.0}),
    ("InstanceAwareBatchNorm", {"k": 0.0}),
    ("InstanceAwareBatchNorm", {"k": 0.5, "shared_affine": False}),
    ("DSON", {}),
    ("DSON", {"per_channel": True}),
    ("DSON", {"tied": True, "shared_affine": True}),
    ("IBN", {}),
    ("IBN", {"ratio": 0.3}),
]
SHAPES = [(5, 5), (5, 5, 6), (5, 5, 3, 2), (4, 5, 2, 3, 2)]
K = ("print", "pen", "scene")


def draw(shape, seed=0, shift=1.0, scale=2.0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale + shift


def three(shape, dtype=torch.float64):
    """Three domains of different sizes; each image differs from the others."""
    batches = []
    for seed, n in enumerate((shape[0], 3, 2)):
        x = draw((n, *shape[1:]), seed, shift=seed - 1.0, scale=1.0 + seed, dtype=dtype)
        batches.append(x * torch.linspace(0.3, 3, n, dtype=dtype).view(-1, *[1] * (len(shape) - 1)))
    return batches


def make(method, shape, domains=K, **options):
    number = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[len(shape)]
    layer = getattr(norm, method + number)(shape[1], domains=domains, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, layer.weight.numel()).view_as(layer.weight))
        layer.bias.copy_(torch.linspace(-1, 1, layer.bias.numel()).view_as(layer.bias))
        for name in ("mix_mean", "mix_var"):
            if hasattr(layer, name):
                logits = getattr(layer, name)
                logits.copy_(draw(logits.shape, len(name)))
    return layer


def shrink(z, most):
    return np.sign(z) * max(abs(z) - most, 0)


def by_hand(layer, x, row, mean, var, var_unbiased):
    """Outputs for the images of one domain, from the statistics of the domain."""
    y = np.empty_like(x)
    p = x[0, 0].size
    weight, bias = (t.detach().numpy() for t in (layer.weight, layer.bias))
    if not layer.shared_affine:
        weight, bias = weight[row], bias[row]
    for i in range(len(x)):
        for c in range(x.shape[1]):
            own, m, v = x[i, c], mean[c], var[c]
            if isinstance(layer, norm.InstanceAwareBatchNorm):
                v = var_unbiased[c]
                if p > 1:
                    noise = v + layer.eps
                    m = m + shrink(own.mean() - m, layer.k * np.sqrt(noise / p))
                    v = max(0, v + shrink(own.var(ddof=1) - v, layer.k * noise * np.sqrt(2 / (p - 1))))
            elif isinstance(layer, norm.DSON) and p > 1:
                shares = []
                for logits in (layer.mix_mean, layer.mix_var):
                    a, b = np.exp(logits[row].detach().numpy().reshape(2, -1)[:, c if layer.per_channel else 0])
                    shares.append(a / (a + b))
                m = shares[0] * own.mean() + (1 - shares[0]) * m
                v = shares[1] * own.var() + (1 - shares[1]) * v
            elif isinstance(layer, norm.IBN) and p > 1 and c < int(layer.ratio * x.shape[1]):
                m, v = own.mean(), own.var()
            y[i, c] = weight[c] * (own - m) / np.sqrt(v + layer.eps) + bias[c]
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}D")
@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=lambda o: str(o))
def test_training_and_evaluation_follow_the_formula(method, options, shape):
    layer = make(method, shape, **options)
    batches = three(shape)
    outputs = forward_domains(layer, *batches)
    for row, (x, y) in enumerate(zip(batches, outputs, strict=True)):
        values = np.moveaxis(x.numpy(), 1, 0).reshape(shape[1], -1)
        mean, var, unbiased = values.mean(1), values.var(1), values.var(1, ddof=1)
        np.testing.assert_allclose(y.detach().numpy(), by_hand(layer, x.numpy(), row, mean, var, unbiased), rtol=1e-9)
        np.testing.assert_allclose(layer.running_mean[row].numpy(), 0.1 * mean, rtol=1e-10)
        np.testing.assert_allclose(layer.running_var[row].numpy(), 0.9 + 0.1 * unbiased, rtol=1e-10)
    layer.eval()
    for row, name in enumerate(K):
        x = draw((2, *shape[1:]), 9, scale=1.0 + row)
        stored = layer.running_mean[row].numpy(), layer.running_var[row].numpy()
        with use_domain(layer, name):
            y = layer(x)
        want = by_hand(layer, x.numpy(), row, stored[0], stored[1], stored[1])
        np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-9)


@settings(max_examples=25)
@given(
    n=st.integers(1, 4),
    c=st.integers(1, 5),
    side=st.integers(2, 4),
    shift=st.floats(-50, 50),
    scale=st.floats(0.01, 20),
    case=st.sampled_from(OPTIONS),
)
def test_any_shape_and_scale_follows_the_formula(n, c, side, shift, scale, case):
    method, options = case
    layer = make(method, (n, c, side, side), domains=("target",), **options)
    x = draw((n, c, side, side), 2, shift, scale)
    values = np.moveaxis(x.numpy(), 1, 0).reshape(c, -1)
    want = by_hand(layer, x.numpy(), 0, values.mean(1), values.var(1), values.var(1, ddof=1))
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 2)], ids=["1D", "2D"])
@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=lambda o: str(o))
def test_gradients_reach_images_and_parameters(method, options, shape):
    layer = make(method, shape, domains=2, **options)
    xs, xt = draw(shape).requires_grad_(), draw(shape, 1, -0.5, 1.0).requires_grad_()

    def train(xs, xt, *_):
        return forward_domains(layer, xs, xt)

    used = [p for name, p in layer.named_parameters() if "mix" not in name or len(shape) > 2]
    assert torch.autograd.gradcheck(train, (xs, xt, *used))
    layer.eval()
    assert torch.autograd.gradcheck(train, (xs, xt, *used))


# Limits ------------------------------------------------------------------------------------------------------------


def pair_of(layer, plain):
    x = draw((6, 5, 4, 3))
    outputs = []
    for each in (layer.double(), plain.double()):
        outputs += [each(x), each.eval()(x)]
        each.train()
    return outputs


def test_ibn_at_both_ends_and_for_odd_widths():
    """0 is BatchNorm, 1 InstanceNorm with scale and shift; the released code cannot take 5 channels."""
    train, evaluated, want, wanted = pair_of(IBN2d(5, ratio=0.0), nn.BatchNorm2d(5))
    assert_close((train, evaluated), (want, wanted))
    train, evaluated, want, wanted = pair_of(IBN2d(5, ratio=1.0), nn.InstanceNorm2d(5, affine=True))
    assert_close((train, evaluated), (want, wanted))
    layer = IBN2d(5)
    assert layer.by_image == 2
    train, evaluated, *_ = pair_of(layer, nn.BatchNorm2d(5))
    x = draw((6, 5, 4, 3))
    assert_close(train[:, :2], nn.functional.instance_norm(x[:, :2]))
    assert_close(train[:, 2:], nn.functional.batch_norm(x[:, 2:], None, None, training=True))
    assert_close(evaluated[:, :2], train[:, :2])
    assert [IBN2d(c).by_image for c in (1, 2, 3, 7)] == [0, 1, 1, 3]


@pytest.mark.parametrize("tied", [False, True])
def test_dson_without_instance_share_is_dsbn_and_with_all_of_it_instance_norm(tied):
    batches = three((5, 4, 3, 2))
    for logits, share in (((-800.0, 0.0), 0.0), ((800.0, 0.0), 1.0)):
        layer = make("DSON", (5, 4, 3, 2), tied=tied)
        plain = DomainBatchNorm2d(4, domains=K, shared_affine=False, dtype=torch.float64)
        plain.load_state_dict(layer.state_dict(), strict=False)
        with torch.no_grad():
            for name in ("mix_mean", "mix_var"):
                getattr(layer, name).copy_(torch.tensor(logits).expand(3, 2))
        assert [s.unique().tolist() for s in layer.shares()] == [[share], [share]]
        outputs, wanted = forward_domains(layer, *batches), forward_domains(plain, *batches)
        if share == 0:
            assert_close(outputs, wanted)
        else:
            for row, (x, y) in enumerate(zip(batches, outputs, strict=True)):
                z = nn.functional.instance_norm(x)
                assert_close(y, z * layer.weight[row].view(-1, 1, 1) + layer.bias[row].view(-1, 1, 1))
        assert_close(layer.running_var, plain.running_var)


def test_dson_starts_at_half_and_half_and_permuting_domains_permutes_its_parameters():
    layer = DSON2d(4, domains=3)
    assert [s.tolist() for s in layer.shares()] == [[0.5] * 3] * 2
    assert layer.mix_mean.shape == layer.mix_var.shape == (3, 2)
    assert DSON2d(4, domains=3, per_channel=True).mix_mean.shape == (3, 2, 4)
    assert len(list(DSON2d(4, tied=True).parameters())) == 3
    layer, batches = make("DSON", (5, 4, 3, 2)), three((5, 4, 3, 2))
    turned, order = copy.deepcopy(layer), [2, 0, 1]
    with torch.no_grad():
        for new, old in zip(turned.parameters(), layer.parameters(), strict=True):
            new.copy_(old[order])
    outputs = forward_domains(layer, *batches)
    for got, d in zip(forward_domains(turned, *(batches[d] for d in order)), order, strict=True):
        assert_close(got, outputs[d])


def test_iabn_between_batch_and_instance_norm():
    """Biased and unbiased variances aside: there is a factor √(1 − 1/n) between the two."""
    x, eps = draw((6, 5, 4, 3)), 1e-12
    layer = InstanceAwareBatchNorm2d(5, k=math.inf, eps=eps, dtype=torch.float64)
    want = nn.functional.batch_norm(x, None, None, training=True, eps=eps)
    assert_close(layer(x), want * math.sqrt(1 - 1 / (6 * 12)))
    layer = InstanceAwareBatchNorm2d(5, k=0.0, eps=eps, dtype=torch.float64)
    assert_close(layer(x), nn.functional.instance_norm(x, eps=eps) * math.sqrt(1 - 1 / 12))


def test_iabn_needs_no_batch_at_test_time():
    layer = randomize(InstanceAwareBatchNorm2d(4)).eval()
    x = draw((6, 4, 5, 5), dtype=torch.float32)
    assert_close(torch.cat([layer(row[None]) for row in x]), layer(x))


# What users of torch.nn expect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*LAYERS, InstanceAwareBatchNorm1d, DSON1d, IBN1d])
def test_one_row_batches(cls):
    """In training an image has positions to measure, a vector has none; evaluation takes both."""
    layer = cls(4, domains=("target",))
    if 4 in cls.dims:
        assert layer(draw((1, 4, 3, 3), dtype=torch.float32)).isfinite().all()
        x = draw((1, 4, 3, 3), dtype=torch.float32)
    else:
        with pytest.raises(ValueError, match="more than one value per channel"):
            layer(torch.zeros(1, 4))
        layer(draw((5, 4), dtype=torch.float32))
        x = draw((1, 4), dtype=torch.float32)
    assert layer.eval()(x).isfinite().all()


@pytest.mark.parametrize("cls", LAYERS)
def test_one_position_is_batch_norm(cls):
    x = draw((6, 4, 1, 1))
    layer = cls(4, domains=("target",), dtype=torch.float64)
    want = nn.functional.batch_norm(x, None, None, training=True)
    assert_close(layer(x), want * (math.sqrt(5 / 6) if cls is InstanceAwareBatchNorm2d else 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", LAYERS)
def test_domains_absent_from_a_batch_keep_their_row(cls):
    layer = cls(4, domains=K, dtype=torch.float64)
    forward_domains(layer, *three((5, 4, 3, 2)))
    before = layer.running_mean.clone()
    x, index = draw((5, 4, 3, 2), 5), torch.tensor([2, 0, 2, 0, 2])
    y = forward_domains(layer, x, domain=index)
    assert torch.equal(layer.running_mean[1], before[1])
    assert not torch.equal(layer.running_mean[0], before[0])
    alone = cls(4, domains=("target",), dtype=torch.float64)
    assert_close(y[index == 2], alone(x[index == 2]))
    with (
        pytest.raises(ValueError, match="domain must be 'print', 'pen' or 'scene', got 'sketch'"),
        use_domain(layer, "sketch"),
    ):
        pass
    layer.reset_running_stats()
    with pytest.raises(ValueError, match="pen were never updated"), use_domain(layer.eval(), "pen"):
        layer(x)


@pytest.mark.parametrize("cls", LAYERS)
def test_nan_reaches_its_batch_in_training_and_its_image_in_evaluation(cls):
    layer = randomize(cls(4, domains=("target",))).eval()
    x = draw((5, 4, 3, 3), dtype=torch.float32)
    x[2, 1, 0, 0] = math.nan
    y = layer(x)
    others = torch.arange(5) != 2
    assert y[others].isfinite().all()
    assert y[2, 1].isnan().any()
    with prediction_time(layer):
        assert layer(x)[:, 0].isfinite().all()
    assert layer.running_mean.isfinite().all()


@pytest.mark.parametrize("cls", LAYERS)
def test_state_reloads_and_a_plain_checkpoint_fills_all_rows(cls):
    layer = randomize(cls(4, domains=K))
    twin = cls(4, domains=K)
    twin.load_state_dict(layer.state_dict())
    x = draw((5, 4, 3, 3), dtype=torch.float32)
    for domain in K:
        with use_domain(layer.eval(), domain), use_domain(twin.eval(), domain):
            assert torch.equal(layer(x), twin(x))
    plain = randomize(nn.BatchNorm2d(4))
    twin.load_state_dict(plain.state_dict())
    assert_close(twin.running_var, plain.running_var.expand(3, -1))


@pytest.mark.parametrize("cls", LAYERS)
def test_bfloat16_autocast_and_channels_last(cls):
    layer = cls(4, domains=("target",))
    x = draw((6, 4, 5, 3), dtype=torch.float32)
    want = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32
    assert_close(y.float(), want, rtol=0.05, atol=0.05)
    assert_close(cls(4, domains=("target",))(x.contiguous(memory_format=torch.channels_last)), want)


@pytest.mark.parametrize("cls", LAYERS)
def test_large_means_keep_float32_accurate(cls):
    x = draw((16, 4, 20, 20), shift=1000.0, scale=1.0)
    layer = cls(4, domains=("target",))
    assert_close(layer(x.float()).double(), copy.deepcopy(layer).double()(x.float().double()), rtol=0, atol=2e-3)


@pytest.mark.parametrize("cls", LAYERS)
def test_whole_networks_are_converted_adapted_and_not_folded(cls):
    model = convert_norm(network(), cls, domains=("target",))
    x = images(10)
    assert model(x).shape == (10, 3)
    adapt_statistics(model, x, passes=1)
    assert model.eval()(x).isfinite().all()
    with pytest.raises(ValueError, match="a formula of its own"):
        to_batchnorm(model)


def test_wrong_options_are_refused_and_shown():
    for cls, wrong in ((InstanceAwareBatchNorm2d, {"k": -1.0}), (IBN2d, {"ratio": 1.5}), (IBN2d, {"ratio": -0.1})):
        with pytest.raises(ValueError, match=f"got {next(iter(wrong.values()))}"):
            cls(4, **wrong)
    assert repr(IBN2d(4, ratio=0.25)).endswith("ratio=0.25)")
    assert "k=4.0" in repr(InstanceAwareBatchNorm2d(4))
    assert repr(DSON2d(4, tied=True)).endswith("tied=True)")
