"""Each notebook run from top to bottom and then, in the same kernel, from bottom to top: every output stays the same.

It takes twice the time of the notebooks, so it runs where ``-m again`` asks for it, once a week.
"""

from __future__ import annotations

import copy
from pathlib import Path

import nbformat
import pytest
from notebook_comparison import Tolerance, differences
from notebooks import BOOK, find_notebooks, kernel


@pytest.mark.again
@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: str(path.relative_to(BOOK)))
def test_cells_run_again_in_reverse_give_the_stored_outputs(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    running = copy.deepcopy(stored)
    cells = [i for i, cell in enumerate(running.cells) if cell.cell_type == "code"]
    changed = {}
    with kernel(running, path.parent) as client:
        for i in cells + cells[::-1]:
            client.execute_cell(running.cells[i], i, execution_count=None)
            tolerance = Tolerance.of(stored.cells[i].metadata)
            if found := differences(stored.cells[i].outputs, running.cells[i].outputs, tolerance):
                changed[running.cells[i].source] = found
    assert not changed
