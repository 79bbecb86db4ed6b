"""What nbval cannot see: whether the stored outputs are complete, are of this code, and are fit for a reader."""

from __future__ import annotations

import ast
import base64
import re
import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbval.plugin import find_comment_markers, find_metadata_tags
from notebook_comparison import Tolerance
from notebooks import BOOK, ROOT, find_faults, find_notebooks, hash_code

MAX_SECONDS, MAX_MEDIAN_SECONDS, MAX_MIB = 100, 55, 2048
MAX_NOTEBOOK_BYTES, MAX_FIGURE_BYTES, MAX_EXPLORE_BYTES = 1_500_000, 150_000, 300_000
MIN_WORDS = 700
MIN_SECONDS_TO_TELL = 10  # a notebook that runs in less has no cell that takes long
MAX_WIDENED_CELLS = 6
IDENTITY = 0.01  # the widest tolerance of what must hold whatever a reader changes

NOTEBOOKS = find_notebooks()
CHAPTERS = [path for path in NOTEBOOKS if path.parent != BOOK]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(BOOK)))
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: str(path.relative_to(BOOK)))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def markdown(path: Path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def outputs(path: Path) -> Iterator[tuple[nbformat.NotebookNode, str, Any]]:
    """Each part of each output: its cell, its MIME type or stream name, its content."""
    for cell in code_cells(path):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield cell, output.name, output.text
            for mime, content in output.get("data", {}).items():
                yield cell, mime, content


def prose(text: str) -> str:
    """What a reader reads: no code, no formulas, no directive options."""
    text = re.sub(r"^(```+|~~~+|:::+)\{(code|math)[\s\S]*?^\1", " ", text, flags=re.M)
    text = re.sub(r"\$\$[\s\S]*?\$\$|\$[^$\n]+\$", " ", text)
    return re.sub(r"^:[\w-]+:.*$|^(```+|:::+).*$|<[^>]+>", " ", text, flags=re.M)


def test_book_has_notebooks() -> None:
    """Without this, every check below would pass on an empty book."""
    assert NOTEBOOKS


@every_notebook
def test_every_code_cell_ran_once_in_order(path: Path) -> None:
    """nbval runs a cell without a count unchecked, so a stripped notebook would pass it."""
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell.source for cell in cells if not cell.source.strip()], "an empty code cell"


@every_notebook
def test_outputs_belong_to_this_code(path: Path) -> None:
    stored = read(path).metadata.get("stored")
    assert stored, "store the outputs with `make notebooks`"
    assert stored["code"] == hash_code(read(path)), "code was edited after the run: `make notebooks ONLY=…`"


@every_notebook
def test_outputs_have_no_stderr_error_or_bare_widget(path: Path) -> None:
    assert not find_faults(read(path))
    assert not [o for cell in code_cells(path) for o in cell.outputs if o.output_type == "error"]


@every_notebook
def test_no_cell_escapes_the_comparison(path: Path) -> None:
    escaping = [
        cell.source
        for cell in code_cells(path)
        if list(find_metadata_tags(cell.metadata) or []) or list(find_comment_markers(cell.source))
    ]
    assert not escaping


@every_notebook
def test_widened_tolerances_are_valid_and_few(path: Path) -> None:
    widened = [Tolerance.of(cell.metadata) for cell in code_cells(path) if "tolerance" in cell.metadata]
    assert len(widened) <= MAX_WIDENED_CELLS


@every_notebook
def test_runs_in_time_and_memory(path: Path) -> None:
    stored = read(path).metadata["stored"]
    assert stored["seconds"] <= MAX_SECONDS
    assert stored["peak_mib"] <= MAX_MIB


def test_notebooks_run_in_time_at_the_median() -> None:
    assert statistics.median(read(path).metadata["stored"]["seconds"] for path in NOTEBOOKS) <= MAX_MEDIAN_SECONDS


@every_notebook
def test_every_picture_has_alternative_text(path: Path) -> None:
    silent = []
    for cell, mime, content in outputs(path):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if mime.startswith("image/") and len(alt.split()) < 3:
            silent.append(cell.source)
        elif mime == "text/html":
            page = BeautifulSoup(content, "html.parser")
            silent += [str(image)[-200:] for image in page.find_all("img") if not image.get("alt", "").strip()]
            silent += [
                str(drawing)[:200]
                for drawing in page.find_all("svg")
                if drawing.get("aria-hidden") != "true" and not (drawing.get("aria-label") or drawing.find("title"))
            ]
    silent += re.findall(r"!\[\s*\]\([^)]*\)", markdown(path))
    silent += [
        block
        for block in re.findall(r"^(?:```+|:::+)\{(?:figure|image)\}[\s\S]*?^(?:```|:::)", markdown(path), flags=re.M)
        if not re.search(r"^:alt: *\S", block, flags=re.M)
    ]
    assert not silent


@every_chapter
def test_every_picture_has_a_caption(path: Path) -> None:
    """A figure with sliders holds its own."""
    shown = [cell for cell, mime, _ in outputs(path) if mime.startswith("image/")]
    assert not [cell.source for cell in shown if len(cell.metadata.get("caption", "").split()) < 3]


@every_notebook
def test_pictures_and_notebook_are_light(path: Path) -> None:
    assert path.stat().st_size <= MAX_NOTEBOOK_BYTES
    for cell, mime, content in outputs(path):
        if mime == "image/svg+xml":
            assert len(content) <= MAX_FIGURE_BYTES, cell.source
        elif mime.startswith("image/"):
            assert len(base64.b64decode(content)) <= MAX_FIGURE_BYTES, cell.source
        elif mime == "text/html":
            assert len(content) <= MAX_EXPLORE_BYTES, cell.source


@every_notebook
def test_outputs_do_not_name_a_machine(path: Path) -> None:
    """A path or address of the machine that stored them means nothing on another one."""
    private = re.compile(
        r"(?<![\w.:/])/(?:home|Users|root|tmp|usr|var|opt|mnt|private)/|[A-Z]:\\\\|\bat 0x[0-9a-f]{6,}"
    )
    for cell, mime, content in outputs(path):
        if not mime.startswith("image/") or mime == "image/svg+xml":
            words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", str(content))
            assert str(ROOT) not in words, cell.source
            assert not private.search(words), cell.source


@every_notebook
def test_opens_with_its_one_title(path: Path) -> None:
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"(\([\w-]+\)=\n)?# \S", first.source)
    assert len(re.findall(r"^# ", markdown(path), flags=re.M)) == 1


@every_chapter
def test_chapter_explains(path: Path) -> None:
    assert len(re.findall(r"[^\W\d_]{2,}", prose(markdown(path)))) >= MIN_WORDS


@every_chapter
def test_chapter_asks_before_it_shows_and_answers_after(path: Path) -> None:
    text = markdown(path)
    asked, answered = text.find("\n:class: predict\n"), text.find("{admonition} What came out\n:class: dropdown")
    assert 0 < asked < answered


@every_chapter
def test_chapter_says_how_long_it_takes_to_read(path: Path) -> None:
    """The page `how-to-read` shows it."""
    assert re.search(r"\*\*Time\*\*: about \d+ minutes", read(path).cells[0].source)


@every_chapter
def test_cells_of_solutions_are_folded(path: Path) -> None:
    """The build without solutions leaves out each folded cell behind one; an open cell would give it away."""
    cells = read(path).cells
    open_cells = [
        cell.source
        for before, cell in pairwise(cells)
        if "{solution}" in before.source.rsplit("{exercise}", 1)[-1].rsplit("\n## ", 1)[-1]
        if before.cell_type == "markdown" and cell.cell_type == "code"
        if "hide-cell" not in cell.metadata.get("tags", [])
    ]
    assert not open_cells


@every_notebook
def test_a_cell_that_takes_long_says_what_it_does(path: Path) -> None:
    """Else running all cells looks as if it hung; readers' notebooks show it before the cell, with its seconds."""
    cells = [cell for cell in code_cells(path) if "hide-cell" not in cell.metadata.get("tags", [])]
    assert not [cell.source for cell in cells if "seconds" in cell.metadata and not cell.metadata.get("does")]
    assert not [cell.metadata["does"] for cell in cells if cell.metadata.get("does", "").endswith(".")]


@every_chapter
def test_a_chapter_says_where_it_first_takes_long(path: Path) -> None:
    short = read(path).metadata["stored"]["seconds"] < MIN_SECONDS_TO_TELL
    assert short or [cell for cell in code_cells(path) if "does" in cell.metadata]


def find_bare_checks(source: str) -> list[str]:
    """Statements that end a reader's run where a recipe was changed, and say nothing of it.

    An ``assert`` says nothing; one of the testing functions says what differs, but between two ways to compute one
    thing, and not between here and the book, which its tolerance tells. Checks of exercises are run by ``attempt``.
    """
    tree = ast.parse(source)
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]
    of_exercises = {id(inner) for check in checks for inner in ast.walk(check)}
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if id(node) not in of_exercises
        if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _is_loose(node))
    ]


def _is_loose(call: ast.Call) -> bool:
    return ast.unparse(call.func).rpartition(".")[2] in ("assert_close", "assert_allclose") and any(
        isinstance(word.value, ast.Constant) and word.value.value > IDENTITY
        for word in call.keywords
        if word.arg in ("rtol", "atol")
    )


@every_notebook
def test_what_a_reader_may_change_ends_in_words(path: Path) -> None:
    """A number is compared with the stored one by ``as_stored``, a sentence with the run by ``claim``."""
    assert not [bare for cell in code_cells(path) for bare in find_bare_checks(cell.source)]


@pytest.mark.parametrize(
    ("source", "bare"),
    [
        ("assert abs(here - stored) < 0.3", ["assert abs(here - stored) < 0.3"]),
        ("def train():\n    assert x", ["assert x"]),
        ("np.testing.assert_allclose(a, b, atol=0.6)", ["np.testing.assert_allclose(a, b, atol=0.6)"]),
        ("torch.testing.assert_close(a, b, rtol=1e-3, atol=0)", []),
        ("def check_mmd(answer):\n    assert answer(x) > 0, 'got nothing'", []),
        ("as_stored('accuracy', here, stored, within=0.3)\nclaim('higher', a > b)", []),
    ],
)
def test_bare_checks_are_found(source: str, bare: list[str]) -> None:
    assert find_bare_checks(source) == bare
