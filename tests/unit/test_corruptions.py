"""Corruptions of images and the orders of a stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from deeptransfer.domains.corruptions import CORRUPTIONS, corrupt
from deeptransfer.domains.streams import stream, stream_order


def pictures(n=5, channels=1, size=28, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_repeatable_stays_in_range_and_grows(name):
    x = pictures(40)
    before, distances = x.clone(), []
    for strength in range(1, 6):
        y = corrupt(x, name, strength, seed=3)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert 0 <= y.min() <= y.max() <= 1
        assert torch.equal(y, corrupt(x, name, strength, seed=3))
        distances.append((y - x).square().mean().item())
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert torch.equal(x, before)
    random = name in ("noise", "fog", "occlusion")
    assert torch.equal(corrupt(x, name, seed=3), corrupt(x, name, seed=4)) is not random


def test_what_is_not_random_follows_its_formula():
    x = pictures(2, 3)
    for strength, s in enumerate(CORRUPTIONS["contrast"][1], 1):
        np.testing.assert_allclose(corrupt(x, "contrast", strength), 0.5 + s * (x.numpy() - 0.5), rtol=1e-6)
    for strength, s in enumerate(CORRUPTIONS["brightness"][1], 1):
        np.testing.assert_allclose(corrupt(x, "brightness", strength), np.clip(x.numpy() + s, 0, 1), rtol=1e-6)
    for strength, s in enumerate(CORRUPTIONS["blur"][1], 1):
        want = gaussian_filter(x.double().numpy(), (0, 0, s, s), mode="mirror", radius=round(3 * s))
        np.testing.assert_allclose(corrupt(x, "blur", strength), want, atol=1e-6)


def test_contrast_is_one_positive_affine_map_of_the_domain():
    """So that batch statistics undo it exactly, which is what the chapter shows."""
    x = pictures(6).double()
    y = corrupt(x, "contrast", 5)
    slope = (y[0] - y[1])[0, 0, 0] / (x[0] - x[1])[0, 0, 0]
    assert slope > 0
    torch.testing.assert_close(y, slope * x + (y - slope * x).mean())


def test_what_is_random_has_the_moments_that_its_name_promises():
    grey = torch.full((200, 1, 20, 20), 0.5)
    for strength, s in enumerate(CORRUPTIONS["noise"][1], 1):
        y = corrupt(grey, "noise", strength)
        p = math.erf(0.5 / s / math.sqrt(2))  # inside [0, 1]
        assert ((y > 0) & (y < 1)).float().mean() == pytest.approx(p, abs=0.01)
    dark = torch.zeros(50, 1, 28, 28)
    for strength, s in enumerate(CORRUPTIONS["fog"][1], 1):
        y = corrupt(dark, "fog", strength)
        assert s * 0.5 <= y.min()
        assert y.max() <= s
        assert y.mean() == pytest.approx(0.75 * s, abs=0.02)
        steps = (y[..., 1:] - y[..., :-1]).abs().max()
        assert steps < 0.2 * s  # smooth
    for strength, s in enumerate(CORRUPTIONS["occlusion"][1], 1):
        y = corrupt(dark, "occlusion", strength)
        side = round(28 * s)
        assert ((y == 0.5).sum((1, 2, 3)) == side**2).all()
        corners = {(int(i.nonzero()[0, 0]), int(i.nonzero()[0, 1])) for i in (y[:, 0] == 0.5)}
        assert len(corners) > 20  # at a place of its own in each image


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_small_wide_and_absent_images(name):
    assert corrupt(torch.rand(2, 3, 1, 1), name, 5).isfinite().all()
    assert corrupt(torch.rand(2, 1, 3, 40), name, 5).shape == (2, 1, 3, 40)
    assert corrupt(torch.rand(0, 1, 8, 8), name).shape == (0, 1, 8, 8)
    assert corrupt(torch.rand(1, 1, 8, 8, dtype=torch.float64), name).dtype == torch.float64


def test_wrong_corruptions_are_refused():
    x = pictures()
    with pytest.raises(ValueError, match=r"'snow': known ones are contrast, .*occlusion"):
        corrupt(x, "snow")
    for strength in (0, 6, 2.5):
        with pytest.raises(ValueError, match=f"1 to 5, got {strength}"):
            corrupt(x, "noise", strength)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got torch.uint8"):
        corrupt((x * 255).byte(), "noise")
    for bad in (x * 255, x - 1, x * math.nan):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\], got"):
            corrupt(bad, "noise")


# Streams -----------------------------------------------------------------------------------------------------------

LABELS = torch.arange(200) % 4


def changes(order):
    """How often the class of an image differs from that of the one before."""
    y = LABELS[order]
    return (y[1:] != y[:-1]).float().mean().item()


@pytest.mark.parametrize("order", ["random", "sorted", "correlated"])
def test_a_stream_holds_every_image_once_and_repeats_for_its_seed(order):
    places = list(stream(LABELS, 64, order, seed=1))
    assert [len(batch) for batch in places] == [64, 64, 64, 8]
    assert torch.cat(places).sort().values.tolist() == list(range(200))
    assert torch.equal(torch.cat(places), stream_order(LABELS, order, seed=1))
    assert not torch.equal(torch.cat(places), stream_order(LABELS, order, seed=2))


def test_orders_differ_by_how_classes_come_together():
    assert changes(stream_order(LABELS)) == pytest.approx(0.75, abs=0.1)
    assert changes(stream_order(LABELS, "sorted")) == pytest.approx(3 / 199)
    assert changes(stream_order(LABELS, "correlated", concentration=1e6)) == pytest.approx(0.75, abs=0.1)
    some = [changes(stream_order(LABELS, "correlated", seed, 0.1)) for seed in range(20)]
    assert 3 / 199 < np.mean(some) < 0.6
    at_once = stream_order(LABELS, "correlated", 0, 1e-3)  # each class in one slot
    ends = [(LABELS[at_once] == c).nonzero().flatten() for c in range(4)]
    assert sum(len(LABELS[at_once[e.min() : e.max() + 1]].unique()) for e in ends) <= 12
    within = stream_order(LABELS, "sorted", 0)
    assert within[:50].tolist() != sorted(within[:50].tolist())  # random within a class


def test_streams_shorter_than_a_batch_single_classes_and_no_images():
    assert [len(batch) for batch in stream(LABELS[:5], 64, "correlated")] == [5]
    assert [len(batch) for batch in stream(torch.tensor([7, 7, 7]), 2, "correlated")] == [2, 1]
    assert list(stream(LABELS[:0], 4, "sorted")) == []
    for order in ("random", "sorted", "correlated"):
        assert len(stream_order(LABELS[:0], order)) == 0
    assert stream_order(torch.tensor([3, 9, 3]), "sorted").tolist()[2] == 1  # numbers may have gaps


def test_wrong_streams_are_refused():
    with pytest.raises(ValueError, match="got 'shuffled'"):
        stream(LABELS, 4, "shuffled")
    with pytest.raises(ValueError, match="1 or more, got 0"):
        stream(LABELS, 0)
    for delta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            stream_order(LABELS, "correlated", concentration=delta)
    for labels in (LABELS.float(), LABELS - 1, LABELS.view(2, -1), LABELS > 1):
        with pytest.raises(ValueError, match="integers"):
            stream_order(labels)
