"""With ``SOLUTIONS=no`` in the environment: the book without the solutions of its exercises, and without their cells.

The notebooks that the pages offer for download lose them too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
from sphinx.application import Sphinx

SOLUTION = re.compile(r"^(`{3,}|:{3,})\{solution\}.*?^\1 *$\n*", flags=re.MULTILINE | re.DOTALL)


def strip(notebook: nbformat.NotebookNode) -> None:
    """Remove each solution and the folded cells right behind it, in place."""
    kept, behind = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks = list(SOLUTION.finditer(cell.source))
            behind = bool(blocks) and blocks[-1].end() == len(cell.source)
            cell.source = SOLUTION.sub("", cell.source).rstrip()
            if not cell.source:
                continue
        elif behind and "hide-cell" in cell.metadata.get("tags", []):
            continue
        else:
            behind = False
        kept.append(cell)
    notebook.cells = kept


def strip_source(app: Sphinx, page: str, source: list[str]) -> None:
    """What the page is made from."""
    if app.env.doc2path(page).endswith(".ipynb"):
        notebook = nbformat.reads(source[0], as_version=4)
        strip(notebook)
        source[0] = nbformat.writes(notebook)


def strip_downloads(app: Sphinx, exception: Exception | None) -> None:
    """The copies beside the pages, which Sphinx makes from the files."""
    if exception is None:
        for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            strip(notebook)
            nbformat.write(notebook, path)


def setup(app: Sphinx) -> dict[str, Any]:
    if os.environ.get("SOLUTIONS") == "no":
        app.connect("source-read", strip_source)
        app.connect("build-finished", strip_downloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
