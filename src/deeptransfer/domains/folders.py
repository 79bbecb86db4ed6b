"""Domains whose images are files, decoded when they are asked for, and the split of those that have none."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from deeptransfer.domains.dataset import Domain, Transform, check_labels, class_names
from deeptransfer.domains.images import read_image, reading

CACHE_BYTES = 2**30
TEST_SHARE = 0.2


class Decoded(dict[tuple[str, int, int | None], Tensor]):
    """Pixels by path, time of change and size: up to ``CACHE_BYTES`` in a process and in all workers of a loader."""

    def __init__(self) -> None:
        self.taken = 0
        self._lock = threading.Lock()

    def keep(self, key: tuple[str, int, int | None], pixels: Tensor) -> None:
        """Keep the pixels if there is room; a loader's n workers have an n-th of it each."""
        worker = get_worker_info()
        room = CACHE_BYTES if worker is None else CACHE_BYTES // worker.num_workers
        with self._lock:
            if key not in self and self.taken + pixels.numel() <= room:
                self[key] = pixels
                self.taken += pixels.numel()


_decoded = Decoded()


class FolderDomain(Domain):
    """A domain of image files, RGB.

    Decoded images are kept as bytes for the next epoch and the next run, up to 1 GiB in a process; the workers of a
    loader have 1 GiB together.

    Parameters
    ----------
    name, classes
        See :class:`Domain`.
    samples : sequence of (path, int)
        Each image's file and label.
    size : int, optional
        Height and width to resample to, whatever the image's shape; without it images keep their sizes, and
        ``transform`` has to bring them to one if they are to be stacked.
    transform : callable, optional
        Applied to an image when it is indexed.

    Attributes
    ----------
    samples : tuple of (str, int)

    Raises
    ------
    ValueError
        If there is no image, or a label has no class; when indexed, if the image can't be read.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[tuple[str, int]],
        classes: Sequence[str],
        size: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.name, self.classes, self.size, self.transform = name, class_names(classes), size, transform
        self.samples = tuple(samples)
        self._labels = check_labels(name, torch.tensor([label for _, label in samples]), self.classes)

    @property
    def labels(self) -> Tensor:
        """All labels, int64 ``(n,)``: known without decoding anything."""
        return self._labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with reading(path):
            key = (path, Path(path).stat().st_mtime_ns, self.size)
        pixels = _decoded.get(key)
        if pixels is None:
            pixels = self.decode(path)
            _decoded.keep(key, pixels)
        image = pixels.float() / 255
        return (self.transform(image) if self.transform else image), label

    def decode(self, path: str) -> Tensor:
        """The pixels of a file, uint8 ``(3, H, W)``; see :func:`~deeptransfer.domains.images.read_image`."""
        return read_image(path, self.size)

    def subset(self, indices: Sequence[int] | Tensor) -> FolderDomain:
        """The domain restricted to ``indices``, in their order (a few labelled target images, say)."""
        samples = [self.samples[i] for i in torch.as_tensor(indices, dtype=torch.long).tolist()]
        return FolderDomain(self.name, samples, self.classes, self.size, self.transform)


def split_samples(samples: Sequence[tuple[str, int]], split: str) -> list[tuple[str, int]]:
    """``"train"`` or ``"test"`` of samples that come without a split; ``"all"`` of them.

    In each class about one image in five is for testing, never more than half, so that one of two and the only one is
    for training. Copies of an image, told by their content, stay on one side, in training where classes share them.
    The split depends on nothing but the order, sizes and contents of the files.
    """
    if split == "all":
        return list(samples)
    sizes = {path: _size(path) for path, _ in samples}
    by_class = defaultdict(list)
    for path, label in samples:
        by_class[label].append(path)
    test = {path for label, paths in by_class.items() for path in _test_files(paths, sizes, label)}
    train = set(sizes) - test
    shared = {sizes[path] for path in train} & {sizes[path] for path in test}
    trained = {_digest(path) for path in train if sizes[path] in shared}
    test = {path for path in test if sizes[path] not in shared or _digest(path) not in trained}
    chosen = [sample for sample in samples if (sample[0] in test) == (split == "test")]
    return sorted(chosen, key=lambda sample: (sample[1], sample[0]))


def _test_files(paths: Sequence[str], sizes: Mapping[str, int], label: int) -> list[str]:
    """The files of one class that are for testing.

    Copies are of one size, so files of one size stay together and need not be read. Only where that would take much
    more than the share for testing, as where all files are of one size, are they told apart by content.
    """
    by_size = defaultdict(list)
    for path in paths:
        by_size[sizes[path]].append(path)
    wanted, generator = TEST_SHARE * len(paths), torch.Generator().manual_seed(label)
    chosen: list[str] = []
    for alike in _shuffled(by_size.values(), generator):
        if len(chosen) >= wanted:
            break
        if len(alike) > max(1, wanted / 2):
            by_content = defaultdict(list)
            for path in alike:
                by_content[_digest(path)].append(path)
            parts = _shuffled(by_content.values(), generator)
        else:
            parts = [alike]
        for part in parts:
            if len(chosen) < wanted and len(chosen) + len(part) <= len(paths) / 2:
                chosen += part
    return chosen


def _shuffled(groups: Iterable[list[str]], generator: torch.Generator) -> list[list[str]]:
    ordered = list(groups)
    return [ordered[i] for i in torch.randperm(len(ordered), generator=generator).tolist()]


def _size(path: str) -> int:
    with reading(path):
        return Path(path).stat().st_size


def _digest(path: str) -> bytes:
    with reading(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
