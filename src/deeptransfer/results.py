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

SELECTIONS = ("last", "label_free", "oracle")


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


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    """All results in a folder, by name.

    Raises
    ------
    ValueError
        If there is none.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    if not results:
        raise ValueError(f"{folder} holds no results: run the grid first (python -m deeptransfer grid NAME)")
    return results


def table(folder: str | Path) -> pd.DataFrame:
    """Mean, standard deviation (n − 1) over seeds and closed gap of each selection, in per cent.

    Rows are task, objective, norm and whatever else of the recipe varies. The closed gap is
    (accuracy − source only) / (oracle − source only), all three selected alike and trained alike; it is absent where
    the grid holds no source-only run or no oracle.
    """
    rows = []
    for result in load_results(folder):
        config = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in result["config"].items()}
        accuracy = {name: 100 * result["selections"][name]["accuracy"] for name in SELECTIONS}
        rows.append({"task": f"{config['source']}:{config['target']}", **config, **accuracy})
    runs = pd.DataFrame(rows)
    others = [k for k in runs if k not in ("task", "source", "target", "objective", "norm", "seed", *SELECTIONS)]
    keys = ["task", "objective", "norm", *(name for name in others if runs[name].nunique() > 1)]
    groups = runs.groupby(keys, sort=False)
    means = groups[list(SELECTIONS)].mean()
    cells = {(name, "mean"): means[name] for name in SELECTIONS}
    cells |= {(name, "sd"): groups[name].std() for name in SELECTIONS}
    alike = [name for name in ("network", "steps", "batch_size", "lr", "dtype") if name in keys]
    records: list[dict[str, Any]] = means.reset_index().to_dict("records")  # type: ignore[assignment]
    plain = {
        (row["task"], *(row[key] for key in alike)): row
        for row in records
        if row["objective"] == "source-only" and row["norm"] == "bn"
    }
    for name in SELECTIONS:
        gaps = []
        for row in records:
            target, rest = row["task"].partition(":")[2], [row[key] for key in alike]
            low, high = (plain.get((task, *rest), {}).get(name, np.nan) for task in (row["task"], f"{target}:{target}"))
            gaps.append(100 * (row[name] - low) / (high - low) if high != low else np.nan)
        cells[name, "gap"] = pd.Series(gaps, means.index)
    frame = pd.DataFrame(cells)[[(name, what) for name in SELECTIONS for what in ("mean", "sd", "gap")]]
    frame.insert(0, ("runs", ""), groups.size())
    return frame


def to_markdown(frame: pd.DataFrame) -> str:
    """A table of :func:`table` as Markdown: mean ± sd, and the closed gap in brackets."""
    names = [str(name) for name in frame.index.names]
    lines = [[*names, "runs", *(name.replace("_", "-") for name in SELECTIONS)], ["---"] * (len(names) + 4)]
    for key, row in zip(frame.index.to_list(), frame.to_dict("records"), strict=True):
        cells = [*(str(part) for part in key), str(row["runs", ""])]
        for name in SELECTIONS:
            mean, sd, gap = (row[name, what] for what in ("mean", "sd", "gap"))
            spread = "" if np.isnan(sd) else f" ± {sd:.1f}"
            cells.append(f"{mean:.1f}{spread}" + ("" if np.isnan(gap) else f" ({gap:.0f})"))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_json(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table of :func:`table` as a list of rows; None where there is no number."""
    rows = []
    for key, row in zip(frame.index.to_list(), frame.to_dict("records"), strict=True):
        record: dict[str, Any] = dict(zip(map(str, frame.index.names), key, strict=True)) | {"runs": row["runs", ""]}
        for name in SELECTIONS:
            values = {what: float(row[name, what]) for what in ("mean", "sd", "gap")}
            record[name] = {what: None if np.isnan(value) else value for what, value in values.items()}
        rows.append(record)
    return rows
