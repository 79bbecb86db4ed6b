"""The built-in domains: what is in them, that every machine draws the same, and that a broken cache does no harm."""

from __future__ import annotations

import hashlib
import io
import os
import threading

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from deeptransfer.domains import (
    TensorDomain,
    builtin,
    cache_folder,
    domain_names,
    draw_print,
    grey,
    harmonise,
    load_domain,
)

# Of the uint8 images, then the int64 labels: drawn in float64, so they hold on every processor.
SHA256 = {
    ("print", "train"): "45c2ebeb8bbf6ef263da2f406f73f564638b88b495ef84c162274f141471fd26",
    ("print", "test"): "62446aeff2ef7adab3b61fd850b9ffdec2e4e89401d0abbeb175906736657607",
    ("pen", "train"): "d814fc62208b438639cd5aab2760e3b13414323f68fcaf396b13f8ec09ca7767",
    ("pen", "test"): "dc77214c2be46bc88bf4503f814064baae05d5dc75e4f5bb0a1cd15b8a5b0022",
    ("scene", "train"): "c4b44436f2a1921e786c2723b325d8f6ae5302a22c2b8e239502f064c147ae20",
    ("scene", "test"): "67000a4c1de7f0064770b7cff28e2fa3047d3221d9107a684797eb5a7d731ce6",
}
COUNTS = {"print": (6000, 2000), "pen": (1000, 797), "scene": (1988, 600)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder that starts empty."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def counted(monkeypatch):
    """Builders replaced by a small one that counts its calls."""
    calls = []

    def build(split):
        calls.append(split)
        images = torch.arange(20 * 9, dtype=torch.int64).remainder(251).to(torch.uint8).view(20, 1, 3, 3)
        return images, torch.arange(20) % 10

    monkeypatch.setitem(builtin.BUILDERS, "pen", build)
    return calls


def distinct(images):
    return {image.numpy().tobytes() for image in images}


# What is drawn


@pytest.mark.parametrize(("name", "split"), SHA256)
def test_every_machine_draws_the_same_images(cache, name, split):
    images, labels = builtin.load_builtin(name, split, cache)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest() == SHA256[name, split]


def test_no_pixel_hangs_on_the_last_bit_of_a_processor(monkeypatch):
    """Ties such as 127.5 − 1e-13 did occur: they must be decided before rounding."""
    distances = []
    exact = torch.Tensor.round

    def watched(x):
        if x.dtype == torch.float64 and x.dim() == 4:
            distances.append((x - x.floor() - 0.5).abs().min().item())
        return exact(x)

    monkeypatch.setattr(torch.Tensor, "round", watched)
    builtin.BUILDERS["print"]("train")
    builtin.BUILDERS["print"]("test")
    builtin.BUILDERS["pen"]("train")
    assert min(distances) > 1e-10


@pytest.mark.parametrize("name", COUNTS)
def test_splits_have_the_promised_size_range_and_balance(cache, name):
    for split, count in zip(("train", "test"), COUNTS[name], strict=True):
        domain = load_domain(name, split, root=cache)
        images, labels = domain.tensors
        assert images.shape == (count, 3 if name == "scene" else 1, 28, 28)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.min() == 0
        assert images.max() <= 1
        assert images.amax((1, 2, 3)).min() > 0.3  # no empty image
        assert len(domain) == count
        assert domain.name == name
        assert domain.classes == tuple("0123456789")
        parts = labels.bincount(minlength=10) / count
        assert (parts - 0.1).abs().max() < 0.005
        # The order is random: no class comes in a run, so any batch has several.
        assert all(labels[i : i + 50].unique().numel() >= 6 for i in range(0, count - 50, 50))


def test_items_are_images_and_whole_numbers(cache):
    domain = load_domain("pen", "test", root=cache)
    image, label = domain[3]
    assert isinstance(label, int)
    assert torch.equal(image, domain.tensors[0][3])
    assert label == domain.tensors[1][3]
    stacked, labels = next(iter(torch.utils.data.DataLoader(domain, 4)))
    assert torch.equal(stacked, domain.tensors[0][:4])
    assert torch.equal(labels, domain.tensors[1][:4])


@pytest.mark.parametrize("name", COUNTS)
def test_train_and_test_share_no_image(cache, name):
    train, test = (distinct(builtin.load_builtin(name, split, cache)[0]) for split in ("train", "test"))
    assert not train & test
    assert len(train) + len(test) == sum(COUNTS[name])


def test_all_is_train_followed_by_test(cache):
    whole = load_domain("pen", "all", root=cache).tensors
    parts = [load_domain("pen", split, root=cache).tensors for split in ("train", "test")]
    for value, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(value, torch.cat(pieces))


def test_scene_is_the_difference_of_a_pen_test_digit_and_a_patch_of_its_strips():
    """|patch − digit| is undone by hand: where the digit has no ink the patch shows, and it names its place."""
    pen, pen_labels = builtin._pen()
    frame = torch.ones(28, 28, dtype=torch.bool)
    frame[3:25, 3:25] = False  # pen never has ink there
    photographs = [np.array(photo).transpose(2, 0, 1) for photo in load_sample_images().images]
    windows = [np.lib.stride_tricks.sliding_window_view(p, (28, 28), axis=(1, 2)) for p in photographs]
    corner = [np.stack([w[c, :, :, 0, 0] for c in range(3)] + [w[c, :, :, 27, 27] for c in range(3)]) for w in windows]
    found = {}
    for split in ("train", "test"):
        images, labels = builtin.BUILDERS["scene"](split)
        digits, places = set(), set()
        for image, label in list(zip(images, labels, strict=True))[:: 40 if split == "train" else 12]:
            corners = torch.cat([image[:, 0, 0], image[:, 27, 27]]).numpy()[:, None, None]
            match = None
            for p in range(2):
                for top, left in np.argwhere((corner[p] == corners).all(0)):
                    patch = torch.from_numpy(windows[p][:, top, left].copy())
                    if torch.equal(patch[:, frame], image[:, frame]):
                        match = (p, int(top), int(left), patch)
            assert match is not None
            p, top, left, patch = match
            blended = (patch.int() - pen[1000:].int()).abs()  # with every test digit of pen
            (digit,) = (blended == image.int()).flatten(1).all(1).nonzero().flatten().tolist()
            assert pen_labels[1000 + digit] == label
            digits.add(digit)
            width = photographs[p].shape[2] // 8
            assert left // width == (left + 27) // width  # the patch stays inside its strip
            places.add((p, left // width))
        found[split] = digits, places
    assert not found["train"][0] & found["test"][0]
    assert not found["train"][1] & found["test"][1]
    assert {strip for _, strip in found["test"][1]} == {2, 5}


def test_print_can_be_drawn_without_end():
    images, labels = draw_print(25, seed=7)
    again, _ = draw_print(25, seed=7)
    other, _ = draw_print(25, seed=8)
    assert images.shape == (25, 1, 28, 28)
    assert sorted(labels.bincount().tolist()) == [2] * 5 + [3] * 5
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw_print(5, seed=1)
    builtin.BUILDERS["pen"]("train")
    assert torch.equal(torch.get_rng_state(), before)


# Options


def test_size_resamples_inside_the_range(cache):
    for size in (16, 32, 28):
        small, full = load_domain("pen", "test", root=cache, size=size), load_domain("pen", "test", root=cache)
        assert small.tensors[0].shape == (797, 1, size, size)
        assert small.tensors[0].min() >= 0
        assert small.tensors[0].max() <= 1
        assert small.tensors[0].mean() == pytest.approx(full.tensors[0].mean().item(), rel=0.02)
    assert torch.equal(small.tensors[0], full.tensors[0])  # 28 is its own size


def test_transform_acts_on_items_and_not_on_tensors(cache):
    domain = load_domain("pen", "test", root=cache, transform=lambda x: 1 - x)
    assert torch.equal(domain[0][0], 1 - domain.tensors[0][0])


def test_cache_may_be_named_by_a_string(tmp_path, counted):
    load_domain("pen", "test", root=str(tmp_path))
    load_domain("pen", "test", root=tmp_path)
    assert counted == ["test"]


def test_cache_of_a_checkout_is_inside_it():
    assert cache_folder().parts[-2:] == ("data", "cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "pencil"}, "unknown domain 'pencil'.*print, pen, scene"),
        ({"name": "pen", "split": "validation"}, "unknown split 'validation'.*train, test, all"),
        ({"name": "pen", "size": 0}, "at least 1 pixel, not 0"),
    ],
)
def test_unknown_requests_say_what_there_is(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_domain(**arguments, root=tmp_path)


def test_names_are_those_that_load():
    assert domain_names()[:3] == ("print", "pen", "scene")


# The cache


def stored_file(folder):
    (path,) = folder.iterdir()
    return path


def flipped(data):
    """One bit of the compressed stream, which raises zlib.error instead of an error of the archive."""
    position = data.index(b"images.npy") + 60
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def other_keys(data):
    buffer = io.BytesIO()
    np.savez(buffer, pictures=np.zeros(3), labels=np.zeros(3))
    return buffer.getvalue()


def single_array(data):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"garbage" * 99,
        flipped,
        other_keys,
        single_array,
    ],
    ids=["empty", "truncated", "garbage", "flipped", "other keys", "single array"],
)
def test_broken_cache_is_rebuilt(tmp_path, counted, damage):
    good = builtin.load_builtin("pen", "test", tmp_path)
    path = stored_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    for calls in (2, 2):  # rebuilt once, then read
        images, labels = builtin.load_builtin("pen", "test", tmp_path)
        assert torch.equal(images, good[0])
        assert torch.equal(labels, good[1])
        assert len(counted) == calls
    assert stored_file(tmp_path) == path


def test_any_flipped_bit_is_noticed(tmp_path, counted):
    good = builtin.load_builtin("pen", "test", tmp_path)
    path = stored_file(tmp_path)
    intact = path.read_bytes()
    for position in range(0, len(intact), 3):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 4]) + intact[position + 1 :])
        images, labels = builtin.load_builtin("pen", "test", tmp_path)
        assert torch.equal(images, good[0])
        assert torch.equal(labels, good[1])


def test_second_load_reads_the_cache(tmp_path, counted):
    for _ in range(3):
        load_domain("pen", "train", root=tmp_path)
    load_domain("pen", "all", root=tmp_path)
    assert counted == ["train", "test"]


def test_changed_recipe_never_meets_an_old_file(tmp_path, counted, monkeypatch):
    builtin.load_builtin("pen", "test", tmp_path)
    changed = tmp_path / "changed.py"
    changed.write_text("another recipe")
    monkeypatch.setattr(builtin, "__file__", str(changed))
    builtin.load_builtin("pen", "test", tmp_path)
    assert counted == ["test", "test"]


def test_file_is_complete_before_it_gets_its_name(tmp_path, counted, monkeypatch):
    rename, seen = os.replace, []

    def watched(temporary, path):
        assert not path.exists()
        with np.load(temporary) as stored:
            seen.append(sorted(stored))
        rename(temporary, path)

    monkeypatch.setattr(os, "replace", watched)
    builtin.load_builtin("pen", "test", tmp_path)
    assert seen == [["images", "labels"]]
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_is_no_error_and_leaves_nothing_behind(tmp_path, counted, monkeypatch):
    def full(file, **arrays):
        with open(file, "wb") as half:
            half.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    images, _ = builtin.load_builtin("pen", "test", tmp_path)
    assert len(images) == 20
    assert not list(tmp_path.iterdir())


def test_concurrent_builders_agree(tmp_path, counted):
    barrier, results = threading.Barrier(6), []

    def build():
        barrier.wait()
        results.append(builtin.load_builtin("pen", "test", tmp_path))

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(torch.equal(images, results[0][0]) for images, _ in results)
    with np.load(stored_file(tmp_path)) as stored:
        assert sorted(stored) == ["images", "labels"]


def test_folder_that_cannot_be_written_is_no_error(tmp_path, counted):
    """Also for root, whom no permission stops: the folder's parent is a file."""
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert len(load_domain("pen", "test", root=tmp_path / "file" / "cache")) == 20
    assert counted == ["test", "test"]
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert len(load_domain("pen", "test", root=locked)) == 20


# Domains in memory


def test_bytes_become_the_unit_interval_and_floats_stay():
    labels = torch.tensor([0, 1])
    grey = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert TensorDomain("a", grey, labels, "01").tensors[0].flatten().tolist() == [0, 1]
    halves = TensorDomain("a", torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64), labels, "01").tensors[0]
    assert halves.dtype == torch.float32
    assert halves.flatten().tolist() == [0.5, 0.5]


def test_subset_keeps_order_and_transform():
    domain = TensorDomain("a", torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1]), "01", torch.neg)
    part = domain.subset([4, 0])
    assert torch.equal(part.tensors[0], domain.tensors[0][[4, 0]])
    assert part.tensors[1].tolist() == [1, 0]
    assert torch.equal(part[0][0], -domain.tensors[0][4])
    assert part.classes == ("0", "1")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(2, 3, 3), torch.zeros(2), r"shape \(n, C, H, W\), not \(2, 3, 3\)"),
        (torch.rand(2, 1, 3, 3), torch.zeros(3), r"2 images but labels of shape \(3,\)"),
        (torch.rand(0, 1, 3, 3), torch.zeros(0), "'a' has no image"),
        (torch.rand(2, 1, 3, 3), torch.tensor([0, 2]), "from 0 to 2, but it has 2 classes"),
        (torch.rand(2, 1, 3, 3), torch.tensor([-1, 0]), "from -1 to 0"),
    ],
)
def test_unfit_tensors_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        TensorDomain("a", images, labels, "01")


def test_whole_numbers_that_are_not_bytes_are_refused():
    """An int64 image of 0…255 would pass for one that is 255 times too bright."""
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        TensorDomain("a", torch.ones(2, 1, 3, 3, dtype=torch.long), torch.zeros(2), "01")


def test_harmonise_repeats_grey_and_resamples():
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(harmonise(x, 3, (4, 4)), x.repeat(1, 3, 1, 1))
    expected = F.interpolate(x, (2, 2), mode="bilinear", antialias=True)
    assert torch.equal(harmonise(x, 1, (2, 2)), expected)
    assert torch.allclose(harmonise(torch.ones(1, 1, 5, 7), 3, (9, 2)), torch.ones(1, 3, 9, 2))


def test_grey_is_the_mean_of_the_colours():
    images = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    domain = grey(TensorDomain("a", images, torch.tensor([0, 1, 1]), "01"))
    expected = (images[:, 0] + images[:, 1] + images[:, 2])[:, None] / 3
    torch.testing.assert_close(domain.tensors[0], expected)
    assert domain.labels.tolist() == [0, 1, 1]
    assert domain.classes == ("0", "1")


def test_colour_never_turns_grey_unasked():
    with pytest.raises(ValueError, match="cannot turn 3 channels into 1"):
        harmonise(torch.rand(2, 3, 4, 4), 1, (4, 4))
