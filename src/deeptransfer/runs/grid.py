"""Grids: many independent runs from one file, one JSON for each, which several processes can share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from deeptransfer.data_files import read_toml
from deeptransfer.runs import checkpoint
from deeptransfer.runs.recipe import Means, Recipe, fingerprint, recipe_class, run
from deeptransfer.runs.result import write_json
from deeptransfer.training import progress_bar


def load_grid(name: str) -> list[Recipe]:
    """The recipes of ``data/grids/<name>.toml``, whose ``kind`` is that of its runs, adaptation if it tells none.

    Raises
    ------
    ValueError
        If there is no such grid, or it holds an unknown key; the message lists the known ones.
    """
    grid = read_toml("grids", name)
    try:
        return recipe_class(grid.pop("kind", "adaptation")).from_grid(grid)
    except ValueError as error:
        raise ValueError(f"{name}.toml: {error}") from error


def complete(recipes: Sequence[Recipe], folder: str | Path, workers: int = 1) -> list[Path]:
    """Do the runs that ``folder`` does not hold yet, or holds from older code; return the files written.

    Several processes, on any machines that see the folder, may work on one grid: a run is locked while it is done, and
    the lock ends with the process that holds it. A run that fails does not stop the others.

    Parameters
    ----------
    recipes : sequence of Recipe
    folder : path
        Made if need be.
    workers : int
        Processes that share the runs and the cores.

    Raises
    ------
    ValueError
        If two recipes would share a file.
    RuntimeError
        After all other runs, if some failed; the message says which and why.
    """
    folder = Path(folder)
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise ValueError("two recipes of the grid differ in nothing that their files' names tell: use two grids")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{recipe.name}.json" for recipe in recipes]
    written, failed = [], []
    with _mapping(workers) as mapped:
        outcomes = mapped(_run_into, recipes, paths)
        for i, outcome in zip(progress_bar(range(len(paths)), folder.name), outcomes, strict=True):
            if isinstance(outcome, str):
                failed.append(f"{recipes[i].name}: {outcome}")
            elif outcome:
                written.append(paths[i])
    if failed:
        raise RuntimeError("these runs failed:\n" + "\n".join(failed))
    return written


@contextmanager
def _mapping(workers: int) -> Iterator[Any]:
    """``map``, here or in several processes that share the cores."""
    if workers == 1:
        yield map
        return
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield pool.map


def _run_into(recipe: Recipe, path: Path) -> bool | str:
    """Whether the run was done here and now; the error's text if it failed."""
    mark = fingerprint(recipe)
    if _is_done(path, mark):
        return False
    with _locked(path.with_suffix(".lock")) as mine:
        if not mine or _is_done(path, mark):  # done by another process since we looked
            return False
        state = path.with_suffix(".checkpoint")
        if not checkpoint.is_ours(state, recipe):  # left by older code
            state.unlink(missing_ok=True)
        try:
            write_json(run(recipe, Means(checkpoint=state)), path)
        except (ArithmeticError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
    return True


def _is_done(path: Path, mark: str) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == mark
    except (OSError, ValueError, KeyError):  # absent, or not one of ours
        return False


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process got the lock; the system gives it back when a process dies."""
    import fcntl

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our opening and locking it.
            mine = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except OSError:
            mine = False
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)
