"""Every domain normalisation against NumPy, and what torch.nn users expect of a layer."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_normalization import METHODS, few_and_many, make, reference, transferability  # noqa: F401
from torch import nn
from torch.testing import assert_close

from deeptransfer import normalization as norm
from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    clip_gate,
    forward_domains,
    gate_parameters,
    min_entropy_consensus,
    passes,
    reciprocal,
    use_domain,
)

LAYERS = [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d, DomainWhitening2d]
SHAPES = [(7, 4), (5, 4, 6), (5, 4, 3, 2), (4, 4, 2, 3, 2)]
OPTIONS = [
    ("DomainBatchNorm", {}),
    ("DomainBatchNorm", {"shared_affine": False}),
    ("AutoDIAL", {}),
    ("TransNorm", {}),
    ("TransNorm", {"distance": "mean"}),
    ("TransNorm", {"distance": "wasserstein"}),
    ("TransNorm", {"probability": "gaussian"}),
    ("TransNorm", {"probability": "softmax"}),
    ("TransNorm", {"probability": "uniform"}),
    ("TransNorm", {"shared_affine": False}),
    ("TransNorm", {"halved": True}),
    ("ReciprocalNorm", {}),
    ("ReciprocalNorm", {"temperature": 0.1}),
    ("ReciprocalNorm", {"groups": 2}),
    ("ReciprocalNorm", {"unbiased": True}),
    ("DomainWhitening", {}),
    ("DomainWhitening", {"group_size": 2, "shrinkage": 0.05}),
    ("DomainWhitening", {"group_size": 1}),
]


def draw(shape, seed=0, shift=1.0, scale=2.0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale + shift


def pair(shape, n_t=3, dtype=torch.float64):
    return draw(shape, 0, dtype=dtype), draw((n_t, *shape[1:]), 1, -0.5, 1.0, dtype=dtype)


def trained(cls, c=4, **kwargs):
    layer = cls(c, **kwargs)
    forward_domains(layer, *pair((6, c, 3, 3), dtype=layer.weight.dtype))
    return layer


# Values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s)}D")
@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=lambda o: str(o))
def test_training_outputs_and_running_rows_follow_the_formula(method, options, shape):
    layer = make(method, shape, **options)
    xs, xt = pair(shape)
    ys, yt = forward_domains(layer, xs, xt)
    (want_s, want_t), mean, var = reference(method, xs.numpy(), xt.numpy(), layer)
    np.testing.assert_allclose(ys.detach().numpy(), want_s, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(yt.detach().numpy(), want_t, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-10)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * var, rtol=1e-10)
    assert layer.num_batches_tracked.tolist() == [1, 1]


@settings(max_examples=25)
@given(
    n_s=st.integers(1, 5),
    n_t=st.integers(1, 5),
    c=st.sampled_from([1, 2, 4, 6]),
    side=st.integers(2, 4),
    shift=st.floats(-50, 50),
    scale=st.floats(0.01, 20),
    method=st.sampled_from(METHODS),
)
def test_any_shape_and_scale_follows_the_formula(n_s, n_t, c, side, shift, scale, method):
    options = {"group_size": 2 if c % 2 == 0 else 1} if method == "DomainWhitening" else {}
    layer = make(method, (n_s, c, side, side), **options)
    xs, xt = draw((n_s, c, side, side), 2, shift, scale), draw((n_t, c, side, side), 3)
    outputs = forward_domains(layer, xs, xt)
    wanted, _, _ = reference(method, xs.numpy(), xt.numpy(), layer)
    for got, want in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("domain", ["source", "target"])
def test_evaluation_uses_the_named_running_row(method, domain):
    layer = make(method, (6, 4, 3, 3))
    forward_domains(layer, *pair((6, 4, 3, 3)))
    layer.eval()
    x = draw((5, 4, 3, 3), 7)
    row = ("source", "target").index(domain)
    mean, var = layer.running_mean[row].numpy(), layer.running_var[row].numpy()
    rows = np.moveaxis(x.numpy(), 1, 0).reshape(4, -1) - mean[:, None]
    if method == "DomainWhitening":
        shrunk = (1 - layer.shrinkage) * layer.running_cov[row, 0].numpy() + layer.shrinkage * np.eye(4)
        z = np.linalg.inv(np.linalg.cholesky(shrunk)) @ rows
    else:
        z = rows / np.sqrt(var + layer.eps)[:, None]
    gain = 1.0
    if method == "TransNorm":
        gain = 1 + transferability(layer.running_mean.numpy(), layer.running_var.numpy(), layer.eps)[:, None]
    y = gain * (layer.weight.detach().numpy()[:, None] * z + layer.bias.detach().numpy()[:, None])
    with use_domain(layer, domain):
        got = layer(x)
    np.testing.assert_allclose(got.detach().numpy(), np.moveaxis(y.reshape(4, 5, 3, 3), 0, 1), rtol=1e-10)
    if domain == "target":
        assert_close(layer(x), got, rtol=0, atol=0)  # the default


def test_evaluating_both_domains_together_is_evaluating_each():
    layer = trained(TransNorm2d).eval()
    xs, xt = pair((6, 4, 3, 3), dtype=torch.float32)
    ys, yt = forward_domains(layer, xs, xt)
    with use_domain(layer, "source"):
        assert_close(ys, layer(xs), rtol=0, atol=0)
    assert_close(yt, layer(xt), rtol=0, atol=0)


def test_whitening_keeps_the_unshrunk_unbiased_covariance():
    layer = make("DomainWhitening", (6, 8, 3, 3), momentum=1.0)
    xs, xt = pair((6, 8, 3, 3))
    forward_domains(layer, xs, xt)
    for row, x in enumerate((xs, xt)):
        full = np.cov(np.moveaxis(x.numpy(), 1, 0).reshape(8, -1))
        for g in range(2):
            np.testing.assert_allclose(layer.running_cov[row, g].numpy(), full[4 * g : 4 * g + 4, 4 * g : 4 * g + 4])
    assert_close(layer.running_var, layer.running_cov.diagonal(dim1=2, dim2=3).flatten(1))


def test_far_domains_do_not_underflow_transnorm():
    layer = make("TransNorm", (6, 4, 3, 3), distance="wasserstein", probability="gaussian")
    ys, _ = forward_domains(layer, *(x + 1000 * i for i, x in enumerate(pair((6, 4, 3, 3)))))
    assert ys.isfinite().all()


def test_min_entropy_consensus_takes_the_class_both_views_like_best():
    a, b = draw((5, 3), 0).numpy(), draw((5, 3), 1).numpy()
    total = 0.0
    for i in range(5):
        log_a = a[i] - np.log(np.exp(a[i]).sum())
        log_b = b[i] - np.log(np.exp(b[i]).sum())
        total += min(-0.5 * (log_a[y] + log_b[y]) for y in range(3))
    a, b = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    assert min_entropy_consensus(a, b).item() == pytest.approx(total / 5, rel=1e-12)
    assert torch.autograd.gradcheck(min_entropy_consensus, (a, b))
    with pytest.raises(ValueError, match="two views of the same rows"):
        min_entropy_consensus(a, b[:2])


# Gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 2, 2)], ids=["1D", "2D"])
@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=lambda o: str(o))
def test_gradient_reaches_both_domains_and_every_parameter(method, options, shape):
    """Float64 gradcheck; TransNorm's gain, which carries no gradient, is held fixed."""
    layer = make(method, shape, **options)
    xs, xt = pair(shape)
    parameters = list(layer.parameters())
    if method == "TransNorm":
        fixed = torch.linspace(1, 3, 4, dtype=torch.float64)
        layer.gain = lambda source, target: fixed

    def run(xs, xt, *_):
        return forward_domains(layer, xs, xt)

    assert torch.autograd.gradcheck(run, (xs.requires_grad_(), xt.requires_grad_(), *parameters))


@pytest.mark.parametrize("cls", [DomainBatchNorm2d, AutoDIAL2d, ReciprocalNorm2d])
def test_second_derivative(cls):
    layer = cls(2, dtype=torch.float64)
    with torch.no_grad():
        for gate in gate_parameters(layer):
            gate.fill_(0.8)
    x = draw((4, 2, 2, 2)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: forward_domains(layer, x[:2], x[2:])[0], (x,), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("needs_input_grad", [True, False])
def test_a_gradient_that_will_be_differentiated_again_is_the_same_gradient(method, needs_input_grad):
    layer = make(method, (5, 4, 3, 3))
    xs, xt = pair((5, 4, 3, 3))
    inputs = [*layer.parameters(), *([xs.requires_grad_(), xt.requires_grad_()] if needs_input_grad else [])]
    grads = []
    for create_graph in (False, True):
        ys, yt = forward_domains(layer, xs, xt)
        grads.append(torch.autograd.grad((ys**3).sum() + yt.sin().sum(), inputs, create_graph=create_graph))
    assert_close(*grads)


def test_transnorm_gain_carries_no_gradient():
    free, fixed = (make("TransNorm", (5, 4, 3, 3)) for _ in range(2))
    xs, xt = pair((5, 4, 3, 3))
    grads = []
    alpha = transferability(*reference("TransNorm", xs.numpy(), xt.numpy(), free)[1:], free.eps)
    fixed.gain = lambda source, target: 1 + torch.tensor(alpha)
    for layer in (free, fixed):
        xs.requires_grad_().grad = None
        forward_domains(layer, xs, xt)[0].square().sum().backward()
        grads.append(xs.grad.clone())
    assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_hand_written_passes_equal_the_plain_ones(dtype, layout):
    x = draw((7, 3, 5, 4)).to(dtype).contiguous(memory_format=layout)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    weight = draw((7, 3, 5, 4), 5).to(dtype)
    results = []
    for by_hand in (True, False):
        leaf = x.clone().requires_grad_()
        scale, shift = (draw((2, 3), s).to(wide).requires_grad_() for s in (3, 4))
        if by_hand:
            y, mean, var = passes.measure(leaf, [4, 3])
            y = passes.scale_and_shift(y, [4, 3], mean, scale / var, shift)
        else:
            mean, var = passes._measure(leaf, [4, 3])
            y = passes._scale_and_shift(leaf, [4, 3], mean, scale / var, shift)
        (y * weight).sum().backward()
        results.append((y, mean, var, leaf.grad, scale.grad, shift.grad))
    for got, want in zip(*results, strict=True):
        tolerance = {"rtol": 3e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {}
        assert_close(got, want, **tolerance)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 7, 5, 4).transpose(0, 1),
        torch.randn(7, 5, 3).transpose(1, 2),
        torch.randn(7, 3, 1, 1).expand(7, 3, 5, 4),
        torch.randn(7, 6, 5, 8)[:, ::2, :, ::2],
        torch.randn(3, 7).T,
    ],
    ids=["channels first in memory", "(N, L, C)", "expanded", "sliced", "(C, N)"],
)
def test_any_strides(x):
    results = []
    for leaf in (x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()):
        y = torch.cat(forward_domains(norm.DomainBatchNorm(3), leaf[:4], leaf[4:]))
        y.square().sum().backward()
        layer = norm.DomainBatchNorm(3)
        layer.membership.fixed = (leaf.new_empty(4, 0), leaf.new_empty(3, 0))
        results.append((y, leaf.grad, layer(leaf)))  # the last without the copy that joins the parts
    for got, want in zip(*results, strict=True):
        assert_close(got, want)


def test_no_gradient_is_computed_for_an_input_that_needs_none():
    layer = make("DomainBatchNorm", (5, 4, 3, 3))
    forward_domains(layer, *pair((5, 4, 3, 3)))[0].sum().backward()
    assert layer.bias.grad is not None


# Precision, layouts, dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d])
def test_float32_statistics_survive_a_large_mean(layer, layout):
    """Mean 1000, deviation 1: E[x²] − E[x]² in float32 would be off by several per cent."""
    x = draw((16, 4, 20, 20), shift=1000.0, scale=1.0).float().contiguous(memory_format=layout)
    layer = layer(4, momentum=1.0)
    exact = copy.deepcopy(layer).double()
    out = [torch.cat(forward_domains(each, z[:9], z[9:])) for each, z in ((layer, x), (exact, x.double()))]
    assert_close(layer.running_var.double(), exact.running_var, rtol=2e-6, atol=0)
    assert_close(out[0].double(), out[1], rtol=0, atol=2e-3)  # x itself is rounded at 6e-5 of its deviation


@pytest.mark.parametrize("cls", LAYERS)
def test_channels_last_gives_the_same_numbers(cls):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = cls(4)
        x = draw((6, 4, 5, 3), dtype=torch.float32).contiguous(memory_format=layout).requires_grad_()
        y = torch.cat(forward_domains(layer, x[:4], x[4:]))
        y.square().sum().backward()
        results.append((y.contiguous(), x.grad.contiguous(), layer.running_var))
        if cls is not DomainWhitening2d:
            assert y.is_contiguous(memory_format=layout)
    for got, want in zip(*results, strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", LAYERS)
def test_bfloat16_autocast_measures_in_float32(cls):
    conv, layer = nn.Conv2d(3, 4, 3), cls(4)
    net = nn.Sequential(conv, layer)
    with torch.no_grad():
        for gate in gate_parameters(layer):
            gate.fill_(0.7)
    x = draw((8, 3, 6, 6), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ys, yt = forward_domains(net, x[:5], x[5:])
        (ys.float().sum() + yt.float().square().sum()).backward()
        hidden = conv(x).float()
    assert ys.dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32
    assert conv.weight.grad.isfinite().all()
    exact = copy.deepcopy(layer).double()
    exact.reset_running_stats()
    want = forward_domains(exact, hidden[:5].double(), hidden[5:].double())[0].float()
    for got, full in zip(layer.buffers(), exact.buffers(), strict=True):
        assert_close(got.double(), full.double(), rtol=1e-5, atol=1e-5)
    assert_close(ys.float(), want, rtol=2e-2, atol=6e-2)
    net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16


def test_a_model_cast_to_bfloat16_runs():
    layer = TransNorm2d(4).bfloat16()
    x = draw((6, 4, 3, 3)).bfloat16()
    assert forward_domains(layer, x[:2], x[2:])[0].dtype == torch.bfloat16
    assert layer.eval()(x).dtype == torch.bfloat16


def test_shapes_can_be_inferred_without_data():
    with torch.device("meta"):
        layer, x = AutoDIAL2d(4), torch.empty(6, 4, 3, 3)
    assert torch.cat(forward_domains(layer, x[:2], x[2:])).shape == x.shape


@pytest.mark.parametrize("cls", LAYERS)
def test_nan_in_nan_out(cls):
    xs, xt = pair((6, 4, 3, 3), dtype=torch.float32)
    xs[0, 1, 0, 0] = float("nan")
    ys, yt = forward_domains(cls(4), xs, xt)
    assert ys[:, 1].isnan().all()
    if cls in (DomainBatchNorm2d, DomainWhitening2d):
        assert yt.isfinite().all()


def test_a_covariance_that_cannot_be_factored_gives_nan_in_its_group_only():
    layer = trained(DomainWhitening2d, 8).eval()
    layer.running_cov[1, 0] = 2 - torch.eye(4)  # eigenvalue −1
    y = layer(draw((5, 8, 3, 3), dtype=torch.float32))
    assert y[:, :4].isnan().all()
    assert y[:, 4:].isfinite().all()


def test_a_constant_channel_is_finite():
    for cls in LAYERS:
        y = forward_domains(cls(4), torch.ones(3, 4, 2, 2), torch.zeros(3, 4, 2, 2))[0]
        assert y.isfinite().all()


def test_one_channel():
    for cls in LAYERS:
        xs, xt = pair((6, 1, 3, 3), dtype=torch.float32)
        assert forward_domains(cls(1), xs, xt)[0].isfinite().all()


# State -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_equal_and_independent(cls, copier):
    layer = trained(cls)
    twin = copier(layer)
    x = draw((4, 4, 3, 3), dtype=torch.float32)
    assert_close(layer.eval()(x), twin.eval()(x), rtol=0, atol=0)
    before = layer.running_mean.clone()
    with use_domain(twin.train(), "target"):
        twin(x)
    assert_close(layer.running_mean, before, rtol=0, atol=0)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("shared", [True, False])
def test_state_dict_round_trip_is_strict_and_exact(cls, shared):
    layer, fresh = trained(cls, shared_affine=shared), cls(4, shared_affine=shared)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(0.9).add_(0.05)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert fresh.load_state_dict(torch.load(file)) == ([], [])
    x = draw((4, 4, 3, 3), dtype=torch.float32)
    for domain in ("source", "target"):
        with use_domain(layer.eval(), domain), use_domain(fresh.eval(), domain):
            assert_close(layer(x), fresh(x), rtol=0, atol=0)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_plain_batchnorm_checkpoint_fills_both_domains(cls, shared):
    plain = nn.BatchNorm2d(4)
    plain(draw((6, 4, 3, 3), dtype=torch.float32))
    nn.init.uniform_(plain.weight)
    layer = cls(4, shared_affine=shared)
    checkpoint = plain.state_dict()
    net = nn.Sequential(layer)
    assert net.load_state_dict({f"0.{key}": value for key, value in checkpoint.items()}) == ([], [])
    for row in (0, 1):
        assert_close(layer.running_mean[row], plain.running_mean)
        assert_close(layer.running_var[row], plain.running_var)
    assert layer.num_batches_tracked.tolist() == [1, 1]
    assert checkpoint["running_mean"].shape == (4,)  # the caller's dictionary is left alone
    x = draw((4, 4, 3, 3), 3, dtype=torch.float32)
    if cls in (DomainBatchNorm2d, AutoDIAL2d, ReciprocalNorm2d):
        assert_close(layer.eval()(x), plain.eval()(x))
    if cls is DomainWhitening2d:
        assert_close(layer.running_cov[1, 0], plain.running_var.diag())


def test_state_names_and_shapes():
    shapes = {name: tuple(t.shape) for name, t in AutoDIAL2d(4).state_dict().items()}
    common = {"weight": (4,), "bias": (4,), "running_mean": (2, 4), "running_var": (2, 4), "num_batches_tracked": (2,)}
    assert shapes == common | {"alpha": ()}
    names = ("gate_mean_source", "gate_var_source", "gate_mean_target", "gate_var_target")
    shapes = {name: tuple(t.shape) for name, t in ReciprocalNorm2d(4).state_dict().items()}
    assert shapes == common | dict.fromkeys(names, (4,))
    shapes = {name: tuple(t.shape) for name, t in DomainWhitening2d(8, shared_affine=False).state_dict().items()}
    assert shapes == dict.fromkeys(common, (2, 8)) | {"num_batches_tracked": (2,), "running_cov": (2, 2, 4, 4)}


@pytest.mark.parametrize("cls", [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d])
def test_cumulative_average(cls):
    """momentum=None weighs all batches of a domain alike, as torch.nn does."""
    layer, plain = cls(4, momentum=None), nn.BatchNorm2d(4, momentum=None)
    for seed in range(3):
        x = draw((5, 4, 3, 3), seed, dtype=torch.float32)
        forward_domains(layer, x, x * 2 + seed)
        plain(x)
    assert_close(layer.running_mean[0], plain.running_mean)
    assert_close(layer.running_var[0], plain.running_var)
    assert layer.num_batches_tracked.tolist() == [3, 3]


def test_momentum_zero_freezes_the_running_rows():
    layer = DomainBatchNorm2d(4, momentum=0.0)
    forward_domains(layer, *pair((6, 4, 3, 3), dtype=torch.float32))
    assert_close(layer.running_mean, torch.zeros(2, 4))


def test_a_row_that_was_never_updated_is_an_error_in_evaluation():
    x = draw((5, 4, 3, 3), dtype=torch.float32)
    layer = DomainBatchNorm2d(4)
    with pytest.raises(ValueError, match="target were never updated"):
        layer.eval()(x)
    with use_domain(layer.train(), "source"):
        layer(x)
    with use_domain(layer.eval(), "source"):
        layer(x)
    with pytest.raises(ValueError, match="target were never updated"):
        layer(x)
    layer.num_batches_tracked[1] = 1  # written from outside
    layer(x)
    layer.reset_running_stats()
    with pytest.raises(ValueError, match="target were never updated"):
        layer(x)


def test_transnorm_needs_both_rows_unless_its_gain_is_uniform():
    x = draw((5, 4, 3, 3), dtype=torch.float32)
    for probability in ("student_t", "uniform"):
        layer = TransNorm2d(4, probability=probability)
        with use_domain(layer, "target"):
            layer(x)
        layer.eval()
        if probability == "uniform":
            layer(x)
        else:
            with pytest.raises(ValueError, match="source were never updated"):
                layer(x)


# Prediction rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("row", [0, 1])
def test_a_batch_of_one_domain_moves_only_its_row(cls, row):
    layer = trained(cls)
    before = copy.deepcopy(layer)
    x = draw((5, 4, 3, 3), 9, dtype=torch.float32).requires_grad_()
    with use_domain(layer, ("source", "target")[row]):
        y = layer(x)
        layer(x)  # moving the row must not spoil the backward of the first
    y.sum().backward()
    assert layer.num_batches_tracked[row] == 3
    assert layer.num_batches_tracked[1 - row] == 1
    for name in ("running_mean", "running_var"):
        old, new = getattr(before, name), getattr(layer, name)
        assert_close(old[1 - row], new[1 - row], rtol=0, atol=0)
        assert not torch.equal(old[row], new[row])
    if cls is DomainBatchNorm2d:
        plain = nn.BatchNorm2d(4)
        assert_close(y, plain(x))


def test_the_absent_domain_is_its_running_row():
    layer = trained(AutoDIAL2d)
    with torch.no_grad():
        layer.alpha.fill_(0.7)
    x = draw((5, 4, 3, 3), 9, dtype=torch.float32)
    mean = 0.7 * x.mean((0, 2, 3)) + 0.3 * layer.running_mean[1]
    var = 0.7 * ((x - mean.view(1, 4, 1, 1)) ** 2).mean((0, 2, 3))
    var = var + 0.3 * (layer.running_var[1] + (layer.running_mean[1] - mean) ** 2)
    with use_domain(layer, "source"):
        assert_close(layer(x), (x - mean.view(1, 4, 1, 1)) / (var + layer.eps).sqrt().view(1, 4, 1, 1))


def test_a_bare_even_batch_is_halved_with_one_warning(monkeypatch):
    monkeypatch.setattr(norm.DomainNorm, "_warned", False)
    layer, named = DomainBatchNorm2d(4), DomainBatchNorm2d(4)
    x = draw((6, 4, 3, 3), dtype=torch.float32)
    with pytest.warns(UserWarning, match="first half of the batch as source"):
        y = layer(x)
    layer(x)  # the second time in silence: warnings are errors in this test
    assert_close(y, torch.cat(forward_domains(named, x[:3], x[3:])), rtol=0, atol=0)


def test_a_bare_odd_batch_is_an_error():
    with pytest.raises(ValueError, match=r"batch of 5 rows cannot be halved.*forward_domains"):
        DomainBatchNorm2d(4)(torch.zeros(5, 4, 3, 3))


def test_rows_that_do_not_match_the_batch_are_an_error():
    class Doubling(nn.Module):
        def forward(self, x):
            return torch.cat([x, x])

    net = nn.Sequential(Doubling(), DomainBatchNorm2d(4))
    for mode in (True, False):
        with pytest.raises(ValueError, match="announced 2 source and 3 target rows, but this layer receives 10"):
            forward_domains(net.train(mode), torch.zeros(2, 4, 3, 3), torch.zeros(3, 4, 3, 3))


@pytest.mark.parametrize(
    ("make_layer", "x", "message"),
    [
        (lambda: DomainBatchNorm1d(4), torch.zeros(2, 4), "more than one value per channel"),
        (lambda: DomainBatchNorm2d(4), torch.zeros(2, 4, 1, 1), "more than one value per channel"),
        (lambda: DomainBatchNorm2d(4), torch.zeros(2, 4), r"DomainBatchNorm2d expects 4-D input .*\(2, 4\)"),
        (lambda: DomainBatchNorm1d(4), torch.zeros(2, 4, 3, 3), "expects 2-D or 3-D"),
        (lambda: norm.DomainBatchNorm3d(4), torch.zeros(2, 4, 3, 3), "expects 5-D"),
        (lambda: norm.DomainBatchNorm(4), torch.zeros(4), "at least 2-D"),
        (lambda: DomainBatchNorm2d(4), torch.zeros(2, 3, 3, 3), "expected 4 channels"),
        (
            lambda: DomainBatchNorm2d(4),
            torch.zeros(2, 4, 3, 3, dtype=torch.long),
            r"floating-point input, got torch.int64",
        ),
        (lambda: DomainBatchNorm2d(4), torch.zeros(0, 4, 3, 3), "nothing to measure"),
        (lambda: DomainBatchNorm2d(4), torch.zeros(2, 4, 0, 3), "nothing to measure"),
        (lambda: TransNorm2d(4, distance="euclid"), None, "distance must be one of .* got 'euclid'"),
        (lambda: TransNorm2d(4, probability="cauchy"), None, "probability must be one of .* got 'cauchy'"),
        (lambda: ReciprocalNorm2d(4, groups=3), None, "groups must divide the 4 channels, got 3"),
        (lambda: ReciprocalNorm2d(4, groups=0), None, "groups must divide"),
        (lambda: ReciprocalNorm2d(4, temperature=0.0), None, "temperature must be positive"),
        (lambda: DomainWhitening2d(6), None, "group_size must divide the 6 channels, got 4"),
        (lambda: DomainWhitening2d(4, shrinkage=0.0), None, "shrinkage must lie in"),
    ],
)
def test_bad_input_names_the_value_and_the_way_out(make_layer, x, message, monkeypatch):
    monkeypatch.setattr(norm.DomainNorm, "_warned", True)
    with pytest.raises(ValueError, match=message):
        make_layer()(x)


def test_one_row_in_one_domain_is_an_error_in_1d():
    with pytest.raises(ValueError, match="got 4 source and 1 target rows"):
        forward_domains(DomainBatchNorm1d(4), torch.zeros(4, 4), torch.zeros(1, 4))


# Gates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "gradient", "passes_through"),
    [
        (0.7, 1, True), (0.7, -1, True), (1.0, 1, True), (1.0, -1, False), (1.2, 1, True), (1.2, -1, False),
        (0.5, -1, True), (0.5, 1, False), (0.3, -1, True), (0.3, 1, False),
    ],
)  # fmt: skip
def test_a_gradient_that_leads_back_inside_passes_the_clip(gate, gradient, passes_through):
    """A descent step moves against the gradient: down from the upper bound when it is positive."""
    g = torch.tensor(gate, requires_grad=True)
    clipped = clip_gate(g)
    assert clipped.item() == pytest.approx(min(max(gate, 0.5), 1.0))
    (clipped * gradient).backward()
    assert g.grad.item() == (gradient if passes_through else 0)


@pytest.mark.parametrize("cls", [AutoDIAL2d, ReciprocalNorm2d])
@pytest.mark.parametrize("start", [1.0, 1.2, 0.3])
def test_a_gate_at_or_beyond_its_bound_can_move(cls, start):
    layer = cls(4)
    gates = gate_parameters(layer)
    with torch.no_grad():
        for gate in gates:
            gate.fill_(start)
    xs, xt = pair((6, 4, 3, 3), dtype=torch.float32)
    # An objective that likes the outputs of gates at 0.75.
    wanted = copy.deepcopy(layer)
    with torch.no_grad():
        for gate in gate_parameters(wanted):
            gate.fill_(0.75)
    goal = torch.cat(forward_domains(wanted, xs, xt)).detach()
    optimiser = torch.optim.SGD(gates, lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        (torch.cat(forward_domains(layer, xs, xt)) - goal).square().mean(dim=(0, 2, 3)).sum().backward()
        optimiser.step()
    moved = torch.cat([gate.flatten() for gate in gates])
    assert ((moved - 0.75).abs() < abs(start - 0.75) - 0.02).all()


def test_a_gate_outside_counts_as_its_bound():
    xs, xt = pair((6, 4, 3, 3), dtype=torch.float32)
    for outside, bound in ((1.7, 1.0), (-3.0, 0.5)):
        for cls in (AutoDIAL2d, ReciprocalNorm2d):
            out = []
            for value in (outside, bound):
                layer = cls(4)
                with torch.no_grad():
                    for gate in gate_parameters(layer):
                        gate.fill_(value)
                out.append((*forward_domains(layer, xs, xt), layer.running_var))
            for got, want in zip(*out, strict=True):
                assert_close(got, want, rtol=0, atol=0)


def test_gate_parameters_are_the_ones_without_weight_decay():
    net = nn.Sequential(AutoDIAL2d(4), nn.Conv2d(4, 4, 1), ReciprocalNorm2d(4), TransNorm2d(4))
    assert [id(p) for p in gate_parameters(net)] == [
        id(p) for name, p in net.named_parameters() if "alpha" in name or "gate" in name
    ]
    assert len(gate_parameters(net)) == 5


# Reciprocal Normalization's blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "groups"), [(4, 4), (512, 512), (960, 960), (1024, 512), (2048, 512), (1664, 832)])
def test_default_blocks_of_reciprocal_normalization(c, groups):
    """C // 512 consecutive channels as released, fewer where that does not divide C (1664 = 3 · 512 + 128)."""
    assert ReciprocalNorm2d(c).groups == groups


# Compilation -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own
@pytest.mark.parametrize("cls", LAYERS)
def test_compiles_as_one_graph_for_several_splits(cls):
    """Nine splits: a number kept in the layer would exceed the limit of eight graphs."""
    torch._dynamo.reset()
    plain, compiled = cls(4), cls(4)
    fast = torch.compile(nn.Sequential(compiled), fullgraph=True, backend="aot_eager")
    x = draw((12, 4, 3, 3), dtype=torch.float32)
    for n in range(2, 11):
        results = []
        for layer in (plain, fast):
            leaf = x.clone().requires_grad_()
            y = torch.cat(forward_domains(layer, leaf[:n], leaf[n:]))
            (y * y.detach().roll(1, 0)).sum().backward()
            results.append((y, leaf.grad))
        for got, want in zip(*results, strict=True):
            assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert_close(plain.running_var, compiled.running_var)
    assert compiled.num_batches_tracked.tolist() == [9, 9]
    with use_domain(fast, "source"), use_domain(plain, "source"):
        assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-4)
    fast.eval()
    assert_close(fast(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiles_with_inductor():
    torch._dynamo.reset()
    plain, compiled = TransNorm2d(4), TransNorm2d(4)
    fast = torch.compile(compiled, fullgraph=True)
    xs, xt = pair((6, 4, 3, 3), dtype=torch.float32)
    for layer in (plain, fast):
        forward_domains(layer, xs, xt)[0].square().sum().backward()
    assert_close(plain.weight.grad, compiled.weight.grad)
    assert_close(plain.running_mean, compiled.running_mean)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step_may_contain_forward_domains():
    torch._dynamo.reset()
    plain, compiled = TransNorm2d(4), TransNorm2d(4)
    step = torch.compile(lambda xs, xt: forward_domains(compiled, xs, xt), fullgraph=True, backend="aot_eager")
    xs, xt = pair((6, 4, 3, 3), dtype=torch.float32)
    assert_close(step(xs, xt), forward_domains(plain, xs, xt))
    assert_close(compiled.running_var, plain.running_var)


def test_compiled_evaluation_of_a_row_that_was_never_updated_is_an_error():
    torch._dynamo.reset()
    fast = torch.compile(DomainBatchNorm2d(4).eval(), backend="eager")
    with pytest.raises(ValueError, match="never updated"):
        fast(torch.zeros(2, 4, 3, 3))


# Representation ----------------------------------------------------------------------------------------------------


def test_representation_shows_what_differs():
    assert repr(DomainBatchNorm2d(4, shared_affine=False)) == (
        "DomainBatchNorm2d(4, eps=1e-05, momentum=0.1, shared_affine=False)"
    )
    assert "probability='softmax'" in repr(TransNorm2d(4, probability="softmax"))
    assert "temperature=0.5" in repr(ReciprocalNorm2d(4, temperature=0.5))
    assert "group_size=2" in repr(DomainWhitening2d(4, group_size=2))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("spread", [0.5, 2.0, 100.0])  # the last: no similarity is left of a float32's range
def test_compensation_of_a_wide_layer_equals_the_formula(k, spread, monkeypatch):
    """Values against NumPy's loops, gradients against autograd's, first and second."""
    values = [draw((2, 5, k), s, 0.0, spread) for s in (0, 1)]
    results = []
    for most in (0, 100):
        monkeypatch.setattr(reciprocal, "WIDE", most)
        leaves = [v.clone().requires_grad_() for v in values]

        def compensated(source, target):
            return reciprocal.compensate(torch.cat([source, target]), torch.cat([target, source]), 0.7)

        out = compensated(*leaves)
        first = torch.autograd.grad((out.sin() * out).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(f.square().sum() for f in first), leaves)
        plain = torch.autograd.grad(compensated(*leaves).square().sum(), leaves)
        results.append([out, *first, *second, *plain])
    for got, want in zip(*results, strict=True):
        assert_close(got, want)
    m, w = (v.numpy() for v in values)
    for shown in (results[0][0], results[1][0]):
        for r, i in np.ndindex(2, 5):
            for own, other, row in ((m, w, r), (w, m, r + 2)):
                logits = np.array([-((own[r, i].mean() - other[r, j].mean()) ** 2) / 0.7 for j in range(5)])
                share = np.exp(logits - logits.max())
                expected = sum(s * other[r, j] for j, s in enumerate(share / share.sum()))
                np.testing.assert_allclose(shown[row, i].detach().numpy(), expected, rtol=1e-10)


def test_a_wide_layer_of_either_path_gives_one_answer(monkeypatch):
    """300 channels: by the similarities of both, and, when told to, by two softmaxes."""
    answers = []
    for most in (256, 1000):
        monkeypatch.setattr(reciprocal, "WIDE", most)
        layer = ReciprocalNorm2d(300, dtype=torch.float64)
        for gate in gate_parameters(layer):
            gate.data.fill_(0.7)
        xs, xt = (x.requires_grad_() for x in pair((6, 300, 2, 2)))
        ys, yt = forward_domains(layer, xs, xt)
        (ys.square().sum() + yt.sin().sum()).backward()
        answers.append([ys, yt, xs.grad, xt.grad, *(gate.grad for gate in gate_parameters(layer))])
    for got, want in zip(*answers, strict=True):
        assert_close(got, want)
