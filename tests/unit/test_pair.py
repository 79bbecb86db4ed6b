"""Batches of two domains: a pure function of (seed, step, rank), and no way from them to a target label."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from deeptransfer.domains import (
    Batch,
    Domain,
    DomainPair,
    TensorDomain,
    harmonise,
    load_domain,
    random_crop_and_flip,
    random_shift,
    randomize_strokes,
)
from deeptransfer.domains import pair as pair_module


def numbered(n, name="source", channels=1, side=2, classes="01", offset=0.0, transform=None):
    """A domain whose every image is filled with its own index / 1000, so that a batch tells which images it holds."""
    images = (torch.arange(n) / 1000 + offset).view(n, 1, 1, 1).expand(n, channels, side, side).clone()
    return TensorDomain(name, images, torch.arange(n) % len(classes), classes, transform)


def indices(images):
    return (images[:, 0, 0, 0] * 1000).round().int().tolist()


def pair(n_s=7, n_t=5, batch_size=3, seed=0, **kwargs):
    return DomainPair(numbered(n_s), numbered(n_t, "target"), batch_size, seed, **kwargs)


def tensors(batch):
    return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if getattr(batch, f.name) is not None}


def equal(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# A pure function


@settings(max_examples=20)
@given(
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    seed=st.integers(0, 2**63),
    views=st.sampled_from([1, 2]),
    rank=st.integers(0, 2),
)
def test_batch_depends_on_seed_step_and_rank_alone(steps, seed, views, rank):
    """Whatever was asked before, by this pair or by nobody: a resumed run sees what the first one saw."""
    kwargs = {"seed": seed, "views": views, "rank": rank, "world_size": 3, "labelled_target": numbered(3, "few")}
    used = pair(**kwargs)
    for step in steps:
        torch.manual_seed(step)  # the global generator has no say
        assert equal(used.batch(step), pair(**kwargs).batch(step))


def test_batch_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    pair(views=2).batch(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_matters_even_for_neighbours():
    drawn = [tuple(indices(pair(n_s=50, batch_size=20, seed=seed).batch(0).xs)) for seed in range(20)]
    assert len(set(drawn)) == 20


def test_source_and_target_come_in_different_orders():
    batch = pair(n_s=50, n_t=50, batch_size=20, labelled_target=numbered(50, "few")).batch(0)
    assert len({tuple(indices(x)) for x in (batch.xs, batch.xt, batch.xl)}) == 3


@settings(max_examples=20)
@given(n=st.integers(1, 12), batch_size=st.integers(1, 9), world_size=st.integers(1, 3))
def test_epoch_takes_every_image_once(n, batch_size, world_size):
    ranks = [pair(n, n, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    stream = [i for step in range(3 * n) for p in ranks for i in indices(p.batch(step).xs)]
    epochs = [stream[start : start + n] for start in range(0, len(stream) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n >= 6:
        assert len({tuple(epoch) for epoch in epochs[:3]}) == 3  # each epoch in an order of its own


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batch_that_one_process_would_read(world_size):
    few = numbered(11, "few")
    whole = pair(20, 9, batch_size=8, labelled_target=few)
    ranks = [
        pair(20, 9, batch_size=8 // world_size, labelled_target=few, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in (0, 3, 7):
        parts = [p.batch(step) for p in ranks]
        for name, value in tensors(whole.batch(step)).items():
            assert torch.equal(value, torch.cat([getattr(part, name) for part in parts]))


def test_small_target_starts_again_while_the_source_goes_on():
    batch = pair(n_s=20, n_t=2, batch_size=6).batch(0)
    assert len(set(indices(batch.xs))) == 6
    assert sorted(indices(batch.xt)) == [0, 0, 0, 1, 1, 1]


# What a batch holds


def test_images_and_source_labels_belong_together():
    batch = pair().batch(4)
    assert batch.ys.tolist() == [i % 2 for i in indices(batch.xs)]
    assert batch.ys.dtype == torch.int64


def test_no_target_label_reaches_a_batch():
    """Neither by name nor by value: a target with all labels changed gives the same batches."""
    target = numbered(5, "target")
    liar = TensorDomain("target", target.tensors[0], 1 - target.tensors[1], target.classes)
    for views in (1, 2):
        honest, lied = (DomainPair(numbered(7), t, 3, 0, views=views) for t in (target, liar))
        assert all(equal(honest.batch(step), lied.batch(step)) for step in range(4))
    batch = honest.batch(0)
    assert set(vars(batch)) == {"xs", "ys", "xt", "xt2", "xl", "yl"}
    assert batch.xl is None
    assert batch.yl is None
    assert all(not hasattr(value, "__dict__") or not vars(value) for value in tensors(batch).values())
    reached = pickle.dumps(batch)
    assert b"TensorDomain" not in reached
    assert b"DomainPair" not in reached


def test_batch_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair().batch(0).xt = None


def test_batch_does_not_share_memory_with_the_domains():
    """An augmentation in place must not wear the domain down."""
    p = pair(batch_size=7)
    before = [domain.tensors[0].clone() for domain in (p.source, p.target)]
    batch = p.batch(0)
    batch.xs.zero_()
    batch.xt.zero_()
    assert torch.equal(p.source.tensors[0], before[0])
    assert torch.equal(p.target.tensors[0], before[1])


def test_labelled_target_images_bring_their_labels():
    few = numbered(4, "few", offset=0.5)
    batch = pair(labelled_target=few).batch(2)
    assert len(batch.xl) == len(batch.yl) == 3
    assert batch.yl.tolist() == [(i - 500) % 2 for i in indices(batch.xl)]


def test_second_view_shows_the_same_target_images_moved_otherwise(monkeypatch):
    images = torch.rand(6, 1, 8, 8)
    target = TensorDomain("target", images, torch.zeros(6), "01")
    source = TensorDomain("source", images, torch.zeros(6), "01")
    calls = []

    def augment(x, generator):
        calls.append(x)
        return random_shift(x, generator)

    monkeypatch.setattr(pair_module, "random_shift", augment)
    batch = DomainPair(source, target, 6, 0, views=2).batch(1)
    plain = DomainPair(source, target, 6, 0).batch(1)
    assert torch.equal(calls[0], plain.xt)
    assert torch.equal(calls[1], plain.xt)
    assert torch.equal(batch.xs, plain.xs)  # the source is left as it is
    assert not torch.equal(batch.xt, batch.xt2)
    assert not torch.equal(batch.xt, plain.xt)
    assert plain.xt2 is None


def test_an_augmentation_that_is_given_is_for_all_images():
    few = numbered(4, "few", offset=0.5)
    plain = pair(labelled_target=few).batch(2)
    batch = pair(labelled_target=few, augment=lambda x, generator: x + 1).batch(2)
    for name in ("xs", "xt", "xl"):
        assert torch.equal(getattr(batch, name), getattr(plain, name) + 1)
    assert torch.equal(batch.ys, plain.ys)


def test_random_crops_are_parts_of_the_image_and_half_are_mirrored():
    ramp = torch.linspace(0, 1, 32).expand(400, 1, 32, 32)  # brighter to the right
    crops = random_crop_and_flip(ramp, torch.Generator().manual_seed(0))
    assert crops.shape == ramp.shape
    assert 0 <= crops.min() <= crops.max() <= 1
    slope = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]).abs()
    assert 0.55 < slope.min() < 0.7  # never less than 0.6 of the side, but for the border
    assert 0.9 < slope.max() <= 1
    mirrored = (crops[:, 0, 0, -1] < crops[:, 0, 0, 0]).float().mean()
    assert 0.4 < mirrored < 0.6
    assert torch.allclose(crops[:, :, 0], crops[:, :, -1], atol=1e-5)  # never turned
    again = random_crop_and_flip(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(crops, again)


def test_random_shift_moves_and_never_wraps():
    x = torch.ones(200, 2, 6, 5)
    x[:, :, 0] = 2
    moved = random_shift(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    offsets = set()
    for image in moved:
        found = []
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                expected = torch.zeros(2, 6, 5)
                for i in range(6):
                    for j in range(5):
                        if 0 <= i + dy < 6 and 0 <= j + dx < 5:
                            expected[:, i, j] = x[0, :, i + dy, j + dx]
                if torch.equal(image, expected):
                    found.append((dy, dx))
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) == 25


# Harmony


def test_grey_meets_colour_in_colour():
    for channels in ((1, 3), (3, 1), (3, 3), (1, 1)):
        source, target = (numbered(4, name, c) for name, c in zip(("source", "target"), channels, strict=True))
        p = DomainPair(source, target, 2, 0)
        batch = p.batch(0)
        assert batch.xs.shape == batch.xt.shape == (2, max(channels), 2, 2)
        assert p.shape == (max(channels), 2, 2)


def test_target_takes_the_size_of_the_source():
    source, target = numbered(4, side=4), TensorDomain("target", torch.rand(4, 3, 6, 8), torch.zeros(4), "01")
    few = numbered(2, "few", side=3)
    batch = DomainPair(source, target, 4, 0, labelled_target=few).batch(0)
    assert batch.xs.shape == batch.xt.shape == batch.xl.shape == (4, 3, 4, 4)
    resampled = harmonise(target.tensors[0], 3, (4, 4))
    assert all((resampled == image).flatten(1).all(1).any() for image in batch.xt)


def test_domain_to_be_scored_is_brought_to_the_shape_of_the_pair():
    """As the batches are: USPS has 16 × 16 pixels, MNIST 28 × 28, and a network is built for one size."""
    source, target = (
        numbered(4, side=6),
        TensorDomain("target", torch.rand(4, 1, 4, 5), torch.tensor([0, 1, 1, 0]), "01"),
    )
    p = DomainPair(source, target, 4, 0)
    scored = p.harmonise(target)
    assert (scored.name, scored.classes, len(scored)) == ("target", ("0", "1"), 4)
    assert torch.equal(scored.labels, target.labels)
    images, labels = next(iter(DataLoader(scored, 4)))
    assert torch.equal(images, harmonise(target.tensors[0], 1, (6, 6)))
    assert torch.equal(labels, target.labels)
    assert all((images == image).flatten(1).all(1).any() for image in p.batch(0).xt)
    few = scored.subset([2, 0])
    assert torch.equal(few[0][0], images[2])
    assert few.labels.tolist() == [1, 0]


def test_domain_of_the_shape_of_the_pair_is_scored_as_it_is():
    source, target = numbered(4), numbered(4, "target", channels=3)
    p = DomainPair(source, target, 4, 0)
    assert p.harmonise(target) is target
    assert torch.equal(p.harmonise(source)[1][0], source[1][0].expand(3, 2, 2))


def test_domain_that_cannot_be_scored_is_refused_before_training():
    p = pair()
    with pytest.raises(ValueError, match="cannot turn 3 channels into 1"):
        p.harmonise(numbered(4, channels=3))
    with pytest.raises(ValueError, match="classes differ"):
        p.harmonise(numbered(4, classes="012"))
    with pytest.raises(ValueError, match="cannot turn 2 channels into 3"):
        DomainPair(numbered(4, channels=3), numbered(4, channels=2), 2, 0)


def test_transform_acts_on_batches():
    source = numbered(4, transform=lambda x: x + 1)
    batch = DomainPair(source, numbered(4, "target"), 4, 0).batch(0)
    assert sorted(indices(batch.xs)) == [1000, 1001, 1002, 1003]
    assert batch.ys.tolist() == [i % 2 for i in indices(batch.xs)]


def test_any_domain_will_do():
    """A domain that reads its images one by one, from files say, gives the batches of one in memory."""

    class Files(Domain):
        name, classes = "files", ("0", "1")

        def __len__(self):
            return 7

        def __getitem__(self, index):
            return numbered(7)[index]

    in_memory, one_by_one = (DomainPair(d, numbered(5, "target"), 3, 0) for d in (numbered(7), Files()))
    assert all(equal(in_memory.batch(step), one_by_one.batch(step)) for step in range(3))


def test_domain_without_a_length_says_so():
    with pytest.raises(TypeError, match="must define __len__"):
        len(Domain())


def test_batch_moves_images_to_a_dtype_and_leaves_labels():
    batch = pair(labelled_target=numbered(3, "few"), views=2).batch(0).to("cpu", torch.float64)
    assert {name: value.dtype for name, value in tensors(batch).items()} == {
        **dict.fromkeys(("xs", "xt", "xt2", "xl"), torch.float64),
        **dict.fromkeys(("ys", "yl"), torch.int64),
    }
    assert pair().batch(0).to("meta", torch.float32).xs.is_meta


def test_pair_can_be_copied_and_pickled():
    p = pair(views=2)
    p.batch(5)
    assert all(equal(q.batch(2), p.batch(2)) for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))))


def test_repr_names_both_domains():
    assert repr(pair()) == "DomainPair(source → target, batch_size=3, seed=0, images=7 + 5)"
    assert isinstance(pair().batch(0), Batch)


# Bad input


class Empty(Domain):
    name, classes = "void", ("0", "1")

    def __len__(self):
        return 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": numbered(3, "target", classes="012")}, "classes differ: 'source' has .*'target' has .*one order"),
        ({"target": numbered(3, "target", classes="10")}, "classes differ"),
        ({"labelled_target": numbered(3, "few", classes="012")}, "classes differ.*'few'"),
        ({"target": numbered(3, "target", classes="02")}, "'source' has '1' of its own, 'target' has '2' of its own;"),
        (
            {"target": numbered(3, "target", classes="012")},
            "'source' has none of its own, 'target' has '2' of its own;",
        ),
        ({"target": numbered(3, "target", classes="10")}, "their order does; .*one order"),
        ({"target": numbered(30, "target", classes="0123456789")}, "'2', '3', '4', '5', '6' and 3 more of its own"),
        ({"source": numbered(3, classes="aB"), "target": numbered(3, classes="Ab")}, "upper and lower case does"),
        ({"source": numbered(3, classes="0"), "target": numbered(3, classes="0")}, "'source' has one class, '0'"),
        ({"target": Empty()}, "target domain 'void' has no image"),
        ({"source": Empty()}, "source domain 'void' has no image"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"views": 3}, "views must be 1 or 2, not 3"),
        ({"rank": 2, "world_size": 2}, "rank is 2 and world_size 2"),
        ({"rank": -1}, "rank is -1"),
        ({"world_size": 0}, "world_size 0"),
    ],
)
def test_unfit_arguments_are_refused(arguments, message):
    defaults = {"source": numbered(3), "target": numbered(3, "target"), "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        DomainPair(**{**defaults, **arguments})


def test_negative_step_is_refused():
    with pytest.raises(ValueError, match="step must be 0 or more, not -1"):
        pair().batch(-1)


def test_randomised_strokes_are_the_source_s_alone_and_a_function_of_the_step():
    pair = DomainPair(load_domain("print"), load_domain("pen"), 16, seed=3)
    other = DomainPair(load_domain("print"), load_domain("pen"), 16, seed=3, randomize=randomize_strokes)
    plain, random = pair.batch(4), other.batch(4)
    assert torch.equal(plain.xt, random.xt)
    assert torch.equal(plain.ys, random.ys)
    assert torch.equal(random.xs, other.batch(4).xs)
    changed = (plain.xs - random.xs).flatten(1).abs().mean(1)
    assert (changed > 0.005).all()
    assert not torch.equal(random.xs, other.batch(5).xs)


def test_randomised_strokes_stay_images_with_about_as_much_ink():
    """Thicker in a third of them, thinner in a third, and no brighter than they were."""
    images = load_domain("print").tensors[0][:900]
    made = randomize_strokes(images, torch.Generator().manual_seed(0))
    assert made.shape == images.shape
    assert made.min() >= 0
    assert made.max() <= images.max()
    ink = made.sum((1, 2, 3)) / images.sum((1, 2, 3))
    thick, thin = ((ink > 1.15).double().mean().item(), (ink < 0.85).double().mean().item())
    assert thick == pytest.approx(1 / 3, abs=0.06)
    assert thin == pytest.approx(1 / 3, abs=0.06)
    colour = randomize_strokes(images.expand(-1, 3, -1, -1), torch.Generator().manual_seed(0))
    assert torch.allclose(colour, made.expand(-1, 3, -1, -1))
