"""What the launch buttons open: a copy is the reader's notebook with one cell before it, and the buttons lead to it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from cross_references import Book
from launch import environment, main, prepare
from launch_buttons import add_buttons
from notebooks import BOOK, ROOT, find_notebooks
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from reader import make_all

URL, TAG = "https://example.org/book", "v1.2.3"
THEME = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]["html_theme_options"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What the cell runs, without running it."""
    run: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: run.append([str(word) for word in command]))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def setup_cell() -> str:
    return prepare(nbformat.v4.new_notebook(), URL, TAG).cells[0].source


def test_at_home_the_cell_does_nothing(commands: list[list[str]]) -> None:
    before = sys.path.copy()
    exec(setup_cell(), {})
    assert not commands
    assert sys.path == before


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_the_cell_fetches_the_tag_and_makes_it_importable(commands: list[list[str]], tmp_path: Path) -> None:
    exec(setup_cell(), {})
    clone, install = commands
    checkout = str(tmp_path / "checkout")
    assert clone[:2] == ["git", "clone"]
    assert clone[clone.index("--branch") + 1] == TAG
    assert clone[-2:] == [URL, checkout]
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert install[install.index("-e") + 1] == checkout
    assert sys.path[0] == f"{checkout}/src"


@pytest.mark.usefixtures("elsewhere")
def test_a_second_try_does_not_stumble_over_the_checkout_of_the_first(
    commands: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "checkout").mkdir()
    exec(setup_cell(), {})
    assert [command[0] for command in commands] == [sys.executable]


def test_a_copy_is_the_readers_notebook_behind_one_more_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launch.py", URL, TAG, str(tmp_path)])
    assert main() == 0
    copies = sorted(path.relative_to(tmp_path / "book") for path in tmp_path.rglob("*.ipynb"))
    assert copies == [path.relative_to(BOOK) for path in find_notebooks()]
    made = dict(make_all(Book(BOOK), solutions=True))
    for name in copies:
        copy = nbformat.read(tmp_path / "book" / name, as_version=4)
        assert copy.cells[1:] == made[name.with_suffix("").as_posix()].cells
        nbformat.validate(copy)
    others = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".ipynb"}
    assert others == {"environment.yml"}  # a requirements.txt or pyproject.toml would be what Binder installs


def test_the_copies_of_a_repository_on_github_lead_to_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Colab a notebook cannot lead to the one beside it."""
    monkeypatch.setattr(sys, "argv", ["launch.py", "https://github.com/owner/book", TAG, str(tmp_path)])
    assert main() == 0
    text = (tmp_path / "book" / "part2" / "mmd.ipynb").read_text(encoding="utf-8")
    assert "https://owner.github.io/book/part2/dan.html" in text
    assert "dan.ipynb" not in text


def test_binders_environment_has_what_the_library_needs_and_no_cuda() -> None:
    """Else the first cell would fetch gigabytes onto a machine that cannot hold them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python, *rest = yaml.safe_load(environment())["dependencies"]
    *there, myst_nb = map(Requirement, rest)
    assert python.removeprefix("python=") in SpecifierSet(project["requires-python"])
    needs = [Requirement(need) for need in project["dependencies"]]
    assert [need.specifier for need in there] == [need.specifier for need in needs]
    renamed = {need.name: other.name for need, other in zip(needs, there, strict=True) if need.name != other.name}
    assert renamed == {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}
    assert myst_nb.name == "myst-nb"


def test_the_buttons_open_the_copy_on_binder_and_on_colab(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
    nbformat.write(notebook, source / "index.ipynb")
    options = {**THEME, "repository_url": "https://github.com/owner/book"}
    (source / "conf.py").write_text(
        f"""extensions = ["myst_nb", "launch_buttons"]
html_theme = "sphinx_book_theme"
html_theme_options = {options!r}
nb_execution_mode = "off"
""",
        encoding="utf-8",
    )
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "html", source, tmp_path / "site"],
        env={**os.environ, "PYTHONPATH": str(BOOK / "_ext")},
        check=True,
    )
    page = BeautifulSoup((tmp_path / "site" / "index.html").read_text(encoding="utf-8"), "html.parser")
    buttons = {link["href"] for link in page.select(".dropdown-launch-buttons a")}
    assert buttons == {
        "https://mybinder.org/v2/gh/owner/book/launch?urlpath=lab/tree/book/index.ipynb",
        "https://colab.research.google.com/github/owner/book/blob/launch/book/index.ipynb",
    }


@pytest.mark.parametrize("url", ["", "https://example.org/owner/book"])
def test_without_an_address_on_github_there_are_no_buttons(url: str) -> None:
    config = SimpleNamespace(html_theme_options={**THEME, "repository_url": url})
    add_buttons(None, config)
    assert not config.html_theme_options.get("launch_buttons")
