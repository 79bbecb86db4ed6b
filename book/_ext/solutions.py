"""With ``SOLUTIONS=no`` in the environment: the book without the solutions of its exercises, and without their cells.

The notebooks that the pages offer for download lose them too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx_exercise.nodes import solution_node


def is_hidden_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and "tag_hide-cell" in node["classes"]


def remove_solutions(app: Sphinx, document: nodes.document) -> None:
    """Remove each solution and the folded cells right behind it."""
    for solution in list(document.findall(solution_node)):
        parent, place = solution.parent, solution.parent.index(solution)
        while place + 1 < len(parent) and is_hidden_cell(parent[place + 1]):
            parent.pop(place + 1)
        parent.pop(place)


SOLUTION = re.compile(r"^(`{3,}|:{3,})\{solution\}.*?^\1 *$\n*", flags=re.MULTILINE | re.DOTALL)


def strip(notebook: nbformat.NotebookNode) -> None:
    """The same for a notebook, in place."""
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


def strip_downloads(app: Sphinx, exception: Exception | None) -> None:
    """Strip the notebooks beside the pages."""
    if exception is None:
        for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            strip(notebook)
            nbformat.write(notebook, path)


def setup(app: Sphinx) -> dict[str, Any]:
    if os.environ.get("SOLUTIONS") == "no":
        app.connect("doctree-read", remove_solutions, priority=100)
        app.connect("build-finished", strip_downloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
