"""Diagnostics against independent versions, on domains whose distance is known, and on ones where they must fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import nn

from deeptransfer.diagnostics import (
    ChannelMoments,
    batch_statistics,
    channel_distance,
    channel_moments,
    ideal_joint_error,
    proxy_a_distance,
    tsne,
)


def normal(n: int, d: int = 3, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


# --------------------------------------------------------------------------------------------------- proxy A-distance


def test_proxy_a_distance_of_one_distribution_is_about_zero_and_of_far_ones_is_two():
    near = proxy_a_distance(normal(200), normal(200, seed=1))
    far = proxy_a_distance(normal(200), normal(200, shift=20.0, seed=1))
    assert near.mean < 0.3
    assert near.std > 0
    assert far.mean == 2
    assert far.std == 0


def test_unequal_sizes_do_not_look_like_a_distance():
    """Guessing the larger domain is right nine times in ten: balanced, that is chance."""
    values = [proxy_a_distance(normal(450, seed=s), normal(50, seed=100 + s)).mean for s in range(4)]
    assert np.mean(values) < 0.3


def test_proxy_a_distance_equals_a_version_by_hand():
    source, target = normal(60).double().numpy(), normal(40, shift=0.5, seed=1).double().numpy()
    rows, domain = np.concatenate((source, target)), np.array([1] * 60 + [0] * 40)
    distances = []
    for train, test in StratifiedKFold(4, shuffle=True, random_state=7).split(rows, domain):
        mean, std = rows[train].mean(0), rows[train].std(0)
        model = LogisticRegression(max_iter=1000, class_weight="balanced")
        guess = model.fit((rows[train] - mean) / std, domain[train]).predict((rows[test] - mean) / std)
        errors = [np.mean([g != c for g, t in zip(guess, domain[test], strict=True) if t == c]) for c in (0, 1)]
        distances.append(2 * (1 - sum(errors)))
    result = proxy_a_distance(source, target, folds=4, seed=7)
    assert result.mean == pytest.approx(np.mean(distances), abs=1e-12)
    assert result.std == pytest.approx(np.std(distances, ddof=1), abs=1e-12)
    assert 0 < result.mean < 2


def test_proxy_a_distance_does_not_depend_on_the_scale_of_a_feature():
    source, target = normal(100), normal(100, shift=0.5, seed=1)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    assert proxy_a_distance(source * scale, target * scale).mean == pytest.approx(proxy_a_distance(source, target).mean)


def test_a_linear_model_is_blind_to_a_difference_in_spread():
    """Same means, one domain five times as wide: the domains differ and this estimate does not see it."""
    assert proxy_a_distance(normal(300), 5 * normal(300, seed=1)).mean < 0.35


def test_proxy_a_distance_never_falls_below_zero_and_repeats():
    values = [proxy_a_distance(normal(20, 10, seed=s), normal(20, 10, seed=100 + s)).mean for s in range(12)]
    assert min(values) == 0  # below chance in some of these
    first = proxy_a_distance(normal(40), normal(40, shift=0.4, seed=1), seed=3)
    assert first == proxy_a_distance(normal(40), normal(40, shift=0.4, seed=1), seed=3)
    assert first != proxy_a_distance(normal(40), normal(40, shift=0.4, seed=1), seed=4)


def test_features_that_require_a_gradient_or_are_half_precision_are_read():
    source = normal(40).requires_grad_()
    assert proxy_a_distance(source, normal(40, shift=9.0, seed=1).bfloat16()).mean == 2


def test_equal_and_constant_samples_are_at_no_distance():
    constant, rows = torch.full((20, 3), 0.1), normal(20)
    assert proxy_a_distance(constant, constant).mean == 0
    assert proxy_a_distance(rows, rows.clone()).mean < 0.5
    assert proxy_a_distance(constant, constant + 1).mean == 2
    assert proxy_a_distance(constant.long(), (constant + 1).long().numpy()).mean == 2


# ---------------------------------------------------------------------------------------------------------------- λ


def labelled(n: int, seed: int = 0, flip: bool = False, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 2
    rows = normal(n, 2, seed=seed)
    rows[:, 0] += 8.0 * (labels if not flip else 1 - labels)
    rows[:, 1] += shift
    return rows, labels


def test_one_head_that_serves_both_domains_has_no_joint_error():
    result = ideal_joint_error(*labelled(200), *labelled(100, seed=1, shift=30.0))
    assert result.mean == 0


def test_contradicting_domains_have_a_joint_error_of_one():
    """What is class 0 here is class 1 there: one head is right in one of them, or half right in both."""
    result = ideal_joint_error(*labelled(200), *labelled(100, seed=1, flip=True))
    assert result.mean == pytest.approx(1, abs=0.2)
    # separately each is perfectly learnable: the sum of two best errors is not λ
    assert ideal_joint_error(*labelled(200), *labelled(200, seed=1)).mean == 0


def test_the_larger_domain_does_not_outvote_the_smaller_one():
    """One overlapping feature, contradicting labels, 10 : 1. Unweighted, the target error would be 1 and ε_S 0."""
    result = ideal_joint_error(*labelled(1000), *labelled(100, seed=1, flip=True))
    assert result.target_error < 0.95
    assert result.source_error > 0.05


def test_joint_error_is_the_sum_and_repeats_by_seed():
    source = normal(100), torch.arange(100) % 3
    target = normal(80, seed=1).numpy(), (torch.arange(80) % 3).numpy()
    result = ideal_joint_error(*source, *target)
    assert result.mean == pytest.approx(result.source_error + result.target_error)
    assert 1 < result.mean < 1.7  # labels without any relation to the features: 2 · 2/3
    assert result.std > 0
    assert result == ideal_joint_error(*source, *target)
    assert result != ideal_joint_error(*source, *target, seed=1)


# ------------------------------------------------------------------------------------------------------------ t-SNE


def test_tsne_keeps_clusters_apart_returns_the_samples_in_order_and_repeats():
    source, target = normal(40, 5), normal(30, 5, shift=30.0, seed=1)
    a, b = tsne(source, target, perplexity=10, seed=0)
    assert a.shape == (40, 2)
    assert b.shape == (30, 2)
    gap = np.linalg.norm(a.mean(0) - b.mean(0))
    assert gap > 2 * max(np.linalg.norm(a - a.mean(0), axis=1).mean(), np.linalg.norm(b - b.mean(0), axis=1).mean())
    again = tsne(source, target, perplexity=10, seed=0)
    np.testing.assert_array_equal(a, again[0])


# ------------------------------------------------------------------------------------------------------- per channel


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2), (3, 4, 2, 2, 2)])
def test_channel_moments_equal_the_loop(shape):
    x = 3 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = channel_moments(x)
    for c in range(4):
        values = [v for row in x for v in row[c].flatten().tolist()]
        assert moments.mean[c].item() == pytest.approx(np.mean(values))
        assert moments.var[c].item() == pytest.approx(np.var(values, ddof=1))


def test_channel_distance_equals_the_formula_and_is_zero_where_the_domains_agree():
    source = ChannelMoments(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, 4.0, 1.0]))
    target = ChannelMoments(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 4.0, 4.0]))
    expected = [0, 2, 2.5]
    np.testing.assert_allclose(channel_distance(source, target, eps=0.0), expected, rtol=1e-6)
    np.testing.assert_allclose(channel_distance(target, source, eps=0.0), expected, rtol=1e-6)
    constant = ChannelMoments(torch.zeros(1), torch.zeros(1))
    moved = ChannelMoments(torch.full((1,), 0.1), torch.zeros(1))
    assert channel_distance(constant, moved, eps=1e-2).item() == pytest.approx(1.0)


def test_channel_distance_reads_two_rows_of_running_statistics():
    norm = nn.BatchNorm2d(3)
    mean, var = torch.randn(2, 3), torch.rand(2, 3) + 0.5
    expected = (mean[0] / (var[0] + norm.eps).sqrt() - mean[1] / (var[1] + norm.eps).sqrt()).abs()
    found = channel_distance((mean[0], var[0]), (mean[1], var[1]), norm.eps)
    torch.testing.assert_close(found, expected)


# --------------------------------------------------------------------------------------------------- batch statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5), nn.BatchNorm1d(5)
    )


def images(count: int, n: int = 7) -> list[torch.Tensor]:
    return [normal(n, 36, seed=s).view(n, 1, 6, 6) for s in range(count)]


def test_batch_statistics_are_those_of_the_inputs_of_each_layer():
    model, batches = network(), images(3)
    found = batch_statistics(model, batches)
    assert list(found) == ["1", "5"]
    model.eval()
    for b, x in enumerate(batches):
        x = model[0](x)
        np.testing.assert_allclose(found["1"].mean[b], x.mean((0, 2, 3)).detach(), atol=1e-6)
        np.testing.assert_allclose(found["1"].var[b], x.var((0, 2, 3)).detach(), rtol=1e-5)
        x = model[1:5](x)
        np.testing.assert_allclose(found["5"].mean[b], x.mean(0).detach(), atol=1e-6)
    assert found["5"].var.shape == (3, 5)
    assert not found["1"].mean.requires_grad


def test_batch_statistics_leave_the_network_as_it_was():
    model = network().train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch_statistics(model, images(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model[5].training
    assert not model[1].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_and_the_mode_restored_when_a_batch_fails():
    model = network().train()
    with pytest.raises(RuntimeError):
        batch_statistics(model, [torch.zeros(2, 9, 6, 6)])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_of_a_loader_and_layers_by_name_are_taken():
    pairs = [(x, torch.zeros(7)) for x in images(2)]
    found = batch_statistics(network(), pairs, layers=["4", "1"])
    assert list(found) == ["4", "1"]
    assert found["4"].mean.shape == (2, 64)


def test_statistics_of_two_domains_form_two_clouds():
    model = network()
    source = batch_statistics(model, images(6, 64))["1"]
    target = batch_statistics(model, [2 * x + 1 for x in images(6, 64)])["1"]
    rows = [torch.cat((s.mean, s.var), 1) for s in (source, target)]
    gap = (rows[0].mean(0) - rows[1].mean(0)).norm()
    assert gap > 5 * max(r.std(0).norm() for r in rows)


# ------------------------------------------------------------------------------------------------------- refusals

LABELS = torch.arange(10) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proxy_a_distance(normal(10), normal(10, 4)), "one width, got 3 and 4"),
        (lambda: proxy_a_distance(normal(10), normal(3)), "smaller domain, 3, got 5"),
        (lambda: proxy_a_distance(normal(10), normal(10), folds=1), "got 1"),
        (lambda: proxy_a_distance(normal(10)[:, :, None], normal(10)), r"source_features.*\(10, 3, 1\)"),
        (lambda: proxy_a_distance(normal(10), normal(10) * float("nan")), "target_features holds"),
        (lambda: ideal_joint_error(normal(10), LABELS[:9], normal(10), LABELS), r"source_labels.*\(10,\), got \(9,\)"),
        (lambda: ideal_joint_error(normal(10), LABELS, normal(10), LABELS[:, None]), "target_labels"),
        (lambda: proxy_a_distance(normal(10), normal(10) * float("inf")), "target_features holds"),
        (lambda: proxy_a_distance(1e200 * normal(10).double(), normal(10)), "source_features holds .* whose squares"),
        (lambda: proxy_a_distance(normal(10)[:, :0], normal(10)[:, :0]), r"source_features .*\(10, 0\)"),
        (lambda: proxy_a_distance(normal(10)[:0], normal(10)), r"source_features .*\(0, 3\)"),
        (
            lambda: proxy_a_distance(normal(10).cfloat(), normal(10)),
            r"source_features must be real, got torch\.complex64",
        ),
        (lambda: proxy_a_distance(normal(10).numpy() * 1j, normal(10)), "must be real, got complex64"),
        (lambda: ideal_joint_error(normal(10), LABELS * 0, normal(10), LABELS * 0), "only label 0 to learn from"),
        (lambda: ideal_joint_error(normal(10), LABELS / 0, normal(10), LABELS), "source_labels holds"),
        (lambda: tsne(), r"one width, 2 or more, got \[\]"),
        (lambda: tsne(normal(10), normal(10, 4), perplexity=3), r"one width, 2 or more, got \[3, 4\]"),
        (lambda: tsne(normal(10, 1), perplexity=3), r"one width, 2 or more, got \[1\]"),
        (lambda: tsne(normal(10), perplexity=0), "perplexity 0 must be .* positive"),
        (lambda: tsne(torch.full((10, 3), 0.1), perplexity=3), "spreads over 0: rows must differ"),
        (lambda: tsne(1e-20 * normal(10), perplexity=3), "scale of about 1"),
        (lambda: tsne(1e19 * normal(10), perplexity=3), "scale of about 1"),
        (lambda: tsne(normal(10) * float("nan"), perplexity=3), "sample 0 holds"),
        (lambda: channel_moments(torch.ones(4, 3, dtype=torch.long)), r"must be floating, got torch\.int64"),
        (lambda: channel_moments(torch.ones(4, 0)), r"got \(4, 0\)"),
        (
            lambda: channel_distance((torch.zeros(3), torch.ones(1)), (torch.zeros(3), torch.ones(3))),
            r"variances \(1,\)",
        ),
        (lambda: tsne(normal(10), perplexity=10), "perplexity 10 must be less than the number of rows, 10"),
        (lambda: channel_moments(torch.zeros(1, 3)), r"got \(1, 3\)"),
        (lambda: channel_moments(torch.zeros(3)), r"got \(3,\)"),
        (lambda: channel_distance((torch.zeros(2),) * 2, (torch.zeros(3),) * 2), r"\(2,\) and \(3,\)"),
        (lambda: batch_statistics(network(), images(1), ["conv"]), "no layer 'conv'"),
        (lambda: batch_statistics(nn.Linear(2, 2), [torch.zeros(2, 2)]), "name the layers"),
        (lambda: batch_statistics(network(), []), "no input reached layer '1'"),
    ],
)
def test_bad_input_is_refused_by_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
