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


@settings(deadline=None, max_examples=15)
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


# Bad input


@pytest.mark.parametrize("lambda_", [-0.5, math.nan])
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


def test_cdan_refuses_what_does_not_fit():
    fs, ft, ls, lt = parts()
    loss = cdan(4, 3)
    with pytest.raises(ValueError, match=r"features \(n, 4\).*got \(8, 5\)"):
        loss(normal(5, 5), normal(3, 5), ls, lt)
    with pytest.raises(ValueError, match=r"probabilities \(n, 3\).*\(8, 2\)"):
        loss(fs, ft, normal(5, 2), normal(3, 2))
    with pytest.raises(ValueError, match="5 rows of source features but 3"):
        loss(fs, ft, lt, ls)
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
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
