"""What was run, where, and what it took: tables from the notebooks' metadata, the stored results and the data register.

Directives ``notebook-status``, ``result-status``, ``version-status`` and ``data-sources``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from packaging.requirements import Requirement
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deeptransfer import __version__
from deeptransfer.catalogue import CHAPTERS
from tables import Cell, link_to_page, make_table

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
PINS = ROOT / "requirements.txt"
SHOWN = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "jupyter-book",
)


class NotebookStatus(SphinxDirective):
    """Time and memory of each notebook, the chapters first."""

    def run(self) -> list[nodes.Node]:
        rows, seconds = [], 0.0
        source = Path(self.env.srcdir)
        others = sorted(
            page for page in self.env.found_docs - set(CHAPTERS.values()) if (source / f"{page}.ipynb").exists()
        )
        for page in [page for page in CHAPTERS.values() if page in self.env.found_docs] + others:
            path = source / f"{page}.ipynb"
            self.env.note_dependency(str(path))
            notebook = json.loads(path.read_text(encoding="utf-8"))
            stored, cells = notebook["metadata"]["stored"], notebook["cells"]
            code = sum(cell["cell_type"] == "code" for cell in cells)
            widened = sum("tolerance" in cell["metadata"] for cell in cells)
            seconds += stored["seconds"]
            rows.append(
                (
                    link_to_page(page, self.env.docname),
                    *(
                        str(fact)
                        for fact in (
                            code,
                            widened,
                            f"{stored['seconds']:.1f} s",
                            f"{stored['peak_mib']} MiB",
                        )
                    ),
                )
            )
        rows.append(("together", "", "", f"{seconds:.0f} s", ""))
        titles = (
            "Notebook",
            "Code cells",
            "with a wider tolerance",
            "Processor time",
            "Peak memory",
        )
        return [make_table(titles, rows, "numbers")]


def summaries(results: Path) -> Iterator[tuple[str, ...]]:
    """One line for each folder of stored runs."""
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
        if not runs:
            continue
        seconds = sum(run.get("seconds", 0) for run in runs)
        yield (
            folder.name,
            str(len(runs)),
            str(len({run["config"].get("seed") for run in runs})),
            f"{seconds / 60:.0f} min",
            _all({f"{run.get('device', 'cpu')}, {run.get('threads', 1)} thread" for run in runs}),
            _all({run["versions"]["torch"] for run in runs}),
        )


def _all(values: set[str]) -> str:
    return " / ".join(sorted(values))


class ResultStatus(SphinxDirective):
    """The stored runs of each grid."""

    def run(self) -> list[nodes.Node]:
        titles = ("Grid", "Runs", "Seeds", "Time", "Device", "torch")
        return [make_table(titles, summaries(DATA / "results"), "numbers")]


def pins(requirements: str) -> Iterator[tuple[str, str]]:
    """Name and pinned version of each package that this version of Python and this system get."""
    for line in requirements.splitlines():
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate():
            yield pin.name, str(pin.specifier).removeprefix("==")


class VersionStatus(SphinxDirective):
    """What the pins are; a build needs few of these packages."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(PINS))
        versions = dict(pins(PINS.read_text(encoding="utf-8")))
        rows = [("deeptransfer", __version__), *((name, versions[name]) for name in SHOWN)]
        return [make_table(("", "Version"), rows, "numbers")]


class DataSources(SphinxDirective):
    """Title, licence and origin of each real data set that the library can read."""

    def run(self) -> list[nodes.Node]:
        register = DATA / "datasets.toml"
        self.env.note_dependency(str(register))
        rows: list[tuple[Cell, ...]] = []
        for facts in tomllib.loads(register.read_text(encoding="utf-8")).values():
            title = nodes.reference("", facts["title"], refuri=facts["page"])
            rows.append((title, facts["licence"], facts["citation"]))
        return [make_table(("Data set", "Licence", "To cite"), rows)]


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in (
        ("notebook-status", NotebookStatus),
        ("result-status", ResultStatus),
        ("version-status", VersionStatus),
        ("data-sources", DataSources),
    ):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
