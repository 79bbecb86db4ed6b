"""The page of results: tables in a reader's words, one for each task, narrow enough to be read."""

from __future__ import annotations

import re
import tomllib

import nbformat
from notebooks import BOOK, ROOT
from reader import glued_values

from deeptransfer.catalogue import label, methods

NOTEBOOK = nbformat.read(BOOK / "results.ipynb", as_version=4)
CODE_NAMES = {method.name for method in methods() if label(method.name) != method.name}
MOST_COLUMNS = 8


def tables() -> list[list[list[str]]]:
    """Cells of each line of each table that a cell shows."""
    shown = [
        output.data["text/markdown"]
        for cell in NOTEBOOK.cells
        for output in cell.get("outputs", [])
        if output.get("data", {}).get("text/markdown", "").startswith("|")
    ]
    return [[[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()] for text in shown]


def test_methods_are_called_as_readers_know_them() -> None:
    words = [*(cell for table in tables() for line in table for cell in line), *glued_values(NOTEBOOK).values()]
    parts = {part.strip("'* ") for text in words for part in re.split(r" · |, | > ", text)}
    assert "CDAN+E" in parts
    assert not parts & CODE_NAMES


def test_papers_numbers_stand_beside_each_task() -> None:
    published = tomllib.loads((ROOT / "data" / "published.toml").read_text(encoding="utf-8"))["table"]
    values = glued_values(NOTEBOOK)
    for short, task in (("mu", "mnist:usps"), ("um", "usps:mnist")):
        reported = [
            f"{row['accuracy'][table['tasks'].index(task)]:.1f} ({label(row['objective'])})"
            for table in published
            if task in table["tasks"]
            for row in table["rows"]
        ]
        assert sorted(values[f"results-papers-{short}"].strip("'").split(", ")) == sorted(reported)


def test_a_table_has_few_columns_and_no_task_is_missed() -> None:
    heads = [table[0] for table in tables()]
    assert max(map(len, heads)) <= MOST_COLUMNS
    assert sum("CDAN+E" in head for head in heads) >= 3  # two tasks on digits, the mean over those on photographs


def test_the_best_of_each_host_is_marked_once() -> None:
    found = [table for table in tables() if "CDAN+E" in table[0]]
    assert found
    for head, _, *lines in found:
        for place in range(1, len(head)):
            column = [line[place] for line in lines if line[place]]
            marked = [float(cell[2:].partition("**")[0]) for cell in column if cell.startswith("**")]
            assert marked == [max(float(re.search(r"\d+\.\d", cell)[0]) for cell in column)], head[place]
            assert not [cell for cell in column if cell.startswith("**") and "°" in cell]
