"""Stored results after a change of the code that makes no number: shown by runs, then marked as today's.

A change that should leave all numbers as they are, code that moved or was divided, still makes results stale. Instead
of doing every run again, the beginning of some is done: of each grid, one run for every different code behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deeptransfer.runs.grid import load_grid
from deeptransfer.runs.provenance import fingerprint_code
from deeptransfer.runs.recipe import Recipe, fingerprint, kind_of
from deeptransfer.runs.result import results_folder, write_json
from deeptransfer.training import progress_bar

ROUNDING = 1e-9  # relative: the same sum in another order


def restamp(name: str) -> tuple[list[Path], list[Path]]:
    """Give the stale results of a grid today's fingerprint, if a sample of them, begun again, gives what is stored.

    Returns
    -------
    written, sample : list of Path
        The results that were stale and are not any more, and those whose beginning was done again.

    Raises
    ------
    ValueError
        If a stored result belongs to no recipe of the grid, or a number differs from the stored one: the message names
        both, and nothing of the grid is written.
    """
    recipes = {recipe.name: recipe for recipe in load_grid(name)}
    stale: dict[Path, tuple[Recipe, dict[str, Any]]] = {}
    for path in sorted(results_folder(name).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        recipe = recipes.get(path.stem)
        if recipe is None or type(recipe)(**result["config"]) != recipe:
            raise ValueError(f"{path} is no run of the grid {name!r} as it stands today: run the grid, or remove it")
        if result["fingerprint"] != fingerprint(recipe):
            stale[path] = recipe, result
    sample: dict[str, Path] = {}
    for path, (recipe, _) in stale.items():
        code = recipe.code()
        sample.setdefault(f"{fingerprint_code(code.roots, code.stop)} {code.facts}", path)
    for _, path in zip(progress_bar(range(len(sample)), name), sample.values(), strict=True):
        recipe, result = stale[path]
        if (found := _difference(_again(recipe, result["threads"]), result, recipe.spread)) is not None:
            raise ValueError(f"{path}: {found}. The change makes other numbers: run the grid again")
    for path, (recipe, result) in stale.items():
        write_json({"kind": kind_of(recipe)} | result | {"fingerprint": fingerprint(recipe)}, path)
    return list(stale), list(sample.values())


def _again(recipe: Recipe, threads: int) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # the order of sums
    try:
        return json.loads(json.dumps(recipe.beginning()))
    finally:
        torch.set_num_threads(before)


def _difference(begun: Any, stored: Any, spread: float, place: str = "the result") -> str | None:
    """The first place where what was begun again is not the beginning of what is stored."""
    if isinstance(begun, Mapping):
        parts = ((f"{place}, {key}", value, stored.get(key)) for key, value in begun.items())
    elif isinstance(begun, list) and isinstance(stored, list) and len(begun) <= len(stored):
        parts = ((f"{place}[{i}]", value, stored[i]) for i, value in enumerate(begun))
    else:
        numbers = isinstance(begun, float) and isinstance(stored, int | float)
        if begun == stored or (numbers and math.isclose(begun, stored, rel_tol=ROUNDING, abs_tol=spread)):
            return None
        return f"{place} is stored as {stored} and was {begun} now"
    return next((found for key, a, b in parts if (found := _difference(a, b, spread, key)) is not None), None)
