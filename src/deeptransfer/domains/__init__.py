"""Where images come from: domains by name, and pairs of a source and a target domain."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from deeptransfer.domains import real
from deeptransfer.domains.builtin import BUILDERS, DIGITS, draw_print, load_builtin
from deeptransfer.domains.dataset import Domain, TensorDomain, Transform, grey, harmonise
from deeptransfer.domains.folders import FolderDomain
from deeptransfer.domains.pair import Batch, DomainPair, random_crop_and_flip, random_shift, randomize_strokes
from deeptransfer.domains.sampling import few_labelled, some_of

__all__ = [
    "Batch",
    "Domain",
    "DomainPair",
    "FolderDomain",
    "TensorDomain",
    "cache_folder",
    "datasets_folder",
    "domain_names",
    "draw_print",
    "few_labelled",
    "grey",
    "harmonise",
    "is_domain",
    "load_domain",
    "random_crop_and_flip",
    "random_shift",
    "randomize_strokes",
    "some_of",
]

SPLITS = ("train", "test", "all")


def cache_folder() -> Path:
    """Where drawn domains are kept: ``data/cache`` in a checkout of the book, else the user's cache folder."""
    checkout = Path(__file__).parents[3]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "data" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deeptransfer"


def datasets_folder() -> Path:
    """Where real data sets are: ``DEEPTRANSFER_DATA`` if it is set, else ``datasets`` in :func:`cache_folder`."""
    given = os.environ.get("DEEPTRANSFER_DATA")
    return Path(given).expanduser() if given else cache_folder() / "datasets"


def domain_names() -> tuple[str, ...]:
    """The names that :func:`load_domain` knows: the built-in domains, then the real ones."""
    return (*BUILDERS, *real.LOADERS)


def is_domain(name: str) -> bool:
    """Whether :func:`load_domain` finds something of this name: a known domain, or one's own folder or list file."""
    return name in domain_names() or real.own_path(name, (Path(), datasets_folder())) is not None


def load_domain(
    name: str | Path,
    split: str = "train",
    root: str | Path | None = None,
    size: int | None = None,
    transform: Transform | None = None,
) -> Domain:
    """Load a domain by its name, or one's own by its path.

    * ``"print"``: digits rendered from twenty fonts with random size, slant, rotation, shift and softness; 6,000 train,
      2,000 test, 1 × 28 × 28 (more with :func:`draw_print`).
    * ``"pen"``: the 1,797 handwritten digits of scikit-learn, resampled to 22 × 22 inside
      1 × 28 × 28; 1,000 train, 797 test.
    * ``"scene"``: pen's test digits blended with patches of two photographs, ``|patch − digit|``, 3 × 28 × 28;
      1,988 train, 600 test, which share neither digits nor patches.

    Real domains are read where they are kept, nothing is written there; ``python -m deeptransfer domains`` lists,
    downloads and checks them:

    * ``"mnist"``, ``"usps"``, ``"svhn"``, ``"mnist-m"`` with their official splits, each in its own size.
    * ``"office31/amazon"``, ``"dslr"``, ``"webcam"``; ``"office-caltech10/amazon"``, ``"caltech10"``, ``"dslr"``,
      ``"webcam"``; ``"office-home/Art"``, ``"Clipart"``, ``"Product"``, ``"Real World"``; ``"pacs/art_painting"``,
      ``"cartoon"``, ``"photo"``, ``"sketch"``; ``"visda2017/train"``, ``"validation"``: photographs in folders, RGB,
      decoded when indexed. They have no official split: papers adapt to and score on ``"all"`` of them, which is
      called transductive; ``"train"`` and ``"test"`` are a fixed stratified split, 80 : 20, that keeps copies of an
      image on one side.

    Images of one's own are a domain as well, by the path of

    * a folder with a folder for each class, ``path/to/folder/<class>/**/<image>``: classes are the folders' names in
      alphabetical order, in the Unicode form NFC;
    * a list file, with a line ``image label`` for each image, its name relative to the list's folder (see
      :func:`~deeptransfer.domains.lists.listed_samples`): classes are the labels that occur.

    They are split as photographs are; their name is the path as it was given, without ``./`` and the last slash.
    Hidden files, and what operating systems leave behind, are passed over. What a file holds is read as a viewer shows
    it: see :func:`~deeptransfer.domains.images.read_image`.

    Parameters
    ----------
    name : str or Path
        One of :func:`domain_names`; or the path of a folder or list file, ``~`` for the home folder, relative to
        ``root`` if that is given, else to the current folder or else to :func:`datasets_folder`. A ``Path`` is never
        taken for one of the names.
    split : {"train", "test", "all"}
        ``"all"`` is train and test.
    root : path, optional
        Folder of the cache (built-in domains), :func:`cache_folder` by default; or of the data sets,
        :func:`datasets_folder` by default.
    size : int, optional
        Height and width in pixels to resample to, whatever the image's shape. Photographs differ in size: give this,
        or a transform that brings them to one.
    transform : callable, optional
        Applied to each image when it is indexed.

    Returns
    -------
    Domain
        Items are ``(float32 image in [0, 1], int label)``; in-memory domains also have ``tensors``.

    Raises
    ------
    ValueError
        If ``name`` or ``split`` is unknown, ``size`` is not positive, a data set is not there or can't be read, has
        fewer than two classes, or is not the one whose name it bears.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    root = None if root is None else Path(root).expanduser()
    if isinstance(name, Path) or name not in domain_names():
        path = real.own_path(name, (Path(), datasets_folder()) if root is None else (root,))
        if path is None:
            raise ValueError(
                f"unknown domain {str(name)!r}: known ones are {', '.join(domain_names())}; nor is there a folder or "
                f"list file of this path here or in {datasets_folder() if root is None else root}"
            )
        own_name = Path(str(name).replace("\\", "/")).as_posix()
        return real.load_own(own_name, path, split, size, transform)
    if name not in BUILDERS:
        domain = real.load_real(name, split, datasets_folder() if root is None else root, size, transform)
        real.check_published(name, domain.classes)
        return domain
    folder = cache_folder() if root is None else root
    parts = [load_builtin(name, part, folder) for part in (("train", "test") if split == "all" else (split,))]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if size is not None:
        images = harmonise(images.float() / 255, images.shape[1], (size, size)).clamp(0, 1)
    return TensorDomain(name, images, labels, DIGITS, transform)
