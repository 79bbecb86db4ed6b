"""Where people keep images: the folder of a data set, the folder of each class, and what lies there without belonging.

Names that begin with a dot, and what operating systems, network drives and notebooks leave behind, are passed over at
every depth. Links are followed, but not back to a folder that has been seen. Names are compared, and classes are named,
in the Unicode form NFC: a "ü" is one letter, whatever system has written it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from PIL import Image

from deeptransfer.domains.dataset import listing
from deeptransfer.domains.images import ENDINGS

LEFT_BEHIND = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found", "$recycle.bin"),
    *("recycler", "recycled", "system volume information", "network trash folder", "temporary items"),
    *("thevolumesettingsfolder", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}


def normal(name: str) -> str:
    """A folder's name as it is compared: ``"Office-31"`` and ``"office_31"`` are one."""
    return "".join(character for character in normalize("NFC", name).lower() if character.isalnum())


def places(root: Path, names: Sequence[str]) -> list[Path]:
    """Where a data set may lie: a folder with one of its (normal) ``names``, what is inside it, and ``root`` itself."""
    named = [folder for folder in folders(root) if normal(folder.name) in names]
    return [*named, *(inner for folder in named for inner in folders(folder)), root]


def find_folder(root: Path, names: Sequence[str], domain: Sequence[str]) -> Path | None:
    """The folder of one domain: its name is one of ``domain``, in one of the data set's :func:`places`."""
    found = (folder for place in places(root, names) for folder in folders(place) if normal(folder.name) in domain)
    return next(found, None)


def find_file(root: Path, names: Sequence[str], files: Sequence[str]) -> Path | None:
    """The first of ``files`` that exists in one of the data set's :func:`places`."""
    candidates = (place / file for place in places(root, names) for file in files)
    return next((path for path in candidates if path.exists()), None)


def folders(path: Path) -> list[Path]:
    """The folders inside ``path`` that count, in order; see :func:`_inside`."""
    return _inside(path)[0] if path.is_dir() else []


def class_samples(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Samples and classes of ``folder/<class>/**/<image>``; classes in alphabetical order.

    A level that holds one folder and no image (``Art/data/<class>``, ``amazon/images/<class>``) is stepped over.

    Raises
    ------
    ValueError
        If there are fewer than two classes, one has no image, the classes seem to be a level deeper, a link leads
        nowhere, or an image is of a format that pillow can't read here.
    """
    folder = _classes_at(folder)
    by_class: dict[str, list[str]] = {}
    for inner in folders(folder):
        by_class.setdefault(normalize("NFC", inner.name), []).extend(images_below(inner))
    if empty := [name for name, paths in by_class.items() if not paths]:
        raise ValueError(f"{folder} has no image for the class {empty[0]!r}: remove its folder, or put images into it")
    if len(by_class) < 2:
        raise ValueError(_too_few(folder, by_class))
    classes = sorted(by_class)
    return [(path, label) for label, name in enumerate(classes) for path in by_class[name]], classes


def _classes_at(folder: Path) -> Path:
    """The folder of the classes, at or below ``folder``."""
    inside, _, nowhere = _inside(folder)
    _refuse_links_to(nowhere)
    if (images := folder / "images") in inside and folders(images):  # Office-31's, whatever lies beside it
        return _classes_at(images)
    contents = [_inside(inner) for inner in inside]
    deeper = [{normalize("NFC", path.name) for path in paths} for paths, _, _ in contents]
    if not inside or not all(deeper) or any(images for _, images, _ in contents):
        return folder
    if len(inside) == 1:
        return _classes_at(inside[0])
    names, common = {path.name for path in inside}, set.intersection(*deeper)
    if _are_splits(names) or (len(common) > 1 and not _are_splits(common)):
        raise ValueError(
            f"{folder} holds {listing(names)}, and below them are the folders {listing(set.union(*deeper))}: name "
            f"the one whose folders are the classes, such as {inside[0]}"
        )
    return folder


def _too_few(folder: Path, by_class: dict[str, list[str]]) -> str:
    found = f"{len(_inside(folder)[1])} images"
    for name, paths in by_class.items():
        deeper = listing(inner.name for inner in folders(folder / name))
        found = f"one folder, {name!r}, with {len(paths)} images" + (f" and the folders {deeper}" if deeper else "")
    return f"{folder} has no folder for each class inside, but {found}: a domain needs two classes or more"


def images_below(folder: Path) -> list[str]:
    """The images in a folder at every depth, in order, each folder once whatever links lead to it.

    Raises
    ------
    ValueError
        If a link leads nowhere, or an image is of a format that pillow can't read here.
    """
    seen: set[Path] = set()
    waiting, found = [folder], []
    while waiting:
        here = waiting.pop()
        if here.resolve() not in seen:
            seen.add(here.resolve())
            deeper, names, nowhere = _inside(here)
            _refuse_links_to(nowhere)
            waiting += reversed(deeper)
            found.append((str(here), names))
    paths = [os.path.join(place, name) for place, names in sorted(found) for name in names]
    known = Image.registered_extensions()
    if unknown := [path for path in paths if _ending(path) not in known]:
        kind = _ending(unknown[0])[1:].upper()
        raise ValueError(f"{unknown[0]} can't be read: pillow does not know {kind} here; store it as PNG or JPEG")
    return paths


def _inside(folder: Path) -> tuple[list[Path], list[str], list[Path]]:
    """The folders, the names of images, and the links to nowhere in ``folder``, in order, but what is passed over."""
    inside, images, nowhere = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith((".", "~$")) or entry.name.lower() in LEFT_BEHIND:
                continue
            if entry.is_symlink() and not path.exists():
                nowhere.append(path)
            elif entry.is_dir():
                leads_back = entry.is_symlink() and folder.resolve().is_relative_to(path.resolve())
                if not (leads_back or entry.name.startswith("__")):  # __MACOSX, __pycache__
                    inside.append(path)
            elif _ending(entry.name) in ENDINGS:
                images.append(entry.name)
    return sorted(inside), sorted(images), sorted(nowhere)


def _refuse_links_to(nowhere: Sequence[Path]) -> None:
    if nowhere:
        raise ValueError(f"{nowhere[0]} is a link to nowhere: remove it, or bring back what it names")


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _are_splits(names: set[str]) -> bool:
    return {name.lower() for name in names} <= SPLIT_NAMES
