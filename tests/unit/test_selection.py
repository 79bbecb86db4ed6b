"""Selection scores against their formulas, what each prefers, and how each is fooled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from deeptransfer.selection import (
    entropy,
    importance_weighted_risk,
    information_maximization,
    oracle_accuracy,
    reverse_validation,
    soft_neighborhood_density,
)

LABEL_FREE = [entropy, information_maximization, soft_neighborhood_density]


def logits(n: int = 12, k: int = 4, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def certain(labels: list[int], k: int = 4) -> torch.Tensor:
    return 50.0 * torch.nn.functional.one_hot(torch.tensor(labels), k).float()


def shannon(p: np.ndarray) -> float:
    return -sum(v * math.log(v) for v in p if v > 0)


def clusters(n: int, shift: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes in the plane, moved along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centres = torch.tensor([[0.0, 0.0], [0.0, 6.0], [0.0, 12.0]])
    return centres[labels] + torch.randn(n, 2, generator=generator) + torch.tensor([shift, 0.0]), labels


# ----------------------------------------------------------------------------------------------- against the formulas


def test_entropy_equals_the_loop():
    p = softmax(logits().double().numpy(), axis=1)
    assert entropy(logits()) == pytest.approx(-np.mean([shannon(row) for row in p]), abs=1e-12)


def test_information_maximization_equals_the_loop():
    p = softmax(logits().double().numpy(), axis=1)
    expected = shannon(p.mean(0)) - np.mean([shannon(row) for row in p])
    assert information_maximization(logits()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_soft_neighborhood_density_equals_the_loop(temperature):
    p = softmax(logits().double().numpy(), axis=1)
    densities = []
    for i in range(len(p)):
        cosines = [
            p[i] @ p[j] / np.linalg.norm(p[i]) / np.linalg.norm(p[j]) / temperature for j in range(len(p)) if j != i
        ]
        densities.append(shannon(softmax(cosines)))
    assert soft_neighborhood_density(logits(), temperature) == pytest.approx(np.mean(densities), abs=1e-10)


def test_importance_weighted_risk_without_shift_is_the_plain_risk():
    """All weights near 1: IWCV is the mean cross-entropy, and DEV agrees."""
    source, labels = clusters(600)
    target, _ = clusters(300, seed=1)
    predictions = logits(600, 3, scale=1.0)
    risk = torch.nn.functional.cross_entropy(predictions, labels).item()
    for control_variate in (False, True):
        score = importance_weighted_risk(predictions, labels, source, target, control_variate)
        assert score == pytest.approx(-risk, rel=0.05)


def test_importance_weighted_risk_estimates_the_risk_on_the_target():
    """Gaussians whose density ratio is log-linear: the risk of a model that errs on one side, known from the target."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(4000, 1, generator=generator)
    target = torch.randn(2000, 1, generator=generator) + 0.7
    labels, target_labels = (source[:, 0] > 0).long(), (target[:, 0] > 0).long()

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, 0.5 * x + 0.5), 1)  # right on the right

    plain = -torch.nn.functional.cross_entropy(predict(source), labels).item()
    true = -torch.nn.functional.cross_entropy(predict(target), target_labels).item()
    assert abs(plain - true) > 0.05
    for control_variate in (False, True):
        score = importance_weighted_risk(predict(source), labels, source, target, control_variate)
        assert abs(score - true) < 0.3 * abs(plain - true)


def test_the_control_variate_is_that_of_dev():
    """From the weights' definition, with the cross-fitted probabilities recomputed by hand."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    source, labels = clusters(90)
    target, _ = clusters(60, shift=0.8, seed=1)
    predictions = logits(90, 3)
    rows, domain = torch.cat((source, target)).double().numpy(), np.array([1] * 90 + [0] * 60)
    p = np.empty(150)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(rows, domain):
        mean, std = rows[train].mean(0), rows[train].std(0)
        model = LogisticRegression(max_iter=1000).fit((rows[train] - mean) / std, domain[train])
        p[test] = model.predict_proba((rows[test] - mean) / std)[:, 1]
    w = 90 / 60 * (1 - p[:90]) / p[:90]
    losses = torch.nn.functional.cross_entropy(predictions.double(), labels, reduction="none").numpy()
    eta = -np.cov(w * losses, w)[0, 1] / np.var(w, ddof=1)
    score = importance_weighted_risk(predictions, labels, source, target)
    assert score == pytest.approx(-(np.mean(w * losses) + eta * np.mean(w) - eta), rel=1e-9)
    assert importance_weighted_risk(predictions, labels, source, target, False) == pytest.approx(-np.mean(w * losses))


def test_oracle_counts_hits():
    assert oracle_accuracy(certain([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])) == 0.75


# --------------------------------------------------------------------------------------------- what is preferred


@pytest.mark.parametrize("score", [entropy, information_maximization])
def test_confident_and_diverse_predictions_score_higher_than_flat_ones(score):
    assert score(certain([0, 1, 2, 3] * 3)) > score(logits(scale=1.0)) > score(torch.zeros(12, 4))


def test_dense_clusters_of_predictions_score_higher_than_scattered_ones():
    scattered = logits(40, 20, scale=3.0)
    assert soft_neighborhood_density(certain([0, 1, 2, 3] * 10, 20)) > 2 * soft_neighborhood_density(scattered)


def test_reverse_validation_tells_right_pseudo_labels_from_wrong_ones():
    source, labels = clusters(90)
    target, target_labels = clusters(60, shift=0.5, seed=1)
    right = certain(target_labels.tolist(), 3)
    wrong = certain(torch.randint(3, (60,), generator=torch.Generator().manual_seed(0)).tolist(), 3)
    assert reverse_validation(source, labels, target, right) > 0.97
    assert reverse_validation(source, labels, target, wrong) < 0.7


def test_importance_weighted_risk_prefers_the_model_that_is_right_near_the_target():
    source, labels = clusters(300)
    target, _ = clusters(200, shift=1.5, seed=1)
    near = source[:, 0] > 0.5
    right = certain(labels.tolist(), 3) / 10
    flat = torch.zeros(300, 3)
    right_near = torch.where(near[:, None], right, flat)
    right_far = torch.where(near[:, None], flat, right)
    assert near.sum() < (~near).sum()  # unweighted, the second is the better one
    assert importance_weighted_risk(right_near, labels, source, target) > importance_weighted_risk(
        right_far, labels, source, target
    )


# ----------------------------------------------------------------------------------------------- how they are fooled


def test_collapse_fools_confidence_and_density_but_not_information_maximization():
    collapsed, good = certain([1] * 12), logits(12, 4, scale=3.0)
    assert entropy(collapsed) > entropy(good)
    assert soft_neighborhood_density(collapsed) == pytest.approx(math.log(11))
    assert soft_neighborhood_density(collapsed) > soft_neighborhood_density(certain([0, 1, 2, 3] * 3))
    assert information_maximization(collapsed) == pytest.approx(0, abs=1e-12)
    assert information_maximization(good) > 0.3


@pytest.mark.parametrize("score", LABEL_FREE)
def test_permuted_classes_fool_every_score_of_the_logits_alone_but_not_the_oracle(score):
    labels = [0, 1, 2, 3] * 3
    right, rotated = certain(labels), certain([(k + 1) % 4 for k in labels])
    assert score(right) == pytest.approx(score(rotated), abs=1e-12)
    assert oracle_accuracy(right, torch.tensor(labels)) == 1
    assert oracle_accuracy(rotated, torch.tensor(labels)) == 0


def test_reverse_validation_is_fooled_by_an_exchange_in_features_and_predictions():
    source, labels = clusters(90)
    features, true = clusters(60, seed=1)
    seen_as = true.clone()
    true = (true + 1) % 3  # the network put every target class on another one's place
    assert reverse_validation(source, labels, features, certain(seen_as.tolist(), 3)) > 0.97
    assert oracle_accuracy(certain(seen_as.tolist(), 3), true) == 0


def test_importance_weighted_risk_is_fooled_where_the_domains_do_not_overlap():
    """Wrong on every row, yet IWCV sees a small part of the risk: no source row looks like the target."""
    source, labels = clusters(90)
    target, _ = clusters(60, shift=30.0, seed=1)
    wrong = certain(((labels + 1) % 3).tolist(), 3)
    risk = torch.nn.functional.cross_entropy(wrong, labels).item()
    assert -importance_weighted_risk(wrong, labels, source, target, control_variate=False) < 0.1 * risk


# ------------------------------------------------------------------------------------------------------- robustness


@pytest.mark.parametrize("score", LABEL_FREE)
def test_extreme_logits_and_bfloat16_stay_finite(score):
    assert math.isfinite(score(1e4 * logits()))
    assert score(logits().bfloat16()) == pytest.approx(score(logits()), abs=0.05)


def test_information_maximization_stays_in_its_range():
    for seed in range(5):
        assert 0 <= information_maximization(logits(seed=seed)) <= math.log(4)
    assert information_maximization(certain([0, 1, 2, 3])) == pytest.approx(math.log(4))


def test_a_collapsed_network_is_worth_its_class_in_reverse_validation():
    source, labels = clusters(90)
    target, _ = clusters(60)
    assert reverse_validation(source, labels, target, certain([2] * 60, 3)) == pytest.approx(1 / 3)


def test_scores_repeat_exactly_and_leave_the_global_generators_alone():
    source, labels = clusters(90)
    target, _ = clusters(60, shift=0.5, seed=1)
    predictions = logits(90, 3)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (importance_weighted_risk(predictions, labels, source, target) for _ in range(2))
    assert first == again
    assert importance_weighted_risk(predictions, labels, source, target, seed=1) != first
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_a_class_ruled_out_by_minus_infinity_counts_as_absent():
    ruled_out = logits()
    ruled_out[:, 2] = -math.inf
    for score in LABEL_FREE:
        assert score(ruled_out) == pytest.approx(score(ruled_out[:, [0, 1, 3]]), abs=1e-12)


def test_labels_and_logits_may_be_of_any_number_format():
    labels = torch.tensor([0, 1, 2, 0])
    for form in (labels.int(), labels.float(), labels.to(torch.uint8)):
        assert oracle_accuracy(certain([0, 1, 2, 3]), form) == 0.75
    assert entropy(certain([0, 1]).long()) == pytest.approx(entropy(certain([0, 1])), abs=1e-12)


NAN = torch.full((4, 3), float("nan"))
INFINITE = torch.full((12, 4), float("inf"))
ONES = torch.ones(12, dtype=torch.long)
RULED_OUT = logits().index_fill(1, torch.tensor([1]), -math.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy(NAN), "NaN"),
        (lambda: information_maximization(NAN), "NaN"),
        (lambda: soft_neighborhood_density(NAN), "NaN"),
        (lambda: oracle_accuracy(NAN, torch.zeros(4)), "NaN"),
        (lambda: entropy(torch.zeros(0, 3)), r"got \(0, 3\)"),
        (lambda: entropy(torch.zeros(3)), r"got \(3,\)"),
        (lambda: soft_neighborhood_density(logits(2)), "3 rows or more, got 2"),
        (lambda: soft_neighborhood_density(logits(), temperature=0), "temperature must be positive, got 0"),
        (lambda: entropy(NAN[:, :0]), r"got \(4, 0\)"),
        (lambda: entropy(INFINITE), "NaN or infinity"),
        (lambda: information_maximization(INFINITE), "NaN or infinity"),
        (lambda: information_maximization(-INFINITE.abs()), "NaN or infinity"),
        (lambda: soft_neighborhood_density(logits(), temperature=math.inf), "temperature must be positive, got inf"),
        (lambda: soft_neighborhood_density(logits(), temperature=1e-310), r"temperature 1e-310 is too small"),
        (lambda: oracle_accuracy(logits(4), torch.zeros(4, 1)), r"labels must be .* shape \(n,\), got .* \(4, 1\)"),
        (lambda: oracle_accuracy(logits(4), torch.eye(4)), r"labels must be .* shape \(n,\), got .* \(4, 4\)"),
        (
            lambda: oracle_accuracy(logits(4), torch.full((4,), 0.5)),
            "labels must be whole numbers .* got torch.float32",
        ),
        (lambda: oracle_accuracy(logits(4), torch.full((4,), math.nan)), "labels must be whole numbers"),
        (lambda: oracle_accuracy(logits(4), torch.tensor([0, 1, 2, 4])), "labels must lie in 0 … 3, .* got 4"),
        (lambda: oracle_accuracy(logits(4), torch.tensor([0, 1, 2, -1])), "labels must lie in 0 … 3, .* got -1"),
        (lambda: reverse_validation(logits(4), torch.zeros(4, 1), logits(4), logits(4)), r"source_labels .*\(4, 1\)"),
        (lambda: reverse_validation(logits(4), torch.full((4,), 7), logits(4), logits(4)), "source_labels .* got 7"),
        (lambda: importance_weighted_risk(logits(), ONES * -100, logits(), logits()), "source_labels .* got -100"),
        (lambda: importance_weighted_risk(logits(), ONES[:, None], logits(), logits()), r"source_labels .*\(12, 1\)"),
        (lambda: importance_weighted_risk(logits(), ONES, logits(), logits(12, 3)), "one width, got 4 and 3"),
        (lambda: importance_weighted_risk(logits(), ONES, logits(), logits(3)), "smaller domain, 3, got 5"),
        (lambda: importance_weighted_risk(logits(), ONES, logits(), INFINITE), "target_features holds"),
        (lambda: importance_weighted_risk(RULED_OUT, ONES, logits(), logits()), "its loss is infinite"),
        (lambda: oracle_accuracy(logits(4), torch.zeros(3)), "'logits': 4, 'labels': 3"),
        (lambda: reverse_validation(logits(4), torch.zeros(3), logits(4), logits(4)), "'source_labels': 3"),
        (lambda: reverse_validation(logits(4), torch.zeros(4), logits(4), logits(5)), "'target_features': 4"),
        (lambda: reverse_validation(logits(4), torch.zeros(4), NAN, logits(4)), "target_features holds"),
        (lambda: importance_weighted_risk(logits(4), torch.zeros(4), logits(5), logits(4)), "'source_features': 5"),
    ],
)
def test_bad_input_is_refused_by_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
