"""Stored results: written whole or not at all, and read into tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deeptransfer.data_files import data_folder
from deeptransfer.runs.recipe import recipe_class


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; then it takes the place of ``path``: others see all of the file or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write a result, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, allow_nan=False, ensure_ascii=False)
        file.write("\n")


def results_folder(grid: str) -> Path:
    """Where the results of a grid are kept."""
    return data_folder() / "results" / grid


def load_results(grid: str | Path) -> list[dict[str, Any]]:
    """All results of a grid, given by its name or as a folder, in the order of their names.

    Raises
    ------
    ValueError
        If there is none.
    """
    folder = grid if isinstance(grid, Path) else results_folder(grid)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise ValueError(f"{folder} holds no results: run the grid first (python -m deeptransfer grid NAME)")
    return results


def accuracies(*grids: str | Path) -> pd.DataFrame:
    """One row for each run of some grids: its recipe, and its accuracies in per cent.

    Columns are ``task`` (``"print:pen"``), ``objective``, ``norm`` and the other settings of the recipes, a dict or a
    list among them as JSON text; then the scores of its kind of run: ``last``, ``label_free`` and ``oracle`` of an
    adaptation, say. Pandas does the rest: ``accuracies("chapter13").pivot_table("last", "norm", "objective")``.

    Raises
    ------
    ValueError
        If a grid has no results.
    """
    return pd.DataFrame([_row(r, recipe_class(r["kind"]).scores(r)) for g in grids for r in load_results(g)])


def learning_curves(*grids: str | Path) -> pd.DataFrame:
    """One row for each point of each run's curve: its recipe as :func:`accuracies` has it, ``step``, and the numbers.

    ``target`` and ``source`` are accuracies in per cent; criteria stand as they were stored.

    Raises
    ------
    ValueError
        If a grid has no results, or of a kind of run that has no curve.
    """
    rows = []
    for result in (result for grid in grids for result in load_results(grid)):
        if "curve" not in result:
            raise ValueError(f"a run of kind {result['kind']!r} has no curve")
        recipe = _row(result, {})
        for point in result["curve"]:
            rows.append(recipe | point | {name: 100 * point[name] for name in ("target", "source") if name in point})
    return pd.DataFrame(rows)


def _row(result: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, Any]:
    config = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in result["config"].items()}
    if {"source", "target"} <= config.keys():
        config = {"task": f"{config.pop('source')}:{config.pop('target')}", **config}
    else:
        config = {"kind": result["kind"], **config}
    return config | {name: 100 * score for name, score in scores.items()}


def table(grid: str | Path, per_class: bool = False) -> pd.DataFrame:
    """Mean, standard deviation (n − 1) over seeds and closed gap of each score, in per cent.

    With ``per_class`` the scores are the accuracies of each class at the end and, first, their mean, as VisDA's papers
    report it; then there is no closed gap.

    Rows are task, objective, norm and whatever else of the recipe varies. The closed gap is
    (accuracy − source only) / (oracle − source only), all three selected alike and trained alike; it is absent where
    the grid holds no source-only run or no oracle.
    """
    results = load_results(grid)
    kinds = [recipe_class(result["kind"]) for result in results]
    scores = [kind.per_class(r) if per_class else kind.scores(r) for kind, r in zip(kinds, results, strict=True)]
    names = list(scores[-1])
    runs = pd.DataFrame([_row(result, score) for result, score in zip(results, scores, strict=True)])
    always = [name for name in ("task", "kind", "objective", "norm") if name in runs]
    others = [str(name) for name in runs if name not in (*always, "seed", *names)]
    keys = [*always, *(name for name in others if runs[name].nunique() > 1)]
    groups = runs.groupby(keys, sort=False)
    means = groups[names].mean()
    records: list[dict[str, Any]] = means.reset_index().to_dict("records")  # type: ignore[assignment]
    cells: dict[tuple[str, str], pd.Series] = {}
    for name in names:
        gaps = pd.Series([np.nan] * len(means) if per_class else _closed_gaps(records, name, keys), means.index)
        cells |= {(name, "mean"): means[name], (name, "sd"): groups[name].std(), (name, "gap"): gaps}
    frame = pd.DataFrame(cells)
    frame.insert(0, ("runs", ""), groups.size())
    return frame


def _closed_gaps(records: list[dict[str, Any]], name: str, keys: list[str]) -> list[float]:
    if "task" not in keys:
        return [np.nan] * len(records)
    alike = [key for key in ("network", "steps", "batch_size", "lr", "dtype") if key in keys]
    plain = {
        (row["task"], *(row[key] for key in alike)): row[name]
        for row in records
        if (row.get("objective"), row.get("norm")) == ("source-only", "bn")
    }
    gaps = []
    for row in records:
        target, rest = row["task"].partition(":")[2], [row[key] for key in alike]
        low, high = (plain.get((task, *rest), np.nan) for task in (row["task"], f"{target}:{target}"))
        gaps.append(100 * (row[name] - low) / (high - low) if high != low else np.nan)
    return gaps


def _scores(frame: pd.DataFrame) -> list[str]:
    return [str(column[0]) for column in frame.columns if column[1] == "mean"]


def to_markdown(frame: pd.DataFrame) -> str:
    """A table of :func:`table` as Markdown: mean ± sd, and the closed gap in brackets."""
    names = [str(name) for name in frame.index.names]
    heads = [*names, "runs", *(name.replace("_", "-") for name in _scores(frame))]
    lines = [heads, ["---"] * len(heads)]
    for key, row in zip(frame.index.to_list(), frame.to_dict("records"), strict=True):
        cells = [*(str(part) for part in (key if isinstance(key, tuple) else (key,))), str(row["runs", ""])]
        for name in _scores(frame):
            mean, sd, gap = (row[name, what] for what in ("mean", "sd", "gap"))
            spread = "" if np.isnan(sd) else f" ± {sd:.1f}"
            cells.append(f"{mean:.1f}{spread}" + ("" if np.isnan(gap) else f" ({gap:.0f})"))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_json(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table of :func:`table` as a list of rows; None where there is no number."""
    rows = []
    for key, row in zip(frame.index.to_list(), frame.to_dict("records"), strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        record: dict[str, Any] = dict(zip(map(str, frame.index.names), parts, strict=True)) | {"runs": row["runs", ""]}
        for name in _scores(frame):
            values = {what: float(row[name, what]) for what in ("mean", "sd", "gap")}
            record[name] = {what: None if np.isnan(value) else value for what, value in values.items()}
        rows.append(record)
    return rows
