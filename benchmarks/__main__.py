"""``python -m benchmarks [--only NAME] [--json PATH]``: every ``bench_*.py`` beside this file as a Markdown table."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torchvision

from benchmarks.timing import device


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    kind = torch.cuda.get_device_name() if device().type == "cuda" else _processor()
    return {
        "device": kind,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def collect(only: str | None = None) -> list[dict]:
    """The rows of every ``bench_*.py``, or of the one named."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    chosen = [name for name in names if only in (None, name.removeprefix("bench_"))]
    if not chosen:
        raise SystemExit(f"no benchmark {only!r}: choose from {[name.removeprefix('bench_') for name in names]}")
    # A process each: what one leaves in the allocator can triple the time of a large output in the next.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        tables = [pool.submit(importlib.import_module(f"benchmarks.{name}").rows) for name in chosen]
        return [row for table in tables for row in table.result()]


def markdown(rows: list[dict]) -> str:
    """The rows as a table."""
    lines = ["| what | ours | baseline | ratio | target |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(f"| {row['what']} | {row['ours']} | {row['baseline']} | {ratio} | {row['target']} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one benchmark, such as discrepancy")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the table there as well")
    arguments = parser.parse_args()
    rows, where = collect(arguments.only), machine()
    print(", ".join(f"{key} {value}" for key, value in where.items()), end="\n\n")
    print(markdown(rows))
    if arguments.json:
        text = json.dumps({"machine": where, "rows": rows}, ensure_ascii=False, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
