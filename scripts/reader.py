"""Make readers' notebooks: the chapters in plain Markdown, to read, run and change in any notebook viewer.

    python scripts/reader.py                            all, into notebooks/
    python scripts/reader.py --without-solutions        without the solutions of the exercises
    python scripts/reader.py --into FOLDER --replace    over whatever is there

At the top stands how to use it; before a cell that takes long what it does, and about how long.

Text is as on the built page: numbers stand in the sentences, equations and exercises have their numbers, answers to
predictions and solutions are folded. Cells that the page hides or that give an answer away are collapsed, and so is the
check of an exercise, in a cell of its own.
A copy that a reader has changed is never overwritten: the new version then lies beside it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml
from cross_references import Book, published_at
from nbformat import NotebookNode
from notebooks import BOOK, ROOT, find_notebooks, shows_a_picture
from plain_markdown import Context, Part, convert, escape, exercise_name, fold, split_solutions

from deeptransfer.pictures import STYLE, picture_html

sys.path.append(str(BOOK / "_ext"))
from checks import split_check

FOLDER = ROOT / "notebooks"
GLUED = "application/papermill.record/text/plain"
YOURS = """\
*This copy is yours. Shift+Enter runs a cell; a grey bar is the code of a figure or the check of an exercise, and a
click opens it. Change what you like: numbers in the text stay those of the book's run, those of your own stand below
the cells. The cells need the book's library and its stored results: where an import fails, get the book's folder and
open the notebook there with `make lab`.*"""
MARK = "reader"  # in the metadata of a copy: what was written
ANSWER = "fold-answer"  # gives the answer to a prediction away
HIDES_SOURCE = {"hide-input", "remove-input", "hide-cell", "remove-cell", ANSWER}
HIDES_OUTPUTS = {"hide-output", "remove-output", "hide-cell", "remove-cell", ANSWER}
BET = "**The numbers, after you have bet**, are in the cells below: unfold them."


def glued_values(notebook: NotebookNode) -> dict[str, str]:
    """What the cells gave to names for the text, as stored."""
    return {
        output.metadata["scrapbook"]["name"]: output.data[GLUED]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if GLUED in output.get("data", {})
    }


def make(notebook: NotebookNode, page: str, book: Book, solutions: bool = True) -> NotebookNode:
    """The reader's notebook of a chapter."""
    context = Context(book, page, glued_values(notebook))
    cells = list(_cells(notebook, context, solutions))
    opening, heading, rest = cells[0].source.partition("\n## ")
    if number := book.pages[page].number:
        opening = opening.replace("# ", f"# {number}. ", 1)
    cells[0].source = f"{opening.rstrip()}\n\n{YOURS}" + (f"\n{heading}{rest}" if heading else "")
    if context.cited:
        cells.append(_text(f"## Bibliography\n\n{book.bibliography(context.cited)}", "bibliography"))
    metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info") if key in notebook.metadata}
    made = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    made.metadata[MARK] = {"chapter": page, "text": text_hash(made), "version": _digest(nbformat.writes(made))}
    return made


def _cells(notebook: NotebookNode, context: Context, solutions: bool) -> Iterator[NotebookNode]:
    chapter, figures = context.book.pages[context.page].number, 0
    rest = deque(notebook.cells)
    told = False
    while rest:
        cell = rest.popleft()
        if words := what_it_does(cell):
            yield _text(words, cell.id, "does")
        if cell.cell_type == "code":
            if _has_tag(cell, ANSWER) and not told:
                yield _text(BET, cell.id, "bet")
            told = _has_tag(cell, ANSWER)
            yield from _code(cell)
            if shows_a_picture(cell) and (chapter or cell.metadata.get("caption")):
                figures += 1
                number = f"{chapter}.{figures}" if chapter else f"{figures}"
                yield _text(_caption(f"Figure {number}", cell), cell.id, "figure")
            continue
        told = False
        parts = split_solutions(cell.source)
        for count, part in enumerate(parts):
            if not part.solves:
                yield _text(convert(part.text, context), cell.id, count)
                continue
            folded = []
            while part is parts[-1] and rest and _has_tag(rest[0], "hide-cell"):
                folded.append(rest.popleft())
            if solutions:
                figures += sum(map(shows_a_picture, folded))
                yield _text(_solution(part, folded, context), cell.id, count)
                yield nbformat.v4.new_code_cell(id=f"{cell.id}-{count}-yours")


def _has_tag(cell: NotebookNode, tag: str) -> bool:
    return cell.cell_type == "code" and tag in cell.metadata.get("tags", [])


def _text(source: str, name: str, ending: str | int = 0) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source, id=f"{name}-{ending}" if ending else name)


def _caption(number: str, cell: NotebookNode) -> str:
    words = cell.metadata.get("caption", "")
    return f"**{number}:** {escape(words)}" if words else f"**{number}**"


def _solution(part: Part, cells: list[NotebookNode], context: Context) -> str:
    """Words, code and what the code prints, behind one line."""
    blocks = [convert(part.text, context)]
    for cell in cells:
        blocks.append(f"```python\n{cell.source}\n```")
        if printed := "".join(output.text for output in cell.outputs if output.output_type == "stream").rstrip():
            blocks.append(f"It prints\n\n```text\n{printed}\n```")
    return fold(f"Solution of {exercise_name(part.solves, context)}", "\n\n".join(filter(None, blocks)))


def _code(cell: NotebookNode) -> Iterator[NotebookNode]:
    """The same code, collapsed as each viewer has it; what is glued stands in the text.

    The check of an exercise is a collapsed cell of its own before the stub, whose cell calls it.
    """
    tags = set(cell.metadata.get("tags", []))
    stub, check = (cell.source, "") if tags & HIDES_SOURCE else split_check(cell.source)
    if check:
        yield nbformat.v4.new_code_cell(check, id=f"{cell.id}-check", metadata=_collapsed({"hide-input"}))
    outputs = [_described(output, cell) for output in cell.outputs if GLUED not in output.get("data", {})]
    yield nbformat.v4.new_code_cell(
        stub, id=cell.id, metadata=_collapsed(tags), outputs=outputs, execution_count=cell.execution_count
    )


def _collapsed(tags: set[str]) -> dict[str, object]:
    """The metadata of a cell with these tags."""
    metadata: dict[str, object] = {"tags": sorted(tags)} if tags else {}
    if hidden := {
        key: True for key, hides in (("source_hidden", HIDES_SOURCE), ("outputs_hidden", HIDES_OUTPUTS)) if tags & hides
    }:
        metadata["jupyter"] = hidden
    if "source_hidden" in hidden:
        metadata["cellView"] = "form"  # Colab's
    return metadata


def _described(output: NotebookNode, cell: NotebookNode) -> NotebookNode:
    """A picture with its alternative text where exporters look for it, and as HTML that follows dark and light."""
    words = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    if not words or "image/png" not in output.get("data", {}):
        return output
    png = base64.b64decode(output.data["image/png"])
    page = STYLE + picture_html(png, words)
    metadata = {**output.metadata, "image/png": {**output.metadata.get("image/png", {}), "alt": words}}
    return nbformat.from_dict({**output, "data": {**output.data, "text/html": page}, "metadata": metadata})


def what_it_does(cell: NotebookNode) -> str:
    """For a cell that takes long: what it does and about how long, to be read before it is run; else nothing."""
    if not (words := cell.metadata.get("does")):
        return ""
    seconds = cell.metadata.get("seconds", 0)
    step = 5 if seconds <= 30 else 10
    return f"*{words}: about {step * max(1, round(seconds / step))} seconds.*" if seconds else f"*{words}.*"


def text_hash(notebook: NotebookNode) -> str:
    """Of the text of all cells: running a notebook or adding a blank cell does not change it, writing does."""
    return _digest("\0".join(f"{cell.cell_type}\1{cell.source}" for cell in notebook.cells if cell.source.strip()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def put(notebook: NotebookNode, path: Path) -> Path:
    """Write a reader's notebook, unless the one that is there holds changes and this is another version.

    Returns
    -------
    Path
        Where this version lies: ``path``, or beside it ``name.new.ipynb``.
    """
    if not path.exists():
        write(notebook, path)
        return path
    there = _read(path)
    mark = there.metadata.get(MARK, {}) if there else {}
    if mark.get("version") == notebook.metadata[MARK]["version"]:
        return path
    if there and mark.get("text") == text_hash(there):
        write(notebook, path)
        return path
    return put(notebook, path.with_name(f"{path.stem}.new.ipynb"))


def _read(path: Path) -> NotebookNode | None:
    """The notebook, None if it is not one any more."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError):
        return None


def write(notebook: NotebookNode, path: Path) -> None:
    """Write it whole or not at all."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(path)


def make_all(book: Book, solutions: bool) -> Iterator[tuple[str, NotebookNode]]:
    """Each page that is a notebook, and its copy."""
    for path in find_notebooks():
        page = path.relative_to(BOOK).with_suffix("").as_posix()
        yield page, make(nbformat.read(path, as_version=4), page, book, solutions)


def address() -> str:
    """Where ``_config.yml`` says that the book is published, empty if it is not."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    given = config.get("html", {}).get("baseurl", "")
    return f"{given.rstrip('/')}/" if given else published_at(config.get("repository", {}).get("url", ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="FOLDER", help="where the notebooks go")
    parser.add_argument("--without-solutions", action="store_true", help="leave out the solutions of the exercises")
    parser.add_argument("--replace", action="store_true", help="overwrite what is there, changed or not")
    arguments = parser.parse_args()
    count = 0
    for page, notebook in make_all(Book(BOOK, address()), not arguments.without_solutions):
        count += 1
        path = arguments.into / f"{page}.ipynb"
        if arguments.replace:
            write(notebook, path)
        elif (lies := put(notebook, path)) != path:
            print(f"{path} holds changes of yours and was left as it is.")
            print(f"  The new version is {lies}; to use it, move yours away and give it that name.")
    print(f"{count} notebooks to read and run are in {arguments.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
