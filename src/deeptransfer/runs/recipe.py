"""What every kind of run promises, and what all of them get for it.

A kind of run is one module of this package with one :class:`Recipe` in it. A recipe names itself, trains, and tells
which code its numbers depend on; running, storing, repeating and tabulating are then the same for every kind.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from deeptransfer import __version__
from deeptransfer.networks import Network
from deeptransfer.runs.distributed import place
from deeptransfer.runs.provenance import fingerprint_code
from deeptransfer.training import default_device

# What a run reaches and no number depends on; what draws a domain's images, or makes a normalisation, is named by the
# recipe instead.
NO_NUMBER = (
    "deeptransfer.catalogue.get",
    "deeptransfer.training.progress_bar",
    "deeptransfer.domains.load_domain",
    "deeptransfer.runs.recipe.Recipe",
    "deeptransfer.runs.recipe.Means",
    "deeptransfer.runs.recipe.fingerprint",
    "deeptransfer.runs.checkpoint.Checkpoint",
    "deeptransfer.runs.model.save_model",
    "deeptransfer.runs.distributed.place",
    "deeptransfer.runs.distributed.Distributed",
)


class Code(NamedTuple):
    """Which code makes the numbers of a recipe.

    Attributes
    ----------
    roots : sequence of str
        Dotted paths of what is called, as :func:`~deeptransfer.runs.provenance.fingerprint_code` takes them.
    stop : sequence of str
        Dotted paths that this recipe does not reach, though its code names them.
    facts : list
        What else enters, ready for JSON.
    """

    roots: Sequence[str]
    stop: Sequence[str] = ()
    facts: Sequence[Any] = ()


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a run may use on this machine; no number depends on it.

    Attributes
    ----------
    workers : int
        Processes that load images ahead.
    checkpoint : Path or None
        Where the state is kept. If it is there, the run goes on from it, on a CPU to the same numbers; it is removed
        when the run is done.
    score_batch : int or None
        Images that are scored at once; by default what
        :func:`~deeptransfer.training.predict` takes for images of their size.
    save : Path or None
        Where the trained network is kept, for :func:`~deeptransfer.runs.model.load_model`.
    """

    workers: int = 0
    checkpoint: Path | None = None
    score_batch: int | None = None
    save: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """All that decides the numbers of one run; its fields go into the result.

    The module that defines it names the kind of run: a grid's file says ``kind = "layerwise"`` for the recipe of
    :mod:`deeptransfer.runs.layerwise`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""

    @abstractmethod
    def train(self, means: Means) -> dict[str, Any]:
        """Do the run and return its numbers, ready for JSON."""

    @abstractmethod
    def beginning(self) -> dict[str, Any]:
        """Do the first part of the run only: the numbers of :meth:`train`, or of their lists the first entries."""

    @abstractmethod
    def code(self) -> Code:
        """Which code makes the numbers."""

    @classmethod
    @abstractmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """The recipes of a grid's file.

        Raises
        ------
        ValueError
            If it holds an unknown key; the message lists the known ones.
        """

    @classmethod
    def shared_by(cls, grid: Mapping[str, Any], lists: Sequence[str], each: Sequence[str]) -> dict[str, Any]:
        """What all recipes of a grid's file share.

        Parameters
        ----------
        grid : mapping
            The file.
        lists : sequence of str
            Its keys that tell the recipes apart, which must be there.
        each : sequence of str
            The fields of a recipe that come from these.

        Raises
        ------
        ValueError
            If one of ``lists`` is missing or another key is no field; the message lists the known ones.
        """
        shared = {f.name for f in fields(cls)} - set(each)
        if not set(lists) <= set(grid) or set(grid) - shared - set(lists):
            kind, known = kind_of(cls), ", ".join(sorted(shared))
            raise ValueError(
                f"a grid of the kind {kind!r} holds {', '.join(lists)}, and may hold {known}; got {', '.join(grid)}"
            )
        return {key: value for key, value in grid.items() if key in shared}

    @classmethod
    def untrained(cls, config: Mapping[str, Any], classes: int, shape: Sequence[int]) -> Network:
        """The network of a stored recipe, for the weights of a saved model: no image and no weight need be here.

        Raises
        ------
        ValueError
            If this kind of run saves no model.
        """
        raise ValueError(f"runs of the kind {kind_of(cls)!r} save no model")

    @staticmethod
    @abstractmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of a result that a table compares, in [0, 1], by name."""

    @staticmethod
    def per_class(result: Mapping[str, Any]) -> dict[str, float]:
        """Mean over the classes, then the accuracy of each of them, in [0, 1]; NaN for a class without images.

        Raises
        ------
        ValueError
            If this kind of run keeps none.
        """
        raise ValueError(f"runs of the kind {result['kind']!r} keep no accuracy of each class")


def kind_of(recipe: Recipe | type[Recipe]) -> str:
    """The kind of run, which is the name of the module that defines its recipe."""
    return (recipe if isinstance(recipe, type) else type(recipe)).__module__.rpartition(".")[2]


def recipe_class(kind: str) -> type[Recipe]:
    """The recipe of a kind of run.

    Raises
    ------
    ValueError
        If there is no such kind; the message lists the known ones.
    """
    package = import_module(__package__)
    modules = {module.name for module in iter_modules(package.__path__)}
    if kind in modules and (found := _recipe_in(kind)) is not None:
        return found
    known = sorted(name for name in modules if _recipe_in(name) is not None)
    raise ValueError(f"unknown kind of run {kind!r}: known ones are {', '.join(known)}")


def _recipe_in(module: str) -> type[Recipe] | None:
    defined = vars(import_module(f"{__package__}.{module}")).values()
    recipes = [v for v in defined if isinstance(v, type) and issubclass(v, Recipe) and v is not Recipe]
    return next((v for v in recipes if kind_of(v) == module), None)


def recipe_of(result: Mapping[str, Any]) -> Recipe:
    """The recipe that a stored result holds.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the result is not one of ours, or its recipe holds what is no longer known.
    """
    return recipe_class(result["kind"])(**result["config"])


def run(recipe: Recipe, means: Means | None = None) -> dict[str, Any]:
    """Do a run: its numbers, and how they were made, ready for JSON."""
    means = means or Means()
    began, mark = time.perf_counter(), fingerprint(recipe)  # of the code as it is when the run begins
    numbers = recipe.train(means)
    if means.checkpoint is not None:
        means.checkpoint.unlink(missing_ok=True)
    versions = {"deeptransfer": __version__, "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "numpy": np.__version__}
    made: dict[str, Any] = {"versions": versions, "device": default_device().type}
    made |= {"processes": place()[1], "threads": torch.get_num_threads()}
    made |= {"seconds": round(time.perf_counter() - began, 1)}
    return {"kind": kind_of(recipe), "config": asdict(recipe), "fingerprint": mark} | made | numbers


def fingerprint(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits for the recipe and for the code that makes its numbers."""
    code = recipe.code()
    text = json.dumps([asdict(recipe), *code.facts], sort_keys=True)
    text += fingerprint_code(code.roots, [*NO_NUMBER, *code.stop])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_stale(result: Mapping[str, Any]) -> bool:
    """Whether the library of today would not make this result: the code, or what a recipe holds, has changed."""
    try:
        return fingerprint(recipe_of(result)) != result["fingerprint"]
    except (KeyError, TypeError, ValueError):  # not one of ours, or a key or a name that is no longer known
        return True
