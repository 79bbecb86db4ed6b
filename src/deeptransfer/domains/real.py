"""Real domains by name: digits through torchvision, photographs in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deeptransfer.domains.builtin import DIGITS
from deeptransfer.domains.dataset import Domain, Transform
from deeptransfer.domains.digits import FILES, digits_domain, read_digits
from deeptransfer.domains.folders import (
    FolderDomain,
    class_samples,
    find_file,
    find_folder,
    listed_samples,
    normal,
    split_samples,
)

# The folders that people keep a data set in: letters and digits of the name, in lower case.
FOLDERS = {
    "mnist": ("mnist",),
    "usps": ("usps",),
    "svhn": ("svhn",),
    "mnist-m": ("mnistm",),
    "office31": ("office31",),
    "office-caltech10": ("officecaltech10", "officecaltech"),
    "office-home": ("officehome", "officehomedataset10072016"),
    "pacs": ("pacs",),
    "visda2017": ("visda2017", "visda17", "visda"),
}
PHOTOGRAPHS = {
    "office31": ("amazon", "dslr", "webcam"),
    "office-caltech10": ("amazon", "caltech10", "dslr", "webcam"),
    "office-home": ("Art", "Clipart", "Product", "Real World"),
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "visda2017": ("train", "validation"),
}
# Other names of a part's folder, besides its own.
OTHER_NAMES = {"Real World": ("real",), "caltech10": ("caltech",)}


def locate(name: str, root: Path, split: str = "train") -> Path:
    """The file or folder that a split of a domain is read from.

    Raises
    ------
    ValueError
        If there is none under ``root``; the message says how to get it.
    """
    dataset, _, part = name.partition("/")
    names = FOLDERS[dataset]
    if dataset in FILES:
        found = find_file(root, names, FILES[dataset][split])
    elif dataset == "mnist-m":
        found = find_file(root, names, [f"mnist_m_{split}_labels.txt"])
    else:
        own = normal(part)
        found = find_folder(root, names, (own, *OTHER_NAMES.get(part, ())))
    if found is None:
        raise ValueError(
            f"no {name} under {root}: get it with 'python -m deeptransfer domains fetch {dataset}', "
            "or name the folder that holds your data sets by root= or DEEPTRANSFER_DATA"
        )
    return found


def _photographs(name: str, split: str, root: Path, size: int | None, transform: Transform | None) -> Domain:
    samples, classes = class_samples(locate(name, root))
    return FolderDomain(name, split_samples(samples, split), classes, size, transform)


def _mnist_m(name: str, split: str, root: Path, size: int | None, transform: Transform | None) -> Domain:
    samples = []
    for part in _parts(split):
        listing = locate(name, root, part)
        samples += listed_samples(listing.with_name(f"mnist_m_{part}"), listing)
    return FolderDomain(name, samples, DIGITS, size, transform)


def _digits(name: str, split: str, root: Path, size: int | None, transform: Transform | None) -> Domain:
    parts = [read_digits(name, part, locate(name, root, part)) for part in _parts(split)]
    return digits_domain(name, parts, size, transform)


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "test") if split == "all" else (split,)


LOADERS: dict[str, Callable[[str, str, Path, int | None, Transform | None], Domain]] = {
    **dict.fromkeys(FILES, _digits),
    "mnist-m": _mnist_m,
    **{f"{dataset}/{part}": _photographs for dataset, parts in PHOTOGRAPHS.items() for part in parts},
}


def load_real(name: str, split: str, root: Path, size: int | None, transform: Transform | None) -> Domain:
    """The domain ``name`` of the data sets in ``root``; see :func:`~deeptransfer.domains.load_domain`."""
    return LOADERS[name](name, split, root, size, transform)
