"""LAME against its formula in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeptransfer.normalization import LAME


def batch(n=9, classes=3, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(n, classes, generator=generator, dtype=torch.float64).softmax(1)
    return p, torch.randn(n, width, generator=generator, dtype=torch.float64)


def affinities(features, kind, k):
    f = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    n = len(f)
    d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in f] for a in f])
    near = [sorted((j for j in range(n) if j != i), key=lambda j: d[i, j])[:k] for i in range(n)]
    if kind == "rbf":
        width = np.mean([d[i, near[i][-1]] for i in range(n)])
        return np.exp(-(d**2) / (2 * width**2))
    out = np.zeros((n, n))
    for i in range(n):
        for j in near[i]:
            out[i, j] += 0.5
            out[j, i] += 0.5
    return out


def settle(p, k, steps):
    y = p.copy()
    energies = []
    for _ in range(steps):
        z = np.log(p) + k @ y
        y = np.exp(z - z.max(1, keepdims=True))
        y /= y.sum(1, keepdims=True)
        energies.append((y * np.log(y)).sum() - (y * np.log(p)).sum() - 0.5 * (y * (k @ y)).sum())
        if len(energies) > 1 and abs(energies[-1] - energies[-2]) <= 1e-8 * abs(energies[-1]):
            break
    return y, energies


@settings(max_examples=25)
@given(
    n=st.integers(2, 12),
    kind=st.sampled_from(["knn", "rbf"]),
    k=st.integers(1, 14),
    steps=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 99),
)
def test_predictions_follow_the_formula(n, kind, k, steps, seed):
    p, features = batch(n, seed=seed)
    want, _ = settle(p.numpy(), affinities(features, kind, min(k, n - 1)), steps)
    got = LAME(kind, neighbours=k, steps=steps)(p, features)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.sum(1).numpy(), 1, rtol=1e-12)


def test_the_energy_never_rises_where_affinities_have_no_negative_eigenvalue():
    p, features = batch(20)
    k = affinities(features, "rbf", 5)
    assert np.linalg.eigvalsh(k).min() > -1e-9
    _, energies = settle(p.numpy(), k, 100)
    assert all(after <= before + 1e-9 for before, after in pairwise(energies))
    ours = LAME("rbf")
    y = p
    seen = []
    for steps in range(1, 1 + len(energies)):
        ours.steps = steps
        y = ours(p, features)
        seen.append(ours.energy(y, p, torch.from_numpy(k)))
    np.testing.assert_allclose(seen, energies, rtol=1e-9)


def test_no_affinity_leaves_the_predictions_as_they_are(monkeypatch):
    p, features = batch()
    lame = LAME()
    monkeypatch.setattr(lame, "affinities", lambda f: torch.zeros(len(f), len(f), dtype=f.dtype))
    torch.testing.assert_close(lame(p, features), p)


def test_neighbours_of_one_class_outvote_an_unsure_row():
    """Two tight clusters; one row of the first slightly prefers the other class."""
    features = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 6) + 0.01 * batch(12, width=2)[1].float()
    p = torch.tensor([[0.9, 0.1]] * 5 + [[0.45, 0.55]] + [[0.1, 0.9]] * 6)
    assert p[5].argmax() == 1
    for kind in ("knn", "rbf"):
        out = LAME(kind)(p, features)
        assert out.argmax(1).tolist() == [0] * 6 + [1] * 6


def test_length_of_features_does_not_matter_and_order_is_kept():
    p, features = batch()
    lame, order = LAME("rbf"), torch.tensor([3, 1, 0, 2, 8, 7, 6, 5, 4])
    expected = lame(p, features)
    torch.testing.assert_close(lame(p, features * torch.arange(1.0, 10)[:, None]), expected)
    torch.testing.assert_close(lame(p[order], features[order]), expected[order])


@pytest.mark.parametrize("kind", ["knn", "rbf"])
def test_short_batches_equal_rows_and_certain_predictions(kind):
    p, features = batch(1)
    assert torch.equal(LAME(kind)(p, features), p)  # one row has no neighbour
    assert LAME(kind)(p[:0], features[:0]).shape == (0, 3)
    p, features = batch(4)
    assert LAME(kind)(p, features[:1].expand(4, 4)).isfinite().all()  # width 0
    certain = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    assert LAME(kind)(certain, features).isfinite().all()
    assert LAME(kind)(p.bfloat16(), features.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("where", ["probabilities", "features"])
def test_a_row_of_nan_is_no_neighbour_of_others(where):
    p, features = batch()
    others = torch.arange(9) != 4
    expected = LAME()(p[others], features[others])
    spoilt = {"probabilities": p.clone(), "features": features.clone()}
    spoilt[where][4] = torch.nan
    out = LAME()(**spoilt)
    torch.testing.assert_close(out[others], expected)
    assert torch.equal(out[4].isnan(), torch.full((3,), where == "probabilities"))


def test_wrong_input_is_refused():
    p, features = batch()
    with pytest.raises(ValueError, match="got 'cosine'"):
        LAME("cosine")
    with pytest.raises(ValueError, match="1 or more, got 0 and 100"):
        LAME(neighbours=0)
    with pytest.raises(ValueError, match=r"same rows.*\(9, 3\) and \(8, 4\)"):
        LAME()(p, features[:8])
    with pytest.raises(ValueError, match=r"sum to 1.*softmax"):
        LAME()(p * 2, features)
    with pytest.raises(ValueError, match="at least 0"):
        LAME()(torch.tensor([[1.5, -0.5]]).expand(9, 2), features)
    assert repr(LAME("rbf")) == "LAME(affinity='rbf', neighbours=5, steps=100)"
