"""Real domains are found in the folders that people have, and read as they are published."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.datasets import SVHN

from deeptransfer.domains import DomainPair, TensorDomain, datasets_folder, domain_names, folders, load_domain
from deeptransfer.domains.folders import FolderDomain, split_samples

CLASSES = ("bike", "mug", "pen")


def photograph(path, colour, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def domain_folder(folder, classes=CLASSES, count=2, ending="jpg"):
    """``count`` images in each class; class k is grey with the value 40 k."""
    for k, name in enumerate(classes):
        for i in range(count):
            photograph(folder / name / f"frame_{i:04}.{ending}", (40 * k,) * 3)
    return folder


# Photographs in folders


@pytest.mark.parametrize(
    ("name", "folder", "ending"),
    [
        ("office31/amazon", "office31/amazon/images", "jpg"),
        ("office31/webcam", "Office-31/webcam", "jpg"),
        ("office31/dslr", "office_31/domain_adaptation_images/dslr/images", "jpg"),
        ("office-caltech10/caltech10", "office-caltech10/caltech10", "jpg"),
        ("office-caltech10/caltech10", "Office_Caltech_10/Caltech", "jpg"),
        ("office-home/Art", "OfficeHome/Art", "jpg"),
        ("office-home/Real World", "OfficeHomeDataset_10072016/Real World", "jpg"),
        ("office-home/Real World", "office-home/officehome/real", "jpg"),
        ("pacs/art_painting", "PACS/kfold/art_painting", "png"),
        ("pacs/sketch", "pacs/sketch", "jpg"),
        ("visda2017/train", "VisDA-2017/train", "png"),
        ("visda2017/validation", "visda/validation", "jpg"),
        ("office31/amazon", "amazon/images", "jpg"),  # root is the data set's own folder
    ],
)
def test_layouts_that_people_have(tmp_path, name, folder, ending):
    domain_folder(tmp_path / folder, ending=ending)
    domain = load_domain(name, "all", root=tmp_path)
    assert isinstance(domain, FolderDomain)
    assert (domain.name, domain.classes, len(domain)) == (name, CLASSES, 6)
    for i, (image, label) in enumerate(domain):
        assert (image.shape, image.dtype, type(label)) == ((3, 8, 12), torch.float32, int)
        assert label == i // 2
        assert abs(image - 40 * label / 255).max() < 0.02  # JPEG


def test_what_is_no_image_or_class_is_left_out(tmp_path):
    """A file list, a hidden file or folder, what archives of a Mac and a file browser leave behind."""
    folder = domain_folder(tmp_path / "visda2017/train")
    (folder / "image_list.txt").write_text("train/bike/frame_0000.jpg 0\n")
    for name in (".ipynb_checkpoints/mug.jpg", "__MACOSX/mug.jpg", "mug/._frame_0000.jpg", "mug/Thumbs.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    domain = load_domain("visda2017/train", "all", root=tmp_path)
    assert (domain.classes, len(list(domain))) == (CLASSES, 6)


def test_class_of_the_domains_own_name_does_not_mislead(tmp_path):
    """VisDA has a class "train" in its domain "train"."""
    domain_folder(tmp_path / "visda2017/train", ("bus", "train", "truck"))
    assert load_domain("visda2017/train", "all", root=tmp_path).classes == ("bus", "train", "truck")


def test_order_is_that_of_the_names(tmp_path):
    folder = domain_folder(tmp_path / "pacs/photo", count=0)
    for name in ("z", "a", "m"):
        for class_name in CLASSES:
            photograph(folder / class_name / f"{name}.png", 0)
    names = [Path(path).stem for path, _ in load_domain("pacs/photo", "all", root=tmp_path).samples]
    assert names == ["a", "m", "z"] * 3


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, (51, 51, 51)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_kind_of_image_becomes_rgb_in_zero_to_one(tmp_path, mode, colour, expected):
    photograph(tmp_path / "one.png", colour, mode=mode)
    image, _ = FolderDomain("d", [(str(tmp_path / "one.png"), 0)], ["a"])[0]
    assert torch.equal(image, (torch.tensor(expected) / 255).view(3, 1, 1).expand(3, 8, 12))


def test_size_squeezes_the_whole_image_and_averages(tmp_path):
    """Left half black, right half white, a line in the middle: nothing is cropped, and thin things are not lost."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    pixels[::2] = 255 - pixels[::2]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    image, _ = FolderDomain("d", [(str(tmp_path / "one.png"), 0)], ["a"], size=4)[0]
    assert image.shape == (3, 4, 4)
    assert abs(image - 0.5).max() < 0.06


def test_transform_is_applied_each_time_and_after_the_size(tmp_path):
    domain_folder(tmp_path / "pacs/photo", ending="png")
    seen = []
    domain = load_domain("pacs/photo", "all", tmp_path, size=6, transform=lambda x: (seen.append(x.shape), 1 - x)[1])
    plain = load_domain("pacs/photo", "all", tmp_path, size=6)
    for _ in range(2):
        assert torch.equal(domain[5][0], 1 - plain[5][0])
    assert seen == [(3, 6, 6)] * 2


def test_image_is_decoded_once_while_there_is_room(tmp_path, monkeypatch):
    domain_folder(tmp_path / "pacs/photo")
    monkeypatch.setattr(folders, "CACHE_BYTES", 3 * 8 * 12 * 4)  # four images
    monkeypatch.setattr(folders, "_decoded", folders.Decoded())
    domain = load_domain("pacs/photo", "all", root=tmp_path)
    first = [image.clone() for image, _ in domain]
    domain[0][0].zero_()  # what the caller does to an image stays there
    decoded = []
    decode = FolderDomain.decode
    monkeypatch.setattr(FolderDomain, "decode", lambda self, path: (decoded.append(path), decode(self, path))[1])
    assert all(torch.equal(image, before) for (image, _), before in zip(domain, first, strict=True))
    assert decoded == [path for path, _ in domain.samples[4:]]
    again = load_domain("pacs/photo", "all", root=tmp_path)  # another run in this process
    assert torch.equal(again[0][0], first[0])
    assert decoded == [path for path, _ in domain.samples[4:]]
    os.utime(again.samples[0][0], ns=(1, 1))
    assert torch.equal(again[0][0], first[0])
    assert decoded[-1] == again.samples[0][0]  # a file that has changed is read anew


class Kept(Dataset):
    """Decodes an image of the domain in a worker, and tells the worker and the bytes that it keeps."""

    def __init__(self, domain):
        self.domain = domain

    def __len__(self):
        return len(self.domain)

    def __getitem__(self, index):
        self.domain[index]
        return get_worker_info().id, sum(pixels.numel() for pixels in folders._decoded.values())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_room_for_decoded_images(tmp_path, monkeypatch, workers):
    domain_folder(tmp_path / "pacs/photo", count=6)
    monkeypatch.setattr(folders, "CACHE_BYTES", room := 3 * 8 * 12 * 7)  # seven images
    monkeypatch.setattr(folders, "_decoded", folders.Decoded())
    domain = load_domain("pacs/photo", "all", root=tmp_path)
    kept = {}
    loader = DataLoader(Kept(domain), batch_size=None, num_workers=workers, multiprocessing_context="fork")
    for worker, size in loader:
        kept[int(worker)] = int(size)
    assert len(kept) == workers
    assert 0.5 * room < sum(kept.values()) <= room


class Slow:
    """Pixels that take their time to tell their number: between reading and writing, other threads run."""

    def numel(self):
        time.sleep(1e-4)
        return 100


def test_threads_keep_count_of_the_room(monkeypatch):
    monkeypatch.setattr(folders, "CACHE_BYTES", 50 * 100)
    cache, barrier = folders.Decoded(), threading.Barrier(8)

    def work():
        barrier.wait()
        for i in range(60):
            cache.keep((str(i), 0, None), Slow())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 50
    assert cache.taken == 50 * 100


def test_images_of_several_sizes_ask_for_a_size(tmp_path):
    """By the pair's first batch and by a loader that scores, and not from deep inside."""
    domain_folder(tmp_path / "pacs/photo")
    photograph(tmp_path / "pacs/photo/mug/other.png", 0, size=(13, 8))
    message = r"images of 'pacs/photo' differ in shape: \(3, 8, 1[23]\) at .*\(3, 8, 1[23]\).*give size= \(--size\)"
    domain = load_domain("pacs/photo", "all", root=tmp_path)
    with pytest.raises(ValueError, match=message):
        DomainPair(domain, domain, 7, seed=0).batch(0)
    with pytest.raises(ValueError, match=message):
        list(DataLoader(domain, 7))
    sized_domain = load_domain("pacs/photo", "all", root=tmp_path, size=6)
    assert next(iter(DataLoader(sized_domain, 7)))[0].shape == (7, 3, 6, 6)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_label_without_a_class_is_refused(labels):
    with pytest.raises(ValueError, match=r"labels of 'd' run from -?\d to \d, but it has 3 classes"):
        FolderDomain("d", [("x.png", label) for label in labels], CLASSES)
    with pytest.raises(ValueError, match=r"labels of 'd' run from -?\d to \d, but it has 3 classes"):
        TensorDomain("d", torch.rand(2, 1, 2, 2), torch.tensor(labels), CLASSES)


def test_half_a_label_and_half_a_name_are_refused():
    with pytest.raises(ValueError, match=r"labels of 'd' must be whole numbers, not 0\.5"):
        TensorDomain("d", torch.rand(2, 1, 2, 2), torch.tensor([0.5, 1]), CLASSES)
    with pytest.raises(ValueError, match="two classes are called 'Café'"):
        FolderDomain("d", [("x.png", 0)], ["Café", "Cafe\u0301"])
    with pytest.raises(ValueError, match="'d' has no image"):
        FolderDomain("d", [], CLASSES)


def test_labels_are_known_without_decoding_and_subsets_keep_them(tmp_path, monkeypatch):
    domain_folder(tmp_path / "pacs/photo")
    domain = load_domain("pacs/photo", "all", root=tmp_path, size=4)
    monkeypatch.setattr(FolderDomain, "decode", None)
    assert domain.labels.tolist() == [0, 0, 1, 1, 2, 2]
    few = domain.subset(torch.tensor([5, 0]))
    assert (few.labels.tolist(), few.classes, few.size) == ([2, 0], CLASSES, 4)
    assert few.samples == (domain.samples[5], domain.samples[0])


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_broken_image_is_named(tmp_path, damage):
    folder = domain_folder(tmp_path / "pacs/photo", count=3)
    path = folder / "mug" / "frame_0001.jpg"
    photograph(path, (1, 2, 3), size=(300, 200))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"<html>not found</html>", "empty": b""}[damage])
    domain = load_domain("pacs/photo", "all", root=tmp_path)
    with pytest.raises(ValueError, match=r"photo/mug/frame_0001\.jpg can't be read"):
        list(domain)


def test_missing_data_says_how_to_get_it(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"no office31/dslr under .*domains fetch office31.*DEEPTRANSFER_DATA"):
            load_domain("office31/dslr", root=root)


def test_folder_without_classes_or_with_an_empty_one_is_refused(tmp_path):
    (tmp_path / "pacs/photo").mkdir(parents=True)
    with pytest.raises(ValueError, match="no folder for each class"):
        load_domain("pacs/photo", root=tmp_path)
    domain_folder(tmp_path / "pacs/photo")
    (tmp_path / "pacs/photo/zebra").mkdir()
    with pytest.raises(ValueError, match="zebra"):
        load_domain("pacs/photo", root=tmp_path)


def test_domains_of_different_classes_make_no_pair(tmp_path):
    domain_folder(tmp_path / "pacs/photo")
    domain_folder(tmp_path / "pacs/sketch", ("bike", "mug", "pencil"))
    photo, sketch = (load_domain(f"pacs/{part}", "all", tmp_path) for part in ("photo", "sketch"))
    with pytest.raises(ValueError, match=r"classes differ: 'pacs/photo' has .*pencil"):
        DomainPair(photo, sketch, 2, seed=0)


def test_photographs_and_digits_make_batches(tmp_path):
    domain_folder(tmp_path / "pacs/photo")
    domain_folder(tmp_path / "pacs/sketch")
    photo, sketch = (load_domain(f"pacs/{part}", "all", tmp_path, size=10) for part in ("photo", "sketch"))
    batch = DomainPair(photo, sketch, 4, seed=0).batch(0)
    assert batch.xs.shape == batch.xt.shape == (4, 3, 10, 10)
    assert torch.equal((batch.xs.mean((1, 2, 3)) * 255 / 40).round().long(), batch.ys)


# The split of domains that have none


def sized(folder, class_name, sizes):
    """Files of given sizes; in a class those of one size are copies of each other."""
    folder = folder / class_name
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        (folder / f"{i:03}.jpg").write_bytes(class_name.encode() * size)
    return [str(folder / f"{i:03}.jpg") for i in range(len(sizes))]


def filled(folder, contents):
    """Samples whose files hold the given words, a list of them for each class."""
    samples = []
    for label, words in enumerate(contents):
        for i, word in enumerate(words):
            path = folder / str(label) / f"{i:03}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(word)
            samples.append((str(path), label))
    return samples


def sides(samples):
    """Training and test samples, which are a partition, and in which no content is on both sides."""
    train, test = (split_samples(samples, split) for split in ("train", "test"))
    assert sorted(train + test) == sorted(samples)
    contents = [{Path(path).read_bytes() for path, _ in side} for side in (train, test)]
    assert not contents[0] & contents[1]
    assert {label for _, label in train} == {label for _, label in samples}
    return train, test


@pytest.fixture
def samples(tmp_path):
    made = {"a": list(range(1, 101)), "b": [7] * 3 + list(range(10, 20)), "c": [1, 2, 3, 4, 5]}
    return [(path, k) for k, name in enumerate(made) for path in sized(tmp_path, name, made[name])]


def test_split_is_a_partition_with_one_in_five_of_every_class_for_testing(samples):
    train, test = split_samples(samples, "train"), split_samples(samples, "test")
    assert sorted(train + test) == samples == split_samples(samples, "all")
    assert Counter(label for _, label in test)[0] == 20
    assert Counter(label for _, label in test)[2] == 1
    assert 3 <= Counter(label for _, label in test)[1] <= 5  # of 13, three of which stay together


def test_split_keeps_copies_on_one_side(tmp_path):
    """Whatever the class, images that are copies of each other are never trained on and tested."""
    for label in range(20):
        samples = [(path, label) for path in sized(tmp_path, str(label), [5, 5, 5, 6, 6, 7, 8, 9, 10, 11])]
        assert all(sides(samples))


def test_files_of_one_size_are_no_copies(tmp_path):
    """Uncompressed images: one size, or a few, and all contents different."""
    for count, kinds in ((50, 1), (50, 2), (50, 5), (10, 1), (200, 3)):
        words = [[b"%d-%04d" % (k, i) + b"." * (i % kinds) for i in range(count)] for k in range(3)]
        _, test = sides(filled(tmp_path / f"{count}-{kinds}", words))
        for label in range(3):
            assert 0.15 * count <= sum(k == label for _, k in test) <= 0.3 * count
        positions = [int(Path(path).stem) for path, _ in test]
        assert min(positions) < 0.4 * count < 0.6 * count < max(positions)  # drawn, not the first or the last


def test_copies_among_files_of_one_size_stay_together(tmp_path):
    words = [[b"%02d" % (i // 3) for i in range(60)]]
    _, test = sides(filled(tmp_path, words))
    assert 12 <= len(test) <= 15


def test_copies_in_two_classes_are_for_training(tmp_path):
    """An image that is in two classes must not be tested as one when it was learned as the other."""
    words = [[b"%02d" % i for i in range(20)], [b"%02d" % i for i in range(10, 30)]]
    sides(filled(tmp_path, words))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_class_keeps_an_image_for_training(tmp_path, count):
    _, test = sides(filled(tmp_path, [[b"%d%d" % (k, i) for i in range(count)] for k in range(20)]))
    assert len(test) == (0 if count == 1 else 20)
    _, test = sides(filled(tmp_path / "copies", [[b"%d" % k] * count for k in range(20)]))
    assert not test
    sides(filled(tmp_path / "most", [[b"same%d" % k] * 9 + [b"other%d" % k] for k in range(20)]))


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"dd", b"ee", b"fff"]), min_size=1), min_size=1, max_size=4)
)
def test_split_keeps_its_promises_whatever_the_files(contents):
    with tempfile.TemporaryDirectory() as folder:
        _, test = sides(filled(Path(folder), contents))
    for label, words in enumerate(contents):
        assert 2 * sum(k == label for _, k in test) <= len(words)


def test_file_that_is_gone_is_named(samples):
    os.remove(samples[3][0])
    with pytest.raises(ValueError, match=r"a/003\.jpg can't be read"):
        split_samples(samples, "train")


def test_split_is_mixed_and_the_same_each_time(samples):
    test = split_samples(samples, "test")
    assert test == split_samples(samples, "test")
    positions = [int(Path(path).stem) for path, label in test if label == 0]
    assert min(positions) < 30  # not the last twenty, not the first
    assert max(positions) > 70


# Digits


def idx(array):
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def digits():
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.permutation(n).astype(np.uint8) % 10)
        for split, n in (("train", 20), ("test", 10))
    }


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist", "."])
def test_mnist_is_read_packed_or_not_and_nothing_is_written(tmp_path, digits, folder, packed):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in digits.items():
        stem = {"train": "train", "test": "t10k"}[split]
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            path = tmp_path / folder / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    before = sorted(tmp_path.rglob("*"))
    for split, (images, labels) in digits.items():
        domain = load_domain("mnist", split, root=tmp_path)
        assert isinstance(domain, TensorDomain)
        assert torch.equal(domain.tensors[0], torch.from_numpy(images).unsqueeze(1) / 255)
        assert domain.tensors[1].tolist() == labels.tolist()
    whole = load_domain("mnist", "all", root=tmp_path, size=14)
    assert whole.tensors[0].shape == (30, 1, 14, 14)
    assert whole.tensors[1].tolist() == [*digits["train"][1], *digits["test"][1]]
    assert whole.classes == tuple("0123456789")
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_mnist_is_named(tmp_path, digits):
    for kind, array in zip(("images-idx3", "labels-idx1"), digits["test"], strict=True):
        (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array))[:-50])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz can't be read"):
        load_domain("mnist", "test", root=tmp_path)


@pytest.mark.parametrize("folder", ["USPS", "."])
def test_usps_is_read_by_torchvision(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    pixels = " ".join(f"{i + 1}:{1 if i % 16 < 8 else -1}" for i in range(256))
    for file, lines in (("usps.bz2", [10, 3]), ("usps.t.bz2", [1])):
        text = "".join(f"{label} {pixels} \n" for label in lines)
        (tmp_path / folder / file).write_bytes(bz2.compress(text.encode()))
    domain = load_domain("usps", "all", root=tmp_path)
    assert domain.tensors[1].tolist() == [9, 2, 0]
    assert domain.tensors[0].shape == (3, 1, 16, 16)
    assert torch.equal(domain[0][0][0, :, :8], torch.ones(16, 8))
    assert torch.equal(domain[0][0][0, :, 8:], torch.zeros(16, 8))


def test_svhn_is_read_by_torchvision_that_checks_the_file(tmp_path, monkeypatch):
    (tmp_path / "SVHN").mkdir()
    pixels = np.arange(32 * 32 * 3 * 2, dtype=np.uint8).reshape(32, 32, 3, 2)
    savemat(tmp_path / "SVHN" / "test_32x32.mat", {"X": pixels, "y": np.array([[10], [4]])})
    with pytest.raises(ValueError, match=r"test_32x32\.mat can't be read .*corrupted"):
        load_domain("svhn", "test", root=tmp_path)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    domain = load_domain("svhn", "test", root=tmp_path)
    assert domain.tensors[1].tolist() == [0, 4]
    assert torch.equal(domain[1][0], torch.from_numpy(pixels[..., 1]).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("folder", ["mnist_m", "mnist-m/mnist_m", "MNIST-M", "."])
def test_mnist_m_is_read_by_its_lists(tmp_path, folder):
    folder = tmp_path / folder
    for split, labels in (("train", [5, 0]), ("test", [7])):
        for i, label in enumerate(labels):
            photograph(folder / f"mnist_m_{split}" / f"{i:08}.png", (label,) * 3, size=(32, 32))
        lines = "".join(f"{i:08}.png {label}\n" for i, label in reversed(list(enumerate(labels))))
        (folder / f"mnist_m_{split}_labels.txt").write_text(lines)
    domain = load_domain("mnist-m", "all", root=tmp_path)
    assert domain.labels.tolist() == [0, 5, 7]
    assert domain.classes == tuple("0123456789")
    for image, label in domain:
        assert torch.equal(image, torch.full((3, 32, 32), label / 255))
    assert len(load_domain("mnist-m", "test", root=tmp_path)) == 1
    (folder / "mnist_m_test_labels.txt").write_text("00000000.png seven\n")
    with pytest.raises(ValueError, match=r"mnist_m_test_labels\.txt can't be read"):
        load_domain("mnist-m", "test", root=tmp_path)


# Where it is looked for


def test_data_folder_is_named_by_the_environment_and_root_goes_before(tmp_path, monkeypatch):
    domain_folder(tmp_path / "one/pacs/photo", count=1)
    domain_folder(tmp_path / "two/pacs/photo", count=2)
    monkeypatch.setenv("DEEPTRANSFER_DATA", str(tmp_path / "one"))
    assert datasets_folder() == tmp_path / "one"
    assert len(load_domain("pacs/photo", "all")) == 3
    assert len(load_domain("pacs/photo", "all", root=str(tmp_path / "two"))) == 6
    monkeypatch.setenv("DEEPTRANSFER_DATA", "")
    assert datasets_folder().name == "datasets"


# The published data, where it is


def published(name, split="all", **settings):
    if not os.environ.get("DEEPTRANSFER_DATA"):
        pytest.skip("DEEPTRANSFER_DATA is not set")
    try:
        return load_domain(name, split, **settings)
    except ValueError as error:
        if str(error).startswith(f"no {name} under"):
            pytest.skip(f"no {name} in DEEPTRANSFER_DATA")
        raise


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("mnist", "train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("mnist", "test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        ("usps", "train", [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]),
        ("usps", "test", [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]),
        ("office-caltech10/amazon", "all", [92, 82, 94, 99, 100, 100, 99, 100, 94, 98]),
        ("office-caltech10/caltech10", "all", [151, 110, 100, 138, 85, 128, 133, 94, 87, 97]),
        ("office-caltech10/dslr", "all", [12, 21, 12, 13, 10, 24, 22, 12, 8, 23]),
        ("office-caltech10/webcam", "all", [29, 21, 31, 27, 27, 30, 43, 30, 27, 30]),
    ],
)
def test_published_class_counts(name, split, counts):
    domain = published(name, split)
    labels = domain.tensors[1] if isinstance(domain, TensorDomain) else domain.labels
    assert torch.bincount(labels).tolist() == counts


@pytest.mark.parametrize("name", [name for name in domain_names() if name.startswith("office-caltech10/")])
def test_published_photographs_have_no_copy_on_the_other_side(name):
    sides = [{Path(p).read_bytes() for p, _ in published(name, split).samples} for split in ("train", "test")]
    assert not sides[0] & sides[1]


def test_published_photographs_are_images():
    image, _ = published("office-caltech10/dslr", size=32)[0]
    assert image.shape == (3, 32, 32)
    assert 0 <= image.min() < 0.3 < 0.7 < image.max() <= 1
