"""`scripts/launch.py`: a copy for elsewhere is the book's notebook with one cell before it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from launch import main, prepare
from notebooks import BOOK, find_notebooks

URL, TAG = "https://example.org/book", "v1.2.3"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the cell runs, without running it."""
    run: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: run.append(command))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return run


def setup_cell() -> str:
    return prepare(nbformat.v4.new_notebook(), URL, TAG).cells[0].source


def test_at_home_the_cell_does_nothing(commands: list[list[str]]) -> None:
    before = sys.path.copy()
    exec(setup_cell(), {})
    assert not commands
    assert sys.path == before


def test_elsewhere_the_cell_fetches_the_tag_and_makes_it_importable(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(setup_cell(), {})
    clone, install = commands
    assert clone[:2] == ["git", "clone"]
    assert TAG in clone
    assert clone[-2:] == [URL, "checkout"]
    assert install[1:4] == ["-m", "pip", "install"]
    assert sys.path[0] == "checkout/src"


def test_a_copy_is_the_notebook_behind_one_more_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launch.py", URL, TAG, str(tmp_path)])
    assert main() == 0
    copies = sorted(path.relative_to(tmp_path / "book") for path in tmp_path.rglob("*.ipynb"))
    assert copies == [path.relative_to(BOOK) for path in find_notebooks()]
    for name in copies:
        copy, own = (nbformat.read(folder / name, as_version=4) for folder in (tmp_path / "book", BOOK))
        assert copy.cells[1:] == own.cells
        assert own.cells[0].cell_type == "markdown"
        nbformat.validate(copy)
