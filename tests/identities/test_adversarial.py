"""What must hold between the adversarial losses, whatever the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support_adversarial import discriminator, normal
from torch import nn

from deeptransfer.adversarial import (
    AdversarialDiscriminativeLoss,
    ConditionalDomainAdversarialLoss,
    DomainAdversarialLoss,
    DomainConfusionLoss,
    MultilinearMap,
    SoftLabelLoss,
    gradient_reversal,
)

WEIGHTINGS = ("per-domain", "joint", "max")


def test_reversal_is_the_identity_forward():
    x = normal(3, 4)
    assert torch.equal(gradient_reversal(x, 0.3), x)


@settings(max_examples=20)
@given(lambda_=st.floats(0, 10, width=32), shape=st.lists(st.integers(1, 4), max_size=3))
def test_reversed_gradient_is_exactly_minus_lambda_times(lambda_, shape):
    x, incoming = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    (gradient,) = torch.autograd.grad(gradient_reversal(x, lambda_), x, incoming)
    assert torch.equal(gradient, -lambda_ * incoming)
    (gradient,) = torch.autograd.grad(gradient_reversal(x, torch.tensor(lambda_)), x, incoming)
    torch.testing.assert_close(gradient, -lambda_ * incoming)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 2.0])
def test_dann_reverses_the_features_and_not_the_discriminator(lambda_):
    fs, ft = normal(5, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    disc = discriminator(4)
    z = disc(torch.cat([fs, ft]))
    plain = (nn.functional.softplus(-z[:5]).mean() + nn.functional.softplus(z[5:]).mean()) / 2
    leaves = [fs, ft, *disc.parameters()]
    expected = torch.autograd.grad(plain, leaves)
    actual = torch.autograd.grad(DomainAdversarialLoss(disc)(fs, ft, lambda_), leaves)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert e.abs().max() > 0
        torch.testing.assert_close(a, -lambda_ * e if i < 2 else e)


def adversaries():
    torch.manual_seed(0)
    fs, ft, ls, lt = normal(5, 4), normal(3, 4, seed=1), normal(5, 3, seed=2), normal(3, 3, seed=3)
    yield "dann", DomainAdversarialLoss(discriminator(4)), (fs, ft)
    yield "confusion", DomainConfusionLoss(discriminator(4)), (fs, ft)
    yield "adda", AdversarialDiscriminativeLoss(discriminator(4)), (fs, ft)
    for weighting in (None, *WEIGHTINGS):
        for randomized in (False, True):
            multilinear_map = MultilinearMap(4, 3, randomized).double()
            disc = discriminator(multilinear_map.out_features)
            loss = ConditionalDomainAdversarialLoss(disc, multilinear_map, weighting)
            yield f"cdan {weighting} {randomized}", loss, (fs, ft, ls, lt)


@pytest.mark.parametrize(("name", "loss", "inputs"), list(adversaries()), ids=lambda x: x if isinstance(x, str) else "")
def test_discriminator_and_features_both_learn(name, loss, inputs):
    """A one-unit softmax as discriminator has gradient exactly 0, and no loss curve tells."""
    features = [inputs[0].clone().requires_grad_(), inputs[1].clone().requires_grad_()]
    value = loss(*features, *inputs[2:])
    (sum(value.values()) if isinstance(value, dict) else value).backward()
    # ADDA's source encoder is fixed: its features must not move.
    assert features[1].grad.abs().max() > 1e-6
    assert (features[0].grad is None) if name == "adda" else (features[0].grad.abs().max() > 1e-6)
    for parameter in loss.discriminator.parameters():
        assert parameter.grad.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("loss_type", "for_features"), [(DomainConfusionLoss, "confusion"), (AdversarialDiscriminativeLoss, "encoder")]
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_of_two_alternating_losses_no_gradient_crosses_over(loss_type, for_features, batch_norm):
    fs, ft = normal(5, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    disc = discriminator(4, batch_norm=batch_norm)
    losses = loss_type(disc)(fs, ft)
    parameters = list(disc.parameters())
    assert torch.autograd.grad(losses["discriminator"], [fs, ft], retain_graph=True, allow_unused=True) == (None, None)
    assert set(torch.autograd.grad(losses[for_features], parameters, retain_graph=True, allow_unused=True)) == {None}
    # Hence one backward of the sum gives what two alternating ones give.
    alone = torch.autograd.grad(losses["discriminator"], parameters, retain_graph=True)
    together = torch.autograd.grad(sum(losses.values()), parameters)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_confusion_is_smallest_where_the_discriminator_is_uncertain():
    disc = nn.Linear(1, 1).double()
    with torch.no_grad():
        disc.weight.fill_(1.0), disc.bias.zero_()
    at = [DomainConfusionLoss(disc)(*[torch.full((2, 1), z, dtype=torch.float64)] * 2)["confusion"] for z in (-1, 0, 1)]
    assert at[1].item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert at[0] > at[1] < at[2]


@settings(max_examples=10)
@given(n_source=st.integers(1, 5), n_target=st.integers(1, 5), weighting=st.sampled_from([None, *WEIGHTINGS]))
def test_cdan_with_one_class_is_dann(n_source, n_target, weighting):
    fs, ft = normal(n_source, 4).requires_grad_(), normal(n_target, 4, seed=1).requires_grad_()
    disc = discriminator(4)
    leaves = [fs, ft, *disc.parameters()]
    dann = DomainAdversarialLoss(disc)(fs, ft, 0.3)
    loss = ConditionalDomainAdversarialLoss(disc, MultilinearMap(4, 1), weighting)
    cdan = loss(fs, ft, normal(n_source, 1, seed=2), normal(n_target, 1, seed=3), 0.3)
    torch.testing.assert_close(cdan, dann)
    gradients = (torch.autograd.grad(value, leaves) for value in (cdan, dann))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_entropy_weighting_of_uniform_predictions_is_cdan(weighting):
    fs, ft = normal(5, 4).requires_grad_(), normal(2, 4, seed=1)
    logits = torch.full((5, 3), 0.7, dtype=torch.float64), torch.full((2, 3), -2.0, dtype=torch.float64)
    multilinear_map = MultilinearMap(4, 3)
    disc = discriminator(12)
    values = [ConditionalDomainAdversarialLoss(disc, multilinear_map, w)(fs, ft, *logits) for w in (None, weighting)]
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(*(torch.autograd.grad(v, fs)[0] for v in values))


def test_cdan_condition_is_detached():
    """Without weights, no gradient may reach the logits: the classifier is not the adversary's business."""
    logits = normal(5, 3, seed=2).requires_grad_()
    loss = ConditionalDomainAdversarialLoss(discriminator(12), MultilinearMap(4, 3))
    value = loss(normal(5, 4).requires_grad_(), normal(3, 4, seed=1), logits, normal(3, 3, seed=3))
    assert torch.autograd.grad(value, logits, allow_unused=True) == (None,)


def test_domains_swapped_with_labels_give_the_same_losses():
    """Negating the logit is swapping the labels: nothing else may tell the two domains apart."""
    fs, ft = normal(5, 4), normal(3, 4, seed=1)
    disc = discriminator(4)
    negated = discriminator(4)
    with torch.no_grad():
        negated[-1].weight.neg_(), negated[-1].bias.neg_()
    torch.testing.assert_close(DomainAdversarialLoss(disc)(fs, ft), DomainAdversarialLoss(negated)(ft, fs))
    for key in ("discriminator", "confusion"):
        torch.testing.assert_close(DomainConfusionLoss(disc)(fs, ft)[key], DomainConfusionLoss(negated)(ft, fs)[key])


@pytest.mark.parametrize("weighting", [None, *WEIGHTINGS])
def test_a_batch_given_twice_changes_nothing(weighting):
    """Means, not sums: every loss is unmoved when each row of one domain stands there twice."""
    fs, ft, ls, lt = normal(4, 4), normal(3, 4, seed=1), normal(4, 3, seed=2), normal(3, 3, seed=3)
    loss = ConditionalDomainAdversarialLoss(discriminator(12), MultilinearMap(4, 3), weighting)
    twice = loss(fs.repeat(2, 1), ft.repeat(2, 1), ls.repeat(2, 1), lt.repeat(2, 1))
    torch.testing.assert_close(twice, loss(fs, ft, ls, lt))
    if weighting != "joint":
        torch.testing.assert_close(loss(fs, ft.repeat(2, 1), ls, lt.repeat(2, 1)), loss(fs, ft, ls, lt))


def test_soft_labels_of_a_certain_source_are_the_hard_labels():
    soft = SoftLabelLoss(3, temperature=1.0).double()
    soft.update(1e4 * torch.eye(3, dtype=torch.float64), torch.arange(3))
    z, y = normal(5, 3), torch.tensor([0, 1, 2, 2, 0])
    torch.testing.assert_close(soft(z, y), nn.functional.cross_entropy(z, y))


def test_state_dicts_round_trip_with_random_maps_and_soft_labels():
    """A fresh loss drew other random matrices; after a strict load it computes the same number."""
    fs, ft, ls, lt = normal(5, 4), normal(3, 4, seed=1), normal(5, 3, seed=2), normal(3, 3, seed=3)

    def build(seed):
        torch.manual_seed(seed)
        multilinear_map = MultilinearMap(4, 3, randomized=True)
        return ConditionalDomainAdversarialLoss(
            discriminator(1024, batch_norm=True), multilinear_map, weighting="max"
        ).double()

    first, second = build(0), build(1)
    first(fs, ft, ls, lt)
    assert first.eval()(fs, ft, ls, lt) != second.eval()(fs, ft, ls, lt)
    second.load_state_dict(first.state_dict(), strict=True)
    assert first(fs, ft, ls, lt) == second(fs, ft, ls, lt)

    soft, other = SoftLabelLoss(3).double(), SoftLabelLoss(3).double()
    soft.update(ls, torch.tensor([0, 1, 2, 2, 0]))
    other.load_state_dict(soft.state_dict(), strict=True)
    assert soft(lt, torch.tensor([0, 1, 2])) == other(lt, torch.tensor([0, 1, 2]))
