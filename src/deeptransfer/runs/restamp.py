"""Stored results after a change of the code that makes no number: shown by runs, then marked as today's.

A change that should leave all numbers as they are, code that moved or was divided, still makes results stale. Instead
of doing every run again, the beginning of some is done: of each grid, one run for every different code behind it.

In float32 a run made on another kind of processor cannot be met: its first accuracies move by points, with the order in
which sums are taken. There :func:`begin` is called with the code before the change, and :func:`restamp` compares with
what it gave on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from deeptransfer.runs.grid import load_grid
from deeptransfer.runs.provenance import fingerprint_code
from deeptransfer.runs.recipe import Recipe, fingerprint, kind_of
from deeptransfer.runs.result import results_folder, write_json
from deeptransfer.training import progress_bar

ROUNDING = 1e-7  # relative: the same sum in another order


def begin(name: str) -> dict[str, dict[str, Any]]:
    """The beginnings of one run of a grid for every different code behind it, by the names of the runs."""
    sample = _sample(load_grid(name))
    bar = progress_bar(range(len(sample)), name)
    return {recipe.name: _begun(recipe, threads=1) for _, recipe in zip(bar, sample, strict=True)}


def restamp(name: str, before: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[list[Path], list[str]]:
    """Give the stale results of a grid today's fingerprint, if a sample of them, begun again, gives the same numbers.

    Parameters
    ----------
    name : str
        Of the grid.
    before : mapping, optional
        What :func:`begin` gave with the code before the change, on this machine. By default the stored numbers are
        what is compared with.

    Returns
    -------
    written, sample
        The files of the results that were stale and are not any more; the names of the runs that were begun again.

    Raises
    ------
    ValueError
        If a stored result belongs to no recipe of the grid, ``before`` lacks a run, or a number differs: the message
        names both numbers, and nothing of the grid is written.
    """
    recipes = {recipe.name: recipe for recipe in load_grid(name)}
    stale: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(results_folder(name).glob("*.json")):
        result, recipe = json.loads(path.read_text(encoding="utf-8")), recipes.get(path.stem)
        if recipe is None or type(recipe)(**result["config"]) != recipe:
            raise ValueError(f"{path} is no run of the grid {name!r} as it stands today: run the grid, or remove it")
        if result["fingerprint"] != fingerprint(recipe):
            stale[recipe.name] = path, result
    sample = _sample(recipe for run, recipe in recipes.items() if run in stale)  # in the grid's order, as begin
    for _, recipe in zip(progress_bar(range(len(sample)), name), sample, strict=True):
        path, result = stale[recipe.name]
        if before is not None and recipe.name not in before:
            raise ValueError(f"there is no beginning of {recipe.name} by the code before: run begin with it")
        old, threads = (result, result["threads"]) if before is None else (before[recipe.name], 1)
        if (found := _difference(_begun(recipe, threads), old)) is not None:
            raise ValueError(f"{path}: {found}. The change makes other numbers: run the grid again")
    for run, (path, result) in stale.items():
        marks = {"kind": kind_of(recipes[run])} | result | {"fingerprint": fingerprint(recipes[run])}
        write_json(marks, path)
    return [path for path, _ in stale.values()], [recipe.name for recipe in sample]


def _sample(recipes: Iterable[Recipe]) -> list[Recipe]:
    """The first recipe of every different code."""
    first: dict[str, Recipe] = {}
    for recipe in recipes:
        code = recipe.code()
        first.setdefault(f"{fingerprint_code(code.roots, code.stop)} {code.facts}", recipe)
    return list(first.values())


def _begun(recipe: Recipe, threads: int) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # the order of sums
    try:
        return json.loads(json.dumps(recipe.beginning()))
    finally:
        torch.set_num_threads(before)


def _difference(begun: Any, before: Any, place: str = "the result") -> str | None:
    """The first place where what was begun again is not the beginning of what there was before."""
    if isinstance(begun, Mapping):
        parts = ((f"{place}, {key}", value, before.get(key)) for key, value in begun.items())
    elif isinstance(begun, list) and isinstance(before, list) and len(begun) <= len(before):
        parts = ((f"{place}[{i}]", value, before[i]) for i, value in enumerate(begun))
    else:
        numbers = isinstance(begun, float) and isinstance(before, int | float)
        if begun == before or (numbers and math.isclose(begun, before, rel_tol=ROUNDING)):
            return None
        return f"{place} was {before} before and is {begun} now"
    return next((found for key, a, b in parts if (found := _difference(a, b, key)) is not None), None)
