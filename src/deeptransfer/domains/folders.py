"""Domains whose images are files: found where people keep them, decoded when they are asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset

from deeptransfer.domains.dataset import Domain, Transform

CACHE_BYTES = 2**30
TEST_SHARE = 0.2


class Decoded(dict[tuple[str, int, int | None], Tensor]):
    """Pixels by path, time of change and size, up to ``CACHE_BYTES``."""

    taken = 0

    def keep(self, key: tuple[str, int, int | None], pixels: Tensor) -> None:
        """Keep the pixels if there is room."""
        if self.taken + pixels.numel() <= CACHE_BYTES:
            self[key] = pixels
            self.taken += pixels.numel()


_decoded = Decoded()


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever goes wrong while ``path`` is read becomes a ValueError that names it."""
    try:
        yield
    except Exception as error:  # a damaged image or archive raises a dozen types
        message = f"{path} can't be read ({type(error).__name__}: {error}): remove it, or get a sound copy"
        raise ValueError(message) from error


class FolderDomain(Domain):
    """A domain of image files, RGB.

    Decoded images are kept as bytes for the next epoch and the next run, up to 1 GiB in a process.

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
        if not samples:
            raise ValueError(f"{name!r} has no image: check the split, or the folder it was read from")
        self.name, self.classes, self.size, self.transform = name, tuple(classes), size, transform
        self.samples = tuple(samples)
        self._labels = torch.tensor([label for _, label in samples])
        low, high = int(self._labels.min()), int(self._labels.max())
        if low < 0 or high >= len(classes):
            raise ValueError(f"labels of {name!r} run from {low} to {high}, but it has {len(classes)} classes")

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
        """The pixels of a file, uint8 ``(3, H, W)``."""
        with reading(path), Image.open(path) as file:
            image = file.convert("RGB")
        if self.size is not None:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def subset(self, indices: Sequence[int] | Tensor) -> FolderDomain:
        """The domain restricted to ``indices``, in their order (a few labelled target images, say)."""
        samples = [self.samples[i] for i in torch.as_tensor(indices, dtype=torch.long).tolist()]
        return FolderDomain(self.name, samples, self.classes, self.size, self.transform)


def normal(name: str) -> str:
    """A folder's name as it is compared: ``"Office-31"`` and ``"office_31"`` are one."""
    return "".join(character for character in name.lower() if character.isalnum())


def places(root: Path, names: Sequence[str]) -> list[Path]:
    """Where a data set may lie: a folder with one of its (normal) ``names``, what is inside it, and ``root`` itself."""
    named = [folder for folder in _folders(root) if normal(folder.name) in names]
    return [*named, *(inner for folder in named for inner in _folders(folder)), root]


def find_folder(root: Path, names: Sequence[str], domain: Sequence[str]) -> Path | None:
    """The folder of one domain: its name is one of ``domain``, in one of the data set's :func:`places`."""
    for place in places(root, names):
        for folder in _folders(place):
            if normal(folder.name) in domain:
                images = folder / "images"  # Office-31 has its classes one level deeper
                return images if images.is_dir() else folder
    return None


def find_file(root: Path, names: Sequence[str], files: Sequence[str]) -> Path | None:
    """The first of ``files`` that exists in one of the data set's :func:`places`."""
    candidates = (place / file for place in places(root, names) for file in files)
    return next((path for path in candidates if path.exists()), None)


def _folders(path: Path) -> list[Path]:
    """Folders inside ``path``, in order, without hidden ones and those that archives of a Mac bring along."""
    if not path.is_dir():
        return []
    return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith((".", "__")))


def class_samples(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Samples and classes of ``folder/<class>/**/<image>``; classes in alphabetical order.

    Raises
    ------
    ValueError
        If there is no class, or one without images.
    """
    classes = [inner.name for inner in _folders(folder)]
    if not classes:
        raise ValueError(f"{folder} has no folder for each class inside")
    try:
        samples = make_dataset(folder, dict(zip(classes, range(len(classes)), strict=True)), is_valid_file=_is_image)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {error}") from None
    return samples, classes


def _is_image(path: str) -> bool:
    return has_file_allowed_extension(path, IMG_EXTENSIONS) and not Path(path).name.startswith(".")


def listed_samples(folder: Path, listing: Path) -> list[tuple[str, int]]:
    """Samples of a text file with ``name label`` in each line, names relative to ``folder``."""
    with reading(listing):
        lines = [line.rsplit(maxsplit=1) for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(str(folder / name), int(label)) for name, label in lines]


def split_samples(samples: Sequence[tuple[str, int]], split: str) -> list[tuple[str, int]]:
    """``"train"`` or ``"test"`` of samples that come without a split; ``"all"`` of them.

    In each class about one image in five is for testing. Files of one size stay on one side: copies of an image, which
    these data sets have, are of one size. The split depends on nothing but names and sizes.
    """
    if split == "all":
        return list(samples)
    groups: dict[int, dict[int, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    for path, label in samples:
        groups[label][Path(path).stat().st_size].append((path, label))
    chosen = []
    for label, by_size in sorted(groups.items()):
        wanted = TEST_SHARE * sum(map(len, by_size.values()))
        alike = list(by_size.values())
        order = torch.randperm(len(alike), generator=torch.Generator().manual_seed(label)).tolist()
        taken = 0
        for group in (alike[i] for i in order):
            test = taken < wanted
            taken += len(group) * test
            if test == (split == "test"):
                chosen += group
    return sorted(chosen, key=lambda sample: (sample[1], sample[0]))
