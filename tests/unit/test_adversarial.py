"""Adversarial losses against float64 NumPy, gradients by finite differences, and bad input."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_adversarial import (
    NO_REVERSAL,
    discriminator,
    finite_difference,
    normal,
    np_cdan,
    np_denominators,
    np_discriminator,
    np_domain_loss,
    np_entropy_weight,
    np_log_sigmoid,
    np_softmax,
)
from torch import nn
from torch.autograd import gradcheck

from deeptransfer.adversarial import (
    AdversarialDiscriminativeLoss,
    ConditionalDomainAdversarialLoss,
    DomainAdversarialLoss,
    DomainConfusionLoss,
    DomainDiscriminator,
    MultilinearMap,
    SoftLabelLoss,
    dann_lambda,
    gradient_reversal,
)

WEIGHTINGS = (None, "per-domain", "joint", "max")


def cdan(d: int, c: int, **kwargs) -> ConditionalDomainAdversarialLoss:
    multilinear_map = MultilinearMap(d, c, kwargs.pop("randomized", None)).double()
    return ConditionalDomainAdversarialLoss(discriminator(multilinear_map.out_features), multilinear_map, **kwargs)


def parts(n_source=5, n_target=3, d=4, c=3):
    return normal(n_source, d), normal(n_target, d, seed=1), normal(n_source, c, seed=2), normal(n_target, c, seed=3)


# Schedule


def test_schedule_is_the_papers():
    for p in (0.0, 0.1, 0.5, 1.0):
        assert dann_lambda(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    assert dann_lambda(0.0) == 0


@pytest.mark.parametrize("progress", [-0.1, 1.5, math.nan])
def test_progress_outside_0_1_is_refused(progress):
    with pytest.raises(ValueError, match=f"got {progress}.*number of steps"):
        dann_lambda(progress)


# Values


@settings(max_examples=15)
@given(n_source=st.integers(1, 6), n_target=st.integers(1, 6), d=st.integers(1, 5))
def test_dann_equals_numpy_for_unequal_parts(n_source, n_target, d):
    fs, ft, *_ = parts(n_source, n_target, d)
    disc = discriminator(d)
    expected = np_domain_loss(
        np_discriminator(disc, fs.numpy()), np_discriminator(disc, ft.numpy()), [1.0] * n_source, [1.0] * n_target
    )
    assert DomainAdversarialLoss(disc)(fs, ft, 0.3).item() == pytest.approx(expected, abs=1e-12)


def test_dann_of_equal_parts_is_the_mean_over_the_joint_batch():
    """As released code takes it: cross-entropy to the label 1 for the source and 0 for the target."""
    fs, ft, *_ = parts(4, 4)
    disc = discriminator(4)
    labels = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)
    expected = nn.functional.binary_cross_entropy_with_logits(disc(torch.cat([fs, ft])), labels)
    torch.testing.assert_close(DomainAdversarialLoss(disc)(fs, ft), expected)


def test_confusion_equals_numpy():
    fs, ft, *_ = parts()
    disc = discriminator(4)
    zs, zt = (np_discriminator(disc, f.numpy()) for f in (fs, ft))
    uncertain = [[-(np_log_sigmoid(z) + np_log_sigmoid(-z)) / 2 for z in part] for part in (zs, zt)]
    losses = DomainConfusionLoss(disc)(fs, ft)
    assert losses["discriminator"].item() == pytest.approx(np_domain_loss(zs, zt, [1.0] * 5, [1.0] * 3), abs=1e-12)
    assert losses["confusion"].item() == pytest.approx(np.mean([np.mean(u) for u in uncertain]), abs=1e-12)


def test_adda_equals_numpy():
    fs, ft, *_ = parts()
    disc = discriminator(4)
    zs, zt = (np_discriminator(disc, f.numpy()) for f in (fs, ft))
    losses = AdversarialDiscriminativeLoss(disc)(fs, ft)
    assert losses["discriminator"].item() == pytest.approx(np_domain_loss(zs, zt, [1.0] * 5, [1.0] * 3), abs=1e-12)
    assert losses["encoder"].item() == pytest.approx(np.mean([-np_log_sigmoid(z) for z in zt]), abs=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("n_source", "n_target"), [(4, 4), (5, 2), (1, 3)])
def test_cdan_equals_numpy(weighting, n_source, n_target):
    fs, ft, ls, lt = parts(n_source, n_target)
    loss = cdan(4, 3, weighting=weighting)
    arrays = [x.numpy() for x in (fs, ft, ls, lt)]
    expected = np_cdan(loss.discriminator, *arrays[:2], tuple(arrays[2:]), weighting=weighting)
    assert loss(fs, ft, ls, lt, 0.5).item() == pytest.approx(expected, abs=1e-12)


def test_per_domain_weights_are_those_of_the_authors_code():
    """Each domain's weights are divided by their sum, all of them by the sum of the result, which is 2."""
    fs, ft, ls, lt = parts()
    loss = cdan(4, 3, weighting="per-domain")
    ws, wt = ([np_entropy_weight(g) for g in np_softmax(h.numpy())] for h in (ls, lt))
    weights = np.array([w / sum(ws) for w in ws] + [w / sum(wt) for w in wt])
    joined = loss.multilinear_map(torch.cat([fs, ft]), torch.cat([ls, lt]).softmax(1))
    z = np.array(np_discriminator(loss.discriminator, joined.numpy()))
    rows = np.array([-np_log_sigmoid(v) for v in z[:5]] + [-np_log_sigmoid(-v) for v in z[5:]])
    assert loss(fs, ft, ls, lt).item() == pytest.approx((weights * rows).sum() / weights.sum(), abs=1e-12)


def test_randomized_map_is_the_scaled_product_of_two_projections():
    torch.manual_seed(0)
    multilinear_map = MultilinearMap(3, 2, randomized=True).double()
    f, g = normal(4, 3), normal(4, 2, seed=1).softmax(1)
    rf, rg = multilinear_map.random_features.numpy(), multilinear_map.random_classes.numpy()
    expected = np.zeros((4, 1024))
    for i in range(4):
        for r in range(1024):
            expected[i, r] = (f[i].numpy() @ rf[:, r]) * (g[i].numpy() @ rg[:, r]) / math.sqrt(1024)
    np.testing.assert_allclose(multilinear_map(f, g).numpy(), expected, atol=1e-12)


def test_randomized_map_keeps_inner_products_in_expectation():
    torch.manual_seed(0)
    f, g = normal(2, 5), normal(2, 3, seed=1).softmax(1)
    products = []
    for _ in range(200):
        rows = MultilinearMap(5, 3, randomized=True).double()(f, g)
        products.append((rows[0] @ rows[1]).item())
    expected = ((f[0] @ f[1]) * (g[0] @ g[1])).item()
    assert abs(np.mean(products) - expected) < 4 * np.std(products) / math.sqrt(200)


@pytest.mark.parametrize(("d", "c", "width"), [(256, 16, 4096), (256, 17, 1024), (64, 65, 1024), (2, 3, 6)])
def test_map_is_random_only_when_the_outer_product_is_wider_than_4096(d, c, width):
    multilinear_map = MultilinearMap(d, c)
    assert multilinear_map.out_features == width
    assert multilinear_map(torch.randn(2, d), torch.rand(2, c)).shape == (2, width)
    assert multilinear_map.randomized == (width == 1024)


@pytest.mark.parametrize("batch_sizes", [(12,), (5, 7), (1, 3, 2, 6)])
def test_soft_labels_equal_numpy_for_any_batches(batch_sizes):
    logits, labels = normal(12, 3), torch.tensor([0, 1, 2] * 4)
    loss = SoftLabelLoss(3, temperature=2.5).double()
    for z, y in zip(logits.split(batch_sizes), labels.split(batch_sizes), strict=True):
        loss.update(z, y)
    soft = np_softmax(logits.numpy() / 2.5)
    means = np.array([np.mean([soft[i] for i in range(12) if labels[i] == k], axis=0) for k in range(3)])
    np.testing.assert_allclose(loss.soft_labels.numpy(), means, atol=1e-14)
    assert loss.counts.tolist() == [4, 4, 4]

    zt, yt = normal(4, 3, seed=1), torch.tensor([2, 0, 0, 1])
    log_prediction = np.log(np_softmax(zt.numpy() / 2.5))
    expected = np.mean([-sum(means[yt[j], c] * log_prediction[j, c] for c in range(3)) for j in range(4)])
    assert loss(zt, yt).item() == pytest.approx(expected, abs=1e-12)


def test_soft_labels_can_be_collected_anew():
    loss = SoftLabelLoss(2)
    loss.update(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    loss.reset()
    loss.update(torch.zeros(2, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(loss.soft_labels, torch.full((2, 2), 0.5))


# Gradients


def test_gradcheck_of_dann_without_reversal():
    fs, ft, *_ = parts()
    loss = DomainAdversarialLoss(discriminator(4))
    assert gradcheck(lambda s, t: loss(s, t, NO_REVERSAL), (fs.requires_grad_(), ft.requires_grad_()))


@pytest.mark.parametrize("loss_type", [DomainConfusionLoss, AdversarialDiscriminativeLoss])
def test_gradcheck_of_what_the_features_follow(loss_type):
    fs, ft, *_ = parts()
    disc = discriminator(4)
    loss = loss_type(disc)
    term = "confusion" if loss_type is DomainConfusionLoss else "encoder"
    inputs = (fs.requires_grad_(loss_type is DomainConfusionLoss), ft.requires_grad_())
    assert gradcheck(lambda s, t: loss(s, t)[term], inputs)


@pytest.mark.parametrize("loss_type", [DomainAdversarialLoss, DomainConfusionLoss, AdversarialDiscriminativeLoss])
def test_gradcheck_of_what_the_discriminator_follows(loss_type):
    fs, ft, *_ = parts()
    disc = discriminator(4)
    loss = loss_type(disc)

    def by_parameters(*values):
        swapped = dict(zip((f"discriminator.{name}" for name, _ in disc.named_parameters()), values, strict=True))
        result = torch.func.functional_call(loss, swapped, (fs, ft))
        return result["discriminator"] if isinstance(result, dict) else result

    assert gradcheck(by_parameters, tuple(p.detach().clone().requires_grad_() for p in disc.parameters()))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("randomized", [False, True])
def test_gradcheck_of_cdan_in_the_features(weighting, randomized):
    fs, ft, ls, lt = parts(3, 2)
    torch.manual_seed(0)
    loss = cdan(4, 3, weighting=weighting, randomized=randomized)
    assert gradcheck(lambda s, t: loss(s, t, ls, lt, NO_REVERSAL), (fs.requires_grad_(), ft.requires_grad_()))


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_gradient_through_the_weights_holds_denominators_and_condition(weighting):
    """The finite difference moves only the logits that weigh; the gradient that arrives is −λ times it."""
    fs, ft, ls, lt = parts(3, 2)
    loss = cdan(4, 3, weighting=weighting)
    arrays = [x.numpy() for x in (fs, ft, ls, lt)]
    weights = [[np_entropy_weight(g) for g in np_softmax(h)] for h in arrays[2:]]
    fixed = np_denominators(*weights, weighting)

    def by_source_logits(moved):
        logits = (arrays[2], arrays[3])
        return np_cdan(loss.discriminator, *arrays[:2], logits, (moved, arrays[3]), weighting, fixed)

    ls.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(fs, ft, ls, lt, 0.7), ls)
    expected = -0.7 * finite_difference(by_source_logits, arrays[2].copy())
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8)


def test_detached_weights_carry_no_gradient():
    fs, ft, ls, lt = parts()
    loss = cdan(4, 3, weighting="joint", detach_weights=True)
    value = loss(fs.requires_grad_(), ft, ls.requires_grad_(), lt)
    assert torch.autograd.grad(value, ls, allow_unused=True) == (None,)
    torch.testing.assert_close(value, cdan(4, 3, weighting="joint")(fs, ft, ls, lt))


def test_gradcheck_of_soft_labels():
    loss = SoftLabelLoss(3).double()
    loss.update(normal(9, 3), torch.arange(9) % 3)
    assert gradcheck(lambda z: loss(z, torch.tensor([0, 2, 2, 1])), (normal(4, 3, seed=1).requires_grad_(),))


def test_soft_labels_of_the_source_carry_no_gradient():
    logits = normal(6, 3).requires_grad_()
    loss = SoftLabelLoss(3).double()
    loss.update(logits, torch.arange(6) % 3)
    assert not loss.soft_labels.requires_grad


def test_gradient_survives_a_certain_discriminator():
    """Where a sigmoid saturates, the logarithm of it must not: this is why there is no sigmoid + BCE anywhere."""
    disc = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        disc.weight.fill_(1.0)
    ft = torch.tensor([[-800.0]], dtype=torch.float64, requires_grad=True)
    losses = AdversarialDiscriminativeLoss(disc)(torch.zeros(1, 1, dtype=torch.float64), ft)
    losses["encoder"].backward()
    assert losses["encoder"].item() == 800
    assert ft.grad.item() == -1


# Batch normalisation in the discriminator


def test_a_discriminator_with_batch_norm_sees_both_domains_in_one_batch():
    fs, ft, *_ = parts()
    joint_mean = torch.cat([fs, ft]) @ discriminator(4, batch_norm=True)[0].weight.detach().T
    for loss in (DomainAdversarialLoss, DomainConfusionLoss, AdversarialDiscriminativeLoss):
        disc = discriminator(4, batch_norm=True)
        disc[0].bias.data.zero_()
        loss(disc)(fs, ft)
        torch.testing.assert_close(disc[1].running_mean, 0.1 * joint_mean.mean(0))
        assert disc[1].num_batches_tracked == 1, "the pass with fixed parameters must not count as a second batch"


# Dtypes, NaN, compile, copies


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_bf16_autocast_gives_a_float32_loss_near_the_float32_one(weighting):
    fs, ft, ls, lt = (x.float() for x in parts(16, 8))
    fs.requires_grad_()
    models = [DomainAdversarialLoss(discriminator(4).float()), cdan(4, 3, weighting=weighting).float()]
    models.append(cdan(4, 3, weighting=weighting, randomized=True).float())
    for loss, inputs in zip(models, [(fs, ft), (fs, ft, ls, lt), (fs, ft, ls, lt)], strict=True):
        exact = loss(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halved = [x.bfloat16() for x in inputs]
            value = loss(*halved)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=2e-2)
        assert torch.autograd.grad(value, fs)[0].isfinite().all()


def test_bf16_soft_labels_and_alternating_losses_are_float32():
    z = torch.randn(4, 3, dtype=torch.bfloat16)
    soft = SoftLabelLoss(3)
    soft.update(z, torch.tensor([0, 1, 2, 0]))
    assert soft(z, torch.tensor([0, 1, 2, 0])).dtype == torch.float32
    disc = DomainDiscriminator(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in (DomainConfusionLoss(disc), AdversarialDiscriminativeLoss(disc)):
            assert all(value.dtype == torch.float32 for value in loss(z, z).values())


def test_a_bf16_model_has_its_losses_in_float32():
    """The mean of many row losses has no digits left in bf16."""
    x, z = torch.randn(4, 4, dtype=torch.bfloat16), torch.randn(4, 3, dtype=torch.bfloat16)
    assert DomainAdversarialLoss(DomainDiscriminator(4, 4).bfloat16())(x, x).dtype == torch.float32
    loss = cdan(4, 3, weighting="per-domain", randomized=True).bfloat16()
    assert loss(x, x, z, z).dtype == torch.float32


def test_nan_comes_out_as_nan():
    fs, ft, ls, lt = parts()
    fs[0, 0] = math.nan
    disc = discriminator(4)
    assert DomainAdversarialLoss(disc)(fs, ft).isnan()
    assert all(v.isnan() for v in DomainConfusionLoss(disc)(fs, ft).values())
    assert AdversarialDiscriminativeLoss(disc)(ft, fs)["encoder"].isnan()
    for weighting in WEIGHTINGS:
        loss = cdan(4, 3, weighting=weighting)
        assert loss(fs, ft, ls, lt).isnan()
        assert loss(ft, ft, torch.full_like(lt, math.nan), lt).isnan()
    soft = SoftLabelLoss(2)
    soft.update(torch.full((2, 2), math.nan), torch.tensor([0, 1]))
    assert soft(torch.zeros(1, 2), torch.tensor([1])).isnan()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_as_one_graph_for_several_lambdas_and_splits():
    loss = cdan(4, 3, weighting="per-domain")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for lambda_, (n, m) in itertools.product((0.0, 0.25, 0.5, 0.9), ((4, 4), (5, 2))):
        fs, ft, ls, lt = parts(n, m)
        fs.requires_grad_()
        values = [f(fs, ft, ls, lt, lambda_) for f in (loss, compiled)]
        gradients = [torch.autograd.grad(v, fs)[0] for v in values]
        torch.testing.assert_close(values[1], values[0])
        torch.testing.assert_close(gradients[1], gradients[0])


def test_copies_and_pickles():
    fs, ft, ls, lt = parts()
    loss = cdan(4, 3, randomized=True, weighting="max")
    expected = loss(fs, ft, ls, lt)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(fs, ft, ls, lt), expected, rtol=0, atol=0)


# Transforms of torch.func, second derivatives

forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


def losses_of_features():
    """Each loss as a function of features of 5 source and 3 target rows, (5, 4) and (3, 4)."""
    _, _, ls, lt = parts()
    torch.manual_seed(0)
    dann = DomainAdversarialLoss(discriminator(4))
    yield "dann", lambda s, t: dann(s, t, 0.3)
    for name, loss_type in (("confusion", DomainConfusionLoss), ("encoder", AdversarialDiscriminativeLoss)):
        loss = loss_type(discriminator(4))
        yield name, lambda s, t, name=name, loss=loss: loss(s, t)[name]
    for weighting, randomized in itertools.product(WEIGHTINGS, (False, True)):
        loss = cdan(4, 3, weighting=weighting, randomized=randomized)
        # the logits follow the features as well, so that the weights carry a gradient
        yield (
            f"cdan {weighting} {randomized}",
            lambda s, t, loss=loss: loss(s, t, ls + s[:, :3], lt + t[:, :3], 0.3),
        )
    soft = SoftLabelLoss(3).double()
    soft.update(normal(9, 3), torch.arange(9) % 3)
    yield "soft labels", lambda s, t: soft(t[:, :3], torch.tensor([0, 2, 1])) + 0 * s.sum()


@forward_mode
@pytest.mark.parametrize(("name", "loss"), list(losses_of_features()), ids=lambda x: x if isinstance(x, str) else "")
def test_transforms_agree_with_autograd(name, loss):
    fs, ft = normal(2, 5, 4), normal(2, 3, 4, seed=1)
    values, gradients = [], []
    for s, t in zip(fs, ft, strict=True):
        leaf = t.clone().requires_grad_()
        values.append(loss(s, leaf))
        gradients.append(torch.autograd.grad(values[-1], leaf)[0])
    values, gradients = torch.stack(values).detach(), torch.stack(gradients)
    torch.testing.assert_close(torch.func.vmap(loss)(fs, ft), values)
    by_target = torch.func.grad(loss, argnums=1)
    torch.testing.assert_close(by_target(fs[0], ft[0]), gradients[0])
    torch.testing.assert_close(torch.func.vmap(by_target)(fs, ft), gradients)
    value, slope = torch.func.jvp(lambda t: loss(fs[0], t), (ft[0],), (torch.cos(ft[0]),))
    torch.testing.assert_close(value, values[0])
    torch.testing.assert_close(slope, (gradients[0] * torch.cos(ft[0])).sum())


@pytest.mark.parametrize("loss_type", [DomainAdversarialLoss, DomainConfusionLoss, AdversarialDiscriminativeLoss])
def test_functional_gradient_of_the_discriminator(loss_type):
    fs, ft, *_ = parts()
    loss = loss_type(discriminator(4))
    state = {name: p.detach() for name, p in loss.named_parameters()}

    def value(state):
        result = torch.func.functional_call(loss, state, (fs, ft))
        return result["discriminator"] if isinstance(result, dict) else result

    found = torch.func.grad(value)(state)
    result = loss(fs, ft)
    expected = torch.autograd.grad(
        result["discriminator"] if isinstance(result, dict) else result, list(loss.parameters())
    )
    for name, gradient in zip(state, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)


@forward_mode
@pytest.mark.parametrize("lambda_", [0.3, torch.tensor(0.3), torch.tensor([[0.3]]), torch.tensor([[0.1], [0.7]])])
def test_reversal_under_every_transform(lambda_):
    x, incoming = normal(2, 3), normal(2, 3, seed=1)
    expected = -(lambda_ * incoming).double()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(gradient_reversal(leaf, lambda_), leaf, incoming)
    torch.testing.assert_close(gradient, expected)
    value = torch.func.grad(lambda x: (gradient_reversal(x, lambda_) * incoming).sum())(x)
    torch.testing.assert_close(value, expected)
    value, tangent = torch.func.jvp(lambda x: gradient_reversal(x, lambda_), (x,), (incoming,))
    assert torch.equal(value, x)
    torch.testing.assert_close(tangent, expected)
    if not isinstance(lambda_, torch.Tensor) or lambda_.dim() == 0:
        batched = torch.func.vmap(torch.func.grad(lambda x, g: (gradient_reversal(x, lambda_) * g).sum()))
        torch.testing.assert_close(batched(x, incoming), expected)
    # of x³ the gradient is −λ·3x², and reversing that once more in the second derivative gives λ²·6x
    (first,) = torch.autograd.grad(gradient_reversal(leaf, lambda_).pow(3).sum(), leaf, create_graph=True)
    torch.testing.assert_close(first, -lambda_ * 3 * x**2, check_dtype=False)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    torch.testing.assert_close(second, lambda_**2 * 6 * x, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reversal_changes_no_bit_and_no_dtype(dtype):
    x = torch.tensor([1.5, -0.0, 0.0, math.inf, -math.inf, math.nan, 6e4], dtype=dtype)
    for lambda_ in (0.0, 0.7, torch.tensor(0.7, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)):
        result = gradient_reversal(x, lambda_)
        assert result.dtype == dtype
        assert torch.equal(result.nan_to_num(7.0), x.nan_to_num(7.0))
        assert torch.equal(result.signbit(), x.signbit())


# What is not finite, or of half precision


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["dann", "confusion", "encoder", "cdan None False", "cdan joint True"])
def test_features_that_are_not_finite_give_nan(name, bad):
    """Also where every hidden unit's ReLU is at −∞: the loss would be a number that has forgotten them."""
    loss = dict(losses_of_features())[name]
    for row, sign in itertools.product(range(3), (1, -1)):
        fs, ft = normal(5, 4), normal(3, 4, seed=1)
        ft[row, 3] = sign * bad
        assert loss(fs, ft).isnan()


def test_a_relu_that_swallows_infinity_does_not_hide_it():
    disc = DomainDiscriminator(1, 2)
    with torch.no_grad():
        for p in disc.parameters():
            p.fill_(-1.0)
    assert disc(torch.tensor([[math.inf]])).isfinite()
    assert DomainAdversarialLoss(disc)(torch.tensor([[math.inf]]), torch.zeros(1, 1)).isnan()


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_a_class_of_probability_zero_weighs_as_if_it_were_absent(weighting):
    """0 · log 0 = 0, in value and gradient: logits of −∞ rule a class out, those of −1e4 underflow to 0."""
    fs, ft, ls, lt = parts()
    loss = cdan(4, 3, weighting=weighting)
    results = []
    for lowest in (-1e4, -math.inf):
        logits = [h.clone() for h in (ls, lt)]
        for h in logits:
            h[:, 1] = lowest
            h.requires_grad_()
        value = loss(fs, ft, *logits, 0.7)
        results.append([value, *torch.autograd.grad(value, logits)])
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)


def test_soft_labels_with_a_class_ruled_out():
    loss = SoftLabelLoss(3).double()
    z = torch.tensor([[0.3, -math.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    loss.update(z, torch.tensor([0]))
    two = SoftLabelLoss(2).double()
    short = z.detach()[:, [0, 2]].requires_grad_()
    two.update(short, torch.tensor([0]))
    value, expected = loss(z, torch.tensor([0])), two(short, torch.tensor([0]))
    assert value.item() == pytest.approx(expected.item())
    gradient = torch.autograd.grad(value, z)[0]
    torch.testing.assert_close(gradient[:, [0, 2]], torch.autograd.grad(expected, short)[0])
    assert gradient[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batches", [1, 8])
def test_soft_labels_of_many_images_in_half_precision(dtype, batches):
    """Summed in half precision, a class of 4,000 images would stop counting at a few hundred."""
    logits = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact, half = SoftLabelLoss(3).double(), SoftLabelLoss(3).to(dtype)
    for z in logits.chunk(batches):
        exact.update(z, torch.zeros(len(z), dtype=torch.long))
        half.update(z, torch.zeros(len(z), dtype=torch.long))
    assert half.soft_labels.dtype == dtype
    torch.testing.assert_close(half.soft_labels.double(), exact.soft_labels, rtol=0, atol=2e-2 / 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_a_network_in_half_precision_are_near_those_in_float64(dtype):
    """Everything cast: features, logits, discriminators, maps. Sums over rows are in float32."""
    fs, ft, ls, lt = (x.to(dtype) for x in parts(200, 100))
    exact = [x.double() for x in (fs, ft, ls, lt)]
    models = [DomainAdversarialLoss(discriminator(4)), DomainConfusionLoss(discriminator(4))]
    models += [AdversarialDiscriminativeLoss(discriminator(4)), cdan(4, 3, weighting="joint")]
    models += [cdan(4, 3, weighting="max", randomized=True)]
    for loss in models:
        count = 4 if isinstance(loss, ConditionalDomainAdversarialLoss) else 2
        low = copy.deepcopy(loss).to(dtype)
        values = low(*(fs, ft, ls, lt)[:count]), copy.deepcopy(low).double()(*exact[:count])
        if count == 4 or isinstance(loss, DomainAdversarialLoss):
            values = {"": values[0]}, {"": values[1]}
        for name, value in values[0].items():
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(values[1][name].item(), rel=1e-2)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (5, 2)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_one_row_of_each_domain_is_a_batch(n, m, batch_norm):
    fs, ft, ls, lt = parts(n, m)
    for loss in (DomainAdversarialLoss, DomainConfusionLoss, AdversarialDiscriminativeLoss):
        values = loss(discriminator(4, batch_norm=batch_norm))(fs, ft)
        for value in values.values() if isinstance(values, dict) else [values]:
            assert value.isfinite()
    for weighting in WEIGHTINGS:
        assert cdan(4, 3, weighting=weighting)(fs, ft, ls, lt).isfinite()


@settings(max_examples=15)
@given(
    name=st.sampled_from([name for name, _ in losses_of_features() if name != "soft labels"]),
    seed=st.integers(0, 99),
)
def test_order_of_rows_does_not_matter(name, seed):
    """Logits follow the features here, so a permutation of the rows permutes both."""
    generator = torch.Generator().manual_seed(seed)
    fs, ft = torch.randn(5, 4, generator=generator).double(), torch.randn(3, 4, generator=generator).double()
    a, b = torch.randperm(5, generator=generator), torch.randperm(3, generator=generator)
    if name.startswith("cdan"):
        loss = cdan(4, 3, weighting=WEIGHTINGS[seed % 4])
        values = loss(fs, ft, 2 * fs[:, :3], ft[:, :3]), loss(fs[a], ft[b], 2 * fs[a, :3], ft[b, :3])
    else:
        loss = dict(losses_of_features())[name]
        values = loss(fs, ft), loss(fs[a], ft[b])
    torch.testing.assert_close(*values)


# Bad input


@pytest.mark.parametrize("lambda_", [-0.5, math.nan, math.inf])
def test_negative_lambda_is_refused(lambda_):
    with pytest.raises(ValueError, match=f"got {lambda_}.*sign"):
        gradient_reversal(torch.zeros(1), lambda_)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(2, 4), r"source part .*\(0, 4\)"),
        (torch.zeros(2, 4), torch.zeros(0, 4), r"target part .*\(0, 4\)"),
        (torch.zeros(2, 4), torch.zeros(2, 4, 1), r"target part .*\(2, 4, 1\)"),
        (torch.zeros(2, 4), torch.zeros(2, 5), "4 and 5"),
        (torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4), "int64"),
        (torch.zeros(2, 5), torch.zeros(2, 5), r"\(n, 4\), got \(4, 5\)"),
        (torch.zeros(2, 4), torch.zeros(2, 4, device="meta"), "source part is on cpu and the target part on meta"),
    ],
)
@pytest.mark.parametrize("loss_type", [DomainAdversarialLoss, DomainConfusionLoss, AdversarialDiscriminativeLoss])
def test_bad_features_are_refused(loss_type, source, target, message):
    with pytest.raises(ValueError, match=message):
        loss_type(DomainDiscriminator(4, 2))(source, target)


def test_a_discriminator_with_two_outputs_is_refused():
    """A two-unit softmax head would otherwise be read as twice the rows."""
    with pytest.raises(ValueError, match="8 values for 4 rows"):
        DomainAdversarialLoss(nn.Linear(3, 2))(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"4 values for 4 rows, shape \(2, 2, 1\)"):
        DomainAdversarialLoss(nn.Unflatten(0, (2, 2)))(torch.zeros(2, 1), torch.zeros(2, 1))


def test_reversal_refuses_what_has_no_gradient_or_does_not_fit():
    with pytest.raises(ValueError, match=r"x must be floating point, got torch\.int64"):
        gradient_reversal(torch.zeros(2, dtype=torch.long))
    for lambda_ in (torch.ones(3), torch.ones(1, 1, 1), torch.ones(2, 5)):
        with pytest.raises(ValueError, match=r"lambda_ of shape .* does not fit x of shape \(5, 2\)"):
            gradient_reversal(torch.zeros(5, 2), lambda_)


def test_cdan_refuses_what_does_not_fit():
    fs, ft, ls, lt = parts()
    loss = cdan(4, 3)
    with pytest.raises(ValueError, match=r"features \(n, 4\).*got \(8, 5\)"):
        loss(normal(5, 5), normal(3, 5), ls, lt)
    with pytest.raises(ValueError, match=r"probabilities \(n, 3\).*\(8, 2\)"):
        loss(fs, ft, normal(5, 2), normal(3, 2))
    with pytest.raises(ValueError, match="5 rows of source features but 3"):
        loss(fs, ft, lt, ls)
    with pytest.raises(ValueError, match=r"features \(n, 4\).*same n, got \(8, 4\) and \(7, 3\)"):
        loss(fs, ft, ls, lt[:2])
    with pytest.raises(ValueError, match=r"target part must be floating point, got torch\.int64"):
        loss(fs, ft, ls, lt.long())
    with pytest.raises(ValueError, match=r"floating rows, got torch\.float64 and torch\.int64"):
        loss.multilinear_map(fs, ls.long())
    with pytest.raises(ValueError, match="'mean'"):
        cdan(4, 3, weighting="mean")


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "0 … 2, got 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "0 … 2, got -1"),
        (torch.zeros(2, 4), torch.tensor([0, 1]), r"\(n, 3\).*\(2, 4\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), r"\(0, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), r"shape \(3,\)"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "float32"),
        (torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.int32), "int32"),
        (torch.zeros(2, 3), torch.tensor([[0], [1]]), r"shape \(2, 1\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]), "logits must be floating point, got torch.int64"),
    ],
)
def test_soft_labels_refuse_bad_labels_and_logits(logits, labels, message):
    loss = SoftLabelLoss(3)
    for call in (loss, loss.update):
        with pytest.raises(ValueError, match=message):
            call(logits, labels)


def test_a_class_without_soft_label_is_named():
    loss = SoftLabelLoss(3)
    loss.update(torch.zeros(2, 3), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"class 1.*update\(\)"):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DomainDiscriminator(0), "got 0 and 1024"),
        (lambda: DomainDiscriminator(3, 0), "got 3 and 0"),
        (lambda: MultilinearMap(3, 0), "got 3 and 0"),
        (lambda: SoftLabelLoss(0), "got 0"),
        (lambda: SoftLabelLoss(3, 0.0), r"got 0\.0"),
        (lambda: SoftLabelLoss(3, math.nan), "got nan"),
        (lambda: SoftLabelLoss(3, math.inf), "got inf"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
