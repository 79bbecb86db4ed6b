"""Exercises in code: the stub that a reader starts from fails its check, the solution passes the same one.

nbval holds both outputs to what is stored; here, that both are there, and that checks refuse plausible wrong answers.
These are in the folder ``wrong_answers``, a file for each chapter. A function there is named by the stub that it stands
for and by what is wrong, ``mmd2_with__keeps_the_diagonal``, and reads the names of the notebook. Of the notebook only
those statements are run on which the check depends.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_names import Cell, read_cell
from notebooks import BOOK, find_notebooks

CHAPTERS = [path for path in find_notebooks() if path.parent != BOOK]
WRONG_ANSWERS = Path(__file__).parent / "wrong_answers"
MIN_EXERCISES, MIN_WITH_STUB = 4, 2
METHODS = [path for path in CHAPTERS if path.parent.name != "part1" and path.stem != "everything"]
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: str(path.relative_to(BOOK)))


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def attempts_in(source: str) -> list[tuple[str, str]]:
    """Check and answer of each attempt, by their names."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        (ast.unparse(call.args[0]), ast.unparse(call.args[1])) for call in calls if ast.unparse(call.func) == "attempt"
    ]


def attempts(path: Path) -> dict[str, list[tuple[bool, str]]]:
    """For each check: whether the cell is folded, and what it printed last, in the order of the notebook."""
    found: dict[str, list[tuple[bool, str]]] = {}
    for cell in code_cells(path):
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream").splitlines()
        for check, _ in attempts_in(cell.source):
            entry = "hide-cell" in cell.metadata.get("tags", []), printed[-1] if printed else ""
            found.setdefault(check, []).append(entry)
    return found


def stubs(path: Path) -> dict[str, str]:
    """The check of each stub."""
    return {
        answer: check
        for cell in code_cells(path)
        if "hide-cell" not in cell.metadata.get("tags", [])
        for check, answer in attempts_in(cell.source)
    }


@dataclass(frozen=True)
class Statement:
    """A statement at the top level of a notebook, and what it does with names."""

    cell: int
    source: str
    names: Cell


def statements(path: Path) -> list[Statement]:
    return [
        Statement(place, source, read_cell(source))
        for place, cell in enumerate(code_cells(path))
        for source in map(ast.unparse, ast.parse(cell.source).body)
    ]


def needed(parts: Sequence[Statement], names: Iterable[str], given: Iterable[str] = ()) -> list[str]:
    """Those statements, in their order, that bind or change the names, and what they depend on in turn.

    A name that a cell binds itself is its own. Any other is bound by one cell, as the test of their order makes sure.
    """
    kept: set[int] = set()
    wanted: list[tuple[str, int | None]] = [(name, None) for name in names]
    while wanted:
        name, cell = wanted.pop()
        binding = {part.cell for part in parts if name in part.names.bound}
        for place, part in enumerate(parts):
            concerned = part.cell == cell if cell in binding else name not in given
            if concerned and place not in kept and name in part.names.bound | part.names.changed:
                kept.add(place)
                wanted += [(other, part.cell) for other in part.names.from_other_cells | part.names.in_functions]
    return [parts[place].source for place in sorted(kept)]


def wrong_answers(path: Path) -> str:
    file = WRONG_ANSWERS / f"{path.stem}.py"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def names_of_wrong_answers(path: Path) -> list[str]:
    kinds = ast.FunctionDef, ast.ClassDef
    functions = [node.name for node in ast.parse(wrong_answers(path)).body if isinstance(node, kinds)]
    return [name for name in functions if "__" in name.strip("_")]


@pytest.fixture(scope="module")
def scopes() -> dict[Path, dict[str, Any]]:
    return {}


def scope_of(path: Path, scopes: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """The names of a chapter on which its checks, its solutions and the wrong answers depend."""
    if path not in scopes:
        parts = statements(path)
        wrong = read_cell(wrong_answers(path))
        found = stubs(path)
        names = {*found.values(), *(f"{stub}_solved" for stub in found), *wrong.from_other_cells, *wrong.in_functions}
        scope: dict[str, Any] = {}
        exec("\n".join(needed(parts, names - wrong.bound, wrong.bound)), scope)
        exec(wrong_answers(path), scope)
        scopes[path] = scope
    return scopes[path]


@every_chapter
def test_chapter_has_exercises_to_write_and_to_think_about(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert sum(cell.source.count("{exercise}") for cell in cells if cell.cell_type == "markdown") >= MIN_EXERCISES
    assert len(attempts(path)) >= MIN_WITH_STUB


@pytest.mark.parametrize("path", METHODS, ids=lambda path: str(path.relative_to(BOOK)))
def test_chapter_has_the_reader_write_its_method(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    main = [i for i, cell in enumerate(cells) if "\n**Main exercise: write " in cell.source]
    assert len(main) == 1
    assert attempts_in(cells[main[0] + 1].source), "the stub and its check stand below the question"


@every_chapter
def test_stub_fails_its_check_and_solution_passes_it(path: Path) -> None:
    for check, (stub, *rest) in attempts(path).items():
        assert not stub[0], f"the stub that {check} is given should be seen"
        assert stub[1].startswith("not yet: "), f"{check} does not refuse the stub"
        assert rest == [(True, "solved")], f"{check} needs one solution, in a folded cell, that it accepts"


@every_chapter
def test_solutions_pass_by_themselves(path: Path, scopes: dict[Path, dict[str, Any]]) -> None:
    """Without this, a wrong answer might be refused because its surroundings are incomplete."""
    scope = scope_of(path, scopes)
    for stub, check in stubs(path).items():
        scope[check](scope[f"{stub}_solved"])


@every_chapter
def test_wrong_answers_are_refused_and_told_why(path: Path, scopes: dict[Path, dict[str, Any]]) -> None:
    scope, checks = scope_of(path, scopes), stubs(path)
    accepted, untold, broken = [], [], {}
    for name in names_of_wrong_answers(path):
        try:
            scope[checks[name.partition("__")[0]]](scope[name])
        except AssertionError as error:
            if not str(error):
                untold.append(name)
        except Exception as error:
            broken[name] = repr(error)
        else:
            accepted.append(name)
    assert not accepted
    assert not untold, "a check says nothing of these"
    assert not broken, "these do not run, so they say nothing of the check"


@every_chapter
def test_every_check_meets_a_wrong_answer(path: Path) -> None:
    met = {name.partition("__")[0] for name in names_of_wrong_answers(path)}
    assert met == set(stubs(path))


@pytest.mark.parametrize(
    ("sources", "names", "kept"),
    [
        (["x = 1", "y = 2\nz = x + y\nprint(z)"], {"z"}, ["x = 1", "y = 2", "z = x + y"]),
        (["x = []\nx.append(1)", "x = 2\ny = x"], {"y"}, ["x = 2", "y = x"]),
        (["x = []\nx.append(1)\nz = 3", "y = x"], {"y"}, ["x = []", "x.append(1)", "y = x"]),
        (
            ["def f():\n    return g()", "def g():\n    return 1"],
            {"f"},
            ["def f():\n    return g()", "def g():\n    return 1"],
        ),
        (["slow = 1", "y = slow"], {"y"}, ["slow = 1", "y = slow"]),
    ],
)
def test_statements_that_a_name_needs(sources: list[str], names: set[str], kept: list[str]) -> None:
    parts = [
        Statement(cell, ast.unparse(node), read_cell(ast.unparse(node)))
        for cell, source in enumerate(sources)
        for node in ast.parse(source).body
    ]
    assert needed(parts, names) == kept
    assert not needed(parts, names, given=names)
    assert "slow = 1" not in needed(parts, names, given={"slow"})
