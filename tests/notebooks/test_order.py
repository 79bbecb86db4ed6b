"""A reader runs cells twice, and out of their order: no cell may depend on how often, or on what ran between.

What is checked here is read from the code. ``test_again.py`` runs every notebook a second time, backwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from notebook_names import Cell, read_cell
from notebooks import BOOK, find_notebooks
from solutions import strip


def read_cells(path: Path) -> list[Cell]:
    cells = nbformat.read(path, as_version=4).cells
    return [read_cell(cell.source) for cell in cells if cell.cell_type == "code"]


def find_ambiguous(cells: Sequence[Cell]) -> set[str]:
    """Names that mean different things to a cell or function, depending on what was run before it."""
    times = Counter(name for cell in cells for name in cell.bound - cell.imported)
    wanted = {name for cell in cells for name in cell.from_other_cells | cell.in_functions}
    return {name for name in wanted if times[name] > 1}


def find_changed(cells: Sequence[Cell]) -> set[str]:
    """Objects that a cell changes in place though another cell made them."""
    imported = {name for cell in cells for name in cell.imported}  # np.sort(x) does not change np
    return {name for cell in cells for name in cell.changed} - imported


def find_shared_generators(cells: Sequence[Cell]) -> set[str]:
    """Random generators that a cell takes from another one: what they draw next depends on what drew before."""
    made = {name for cell in cells for name in cell.generators}
    return {name for cell in cells for name in cell.from_other_cells & made}


def find_missing(cells: Sequence[Cell]) -> set[str]:
    """Names that a cell or a function takes from cells that are not there, or not before it."""
    known: set[str] = set()
    missing: set[str] = set()
    for cell in cells:
        missing |= cell.from_other_cells - known - cell.bound
        known |= cell.bound
    return missing


every_notebook = pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: str(path.relative_to(BOOK)))


@every_notebook
def test_a_name_that_cells_share_has_one_meaning(path: Path) -> None:
    assert not find_ambiguous(read_cells(path))


@every_notebook
def test_a_cell_that_draws_makes_its_own_generator(path: Path) -> None:
    assert not find_shared_generators(read_cells(path))


@every_notebook
def test_no_cell_changes_what_another_made(path: Path) -> None:
    """A network trained in place is trained twice if the cell is run twice."""
    assert not find_changed(read_cells(path))


@every_notebook
def test_no_cell_needs_what_a_solution_binds(path: Path) -> None:
    """In readers' notebooks the code of a solution stands in the text, and classes get none at all."""
    notebook = nbformat.read(path, as_version=4)
    strip(notebook)
    assert not find_missing([read_cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"])


def test_what_is_missing() -> None:
    assert find_missing(list(map(read_cell, ["x = 1\ny = x", "def f():\n    return z + x", "print(y)", "z = 2"]))) == {"z"}


@pytest.mark.parametrize(
    ("sources", "faults"),
    [
        (["x = 1\nprint(x)", "x = 2\nprint(x)"], set()),  # each cell reads what it has bound itself
        (["x = 1", "x = 2", "print(x)"], {"x"}),
        (["x = 1\nf = lambda: x", "x = 2"], {"x"}),  # whoever calls f gets either
        (["def f():\n    x = 1\n    return x", "x = 2", "x = 3\nprint(x)"], set()),
        (["x = 1", "x = [x for x in range(3)]\nprint(x)"], set()),
    ],
)
def test_ambiguous_names_are_found(sources: list[str], faults: set[str]) -> None:
    assert find_ambiguous([read_cell(source) for source in sources]) == faults


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("d[0] = 1", {"d"}),
        ("d = {}\nd[0] = 1", set()),
        ("n += 1", {"n"}),
        ("net.train()", {"net"}),
        ("import numpy as np\nnp.sort(x)", set()),
        ("make_net().train()", set()),
        ("fit(net, pair, objective)", {"net", "objective"}),
        ("fit(copy(net), pair)", set()),
        ("def f(net):\n    net.eval()", set()),
        ("for net in nets:\n    net.eval()", set()),
    ],
)
def test_changes_in_place_are_found(source: str, changed: set[str]) -> None:
    assert find_changed([read_cell(source)]) == changed


def test_shared_generators_are_found() -> None:
    cells = [read_cell(source) for source in ("rng = np.random.default_rng(0)", "x = rng.normal(size=3)")]
    assert find_shared_generators(cells) == {"rng"}
