"""A reader who trains for a fraction of the steps reaches the end of every notebook, and is told what is different.

It runs every notebook, so it runs where ``-m again`` asks for it, once a week.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from notebooks import BOOK, CHANGED, find_notebooks, kernel

# As if each `steps=200, every=25` were `steps=8, every=1`: as many probes, but next to no training.
SHORT = """
import deeptransfer.training as _training

_whole = _training.fit

def _short(network, pair, objective, steps, *args, every=None, **options):
    part = every or 25
    return _whole(network, pair, objective, max(1, steps // part), *args, every=every and 1, **options)

_training.fit = _short
"""


def trains(notebook: nbformat.NotebookNode) -> bool:
    return any("from deeptransfer.training import" in cell.source for cell in notebook.cells)


@pytest.mark.again
@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: str(path.relative_to(BOOK)))
def test_a_changed_recipe_is_told_and_the_notebook_goes_on(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if not trains(notebook):
        pytest.skip("nothing is trained by the library here")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SHORT))
    with kernel(notebook, path.parent) as client:
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
    told = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if CHANGED in o.get("text", "")]
    assert told
