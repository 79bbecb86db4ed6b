"""Equation, code, test: `book/equations.toml` knows every numbered equation, and what it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from equations import read_register
from notebooks import BOOK, ROOT, find_notebooks

ENTRIES = read_register(BOOK / "equations.toml")
LABEL = re.compile(r"^\$\$ *\((eq-[\w-]+)\)|^:label: *(eq-[\w-]+)", flags=re.M)


def labels_in(text: str) -> list[str]:
    return [first or second for first, second in LABEL.findall(text)]


def sources() -> dict[Path, str]:
    """The prose of every page."""
    texts = {path: path.read_text(encoding="utf-8") for path in BOOK.rglob("*.md")}
    for path in find_notebooks():
        cells = nbformat.read(path, as_version=4).cells
        texts[path] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return texts


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_labels_are_found_in_both_ways_of_writing() -> None:
    text = "Before\n\n$$\nx\n$$ (eq-one)\n\n```{math}\n:label: eq-two\nx\n```\n\nas {eq}`eq-one` and (eq-three) say"
    assert labels_in(text) == ["eq-one", "eq-two"]


def test_every_equation_has_its_entry_and_every_entry_its_equation() -> None:
    found = [label for text in sources().values() for label in labels_in(text)]
    assert sorted(found) == sorted(set(found)), "a label is used twice"
    assert not set(found) - set(ENTRIES), "equations without an entry in book/equations.toml"
    assert not set(ENTRIES) - set(found), "entries of book/equations.toml without an equation"


def test_every_reference_has_its_equation() -> None:
    """Sphinx says so too, but only where the whole book is built."""
    for path, text in sources().items():
        lost = set(re.findall(r"\{eq\}`(?:[^`<]*<)?(eq-[\w-]+)>?`", text)) - set(ENTRIES)
        assert not lost, f"{path.relative_to(BOOK)} refers to equations that are not there: {sorted(lost)}"


@pytest.mark.parametrize("label", ENTRIES)
def test_code_of_an_equation_can_be_imported(label: str) -> None:
    for name in ENTRIES[label].code:
        parts = name.split(".")
        assert parts[0] == "deeptransfer"
        found = import_module(".".join(parts[:2]))
        for part in parts[2:]:
            assert hasattr(found, part), f"{name} does not exist"
            found = getattr(found, part)
        assert callable(found)


@pytest.mark.parametrize("label", ENTRIES)
def test_tests_of_an_equation_exist(label: str) -> None:
    for name in ENTRIES[label].tests:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), f"{path} does not exist"
        if path.endswith(".ipynb"):
            text = "".join(cell.source for cell in nbformat.read(ROOT / path, as_version=4).cells)
            assert f"({label})" in text or f":label: {label}" in text, f"{label} is not taught in {path}"
            assert not function
        else:
            assert function.startswith("test_")
            assert function in functions_of(path), f"{path} has no {function}"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('code = ["deeptransfer.discrepancy.mmd2"]', "needs"),
        ('tests = ["tests/unit/test_discrepancy.py::test_mmd2_equals_the_loop"]', "needs"),
        ('cell = true\ntest = ["book/part2/mmd.ipynb"]', "unknown keys"),
    ],
)
def test_half_an_entry_is_refused(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "equations.toml"
    path.write_text(f"[eq-mmd]\n{table}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_register(path)
