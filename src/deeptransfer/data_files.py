"""Where the book's own data are: recipes, grids, the list of data sets, and the results of runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]


def data_folder() -> Path:
    """``data`` in a checkout of the book, else in the current folder: results are written and read there."""
    return (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()) / "data"


def shipped(name: str) -> Path:
    """A file or folder of ``data`` that comes with the library: of the data folder, else of the installed package.

    Raises
    ------
    ValueError
        If it is in neither; the message names the folders.
    """
    places = [data_folder() / name, Path(__file__).parent / "data" / name]
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"there is no {name} in {places[0].parent}, nor in the installed package ({places[1].parent})")


def read_toml(folder: str, name: str) -> dict[str, Any]:
    """The contents of ``data/<folder>/<name>.toml``.

    Raises
    ------
    ValueError
        If there is no such file; the message lists the known ones.
    """
    place = shipped(folder)
    path = place / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in place.glob("*.toml")))
        raise ValueError(f"unknown {folder.removesuffix('s')} {name!r}: known ones are {known} (in {place})")
    return tomllib.loads(path.read_text(encoding="utf-8"))
