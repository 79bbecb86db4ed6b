"""Exercises in code: the stub that a reader starts from fails its check, the solution passes the same one.

nbval holds both outputs to what is stored; here, that both are there.
"""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from notebooks import BOOK, find_notebooks

CHAPTERS = [path for path in find_notebooks() if path.parent != BOOK]
MIN_EXERCISES, MIN_WITH_STUB = 4, 2
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: str(path.relative_to(BOOK)))


def attempts(path: Path) -> dict[str, list[tuple[bool, str]]]:
    """For each check: whether the cell is folded, and what it printed last, in the order of the notebook."""
    found: dict[str, list[tuple[bool, str]]] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream").splitlines()
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "attempt":
                entry = "hide-cell" in cell.metadata.get("tags", []), printed[-1] if printed else ""
                found.setdefault(ast.unparse(node.args[0]), []).append(entry)
    return found


@every_chapter
def test_chapter_has_exercises_to_write_and_to_think_about(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert sum(cell.source.count("{exercise}") for cell in cells if cell.cell_type == "markdown") >= MIN_EXERCISES
    assert len(attempts(path)) >= MIN_WITH_STUB


@every_chapter
def test_stub_fails_its_check_and_solution_passes_it(path: Path) -> None:
    for check, (stub, *rest) in attempts(path).items():
        assert not stub[0], f"the stub that {check} is given should be seen"
        assert stub[1].startswith("not yet: "), f"{check} does not refuse the stub"
        assert rest == [(True, "solved")], f"{check} needs one solution, in a folded cell, that it accepts"
