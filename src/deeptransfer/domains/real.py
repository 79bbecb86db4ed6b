"""Real domains: digits through torchvision, photographs in folders, by name or by the path of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from deeptransfer.domains.builtin import DIGITS
from deeptransfer.domains.dataset import Domain, Transform, listing
from deeptransfer.domains.digits import FILES, digits_domain, read_digits
from deeptransfer.domains.folders import FolderDomain, split_samples
from deeptransfer.domains.layout import class_samples, find_file, find_folder, folders, normal
from deeptransfer.domains.lists import listed_samples

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


# Other data sets with files or folders of the same names, which are not read under a name from here.
OTHER_DATASETS = ("fashionmnist", "kmnist", "kuzushijimnist", "emnist", "qmnist", "domainnet")


def locate(name: str, root: Path, split: str = "train") -> Path:
    """The file or folder that a split of a domain is read from.

    Raises
    ------
    ValueError
        If there is none under ``root``, and the message says how to get it; or if what is there is another data set's.
    """
    dataset, _, part = name.partition("/")
    names = FOLDERS[dataset]
    if dataset in FILES:
        found = find_file(root, names, FILES[dataset][split])
    elif dataset == "mnist-m":
        found = find_file(root, names, [f"mnist_m_{split}_labels.txt"])
    else:
        found = find_folder(root, names, _part_names(part))
    if found is None:
        raise ValueError(
            f"no {name} under {root}: get it with 'python -m deeptransfer domains fetch {dataset}', "
            "or name the folder that holds your data sets by root= or DEEPTRANSFER_DATA"
        )
    if other := _other_dataset(dataset, part, found, root):
        raise ValueError(
            f"{found} belongs to {other}, not to {dataset}: name the folder that holds {dataset} by root= or "
            "DEEPTRANSFER_DATA, or load this one by its path"
        )
    return found


def _part_names(part: str) -> tuple[str, ...]:
    return (normal(part), *OTHER_NAMES.get(part, ()))


def _other_dataset(dataset: str, part: str, found: Path, root: Path) -> str | None:
    """The data set that ``found`` belongs to, if the folders around it say that it is not ``dataset``."""
    known = {name: name for name in OTHER_DATASETS}
    if part:
        known |= {name: other for other in PHOTOGRAPHS for name in FOLDERS[other]}
    above = list(Path(os.path.abspath(found)).parents)
    above = above[: len(above) - len(Path(os.path.abspath(root)).parents)]  # up to root; the nearest decides
    nearest = next((known[name] for folder in above if (name := normal(folder.name)) in known), dataset)
    if nearest != dataset:
        return nearest
    beside = {normal(folder.name) for folder in folders(found.parent)}
    fits = {
        other: sum(not beside.isdisjoint(_part_names(p)) for p in parts)
        for other, parts in PHOTOGRAPHS.items()
        if part in parts
    }
    best = max(fits, key=lambda other: (fits[other], other == dataset), default=dataset)
    return None if best == dataset else best


def check_published(name: str, classes: Sequence[str]) -> None:
    """Refuse classes that are more than were published, or another data set's: its folder lies under this name.

    Some of the published classes, or classes under other names, are as good as ever for trying things out.

    Raises
    ------
    ValueError
        That names the data set which the classes are of, or how many were published.
    """
    from deeptransfer.domains.download import load_sources

    published = {other: source.classes for other, source in load_sources().items() if source.classes}
    dataset = name.partition("/")[0]
    own = published.get(dataset, ())
    found = {normal(each) for each in classes}
    for other, theirs in published.items():
        if len(classes) == len(theirs) != len(own) and 2 * len(found & set(map(normal, theirs))) > len(theirs):
            raise ValueError(
                f"{name} has the {len(theirs)} classes of {other} ({listing(classes)}), not the {len(own)} of "
                f"{dataset}: another data set lies under its name; load this one as {other}, or by its path"
            )
    if own and len(classes) > len(own):
        raise ValueError(
            f"{name} has {len(classes)} classes ({listing(classes)}), but {dataset} was published with {len(own)}: "
            "another data set lies under its name; load it by its path"
        )


def own_path(name: str | Path, bases: Sequence[Path]) -> Path | None:
    """The folder or list file whose path ``name`` is, from the first of ``bases`` where there is one."""
    written = (str(name), str(name).replace("\\", "/"))
    paths = [base / Path(text).expanduser() for base in bases for text in written if text]
    return next((path for path in paths if path.exists()), None)


def load_own(name: str, path: Path, split: str, size: int | None, transform: Transform | None) -> Domain:
    """The domain in a folder of classes, or in a list file; see :func:`~deeptransfer.domains.load_domain`."""
    samples, classes = class_samples(path) if path.is_dir() else listed_samples(path.parent, path)
    if len(classes) < 2:
        raise ValueError(f"{path} has images of one class alone, {classes[0]!r}: a domain needs two classes or more")
    return FolderDomain(name, split_samples(samples, split), classes, size, transform)


def _photographs(name: str, split: str, root: Path, size: int | None, transform: Transform | None) -> Domain:
    return load_own(name, locate(name, root), split, size, transform)


def _mnist_m(name: str, split: str, root: Path, size: int | None, transform: Transform | None) -> Domain:
    samples = []
    for part in _parts(split):
        file = locate(name, root, part)
        samples += listed_samples(file.with_name(f"mnist_m_{part}"), file, DIGITS)[0]
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
