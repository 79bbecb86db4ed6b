"""Readers' notebooks: plain Markdown with the numbers in it, the same code, and a reader's changes kept."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import reader
from checks import split_check
from cross_references import Book, published_at
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebooks import BOOK, ROOT, find_notebooks
from plain_markdown import Context, convert, shown, split_solutions
from reader import BET, FOLDER, HIDES_OUTPUTS, HIDES_SOURCE, MARK, address, glued_values, main, make, put, text_hash
from reading import run_reading
from solutions import strip

TOC = """\
root: index
parts:
- caption: Start here
  chapters:
  - file: words
- caption: One
  numbered: 1
  chapters:
  - file: part1/first
    sections:
    - file: part1/beside
  - file: part1/second
- caption: In use
  chapters:
  - file: later
"""
REFERENCES = r"""
@article{one2001, author = {Dietterich, Thomas}, title = {A Title}, journal = {A Journal}, year = {2001}}
@misc{two2002, author = {Sch{\"o}lkopf, B. and van der Maaten, L.}, title = {Two}, howpublished = {arXiv:2001.01234},
  year = {2002}}
@book{three2003, author = {Long, M. and Cao, Z. and Wang, J.}, title = {Three}, publisher = {P}, doi = {10.1/x},
  year = {2003}}
"""
FIRST = """\
# The *first* chapter

$$
a = b
$$ (eq-a)

:::{exercise}
:label: ex-first
Why?
:::
"""
SECOND = "# The second\n\n- in a list\n\n  $$\n  c\n  $$ (eq-c)\n\n$$\nd\n$$\n\n$$\ne\n$$ (eq-e)\n"
BESIDE = "# Beside\n\n$$\nb\n$$ (eq-b)\n"
LATER = "# Later\n\n:::{exercise}\n:label: ex-later\nHow?\n:::\n\n:::{note}\n$$\nf\n$$ (eq-f)\n:::\n"
ADDRESS = "https://example.org/book/"


def glue(name: str, value: object) -> NotebookNode:
    """What a cell with ``glue(name, value, display=False)`` leaves."""
    prefix = "application/papermill.record/"
    data, metadata = {f"{prefix}text/plain": repr(value)}, {"scrapbook": {"name": name, "mime_prefix": prefix}}
    return new_output("display_data", data=data, metadata=metadata)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A book of two chapters with numbers, a section of the first, and three pages without."""
    for name, text in (("_toc.yml", TOC), ("references.bib", REFERENCES), ("index.md", "# Start\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "words.md").write_text("# Words\n", encoding="utf-8")
    (tmp_path / "part1").mkdir()
    for name, text in (("part1/first", FIRST), ("part1/beside", BESIDE), ("part1/second", SECOND), ("later", LATER)):
        nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path / f"{name}.ipynb")
    return tmp_path


@pytest.fixture
def context(folder: Path) -> Context:
    """In the first chapter, where three names have values."""
    return Context(Book(folder), "part1/first", {"gain": "'2.0 ± 0.1 %'", "seeds": "3", "rule": "'a_b | c*'"})


@pytest.fixture
def published(folder: Path) -> Context:
    return Context(Book(folder, ADDRESS), "part1/first")


def test_numbers_are_those_of_the_built_book(folder: Path) -> None:
    book = Book(folder)
    assert book.equations == {"eq-a": "1.1", "eq-b": "1.2", "eq-c": "2.1", "eq-e": "2.2", "eq-f": "1"}
    assert book.exercises == {"ex-first": "1.1", "ex-later": "1"}
    assert {page.name: page.number for page in book.pages.values()} == {
        "index": None, "words": None, "part1/first": 1, "part1/beside": None, "part1/second": 2, "later": None,
    }  # fmt: skip
    assert book.pages["part1/first"].title == "The *first* chapter"


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("Gains {glue:text}`gain` in {glue:text}`seeds` seeds.", "Gains 2.0 ± 0.1 % in 3 seeds."),
        ("{glue:text}`seeds:.2f`", "3.00"),
        ("| {glue:text}`rule` |\n|---|", "| a\\_b \\| c\\* |\n|---|"),
        ("As {eq}`eq-a` and {eq}`eq-e`.", "As (1.1) and (2.2)."),
        ("Shown {cite}`one2001`.", "Shown [[Dietterich, 2001](#Bibliography)]."),
        (
            "{cite}`two2002, three2003`",
            "[[Schölkopf and van der Maaten, 2002](https://arxiv.org/abs/2001.01234); "
            "[Long et al., 2003](https://doi.org/10.1/x)]",
        ),
        ("{cite:t}`one2001` says", "[Dietterich (2001)](#Bibliography) says"),
        ("{doc}`second`", "[The second](second.ipynb)"),
        ("{doc}`/later`", "[Later](../later.ipynb)"),
        ("{doc}`the last\none <../later>`", "[the last one](../later.ipynb)"),
        ("{doc}`../words`", "Words"),
        ("[here `x`](second#part)", "[here `x`](second.ipynb)"),
        ("[there](https://example.org/a)", "[there](https://example.org/a)"),
        ("{ref}`ex-first`, {numref}`ex-later`", "Exercise 1.1, [Exercise 1](../later.ipynb)"),
        ("{ref}`the first <ex-first>`", "the first"),
        ("{func}`~deeptransfer.training.fit` and {class}`deeptransfer.a.B`", "`fit()` and `deeptransfer.a.B`"),
        ("{mod}`deeptransfer.selection`, {meth}`~a.B.c`", "`deeptransfer.selection`, `c()`"),
        ("a {term}`margin`, {term}`margins <margin>`", "a margin, margins"),
        ("`{eq}` is a role, ``{eq}`eq-a` `` too", "`{eq}` is a role, ``{eq}`eq-a` `` too"),
        ("$x\ny$, $a`b$ and {eq}`eq-a`", "$x y$, $a`b$ and (1.1)"),
        ("One.[^n] Two.[^m]\n\n[^n]: Note.", "One.<sup>1</sup> Two.<sup>2</sup>\n\n<sup>1</sup> Note."),
        ("(label)=\n## Head\n\n% a remark\n\nText\n\n+++\n\nmore", "## Head\n\n\nText\n\n\nmore"),
        ("$$\na\n$$\n", "$$\na\n$$"),
        ("Text\n\n$$\na \\\\\nb\n$$ (eq-a)\n\nmore", "Text\n\n$$\na \\\\\nb\n\\tag{1.1}\n$$\n\nmore"),
        ("- item\n\n  $$\n  a\n  $$ (eq-a)\n\n  {eq}`eq-a`", "- item\n\n  $$\n  a\n  \\tag{1.1}\n  $$\n\n  (1.1)"),
        ("```python\nx = '{eq}`eq-a`'\n```", "```python\nx = '{eq}`eq-a`'\n```"),
        (":::{admonition} Of {eq}`eq-a`\nText.\n:::", "> **Of (1.1)**\n>\n> Text."),
        (":::{note}\n$a\nb$\n\n$$\nc\nd\n$$ (eq-a)\n:::", "> **Note**\n>\n> $a b$\n>\n> $$c d \\tag{1.1}$$"),
        (":::{warning} Short.\n:::", "> **Warning**\n>\n> Short."),
        (
            ":::{admonition} What came out\n:class: dropdown, tip\nB: {glue:text}`gain`.\n:::\nAfter.",
            "<details>\n<summary>What came out</summary>\n\nB: 2.0 ± 0.1 %.\n\n</details>\nAfter.",
        ),
        (":::{exercise}\n:label: ex-first\n\nWhy?\n:::", "### Exercise 1.1\n\nWhy?"),
        ("```{exercise} By hand\n:label: ex-first\nWhy?\n```", "### Exercise 1.1 (By hand)\n\nWhy?"),
        (
            "::::{tab-set}\n:::{tab-item} One\n```bash\nrun\n```\n:::\n:::{tab-item} Two\nB\n:::\n::::",
            "**One**\n\n```bash\nrun\n```\n\n**Two**\n\nB",
        ),
        (":::{card} Card\nText\n:::", "> **Card**\n>\n> Text"),
    ],
)
def test_each_construct_has_its_plain_form(myst: str, plain: str, context: Context) -> None:
    assert convert(myst, context) == plain


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("{doc}`second`", f"[The second]({ADDRESS}part1/second.html)"),
        ("[words](../words#margin)", f"[words]({ADDRESS}words.html#margin)"),
        ("{ref}`ex-later`", f"[Exercise 1]({ADDRESS}later.html#ex-later)"),
        (
            "{func}`~deeptransfer.runs.layerwise.go`",
            f"[`go()`]({ADDRESS}api/runs.html#deeptransfer.runs.layerwise.go)",
        ),
        ("{mod}`deeptransfer.b`", f"[`deeptransfer.b`]({ADDRESS}api/b.html#module-deeptransfer.b)"),
        ("{cite:t}`one2001`", f"[Dietterich (2001)]({ADDRESS}bibliography.html)"),
    ],
)  # fmt: skip
def test_links_lead_to_the_published_book_if_there_is_one(myst: str, plain: str, published: Context) -> None:
    assert convert(myst, published) == plain


@pytest.mark.parametrize(
    ("myst", "complaint"),
    [
        ("{index}`x`", r"role \{index\}"),
        (":::{figure} x.png\n:::", r"directive \{figure\}"),
        ("{glue:text}`lost`", "no cell glues the name lost"),
        ("{eq}`eq-lost`", "no equation has the label eq-lost"),
        ("{ref}`ex-lost`", "no exercise has the label ex-lost"),
        ("{cite}`lost`", "no entry lost"),
        ("{doc}`lost`", "not in the book: lost"),
    ],
)
def test_what_has_no_plain_form_is_refused(myst: str, complaint: str, context: Context) -> None:
    with pytest.raises((ValueError, KeyError), match=complaint):
        convert(myst, context)


def test_a_solution_is_a_stretch_of_its_own() -> None:
    parts = split_solutions(
        "Before\n\n````{solution} ex-a\n:class: dropdown\nSo.\n````\n\n:::{solution} ex-b\nAnd.\n:::\n"
    )
    assert [(part.text, part.solves) for part in parts] == [("Before", ""), ("So.", "ex-a"), ("And.", "ex-b")]


DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="  # one pixel


def chapter(folder: Path) -> NotebookNode:
    """A chapter with one cell of each kind."""
    figure = new_output("display_data", data={"image/png": DOT, "text/plain": "<Figure>"})
    exercise = ":::{exercise}\n:label: ex-first\nWhy?\n:::"
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# The *first* chapter\n\nA {cite}`one2001`.\n\n## Why?", id="a"),
            new_code_cell("plot()", id="b", outputs=[figure], execution_count=1, metadata={
                "tags": ["hide-input"], "caption": "A curve_1.", "mystnb": {"image": {"alt": "A curve"}}}),
            new_code_cell("glue()", id="c", outputs=[glue("gain", "2 %")], metadata={"tags": ["remove-cell"]}),
            new_code_cell("print(1)", id="d", outputs=[new_output("stream", text="1\n")], metadata={"tolerance": {}}),
            new_code_cell("tell()", id="t", outputs=[new_output("stream", text="2\n")], metadata={"tags": ["fold-answer"]}),
            new_code_cell("tell_more()", id="u", metadata={"tags": ["fold-answer"]}),
            new_markdown_cell(f"It gains {{glue:text}}`gain`.\n\n{exercise}", id="e"),
            new_code_cell("def stub():\n    pass\n\n\ndef check_stub(answer):\n    assert answer()\n\n\n"
                          "attempt(check_stub, stub)", id="f", metadata={"does": "Counts to one", "seconds": 12}),
            new_markdown_cell("````{solution} ex-first\n:class: dropdown\nSo.\n````", id="g"),
            new_code_cell("solved()", id="h", outputs=[new_output("stream", text="yes\n")],
                          metadata={"tags": ["hide-cell"]}),
            new_markdown_cell(":::{solution} ex-first\nAgain.\n:::\n\n## After", id="i"),
            new_code_cell("more()", id="j", metadata={"tags": ["hide-cell"]}),
        ]
    )  # fmt: skip
    nbformat.write(notebook, folder / "part1/first.ipynb")
    book = Book(folder)
    return make(notebook, "part1/first", book)


SOLUTION = """<details>
<summary>Solution of Exercise 1.1</summary>

So.

```python
solved()
```

It prints

```text
yes
```

</details>"""
FOLDED = "<details>\n<summary>Solution of Exercise 1.1</summary>\n\nAgain.\n\n</details>"


def test_a_chapter_becomes_a_readers_notebook(folder: Path) -> None:
    made = chapter(folder)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [
        (
            "markdown",
            f"# 1. The *first* chapter\n\nA [[Dietterich, 2001](#Bibliography)].\n\n{reader.YOURS}\n\n## Why?",
        ),
        ("code", "plot()"),
        ("markdown", "**Figure 1.1:** A curve\\_1."),
        ("code", "glue()"),
        ("code", "print(1)"),
        ("markdown", BET),
        ("code", "tell()"),
        ("code", "tell_more()"),
        ("markdown", "It gains 2 %.\n\n### Exercise 1.1\n\nWhy?"),
        ("markdown", "*Counts to one: about 10 seconds.*"),
        ("code", "def check_stub(answer):\n    assert answer()"),
        ("code", "def stub():\n    pass\n\n\nattempt(check_stub, stub)"),
        ("markdown", SOLUTION),
        ("code", ""),
        ("markdown", FOLDED),
        ("code", ""),
        ("markdown", "## After"),
        ("code", "more()"),
        ("markdown", "## Bibliography\n\n- Thomas Dietterich. A title. *A Journal*, 2001."),
    ]


def test_a_notebook_that_lies_alone_says_what_it_needs(folder: Path) -> None:
    """Else its first cell ends in a bare ModuleNotFoundError."""
    first = chapter(folder).cells[0].source
    assert "book's library and its stored results" in first
    assert "`make lab`" in first


def test_cells_are_collapsed_as_each_viewer_has_it(folder: Path) -> None:
    plot, glued, printed, telling, *_, more = [cell for cell in chapter(folder).cells if cell.cell_type == "code"]
    assert plot.metadata == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
    both = {"source_hidden": True, "outputs_hidden": True}
    assert glued.metadata == {"tags": ["remove-cell"], "jupyter": both, "cellView": "form"}
    assert more.metadata == {"tags": ["hide-cell"], "jupyter": both, "cellView": "form"}
    assert printed.metadata == {}
    assert telling.metadata == {"tags": ["fold-answer"], "jupyter": both, "cellView": "form"}
    assert telling.outputs


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, ""),
        ({"seconds": 9}, ""),
        ({"does": "Trains a network"}, "*Trains a network.*"),
        ({"does": "Trains a network", "seconds": 6}, "*Trains a network: about 5 seconds.*"),
        ({"does": "Trains a network", "seconds": 23}, "*Trains a network: about 25 seconds.*"),
        ({"does": "Trains a network", "seconds": 56}, "*Trains a network: about 60 seconds.*"),
    ],
)
def test_before_a_cell_stands_what_it_does_and_how_long(metadata: dict[str, object], words: str) -> None:
    assert reader.what_it_does(new_code_cell("fit()", metadata=metadata)) == words


def test_outputs_stay_but_for_what_stands_in_the_text(folder: Path) -> None:
    plot, glued, printed, *_ = [cell for cell in chapter(folder).cells if cell.cell_type == "code"]
    assert plot.outputs[0].metadata["image/png"]["alt"] == "A curve"
    assert f'base64,{DOT}" alt="A curve"' in plot.outputs[0].data["text/html"]  # follows dark and light
    assert glued.outputs == []
    assert printed.outputs[0].text == "1\n"


# A copy that is there already


def version(text: str) -> NotebookNode:
    made = new_notebook(cells=[new_markdown_cell(text, id="a"), new_code_cell("1 + 1", id="b")])
    made.metadata[MARK] = {"chapter": "c", "text": text_hash(made), "version": text}
    return made


def change(path: Path, to: str = "mine") -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = to
    nbformat.write(notebook, path)


def first_text(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[0].source


def test_an_unchanged_copy_is_renewed_even_if_it_was_run(tmp_path: Path) -> None:
    path = tmp_path / "part" / "c.ipynb"
    assert put(version("old"), path) == path
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [new_output("stream", text="2")]
    notebook.cells.append(new_code_cell())  # as JupyterLab does behind the last cell that is run
    nbformat.write(notebook, path)
    assert put(version("new"), path) == path
    assert first_text(path) == "new"


def test_a_changed_copy_is_kept_and_the_new_version_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "c.ipynb"
    put(version("old"), path)
    change(path)
    before = path.read_bytes()
    assert put(version("old"), path) == path  # nothing new, nothing to say
    assert put(version("new"), path) == tmp_path / "c.new.ipynb"
    assert put(version("newer"), path) == tmp_path / "c.new.ipynb"
    assert first_text(tmp_path / "c.new.ipynb") == "newer"
    change(tmp_path / "c.new.ipynb")
    assert put(version("newest"), path) == tmp_path / "c.new.new.ipynb"
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "no notebook", "{}", "[]", '{"nbformat": 4, "nbformat_minor": 5}'])
def test_what_is_no_notebook_of_ours_is_kept(content: str, tmp_path: Path) -> None:
    path = tmp_path / "c.ipynb"
    path.write_text(content, encoding="utf-8")
    assert put(version("new"), path) == tmp_path / "c.new.ipynb"
    assert path.read_text(encoding="utf-8") == content


def test_a_notebook_of_the_readers_own_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("mine")]), path)
    assert put(version("new"), path) == tmp_path / "c.new.ipynb"
    assert first_text(path) == "mine"


# All chapters

PATHS = find_notebooks()
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(BOOK)))
RAW = re.compile(
    r"\{[a-z][\w:+-]*\}`|^[ >]*(?:`{3,}|:{3,})\{|^[ >]*:{3,}|^:\w+:"  # roles, directives and their options
    r"|\$\$ *\([\w-]+\)|\((?:eq|ex)-[\w-]+\)|^\([\w-]+\)=|\[\^",  # labels and notes
    flags=re.MULTILINE,
)


@pytest.fixture(scope="module")
def book() -> Book:
    return Book(BOOK)


def page_of(path: Path) -> str:
    return path.relative_to(BOOK).with_suffix("").as_posix()


def sources(notebook: NotebookNode, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def without_code(text: str) -> str:
    """Text without what it shows as code."""
    return re.sub(r"^```\w*\n.*?^```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)


@every_notebook
def test_nothing_raw_is_left(path: Path, book: Book) -> None:
    for text in sources(make(nbformat.read(path, as_version=4), page_of(path), book), "markdown"):
        assert not RAW.findall(text)
        assert "{glue" not in without_code(text)


@pytest.mark.parametrize(
    "raw",
    ["{eq}`a`", "{glue:text}`a`", "```{exercise}", ":::{note}", "> :::", ":::", ":class: tip", "$$ (eq-a)", "(a)="],
)
def test_what_counts_as_raw(raw: str) -> None:
    assert RAW.search(f"Text\n{raw}\n")


@every_notebook
def test_numbers_in_sentences_are_those_the_cells_gave(path: Path, book: Book) -> None:
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(sources(make(notebook, page_of(path), book), "markdown"))
    text = re.sub(r"\\([\\`*_\[\]<>|$])", r"\1", text)
    place = 0
    values = glued_values(notebook)
    for source in sources(notebook, "markdown"):
        for name in re.findall(r"\{glue:text\}`([^`]+)`", source):
            place = text.index(shown(values[name]), place)  # in the order of the text


def in_cells(code: list[str]) -> list[str]:
    """The code of cells as a reader gets it: before an exercise's stub a cell with its check."""
    return [part for source in code for part in reversed(split_check(source)) if part]


@every_notebook
def test_a_check_stands_in_a_collapsed_cell_before_its_stub_and_can_run_there(path: Path, book: Book) -> None:
    """It only defines functions, whose definition needs no name of the cell that it was taken from."""
    notebook = nbformat.read(path, as_version=4)
    made = [cell for cell in make(notebook, page_of(path), book).cells if cell.cell_type == "code"]
    whole = {cell.id: cell for cell in notebook.cells}
    seen = 0
    for check, stub in pairwise(made):
        if not check.id.endswith("-check"):
            assert not re.search(r"^def check_", check.source, flags=re.M) or check.metadata.get("jupyter")
            continue
        assert check.id == f"{stub.id}-check"
        assert check.metadata["jupyter"] == {"source_hidden": True}
        assert "source_hidden" not in stub.metadata.get("jupyter", {})
        checks, rest = (ast.parse(cell.source).body for cell in (check, stub))
        for part in checks:
            assert isinstance(part, ast.FunctionDef)
            assert not (part.decorator_list or part.args.defaults or any(part.args.kw_defaults))
        before = {ast.dump(part) for part in ast.parse(whole[stub.id].source).body}
        assert {ast.dump(part) for part in (*checks, *rest)} == before
        assert ast.unparse(rest[-1]).startswith("attempt(check_")
        seen += 1
    assert seen == sum("\ndef check_" in f"\n{cell.source}" for cell in whole.values() if cell.cell_type == "code"
                       and not set(cell.metadata.get("tags", [])) & HIDES_SOURCE)  # fmt: skip


@every_notebook
def test_the_code_is_the_same_in_the_same_order_and_solutions_are_folded(path: Path, book: Book) -> None:
    notebook, stripped = (nbformat.read(path, as_version=4) for _ in range(2))
    strip(stripped)
    kept = sources(stripped, "code")
    solved = [source for source in sources(notebook, "code") if source not in kept]
    made = make(notebook, page_of(path), book)
    assert [source for source in sources(made, "code") if source] == in_cells(kept)
    assert len(kept) + len(solved) == len(sources(notebook, "code"))
    folds = [text for text in sources(made, "markdown") if text.startswith("<details>\n<summary>Solution of Exercise")]
    for source in solved:
        assert sum(f"```python\n{source}\n```" in fold for fold in folds) == 1
    count = sum(text.count("{solution}") for text in sources(notebook, "markdown"))
    assert len(folds) == count == sources(made, "code").count("")
    for fold in folds:
        assert fold.endswith("</details>")
        assert made.cells[[cell.source for cell in made.cells].index(fold) + 1].source == ""


@every_notebook
def test_without_solutions_none_is_left(path: Path, book: Book) -> None:
    notebook, stripped = (nbformat.read(path, as_version=4) for _ in range(2))
    strip(stripped)
    made = make(notebook, page_of(path), book, solutions=False)
    assert sources(made, "code") == in_cells(sources(stripped, "code"))
    assert not any("Solution of" in text for text in sources(made, "markdown"))


@every_notebook
def test_a_cell_is_collapsed_if_the_page_hides_it(path: Path, book: Book) -> None:
    for cell in make(nbformat.read(path, as_version=4), page_of(path), book).cells:
        if cell.cell_type == "code":
            tags = set(cell.metadata.get("tags", []))
            hidden = cell.metadata.get("jupyter", {})
            assert hidden.get("source_hidden", False) == bool(tags), tags
            assert hidden.get("outputs_hidden", False) == bool(tags & HIDES_OUTPUTS)
            assert (cell.metadata.get("cellView") == "form") == bool(tags)


@every_notebook
def test_each_link_between_notebooks_leads_to_one(path: Path, book: Book) -> None:
    for text in sources(make(nbformat.read(path, as_version=4), page_of(path), book), "markdown"):
        for target in re.findall(r"\]\(([^)\s]+\.ipynb)\)", text):
            assert (path.parent / target).exists(), target


@every_notebook
def test_a_copy_is_a_valid_notebook(path: Path, book: Book) -> None:
    made = make(nbformat.read(path, as_version=4), page_of(path), book)
    nbformat.validate(made)
    ids = [cell.id for cell in made.cells]
    assert len(set(ids)) == len(ids)


def test_the_script_writes_each_chapter_and_says_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reader.py", "--into", str(tmp_path)])
    assert main() == 0
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.ipynb")) == [
        path.relative_to(BOOK) for path in PATHS
    ]
    assert "holds changes" not in capsys.readouterr().out
    mine = tmp_path / "part2" / "mmd.ipynb"
    change(mine)
    monkeypatch.setattr(sys, "argv", ["reader.py", "--into", str(tmp_path), "--without-solutions"])
    assert main() == 0
    said = capsys.readouterr().out
    assert f"{mine} holds changes of yours" in said
    assert str(mine.with_name("mmd.new.ipynb")) in said
    assert said.count("holds changes") == 1
    assert "Solution of" not in (tmp_path / "part2" / "dan.ipynb").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["reader.py", "--into", str(tmp_path), "--replace"])
    assert main() == 0
    assert nbformat.read(mine, as_version=4).cells[1].source != "mine"


def test_the_address_comes_from_the_configuration_or_from_github(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published_at("https://github.com/Owner/book.git") == "https://owner.github.io/book/"
    assert published_at("file:///somewhere") == published_at("") == ""
    given = {"html": {"baseurl": "https://example.org/book"}, "repository": {"url": "https://github.com/a/b"}}
    monkeypatch.setattr("yaml.safe_load", lambda text: given)
    assert address() == "https://example.org/book/"
    del given["html"]
    assert address() == "https://a.github.io/b/"


def test_git_ignores_the_copies_and_cleaning_spares_them() -> None:
    for name in (FOLDER.name, f"{FOLDER.name}-without-solutions"):
        ignored = subprocess.run(["git", "check-ignore", "-q", f"{name}/part2/mmd.ipynb"], cwd=ROOT, check=False)
        assert ignored.returncode == 0
    clean = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert FOLDER.name not in clean.split()
    assert not re.search(r"rm .*\bnotebooks\b", clean)


def test_they_are_made_where_only_the_book_is_installed(tmp_path: Path) -> None:
    """The pages are built without PyTorch, and so are the notebooks that they offer."""
    code = f"sys.path.insert(0, {str(ROOT / 'scripts')!r}); import reader; sys.exit(reader.main())"
    done = run_reading(code, "--into", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*.ipynb"))) == len(PATHS)
