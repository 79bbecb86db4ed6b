"""The download button of a page gives the reader's notebook, whose numbers and links are those of the pages."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from cross_references import Book
from notebooks import BOOK, find_notebooks
from reader import MARK, make

NAMES = [path.relative_to(BOOK).with_suffix("").as_posix() for path in find_notebooks()]
every_notebook = pytest.mark.parametrize("name", NAMES)
ADDRESS = "https://example.org/"


def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def text_of(copy: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in copy.cells if cell.cell_type == "markdown")


@every_notebook
def test_the_button_gives_the_readers_notebook(site: Path, name: str) -> None:
    page = site / f"{name}.html"
    (target,) = {link["href"] for link in parsed(page).select('a[href$=".ipynb"].dropdown-item, a.btn[href$=".ipynb"]')}
    offered = nbformat.read(page.parent / target, as_version=4)
    assert offered.metadata[MARK]["chapter"] == name
    assert "{glue" not in text_of(offered)


@every_notebook
def test_equations_exercises_and_figures_have_the_numbers_of_the_page(site: Path, name: str) -> None:
    page = parsed(site / f"{name}.html")
    text = text_of(nbformat.read(site / "_sources" / f"{name}.ipynb", as_version=4))
    equations = [number.text.strip("()\uf0c1# ") for number in page.select(".eqno")]
    assert re.findall(r"\\tag\{([\d.]+)\}", text) == equations
    exercises = [" ".join(title.text.split()) for title in page.select(".exercise > .admonition-title")]
    assert re.findall(r"^### (Exercise .*)$", text, flags=re.MULTILINE) == exercises
    figures = [caption.text.partition(":")[0] for caption in page.select(".figure-number")]
    assert re.findall(r"^\*\*(Figure [\d.]+):?\*\*", text, flags=re.MULTILINE) == figures
    number = page.select_one("h1 > .section-number")
    title = text.partition("\n")[0]
    assert title.startswith(f"# {number.text.strip()} " if number else "# ")
    assert number or not re.match(r"# \d", title)


@every_notebook
def test_links_into_the_published_book_find_their_place(site: Path, name: str) -> None:
    copy = make(nbformat.read(BOOK / f"{name}.ipynb", as_version=4), name, Book(BOOK, ADDRESS))
    targets = set(re.findall(rf"\]\({ADDRESS}([^)\s]+)\)", text_of(copy)))
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (site / path).exists(), target
        assert not anchor or parsed(site / path).find(id=anchor), target
