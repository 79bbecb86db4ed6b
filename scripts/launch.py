"""Copies of the notebooks that run where the book is not installed, such as on Colab.

    python scripts/launch.py https://github.com/OWNER/BOOK v1.0.0 _build/launch

Each copy begins with a cell that fetches the book if the library is missing and does nothing if it is there. The
book's own notebooks stay without it: their stored outputs belong to their code. The copies are published on the branch
that the launch buttons open.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from notebooks import BOOK, find_notebooks

SETUP = """\
# Where the book is not installed, fetch it and what it needs (a minute or two). At home this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("deeptransfer") is None:
    subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", "{tag}", "{url}", "checkout"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "checkout", "myst-nb>=1"], check=True)
    sys.path.insert(0, "checkout/src")"""


def prepare(notebook: nbformat.NotebookNode, url: str, tag: str) -> nbformat.NotebookNode:
    """Put the cell in front, in place; it has not been run, so the notebook says nothing of its output."""
    cell = nbformat.v4.new_code_cell(SETUP.format(url=url, tag=tag), id="setup", metadata={"tags": ["remove-cell"]})
    notebook.cells.insert(0, cell)
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("url", help="of the repository")
    parser.add_argument("tag", help="tag or branch to fetch")
    parser.add_argument("folder", type=Path, help="where the copies go, laid out as the notebooks in the repository")
    arguments = parser.parse_args()
    for path in find_notebooks():
        notebook = prepare(nbformat.read(path, as_version=4), arguments.url, arguments.tag)
        copy = arguments.folder / "book" / path.relative_to(BOOK)
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
