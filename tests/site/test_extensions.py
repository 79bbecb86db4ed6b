"""The book's own Sphinx extensions, on a book of three pages, built with nothing but what reading needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from checks import split_check
from first_page import accuracy, percent
from notebooks import BOOK
from page_frame import UNFOLDED
from reading import other_modules, run_reading
from reading_order import draw, main_exercise, minutes_to_read, parse_schedule, read_order, row_of

from deeptransfer.catalogue import CHAPTERS
from deeptransfer.live import LiveFigure

CONFIG = f"""extensions = ["myst_nb", "sphinx_exercise"]
extensions += ["equations", "figure_numbers", "folds", "glossary_links", "library", "live_figures", "method_map"]
extensions += ["page_frame", "solutions", "status"]
nb_execution_mode = "off"
exercise_style = "solution_follow_exercise"
myst_enable_extensions = ["dollarmath", "colon_fence"]
html_theme = "sphinx_book_theme"
templates_path = [{str(BOOK / "_templates")!r}]
html_sourcelink_suffix = ""
"""
INDEX = """# Book

```{toctree}
part2/mmd
glossary
equations
aside
```

```{eval-rst}
.. automodule:: deeptransfer.discrepancy
   :members:
```

```{method-map}
```

```{version-status}
```
"""
GLOSSARY = """# Glossary

```{glossary}
kernel
  How alike two points are.

kernel matrix
  All pairs at once.
```
"""
REGISTER = """[eq-one]
code = ["deeptransfer.discrepancy.mmd2"]
tests = ["tests/unit/test_discrepancy.py::test_mmd2_equals_the_loop"]

[eq-two]
cell = true
tests = ["book/part2/mmd.ipynb"]
"""
PATHS = (BOOK / "_ext", BOOK.parent / "src")
PICTURE = {
    "image/png": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
}
SLIDERS = {"text/html": '<figure class="explore">sliders</figure>', "text/plain": "figure"}
LIVE = {"text/html": LiveFigure("witness", "Move it.").page(), "text/plain": "figure"}


def write_book(folder: Path) -> Path:
    """A chapter with two formulas, pictures, an exercise, and words of the glossary in many places."""
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell

    def shows(data: dict[str, str]) -> list[nbformat.NotebookNode]:
        return [nbformat.v4.new_output("display_data", data)]

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        markdown("# The kernel\n\nA `kernel`, then kernels, a kernel matrix, a kernel.\n\n$$\na\n$$ (eq-one)"),
        code("show(1)", outputs=shows(PICTURE), metadata={"caption": "A caption."}),
        code("print(1)", outputs=[nbformat.v4.new_output("stream", text="no picture")]),
        code("show(2)", outputs=shows(SLIDERS), metadata={"tags": ["hide-cell"]}),
        code("move(1)", outputs=shows(LIVE)),
        code("move(2)", outputs=shows(LIVE)),
        markdown("## A bet\n\nMore, or less?"),
        code("tell(1)", outputs=[nbformat.v4.new_output("stream", text="more")], metadata={"tags": ["fold-answer"]}),
        code("not_told()"),
        code("tell(2)", outputs=shows(PICTURE), metadata={"tags": ["fold-answer"]}),
        markdown(":::{admonition} What came out\n:class: dropdown, tip\nMore.\n:::\n\nText between."),
        code("tell(3)", metadata={"tags": ["fold-answer"]}),
        code("tell(4)", metadata={"tags": ["fold-answer"]}),
        markdown("$$\nb\n$$ (eq-two)\n\n## Exercises\n\n```{exercise}\n:label: ex-a\nQuestion\n```\n\n"
                 "````{solution} ex-a\n:class: dropdown\nAnswer\n````"),
        code("the_solution()", metadata={"tags": ["hide-cell"]}),
        code("def stub(x):\n    pass\n\n\ndef check_stub(answer):\n    assert answer(1) == 2\n\n\n"
             "attempt(check_stub, stub)"),
        markdown("## References\n\n:::{admonition} Aside\n:class: dropdown\nA proof.\n:::"),
    ]  # fmt: skip
    (folder / "part2").mkdir(parents=True)
    nbformat.write(notebook, folder / "part2" / "mmd.ipynb")
    for name, text in (
        ("conf.py", CONFIG),
        ("index.md", INDEX),
        ("glossary.md", GLOSSARY),
        ("aside.md", "# Aside\n\n:::{admonition} Note\n:class: dropdown\nText.\n:::"),
        ("equations.md", "# Equations\n\n```{equation-index}\n```"),
        ("equations.toml", REGISTER),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def build(source: Path, **environment: str) -> tuple[Path, str]:
    """The folder of the pages, and the warnings."""
    site = source.parent / "site"
    done = run_reading(
        "from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))",
        "-q", "-n", "-b", "html", str(source), str(site),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return site, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(write_book(tmp_path_factory.mktemp("whole") / "source"))[0]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Without solutions, and with a register that has lost an equation and names code that is gone."""
    source = write_book(tmp_path_factory.mktemp("changed") / "source")
    lost = REGISTER.replace("eq-two", "eq-three").replace("mmd2", "mmd3")
    (source / "equations.toml").write_text(lost, encoding="utf-8")
    return build(source, SOLUTIONS="no")


def parse(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@pytest.mark.parametrize("extension", sorted(path.stem for path in (BOOK / "_ext").glob("*.py")))
def test_extension_needs_nothing_but_what_reading_needs(extension: str) -> None:
    done = run_reading(f"sys.path[:0] = {[*map(str, PATHS)]}; import {extension}")
    assert done.returncode == 0, done.stderr


def test_what_only_running_needs_is_out_of_reach() -> None:
    assert {"torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "matplotlib"} <= set(other_modules())
    assert "halted" in run_reading("import numpy").stderr


def test_formula_is_followed_by_links_to_code_and_test(whole: Path) -> None:
    """A formula that the chapter's own cells compute is followed by nothing: they are beside it."""
    chapter = parse(whole / "part2" / "mmd.html")
    first, second = (chapter.find(id=f"equation-eq-{name}").find_next_sibling() for name in ("one", "two"))
    assert first.get_text() == "code: mmd2 · test"
    code, test = first.select("a")
    assert code["href"] == "../index.html#deeptransfer.discrepancy.mmd2"
    assert test["href"] == "../equations.html#source-eq-one"
    assert test["title"] == "tested by test_mmd2_equals_the_loop"
    assert second is None
    assert parse(whole / "equations.html").find(id="source-eq-one").get_text().startswith("(1): implemented in mmd2")


def test_page_of_equations_lists_all_in_order_with_formula_number_and_links(whole: Path) -> None:
    page = parse(whole / "equations.html")
    lines = page.select(".equation-source")
    assert [line.a["href"] for line in lines] == [f"part2/mmd.html#equation-eq-{name}" for name in ("one", "two")]
    assert (
        lines[0].get_text()
        == "(1): implemented in mmd2 · tested by tests/unit/test_discrepancy.py::test_mmd2_equals_the_loop"
    )
    assert lines[1].get_text() == "(2): implemented in the chapter’s cells · tested by the chapter’s cells"
    assert [part.get_text().split() for part in page.select("div.math")] == [["\\[", name, "\\]"] for name in "ab"]
    assert page.select("script[src*=athjax]"), "nothing would set the formulas"


def test_formula_without_an_entry_and_code_that_is_gone_are_warnings(changed: tuple[Path, str]) -> None:
    _, warnings = changed
    assert "no entry [eq-two]" in warnings
    assert "reference target not found: deeptransfer.discrepancy.mmd3" in warnings


def test_pictures_and_sliders_are_numbered_and_nothing_else(whole: Path) -> None:
    chapter = parse(whole / "part2" / "mmd.html")
    numbers = [number.get_text() for number in chapter.select(".figure-number")]
    assert numbers == ["Figure 3.1: A caption.", "Figure 3.2", "Figure 3.3: ", "Figure 3.4: ", "Figure 3.5"]
    assert chapter.find(id="figure-3-2").find_previous(class_="explore")
    assert chapter.find(id="figure-3-4").parent.get_text() == "Figure 3.4: Move it."


def test_what_live_figures_need_stands_once_on_a_page(whole: Path) -> None:
    first, second = parse(whole / "part2" / "mmd.html").select("figure.live")
    assert [len(figure.select("style, .live-drawing")) for figure in (first, second)] == [2, 0]
    assert [len(figure.select("script:not([type])")) for figure in (first, second)] == [0, 1]
    assert first.select_one(".live-module") == second.select_one(".live-module")


def lines_of_folds(part: BeautifulSoup) -> list[str]:
    return [line.get_text() for line in part.select("details.fold > summary")]


def test_what_gives_an_answer_away_is_folded_with_it(whole: Path) -> None:
    """The cells that are not tagged stay open where they are."""
    bet = parse(whole / "part2" / "mmd.html").find(id="a-bet")
    told, alone = bet.select("details.answer")
    assert lines_of_folds(told.parent)[:3] == ["What came out", "Code", "Code of the figure"]
    assert lines_of_folds(alone.parent)[3:] == ["The numbers, after you have bet", "Code", "Code"]
    words = told.get_text()
    places = [words.index(word) for word in ("tell(1)", "more", "tell(2)", "Figure 3.5", "More.")]
    assert places == sorted(places)
    for cell in ("tell(3)", "tell(4)"):
        assert cell in alone.get_text()
    for fold in (told, alone):
        fold.extract()
    left = bet.get_text()
    assert "not_told()" in left
    assert "Text between." in left
    assert "tell" not in left.replace("not_told", "")


def test_folds_say_in_plain_words_what_they_hold(whole: Path, changed: tuple[Path, str]) -> None:
    """A solution and the cells that run it are one fold."""
    page = parse(whole / "part2" / "mmd.html")
    assert lines_of_folds(page)[0] == "Figure and its code"
    (solution,) = page.select("details.solution")
    assert solution.summary.get_text() == "Solution, run"
    assert not solution.select("details"), "one fold is enough"
    assert "the_solution()" in solution.get_text()
    assert "Show code cell" not in page.get_text()
    assert not parse(changed[0] / "part2" / "mmd.html").select("details.solution")


def test_folds_of_more_than_code_are_marked_for_printing(whole: Path) -> None:
    page = parse(whole / "part2" / "mmd.html")
    marked = [fold.summary.get_text() for fold in page.select("details.fold-text")]
    assert marked == ["What came out", "Solution, run", "Aside"]
    assert {"Figure and its code", "The check", "Code"} <= set(lines_of_folds(page)) - set(marked)


def test_check_of_an_exercise_is_folded_and_its_stub_is_not(whole: Path) -> None:
    page = parse(whole / "part2" / "mmd.html")
    (fold,) = [fold for fold in page.select("details.fold") if fold.summary.get_text() == "The check"]
    shown = fold.parent.select_one(".cell_input").get_text()
    assert "def stub(x):" in shown
    assert "attempt(check_stub, stub)" in shown
    assert "assert answer(1)" not in shown
    assert "assert answer(1) == 2" in fold.get_text()


def test_code_without_an_exercise_is_shown_whole() -> None:
    for source in ("def check_it():\n    pass\n\n\ncheck_it()", "%timeit 1", "attempt(check, answer)"):
        assert split_check(source) == (source, "")


def test_first_use_of_a_term_in_prose_leads_to_the_glossary(whole: Path) -> None:
    terms = parse(whole / "part2" / "mmd.html").select("a.glossary-term")
    assert [term.get_text() for term in terms] == ["kernels", "kernel matrix"]
    assert terms[0]["href"] == "../glossary.html#term-kernel"
    assert terms[0]["title"] == "How alike two points are."


def test_solutions_go_with_their_cells_and_nothing_else_goes(whole: Path, changed: tuple[Path, str]) -> None:
    without = parse(changed[0] / "part2" / "mmd.html").get_text()
    for word in ("Answer", "the_solution"):
        assert word in parse(whole / "part2" / "mmd.html").get_text()
        assert word not in without
    for word in ("Question", "sliders", "show(2)", "References"):
        assert word in without


def test_a_page_with_formulas_or_code_says_what_is_missed_without_javascript(whole: Path) -> None:
    said = {name: parse(whole / f"{name}.html").select("main noscript p") for name in ("part2/mmd", "aside")}
    assert "LaTeX source" in said["part2/mmd"][0].get_text()
    assert not said["aside"]


def print_buttons(page: Path) -> list[str]:
    return [" ".join(button.get_text().split()) for button in parse(page).select("button[onclick*=rint]")]


def test_the_button_that_prints_all_names_what_is_folded(whole: Path, changed: tuple[Path, str]) -> None:
    """Without solutions answers are left; a page without folds has nothing to unfold."""
    assert print_buttons(whole / "part2" / "mmd.html") == ["Print", "Print with solutions"]
    assert print_buttons(changed[0] / "part2" / "mmd.html") == ["Print", "Print with answers"]
    assert print_buttons(whole / "aside.html") == ["Print", "Print unfolded"]
    assert print_buttons(whole / "glossary.html") == ["Print"]


def test_how_to_read_names_the_buttons_and_holds_without_solutions_too() -> None:
    text = (BOOK / "how-to-read.md").read_text(encoding="utf-8")
    assert set(re.findall('"(Print[^"]+)"', text)) == {words for words, _ in UNFOLDED.values()}
    assert "a class may have got the book without them" in text


def test_downloads_lose_the_solutions_too(whole: Path, changed: tuple[Path, str]) -> None:
    before, after = (
        nbformat.read(site / "_sources" / "part2" / "mmd.ipynb", as_version=4).cells for site in (whole, changed[0])
    )
    assert [cell.source for cell in before if "the_solution" in cell.source]
    assert len(after) == len(before) - 1
    text = "".join(cell.source for cell in after)
    assert "Answer" not in text
    assert "the_solution" not in text
    assert "Question" in text
    assert "show(2)" in text


@pytest.mark.parametrize(("mean", "said"), [(72.4, "72"), (99.4, "99"), (99.99, "above 99"), (100, "100")])
def test_an_accuracy_is_not_called_100_where_an_answer_was_wrong(mean, said):
    assert percent(mean) == f"{said}\u00a0%"


def test_an_accuracy_is_the_mean_of_the_runs_of_one_recipe() -> None:
    stored = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (BOOK.parent / "data" / "results" / "chapter3").glob("print-to-pen_source-only_bn_seed*.json")
    ]
    for of, values in (
        ("target", [run["selections"]["last"]["accuracy"] for run in stored]),
        ("source", [run["curve"][-1]["source"] for run in stored]),
    ):
        mean, count = accuracy(f"chapter3 objective=source-only source=print of={of}")
        assert count == len(stored) > 1
        assert mean == pytest.approx(100 * sum(values) / count)
    for several in ("chapter3 source=print", "chapter3 objective=none"):
        with pytest.raises(ValueError, match="asks for one recipe"):
            accuracy(several)


def test_reading_order_knows_every_chapter_and_never_points_forward() -> None:
    order = read_order(BOOK / "reading.toml")
    pages = list(CHAPTERS.values())
    assert list(order) == pages
    for page, facts in order.items():
        assert set(facts) == {"short", "sentence", "column", "needs", "helps"}
        assert all(pages.index(before) < pages.index(page) for before in (*facts["needs"], *facts["helps"]))
    places = [(facts["column"], row_of(page, order)) for page, facts in order.items()]
    assert len(set(places)) == len(places), "two boxes at one place"


def test_drawing_has_a_box_for_each_chapter_and_a_line_for_each_need() -> None:
    order = read_order(BOOK / "reading.toml")
    drawn = BeautifulSoup(
        draw(
            order, {page: (facts["short"], "1 min") for page, facts in order.items()}, {p: f"{p}.html" for p in order}
        ),
        "html.parser",
    )
    assert [link["href"] for link in drawn.select("a")] == [f"{page}.html" for page in order]
    assert len(drawn.select("rect")) == len(order)
    assert len(drawn.select(".lines path")) == sum(len(facts["needs"] + facts["helps"]) for facts in order.values())
    assert drawn.svg["aria-label"]


ORDER = read_order(BOOK / "reading.toml")


def schedule_of_the_book() -> list[str]:
    text = (BOOK / "how-to-read.md").read_text(encoding="utf-8")
    return re.search(r"```\{schedule\}\n(.*?)```", text, flags=re.DOTALL)[1].splitlines()


def test_a_course_of_ten_weeks_reads_nothing_before_what_it_needs() -> None:
    weeks = parse_schedule(schedule_of_the_book(), ORDER)
    assert len(weeks) == 10
    early = {page for week in weeks[:7] for page in week.pages}
    last = {page for page in ORDER if page.startswith("part5/")}
    assert all(set(ORDER[page]["needs"]) <= early for page in last), "Part V can be read from week 8 on"
    needed = {page for facts in ORDER.values() for page in facts["needs"]}
    left_out = set(ORDER) - last - {page for week in weeks for page in week.pages}
    assert sorted(left_out) == [CHAPTERS[1], CHAPTERS[6]]
    assert not left_out & needed


@pytest.mark.parametrize(("lines", "complaint"), [
    (["part2/mmd"], "week 1: part2/mmd needs part1/shift"),
    (["part1/shift", "part2/lost"], "no chapter 'part2/lost'"),
    (["part1/shift", "part2/mmd or part3/dann", "part3/cdan"], "week 3: part3/cdan needs part3/dann"),
])  # fmt: skip
def test_a_course_in_the_wrong_order_is_refused(lines: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_schedule(lines, ORDER)


def test_homework_is_the_main_exercise_or_another_that_the_chapter_has() -> None:
    for week in parse_schedule(schedule_of_the_book(), ORDER):
        for page in week.pages:
            notebook = json.loads((BOOK / f"{page}.ipynb").read_text(encoding="utf-8"))
            label, task = main_exercise(notebook)
            text = "".join("".join(cell["source"]) for cell in notebook["cells"])
            if week.homework:
                assert not label
                assert f":label: {week.homework}\n" in text
            else:
                assert task.startswith("write ")
                assert f"**Main exercise: {task}.**" in text
            assert minutes_to_read(notebook)
