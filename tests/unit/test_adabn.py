"""AdaBN: the statistics it writes, against the whole set in one batch and against NumPy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from support_statistics import images, network, randomize
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm2d,
    DomainNorm,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    adapt_statistics,
    convert_norm,
    prediction_time,
    use_domain,
)

FAMILIES = [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d, DomainWhitening2d]
BatchNorm = nn.modules.batchnorm._BatchNorm


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [
        buffer.clone()
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.startswith("running")
    ]


def whole_set(model: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """Mean and biased variance of each BatchNorm's input, with the whole set as one batch in training mode."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    inputs = {}
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda layer, args: inputs.update({layer: args[0].detach().numpy()}))
    model(x)
    moments = []
    for norm in norms:
        value = inputs[norm]
        rows = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)  # (C, N)
        moments += [rows.sum(1) / rows.shape[1], ((rows - rows.mean(1)[:, None]) ** 2).sum(1) / rows.shape[1]]
    return moments


# Population statistics


@settings(max_examples=12)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_population_equals_the_whole_set_in_one_batch_for_any_split(sizes):
    x = images(sum(sizes) + 1)
    model = adapt_statistics(network(), x.split([*sizes, 1]))
    for actual, expected in zip(statistics(model), whole_set(network(), x), strict=True):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_population_equals_a_numpy_network_written_out():
    """Independent of torch's BatchNorm: linear, norm, ReLU, linear, norm, in float64 loops over channels."""
    torch.manual_seed(0)
    model = randomize(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2)).double()
    )
    x = torch.randn(17, 3, dtype=torch.float64)
    expected = []
    h = x.numpy()
    for linear, norm in ((model[0], model[1]), (model[3], model[4])):
        h = h @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
        mean = [sum(h[i, c] for i in range(17)) / 17 for c in range(h.shape[1])]
        var = [sum((h[i, c] - mean[c]) ** 2 for i in range(17)) / 17 for c in range(h.shape[1])]
        expected += [mean, var]
        z = (h - mean) / np.sqrt(np.array(var) + norm.eps)
        h = np.maximum(z * norm.weight.detach().numpy() + norm.bias.detach().numpy(), 0)
    adapt_statistics(model, x.split(5))
    for actual, value in zip(statistics(model), expected, strict=True):
        np.testing.assert_allclose(actual.numpy(), value, rtol=1e-12)


def test_population_in_a_network_with_branches():
    """ResNet's shortcuts have norms of their own: they must be met in the order of execution."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    x = torch.rand(12, 3, 32, 32)
    expected = whole_set(model, x)
    adapt_statistics(model, x.split((5, 4, 3)))
    for actual, value in zip(statistics(model), expected, strict=True):
        np.testing.assert_allclose(actual.numpy(), value, rtol=1e-3, atol=1e-4)


def test_population_follows_the_order_of_execution_not_of_registration():
    layers = list(network().children())
    backwards = nn.ModuleDict({str(i): layers[i] for i in reversed(range(len(layers)))})
    backwards.forward = lambda x: nn.Sequential(*layers)(x)
    x = images(20)
    adapt_statistics(backwards, x.split(6))
    expected = statistics(adapt_statistics(network(), x.split(6)))
    torch.testing.assert_close(statistics(nn.Sequential(*layers)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_population_of_domain_layers_moves_the_target_row_alone_and_for_any_split(family):
    x = images(20)
    start = randomize(convert_norm(network(), family), seed=1)
    one, many = copy.deepcopy(start), copy.deepcopy(start)
    adapt_statistics(one, [x])
    adapt_statistics(many, x.split((1, 8, 4, 7)))
    for old, a, b in zip(statistics(start), statistics(one), statistics(many), strict=True):
        assert torch.equal(a[0], old[0])
        assert not torch.equal(a[1], old[1])
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_population_of_domain_batch_norm_is_that_of_batch_norm():
    x = images(20)
    plain = adapt_statistics(network(), x.split(7))
    domain = adapt_statistics(convert_norm(network(), DomainBatchNorm2d), x.split(7))
    for a, b in zip(statistics(domain), statistics(plain), strict=True):
        torch.testing.assert_close(a[1], b)
    torch.testing.assert_close(domain.eval()(x), plain.eval()(x))


def test_population_of_whitening_is_the_covariance_of_the_whole_set():
    x = images(20)
    model = randomize(convert_norm(network(), DomainWhitening2d), seed=1)
    adapt_statistics(model, x.split((3, 11, 6)))
    first = model[0](x).detach().numpy()
    rows = np.moveaxis(first, 1, 0).reshape(4, -1)
    np.testing.assert_allclose(model[1].running_cov[1, 0].numpy(), np.cov(rows, bias=True), rtol=1e-10)
    np.testing.assert_allclose(model[1].running_var[1].numpy(), rows.var(1), rtol=1e-10)


def test_float32_sums_survive_a_large_mean():
    """The variance is 1e-8 of the squared mean: E[x²] − E[x]² would be noise."""
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 1e4
    layer = nn.BatchNorm1d(1)
    adapt_statistics(layer, x.split(100))
    assert layer.running_var.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-3)


# Passes


def test_as_many_passes_as_layers_are_exact_and_fewer_are_not():
    x = images(24)
    batches = x.split(6)
    exact = statistics(adapt_statistics(network(), batches))
    for passes in (1, 2, 3, 4):
        now = statistics(adapt_statistics(network(), batches, passes=passes))
        done = min(passes, 3)
        torch.testing.assert_close(now[: 2 * done], exact[: 2 * done])
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(now[2 * done :], exact[2 * done :], strict=True))


def test_one_pass_over_one_batch_is_exact():
    x = images(24)
    torch.testing.assert_close(
        statistics(adapt_statistics(network(), [x], passes=1)), statistics(adapt_statistics(network(), [x]))
    )


# The other two methods


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_ema_is_what_training_mode_would_have_kept(momentum):
    x = images(24)
    expected = network()
    for module in expected.modules():
        if isinstance(module, BatchNorm):
            module.momentum = momentum
            if momentum is None:
                module.reset_running_stats()
    model = copy.deepcopy(expected)
    expected.train()[7].eval()  # dropout off
    for batch in x.split(8):
        expected(batch)
    adapt_statistics(model, x.split(8), method="ema")
    torch.testing.assert_close(statistics(model), statistics(expected))


def test_a_mean_of_batch_variances_is_not_the_variance_of_the_set():
    x = images(24)
    layer = nn.BatchNorm2d(1, momentum=None).double()
    average = adapt_statistics(copy.deepcopy(layer), x.split(4), method="ema").running_var
    population = adapt_statistics(layer, x.split(4)).running_var
    assert population > 1.5 * average


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_batch_statistics_are_those_of_prediction_time(family):
    x = images(16)
    model = network() if family is None else randomize(convert_norm(network(), family), seed=1)
    with prediction_time(model):
        expected = model(x)
    adapt_statistics(model, x, method="batch")
    # TransNorm's gain reads the unbiased variance of a measured batch, but a stored one as it is.
    tolerance = {"rtol": 0.05, "atol": 0.05} if family is TransNorm2d else {}
    torch.testing.assert_close(model.eval()(x), expected, **tolerance)


def test_of_several_batches_the_last_one_counts():
    x = images(16)
    several = adapt_statistics(network(), x.split(8), method="batch")
    torch.testing.assert_close(
        statistics(several), statistics(adapt_statistics(network(), x[8:], method="batch")), rtol=0, atol=0
    )


# What it leaves alone


@pytest.mark.parametrize("method", ["population", "ema", "batch"])
def test_weights_modes_and_hooks_stay(method):
    model = network().train()
    model[4].eval()
    modes = [m.training for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    assert adapt_statistics(model, images(8), method) is model
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(p, w) and p.requires_grad for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_does_not_run_keeps_its_statistics():
    model = network()
    model.unused = randomize(nn.BatchNorm2d(2).double())
    model.forward = lambda x: nn.Sequential(*list(model.children())[:-1])(x)
    before = statistics(model.unused)
    adapt_statistics(model, images(8))
    assert all(torch.equal(a, b) for a, b in zip(statistics(model.unused), before, strict=True))


def test_the_counter_says_for_how_many_batches_the_statistics_stand():
    x = images(24)
    model = adapt_statistics(convert_norm(network(), DomainBatchNorm2d), x.split(6))
    assert all(m.num_batches_tracked.tolist() == [5, 4] for m in model.modules() if isinstance(m, DomainNorm))
    plain = adapt_statistics(network(), x.split(8))
    assert all(m.num_batches_tracked == 3 for m in plain.modules() if isinstance(m, BatchNorm))


def test_a_target_row_that_was_never_updated_can_be_adapted():
    """Source-only training under use_domain leaves the target row untouched: filling it is what AdaBN is for."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), DomainBatchNorm2d(2)).double()
    with use_domain(model.train(), "source"):
        model(images(8))
    with pytest.raises(ValueError, match="never updated"):
        model.eval()(images(8))
    adapt_statistics(model, images(8))
    assert model.eval()(images(8)).isfinite().all()


def test_it_adapts_the_target_even_inside_use_domain_source():
    model = convert_norm(network(), DomainBatchNorm2d)
    expected = statistics(adapt_statistics(copy.deepcopy(model), images(8)))
    with use_domain(model, "source"):
        adapt_statistics(model, images(8))
        assert model[1].membership.split() == 0
    torch.testing.assert_close(statistics(model), expected, rtol=0, atol=0)


# The data


def test_data_may_be_a_tensor_batches_tuples_or_a_loader():
    x = images(20)
    expected = statistics(adapt_statistics(network(), x))
    dataset = TensorDataset(x, torch.zeros(20, dtype=torch.long))
    empty = x[:0]
    for data in (
        x.split(7),
        [(b, None) for b in x.split(7)],
        [x[:9], empty, x[9:]],
        DataLoader(dataset, batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(0)),
    ):
        torch.testing.assert_close(statistics(adapt_statistics(network(), data)), expected)


def test_a_long_tensor_goes_through_in_chunks():
    sizes = []
    model = network()
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    x = images(1100)
    adapt_statistics(model, x)
    assert max(sizes) <= 512
    np.testing.assert_allclose(statistics(model)[3].numpy(), whole_set(network(), x)[3], rtol=1e-10)


def test_a_generator_will_do_for_one_pass_only():
    x = images(20)
    expected = statistics(adapt_statistics(network(), x.split(7), passes=1))
    torch.testing.assert_close(
        statistics(adapt_statistics(network(), (b for b in x.split(7)), passes=1)), expected, rtol=0, atol=0
    )
    for passes in (None, 2):
        with pytest.raises(ValueError, match=r"generator.*passes=1"):
            adapt_statistics(network(), (b for b in x.split(7)), passes=passes)


@pytest.mark.parametrize("data", [[], [images(0)], images(0), DataLoader(TensorDataset(images(3)), 8, drop_last=True)])
@pytest.mark.parametrize("method", ["population", "ema", "batch"])
def test_no_data_is_refused_and_changes_nothing(data, method):
    model = convert_norm(network(), DomainBatchNorm2d)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="no rows"):
        adapt_statistics(model, data, method)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("passes", [None, 1])
def test_a_failure_on_the_way_leaves_the_statistics_as_they_were(passes):
    """Half-adapted is worse than not adapted."""

    class Failing(list):
        reads = 0

        def __iter__(self):
            yield from super().__iter__()
            Failing.reads += 1
            if Failing.reads == (2 if passes is None else 1):
                raise OSError("disk")

    model = network()
    before = statistics(model)
    with pytest.raises(OSError, match="disk"):
        adapt_statistics(model, Failing(images(8).split(4)), passes=passes)
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), before, strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (images(4), {"method": "mean"}, "population, ema, batch, got 'mean'"),
        (images(4), {"passes": 0}, "got 0"),
        (images(4), {"passes": 2, "method": "ema"}, "belongs to 'population'"),
        ([{"x": images(4)}], {}, "got dict"),
        ([images(4), "x"], {}, "got str"),
    ],
)
def test_bad_arguments_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        adapt_statistics(network(), data, **options)


def test_a_model_without_statistics_is_refused():
    for model in (nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)):
        with pytest.raises(ValueError, match="nothing to adapt"):
            adapt_statistics(model, torch.randn(4, 2))


def test_a_layer_used_twice_has_no_exact_statistics():
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(norm, nn.ReLU(), norm)
    with pytest.raises(ValueError, match=r"twice.*passes=1"):
        adapt_statistics(model, torch.randn(8, 2))
    adapt_statistics(model, torch.randn(8, 2), passes=1)


def test_ema_of_one_row_in_one_dimension_is_refused():
    """Its unbiased variance is 0/0; torch refuses the same batch in training."""
    with pytest.raises(ValueError, match="one value per channel"):
        adapt_statistics(nn.BatchNorm1d(2), torch.randn(9, 2).split(4), method="ema")


@pytest.mark.parametrize("method", ["population", "ema", "batch"])
@pytest.mark.parametrize("n", [513, 1025])
def test_a_row_left_over_from_the_chunks_is_no_batch_of_its_own(n, method):
    """At a fully connected layer it would have no variance."""
    torch.manual_seed(0)
    x = torch.randn(n, 3, dtype=torch.float64)
    passes = 1 if method == "population" else None
    layer = adapt_statistics(nn.BatchNorm1d(3, momentum=None).double(), x, method, passes)
    if method == "ema":
        batches = [x[:512], x[512:]] if n == 1025 else [x]
        expected = sum(b.var(0) for b in batches) / len(batches)
    else:
        expected = x.var(0, correction=0)
    torch.testing.assert_close(layer.running_var, expected)


def test_one_value_per_channel_is_no_set_and_no_batch_to_normalise_by():
    """Its variance would be 0."""
    x = torch.randn(9, 2)
    for data, options in (
        (x[:1], {}),
        ([x[:4], x[4:5]], {"passes": 1}),
        (x[:1], {"method": "batch"}),
        ([x[:4], x[4:5]], {"method": "batch"}),
        (x[:1], {"method": "ema"}),
    ):
        layer = randomize(nn.BatchNorm1d(2))
        before = statistics(layer)
        with pytest.raises(ValueError, match=r"one value per channel .* give it more rows"):
            adapt_statistics(layer, data, **options)
        assert all(torch.equal(a, b) for a, b in zip(statistics(layer), before, strict=True))
    layer = adapt_statistics(nn.BatchNorm1d(2), [x[:4], x[4:5]])  # layer by layer, one row is a part of the set
    torch.testing.assert_close(layer.running_var, x[:5].var(0, correction=0))


@pytest.mark.parametrize("passes", [None, 1])
def test_layers_that_are_passed_by_are_an_error(passes):
    model = network()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="no normalisation layer was called"):
        adapt_statistics(model, images(8), passes=passes)


def test_nan_in_the_data_reaches_the_statistics():
    x = images(8)
    x[3] = torch.nan
    assert statistics(adapt_statistics(network(), x.split(4)))[0].isnan().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("family", [None, DomainBatchNorm2d, DomainWhitening2d])
def test_nan_and_infinity_are_forgotten_with_the_next_set(family, value):
    model = network() if family is None else convert_norm(network(), family)
    x = images(8)
    expected = statistics(adapt_statistics(copy.deepcopy(model), x))
    adapt_statistics(model, torch.full_like(x, value))
    assert not model.eval()(x).isfinite().any()
    torch.testing.assert_close(statistics(adapt_statistics(model, x)), expected)


# Domains


@pytest.mark.parametrize("method", ["population", "ema", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_row_of_a_domain_is_named_or_numbered(family, method):
    """With one domain's row in the place of the other's, the sets give the same statistics."""
    start = randomize(convert_norm(network(), family), seed=1)
    for module in start.modules():
        if isinstance(module, DomainNorm):
            for name, buffer in module.named_buffers():
                if name.startswith("running"):
                    buffer[0].copy_(buffer[1])
    x = images(12).split(4)
    target, source, number = (copy.deepcopy(start) for _ in range(3))
    adapt_statistics(target, x, method)
    adapt_statistics(source, x, method, domain="source")
    adapt_statistics(number, x, method, domain=0)
    for old, t, s, n in zip(*map(statistics, (start, target, source, number)), strict=True):
        assert torch.equal(s[1], old[1])
        assert torch.equal(s, n)
        if family in (DomainBatchNorm2d, DomainWhitening2d):  # one domain does not act on the other
            torch.testing.assert_close(s[0], t[1])


def test_a_third_domain_and_one_that_does_not_exist():
    net = convert_norm(network(), DomainBatchNorm2d, domains=("photo", "sketch", "target"))
    expected = statistics(adapt_statistics(network(), images(8)))
    before = statistics(net)
    adapt_statistics(net, images(8), domain="sketch")
    for old, new, value in zip(before, statistics(net), expected, strict=True):
        assert torch.equal(new[[0, 2]], old[[0, 2]])
        torch.testing.assert_close(new[1], value)
    for model in (net, network()):
        with pytest.raises(ValueError, match="got 'cartoon'"):
            adapt_statistics(model, images(8), domain="cartoon")


def test_of_a_plain_batch_norm_the_one_row_is_replaced_whatever_the_name():
    expected = statistics(adapt_statistics(network(), images(8)))
    for domain in ("source", 1):
        actual = statistics(adapt_statistics(network(), images(8), domain=domain))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_after_weight_averaging_both_rows_are_measured_again():
    """What update_bn does for plain BatchNorm: the average over the batches."""
    average = torch.optim.swa_utils.AveragedModel(convert_norm(network(), DomainBatchNorm2d))
    for domain, x in (("source", images(8)), ("target", images(8, seed=1) + 1)):
        adapt_statistics(average, x.split(4), domain=domain)
        plain = adapt_statistics(network(), x.split(4))
        with use_domain(average.eval(), domain):
            torch.testing.assert_close(average(x), plain.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"passes": 1}, {"method": "ema"}, {"method": "batch"}])
def test_a_network_in_half_precision_is_measured_in_float32(options, dtype):
    half, x = network().to(dtype), images(24).to(dtype)
    single = copy.deepcopy(half).float()
    adapt_statistics(half, x.split(8), **options)
    adapt_statistics(single, x.float().split(8), **options)
    for layer, other in ((half[1], single[1]), (half[9], single[9])):
        assert layer.running_var.dtype == dtype
        tolerance = 2 * torch.finfo(dtype).eps if layer is half[1] and "ema" not in options.values() else 0.1
        for name in ("running_mean", "running_var"):
            ours, theirs = getattr(layer, name).float(), getattr(other, name)
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_many_small_steps_are_not_lost_in_half_precision():
    """An average over 100 batches, kept in bfloat16 on the way, would stop moving at its 256th part."""
    x = torch.randn(400, 2) * 3 + 5
    layer = nn.BatchNorm1d(2, momentum=0.002)
    half = adapt_statistics(copy.deepcopy(layer).bfloat16(), x.bfloat16().split(4), method="ema")
    adapt_statistics(layer, x.bfloat16().float().split(4), method="ema")
    torch.testing.assert_close(half.running_mean.float(), layer.running_mean, rtol=0.01, atol=0.01)


def test_autocast_does_not_reach_into_the_statistics():
    """Whitening multiplies matrices, which autocast would do in bf16."""
    x = torch.randn(32, 4, 3, 3)
    expected = statistics(adapt_statistics(DomainWhitening2d(4), x.split(8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = statistics(adapt_statistics(DomainWhitening2d(4), x.split(8)))
        half = adapt_statistics(convert_norm(network().float(), DomainWhitening2d), images(32).float().split(8))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in statistics(half))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_adapted():
    """Also for a batch size it was compiled for already: that code calls no hooks."""
    model, batches = network().eval(), images(16).split(4)
    expected = statistics(adapt_statistics(copy.deepcopy(model), batches, passes=1))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(batches[0])
    adapt_statistics(compiled, batches, passes=1)
    torch.testing.assert_close(statistics(model), expected)
    torch.testing.assert_close(compiled(batches[0]), model(batches[0]))
