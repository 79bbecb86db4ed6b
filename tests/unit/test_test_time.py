"""Prediction-time normalisation and Tent."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_statistics import images, network, randomize
from torch import nn
from torch.autograd import gradcheck

from deeptransfer.networks import small_cnn
from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm2d,
    DomainWhitening2d,
    ReciprocalNorm2d,
    Tent,
    TransNorm2d,
    adapt_statistics,
    convert_norm,
    prediction_time,
    use_domain,
)

FAMILIES = [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d, DomainWhitening2d]
BatchNorm = nn.modules.batchnorm._BatchNorm


def domain_network(family) -> nn.Module:
    return network() if family is None else randomize(convert_norm(network(), family), seed=1)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def in_training_mode(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the released code of Nado and of Tent does: BatchNorm in training mode; here with dropout off."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with use_domain(model, "target"):
        return model(x)


# Prediction-time statistics


def test_without_prior_it_is_batch_norm_in_training_mode():
    model, x = network(), images(10)
    with prediction_time(model):
        torch.testing.assert_close(model(x), in_training_mode(model, x))


@settings(max_examples=15)
@given(prior=st.floats(0, 1e3), n=st.integers(2, 6))
def test_prior_mixes_as_n_source_images_would_in_numpy(prior, n):
    layer = randomize(nn.BatchNorm2d(3).double())
    x = torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = np.zeros(x.shape)
    for c in range(3):
        values = x[:, c].numpy()
        mean = prior / (prior + n) * layer.running_mean[c].item() + n / (prior + n) * values.mean()
        var = prior / (prior + n) * layer.running_var[c].item() + n / (prior + n) * values.var()
        z = (values - mean) / math.sqrt(var + layer.eps)
        expected[:, c] = layer.weight[c].item() * z + layer.bias[c].item()
    with prediction_time(layer, prior=prior):
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [None, DomainBatchNorm2d])
def test_the_variance_of_the_mixture_is_that_of_source_images_and_batch_together(family):
    """Sixteen source images whose statistics are the stored ones, beside a batch of five: measured as one set."""
    source, x = images(16).view(16, 1, 6, 6) + 3, images(5, 1) / 2
    layer = adapt_statistics(nn.BatchNorm2d(1).double(), source)
    layer = convert_norm(layer, family) if family else layer
    with prediction_time(layer, prior=16, mixture=True):
        actual = layer(x)
    together = nn.functional.batch_norm(torch.cat([source, x]), None, None, training=True)
    torch.testing.assert_close(actual, together[16:])
    with prediction_time(layer, prior=16):
        assert layer(x).std() > 1.05 * actual.std()  # without the term between the two means


def test_an_infinite_prior_is_the_sources_batch_norm():
    model, x = network(), images(10)
    expected = model.eval()(x)
    for prior, tolerance in ((math.inf, 1e-12), (1e12, 1e-9)):
        with prediction_time(model, prior=prior):
            torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", [DomainBatchNorm2d, AutoDIAL2d, ReciprocalNorm2d, DomainWhitening2d])
def test_the_prior_of_domain_layers_is_the_source_row(family):
    model, x = domain_network(family), images(10)
    with use_domain(model.eval(), "source"):
        expected = model(x)
    with prediction_time(model, prior=math.inf):
        torch.testing.assert_close(model(x), expected)


def test_domain_batch_norm_without_prior_is_training_on_the_target():
    model, x = domain_network(DomainBatchNorm2d), images(10)
    with prediction_time(model):
        actual = model(x)
    torch.testing.assert_close(actual, in_training_mode(model, x))


def test_transnorm_compares_the_batch_with_the_source_row():
    """As in a training batch of target rows alone, where the source is represented by its running row."""
    model, x = domain_network(TransNorm2d), images(10)
    with prediction_time(model):
        actual = model(x)
    torch.testing.assert_close(actual, in_training_mode(model, x))


@pytest.mark.parametrize("family", [None, *FAMILIES])
@pytest.mark.parametrize("prior", [0, 16])
def test_nothing_of_it_stays(family, prior):
    model, x = domain_network(family), images(10)
    model.train()[1].eval()
    modes, before = [m.training for m in model.modules()], state(model)
    context = prediction_time(model, prior=prior)
    assert context.__enter__() is model
    assert not any(m.training for m in model.modules())
    model(x)
    assert not context.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert modes == [m.training for m in model.modules()]
    assert same(before, model.state_dict())
    assert not any("forward" in vars(m) for m in model.modules())
    expected = domain_network(family).eval()(x)
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=0)


def test_it_may_be_nested():
    model, x = network(), images(10)
    with prediction_time(model, prior=4):
        expected = model(x)
        with prediction_time(model):
            model(x)
        assert torch.equal(model(x), expected)


def test_gradient_reaches_the_batch_statistics():
    model = nn.Sequential(randomize(nn.BatchNorm1d(3).double()), nn.Tanh())
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def through(x, weight, bias, prior):
        with prediction_time(model, prior=prior):
            return torch.func.functional_call(model, {"0.weight": weight, "0.bias": bias}, (x,))

    parameters = [p.detach().clone().requires_grad_() for p in model[0].parameters()]
    for prior in (0, 8):
        assert gradcheck(lambda *inputs, prior=prior: through(*inputs, prior), (x, *parameters))


def test_batch_norms_without_affine_or_statistics():
    x = torch.randn(6, 2, dtype=torch.float64)
    for options in ({"affine": False}, {"track_running_stats": False}):
        layer = nn.BatchNorm1d(2, **options).double()
        with prediction_time(layer):
            torch.testing.assert_close(layer(x), nn.functional.batch_norm(x, None, None, training=True))
    with prediction_time(layer, prior=2), pytest.raises(ValueError, match="prior=0"):
        layer(x)


def test_one_value_per_channel_needs_a_prior():
    layer = randomize(nn.BatchNorm1d(3))
    with prediction_time(layer), pytest.raises(ValueError, match=r"\(1, 3\).*prior=16"):
        layer(torch.zeros(1, 3))
    with prediction_time(layer, prior=16):
        assert layer(torch.zeros(1, 3)).isfinite().all()


def test_a_source_row_that_was_never_updated_is_refused_as_a_prior():
    layer = DomainBatchNorm2d(2)
    adapt_statistics(layer, torch.randn(4, 2, 3, 3))
    with prediction_time(layer):
        layer(torch.randn(4, 2, 3, 3))
    with prediction_time(layer, prior=2), pytest.raises(ValueError, match="source were never updated"):
        layer(torch.randn(4, 2, 3, 3))


@pytest.mark.parametrize("prior", [-1, math.nan])
def test_a_prior_below_0_is_refused(prior):
    with pytest.raises(ValueError, match=f"got {prior}"), prediction_time(network(), prior=prior):
        pass


def test_wrong_input_and_wrong_models_are_refused():
    with pytest.raises(ValueError, match="Linear has no BatchNorm"), prediction_time(nn.Linear(2, 2)):
        pass
    for layer in (nn.BatchNorm2d(3), randomize(DomainBatchNorm2d(3))):
        with prediction_time(layer), pytest.raises(ValueError, match="4"):
            layer(torch.randn(5, 3))


def test_bf16_autocast_and_nan():
    model, x = network().float(), images(16).float()
    with prediction_time(model), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    x[0] = math.nan
    with prediction_time(model, prior=2):
        assert model(x).isnan().all()


def test_autocast_does_not_reach_into_the_statistics():
    """Whitening multiplies matrices, which autocast would do in bf16."""
    layer, x = randomize(DomainWhitening2d(4)), torch.randn(8, 4, 5, 5)
    with prediction_time(layer):
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x), expected)


# Tent


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_tent_with_lr_0_is_prediction_time_batch_norm(family):
    model, x = domain_network(family), images(10)
    before = state(model)
    tent = Tent(model, lr=0.0)
    for batch in x.split(5):
        with prediction_time(model):
            expected = model(batch)
        assert torch.equal(tent(batch), expected)
    assert same(before, model.state_dict())


def test_tent_takes_one_adam_step_a_batch_on_the_mean_entropy():
    """By hand: BatchNorm in training mode, softmax entropy in probabilities, Adam's formula; batches of two sizes."""
    model, lr = network(), 0.01
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.train(isinstance(module, BatchNorm))
    names = [f"{name}.{p}" for name, m in twin.named_modules() if isinstance(m, BatchNorm) for p in ("weight", "bias")]
    parameters = [twin.get_parameter(name) for name in names]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    tent = Tent(model, lr=lr)
    for step, x in enumerate(images(14).split((10, 4)), start=1):
        logits = twin(x)
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        gradients = torch.autograd.grad(-(p * p.log()).sum() / len(x), parameters)
        actual = tent(x)
        torch.testing.assert_close(actual, logits)  # those before the step
        assert not actual.requires_grad
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            root = (second[i] / (1 - 0.999**step)).sqrt()
            with torch.no_grad():
                parameters[i] -= lr * first[i] / (1 - 0.9**step) / (root + 1e-8)
            torch.testing.assert_close(model.get_parameter(names[i]), parameters[i])


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_tent_moves_scale_and_shift_alone(family):
    model = domain_network(family)
    before = state(model)
    tent = Tent(model)
    for _ in range(2):
        tent(images(10))
    layers = [name for name, module in model.named_modules() if hasattr(module, "running_mean")]
    norms = {f"{name}.{p}" for name in layers for p in ("weight", "bias")}
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == norms
    assert {name for name, p in model.named_parameters() if p.requires_grad} == norms


def test_tent_on_separate_scales_moves_the_targets():
    model = convert_norm(network(), DomainBatchNorm2d, shared_affine=False)
    before = [p.clone() for p in (model[1].weight, model[1].bias)]
    Tent(model)(images(10))
    for p, old in zip((model[1].weight, model[1].bias), before, strict=True):
        assert torch.equal(p[0], old[0])
        assert not torch.equal(p[1], old[1])


def test_tent_lowers_the_entropy_of_a_batch_it_sees_again():
    tent, x = Tent(network(), lr=0.01), images(12)

    def entropy(logits):
        return torch.distributions.Categorical(logits=logits).entropy().mean().item()

    values = [entropy(tent(x)) for _ in range(10)]
    assert values[-1] < values[0] - 0.02
    assert values == sorted(values, reverse=True)


def test_reset_forgets_the_steps_and_adams_moments():
    model = network()
    before = state(model)
    tent = Tent(model, lr=0.01)
    first = [tent(batch) for batch in images(20).split(5)]
    assert not same(before, model.state_dict())
    tent.reset()
    assert same(before, model.state_dict())
    second = [tent(batch) for batch in images(20).split(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_tent_learns_where_gradients_are_off(guard):
    """Evaluation loops switch gradients off around the model."""
    x = torch.randn(10, 3)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))  # a norm first: it keeps the input for its gradient
    expected = copy.deepcopy(model)
    Tent(expected)(x)
    tent = Tent(model)
    with guard():
        tent(x.clone())
    assert same(state(expected), model.state_dict())


def test_tent_takes_the_books_networks():
    network_ = small_cnn(size=8, widths=(2, 2), hidden=(4,))
    x = torch.rand(6, 1, 8, 8)
    with prediction_time(network_):
        expected = network_(x).logits
    torch.testing.assert_close(Tent(network_)(x), expected)


def test_tent_needs_something_to_adapt():
    for model in (nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)):
        with pytest.raises(ValueError, match="scale and shift"):
            Tent(model)


def test_tents_entropy_is_finite_for_certain_predictions():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e6)
    Tent(model)(torch.randn(8, 2))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", [None, *FAMILIES])
@pytest.mark.parametrize("spoilt", ["a NaN", "an infinity", "all NaN", "no rows"])
def test_a_batch_without_a_finite_entropy_gets_its_logits_but_no_step(family, spoilt):
    model, x = domain_network(family), images(20)
    tent = Tent(model, lr=0.01)
    tent(x[:8])
    before, moments = state(model), copy.deepcopy(tent.optimizer.state_dict())
    bad = x[8:14].clone()
    if spoilt == "no rows":
        bad = bad[:0]
    elif spoilt == "all NaN":
        bad.fill_(math.nan)
    else:
        bad[2, 0, 1, 1] = math.nan if spoilt == "a NaN" else -math.inf
    logits = tent(bad)
    assert logits.shape == (len(bad), 3)
    assert logits.isnan().all()  # one row reaches all by the statistics of the batch
    assert same(before, model.state_dict())
    after = tent.optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][k], value) for i, s in moments["state"].items() for k, value in s.items())
    assert tent(x[14:]).isfinite().all()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not same(before, model.state_dict())


def test_a_gradient_whose_square_is_infinite_takes_no_step():
    """Adam keeps squares, and would never move that parameter again."""
    layer = nn.BatchNorm1d(2)
    tent = Tent(nn.Sequential(layer, nn.Linear(2, 2)), lr=0.01)
    handle = layer.weight.register_hook(lambda gradient: gradient * 1e25)
    tent(torch.randn(8, 2))
    assert layer.weight.tolist() == [1, 1]
    handle.remove()
    tent(torch.randn(8, 2))
    assert layer.weight.tolist() != [1, 1]


def test_a_class_that_is_ruled_out_adds_nothing_to_the_entropy():
    """Networks rule classes out by logits of -inf; 0 log 0 is 0."""

    class Masked(nn.Module):
        def __init__(self, columns):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.columns = nn.BatchNorm1d(3), columns

        def forward(self, x):
            y = self.norm(x)
            return y[:, :2] if self.columns == 2 else y.masked_fill(torch.tensor([False, False, True]), -math.inf)

    tents, x = [Tent(Masked(columns), lr=0.1) for columns in (2, 3)], torch.randn(8, 3)
    for tent in tents:
        tent(x)
    assert tents[0].model.norm.weight[0] != 1
    torch.testing.assert_close(tents[1].model.norm.weight, tents[0].model.norm.weight)


def test_tent_moves_what_layers_share_once_and_what_was_frozen():
    """Two norms of one scale, and a network that came without gradients: as one norm that passes twice."""
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    second.weight, second.bias = first.weight, first.bias
    tied = nn.Sequential(first, nn.Linear(3, 3), second).requires_grad_(False)
    once = nn.Sequential(copy.deepcopy(first), copy.deepcopy(tied[1]))
    once.append(once[0])
    tents, x = [Tent(net, lr=0.1) for net in (tied, once)], torch.randn(8, 3)
    assert [len(tent.adapted) for tent in tents] == [2, 2]
    for tent in tents:
        tent(x)
    assert (first.weight != 1).all()
    torch.testing.assert_close(first.weight, once[0].weight)
    assert second.weight is first.weight


def test_tent_leaves_the_ones_of_a_converted_layer_without_scale():
    net = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3))
    expected = Tent(copy.deepcopy(net), lr=0.1)
    tent, x = Tent(convert_norm(net, DomainBatchNorm2d), lr=0.1), torch.randn(8, 3)
    for _ in range(2):
        torch.testing.assert_close(tent(x), expected(x))
    assert net[0].weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_half_precision(family, dtype):
    """As in float32 from the same numbers; also Tent, whose steps of 1e-3 are too small for a bfloat16 near 1."""
    half, x = domain_network(family).to(dtype), images(16).to(dtype)
    single = copy.deepcopy(half).float()
    before = copy.deepcopy(half.state_dict())
    close = {"rtol": 40 * torch.finfo(dtype).eps, "atol": 40 * torch.finfo(dtype).eps}
    for prior in (0, 4, math.inf):
        with prediction_time(half, prior), prediction_time(single, prior):
            y = half(x)
            assert y.dtype == dtype
            torch.testing.assert_close(y.float(), single(x.float()), **close)
    tents = Tent(half), Tent(single)
    for _ in range(20):
        assert tents[0](x).dtype == dtype
        tents[1](x.float())
    moved = [p - q for p, q in zip(tents[1].adapted, tents[1]._start, strict=True)]
    for p, q, step in zip(tents[0].adapted, tents[1].adapted, moved, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.float(), q, rtol=2 * torch.finfo(dtype).eps, atol=0.6 * step.abs().max().item())
    assert not same(before, half.state_dict())
    tents[0].reset()
    assert same(before, half.state_dict())
    for _ in range(2):
        tents[0](x)  # from the beginning: the copy that moves went back, too
    assert (half[1].weight.float() - single[1].weight).abs().max() > 5e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_reset_leaves_no_gradients_and_works_inside_inference_mode(dtype):
    tent, x = Tent(network().to(dtype), lr=0.01), images(10).to(dtype)
    first = tent(x), tent(x)
    with torch.inference_mode():
        tent.reset()
        assert all(p.grad is None for p in tent.adapted)
        assert all(torch.equal(a, tent(x)) for a in first)


# Batches that are not as they should be


def test_with_an_infinite_prior_the_batch_has_no_say():
    model, x = network().eval(), images(10)
    x[0] = math.nan
    expected = model(x)
    with prediction_time(model, prior=math.inf):
        y = model(x)
    assert y[0].isnan().all()
    torch.testing.assert_close(y[1:], expected[1:])
    assert expected[1:].isfinite().all()


@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_batch_without_rows_gives_none(family):
    for prior in (0, 4, math.inf):
        with prediction_time(domain_network(family), prior) as model:
            assert model(images(0)).shape == (0, 3)


def test_other_domains_than_source_and_target():
    net = convert_norm(network(), DomainBatchNorm2d, domains=("source", "other", "target"))
    x, plain = images(8), network()
    for prior in (0, 4):
        with prediction_time(net, prior), prediction_time(plain, prior):
            torch.testing.assert_close(net(x), plain(x))
    net = convert_norm(network(), DomainBatchNorm2d, domains=3)
    with prediction_time(net), pytest.raises(ValueError, match="got 'target'"):
        net(x)
