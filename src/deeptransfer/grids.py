"""Grids: many independent runs from one file, one JSON for each, which several processes can share."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch

from deeptransfer import experiments
from deeptransfer.experiments import RunConfig, data_folder, split_task
from deeptransfer.results import write_json
from deeptransfer.training import progress_bar


class Recipe(Protocol):
    """What a grid needs of a recipe."""

    @property
    def name(self) -> str:
        """What tells it from others of its grid, as a file name."""


def read_grid(folder: str, name: str) -> dict[str, Any]:
    """The contents of ``data/<folder>/<name>.toml``.

    Raises
    ------
    ValueError
        If there is no such file; the message lists the known ones.
    """
    place = data_folder() / folder
    path = place / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in place.glob("*.toml")))
        raise ValueError(f"unknown grid {name!r}: known ones are {known}")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load_grid(name: str) -> list[RunConfig]:
    """The runs of ``data/grids/<name>.toml``: every objective, norm, task, setting and seed, and the oracles.

    Raises
    ------
    ValueError
        If there is no such grid, or it holds an unknown key; the message lists the known ones.
    """
    grid: dict[str, Any] = {"norms": ["bn"], "settings": [{}], "norm_settings": [{}], "oracle": False, "recipe": {}}
    grid |= read_grid("grids", name)
    keys = {"objectives", "tasks", "norms", "settings", "norm_settings", "seeds", "oracle", "recipe"}
    if set(grid) != keys or set(grid["recipe"]) - {f.name for f in fields(RunConfig)}:
        raise ValueError(f"{name}.toml must hold {', '.join(sorted(keys))}, with the recipe's keys those of RunConfig")
    tasks = [split_task(task) for task in grid["tasks"]]
    axes = product(tasks, grid["objectives"], grid["norms"], grid["settings"], grid["norm_settings"])
    chosen = [(*task, *rest) for task, *rest in axes]
    if grid["oracle"]:
        targets = dict.fromkeys(target for _, target in tasks)
        chosen += [(target, target, "source-only", "bn", {}, {}) for target in targets]
    recipe = {"settings": {}, "norm_settings": {}} | grid["recipe"]
    return [
        RunConfig(
            source=source,
            target=target,
            objective=objective,
            norm=norm,
            seed=seed,
            **recipe
            | {"settings": recipe["settings"] | settings, "norm_settings": recipe["norm_settings"] | norm_settings},
        )
        for seed, (source, target, objective, norm, settings, norm_settings) in product(grid["seeds"], chosen)
    ]


def complete(
    configs: Sequence[Recipe],
    folder: str | Path,
    workers: int = 1,
    run: Callable[..., Mapping[str, Any]] | None = None,
    fingerprint: Callable[..., str] | None = None,
) -> list[Path]:
    """Do the runs that ``folder`` does not hold yet, or holds from older code; return the files written.

    Several processes, on any machines that see the folder, may work on one grid: a run is locked while it is done, and
    the lock ends with the process that holds it. A run that fails does not stop the others.

    Parameters
    ----------
    configs : sequence of RunConfig
        Or other recipes, with their own ``run`` and ``fingerprint``.
    folder : path
        Where the results go, and the checkpoints of runs that were stopped.
    workers : int
        Processes that share the runs and the cores.
    run, fingerprint : callable
        Those of :mod:`~deeptransfer.experiments` by default.

    Raises
    ------
    ValueError
        If two recipes would share a file.
    RuntimeError
        After all other runs, if some failed; the message says which and why.
    """
    folder = Path(folder)
    if len({config.name for config in configs}) < len(configs):
        raise ValueError("two recipes of the grid differ in nothing that their files' names tell: use two grids")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{config.name}.json" for config in configs]
    written, failed = [], []
    do = partial(_run_into, run or _run, fingerprint or experiments.fingerprint)
    with _mapping(workers) as mapped:
        outcomes = mapped(do, configs, paths)
        for i, outcome in zip(progress_bar(range(len(paths)), folder.name), outcomes, strict=True):
            if isinstance(outcome, str):
                failed.append(f"{configs[i].name}: {outcome}")
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


def _run(config: RunConfig, path: Path) -> Mapping[str, Any]:
    return experiments.run(config, checkpoint=path.with_suffix(".checkpoint"))


def _run_into(
    run: Callable[..., Mapping[str, Any]], fingerprint: Callable[..., str], config: Any, path: Path
) -> bool | str:
    """Whether the run was done here and now; the error's text if it failed."""
    mark = fingerprint(config)
    if _is_done(path, mark):
        return False
    with _locked(path.with_suffix(".lock")) as mine:
        if not mine or _is_done(path, mark):  # done by another process since we looked
            return False
        try:
            write_json(run(config, path), path)
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
