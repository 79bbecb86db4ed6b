"""What the launch buttons open: the notebooks, for machines where the book is not installed, such as Colab and Binder.

    python scripts/launch.py https://github.com/OWNER/BOOK v1.0.0 _build/launch

Each is the reader's notebook of scripts/reader.py behind a cell that fetches the book if the library is missing and
does nothing if it is there. Beside them lies the environment that Binder builds. The folder is published as the branch
that the buttons open.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

import nbformat
from cross_references import Book, published_at
from notebooks import BOOK, ROOT
from reader import make_all, write

MYST_NB = "myst-nb>=1"  # of all that builds the pages, what the notebooks import
SETUP = f"""\
# Where the book is not installed, fetch it and what it needs (a minute or two). At home this does nothing.
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("deeptransfer") is None:
    checkout = Path("checkout").resolve()
    if not checkout.exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", "{{tag}}", "{{url}}", checkout], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", checkout, "{MYST_NB}"], check=True)
    sys.path.insert(0, str(checkout / "src"))
    importlib.invalidate_caches()"""

# Binder has no GPU and little memory: from conda-forge, torch comes without CUDA, and Matplotlib without windows.
ENVIRONMENT = """\
channels: [conda-forge]
dependencies:
  - python=3.12
"""
CONDA_NAMES = {"torch": "pytorch-cpu", "matplotlib": "matplotlib-base"}


def prepare(notebook: nbformat.NotebookNode, url: str, tag: str) -> nbformat.NotebookNode:
    """Put the cell in front, in place; it has not been run, so the notebook says nothing of its output."""
    cell = nbformat.v4.new_code_cell(SETUP.format(url=url, tag=tag), id="setup", metadata={"tags": ["remove-cell"]})
    notebook.cells.insert(0, cell)
    return notebook


def environment() -> str:
    """``environment.yml``: what the library needs by ``pyproject.toml``, under conda-forge's names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [
        re.sub(r"^[\w-]+", lambda name: CONDA_NAMES.get(name[0], name[0]), need)
        for need in (*project["dependencies"], MYST_NB)
    ]
    return ENVIRONMENT + "".join(f"  - {need}\n" for need in needs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("url", help="of the repository")
    parser.add_argument("tag", help="tag or branch to fetch")
    parser.add_argument("folder", type=Path, help="where the copies go, laid out as the notebooks in the repository")
    arguments = parser.parse_args()
    for page, notebook in make_all(Book(BOOK, published_at(arguments.url)), solutions=True):
        write(prepare(notebook, arguments.url, arguments.tag), arguments.folder / "book" / f"{page}.ipynb")
    (arguments.folder / "environment.yml").write_text(environment(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
