"""Digits that are data sets of their own: MNIST, USPS, SVHN, read by torchvision."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import SVHN, USPS
from torchvision.datasets.mnist import read_image_file, read_label_file

from deeptransfer.domains.builtin import DIGITS
from deeptransfer.domains.dataset import TensorDomain, Transform, harmonise
from deeptransfer.domains.images import reading

MNIST_STEMS = {"train": "train", "test": "t10k"}
USPS_FILES = {"train": "usps.bz2", "test": "usps.t.bz2"}

# What has to be there for each split; the first file that exists leads to the others.
FILES = {
    "mnist": {
        split: [f"{folder}{stem}-images-idx3-ubyte{packed}" for packed in ("", ".gz") for folder in ("raw/", "")]
        for split, stem in MNIST_STEMS.items()
    },
    "usps": {split: [file] for split, file in USPS_FILES.items()},
    "svhn": {split: [f"{split}_32x32.mat"] for split in ("train", "test")},
}


def read_digits(name: str, split: str, file: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 ``(n, C, H, W)``, and labels of one split, whose images are in ``file``."""
    with reading(file):
        if name == "mnist":
            labels = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
            return _idx(file, read_image_file).unsqueeze(1), _idx(labels, read_label_file)
        if name == "usps":
            usps = USPS(file.parent, train=split == "train")
            return torch.from_numpy(usps.data).unsqueeze(1), torch.tensor(usps.targets)
        svhn = SVHN(file.parent, split=split)
        return torch.from_numpy(svhn.data), torch.from_numpy(svhn.labels)


def _idx(file: Path, read) -> Tensor:
    """MNIST's format, packed or not. The folder may be read-only: torchvision's class would unpack into it."""
    if file.suffix != ".gz":
        return read(str(file))
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder, file.stem)
        with gzip.open(file) as packed, unpacked.open("wb") as target:
            shutil.copyfileobj(packed, target)
        return read(str(unpacked))


def digits_domain(
    name: str, parts: list[tuple[Tensor, Tensor]], size: int | None, transform: Transform | None
) -> TensorDomain:
    """The domain of the given parts, resampled to ``size``."""
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if size is not None:  # in pieces: all of SVHN in float32 is 1.2 GB
        pieces = [harmonise(p.float() / 255, p.shape[1], (size, size)).clamp(0, 1) for p in images.split(1000)]
        images = torch.cat(pieces)
    return TensorDomain(name, images, labels, DIGITS, transform)
