"""The built site in a browser, opened from the disk without a network."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from deeptransfer.catalogue import CHAPTERS

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LOCAL = ("file", "data", "blob", "about")
DARK = {"color_scheme": "dark"}
RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"


def test_pages_load_without_errors_or_requests(pages: list[Path], visit: Callable[..., Page]) -> None:
    """Each of them as the first page that a reader opens."""
    page = visit(pages[0])
    page.context.add_init_script("localStorage.clear()")
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    page.on(
        "request", lambda r: None if urlsplit(r.url).scheme in LOCAL else problems.append(f"asks the network: {r.url}")
    )
    found = {}
    for path in pages:
        visit(path).wait_for_timeout(50)  # for what scripts do after the page has loaded
        if problems:
            found[path.name] = problems.copy()
            problems.clear()
    assert not found


def test_first_view_of_a_page_is_light(site: Path, visit: Callable[..., Page]) -> None:
    """All that a browser asks for, but for MathJax, which is there where there are formulas."""
    page = visit(site / "index.html")
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(unquote(urlsplit(request.url).path)))
    heavy = {}
    for name, most in {"index": 1_200_000, **dict.fromkeys(CHAPTERS.values(), 2_000_000)}.items():
        page.goto("about:blank")
        asked.clear()
        visit(site / f"{name}.html").wait_for_timeout(300)
        files = [Path(path) for path in asked if Path(path).is_file()]
        assert files
        if name == "index":
            assert not [file for file in files if "mathjax" in file.parts], "the first page has no formula"
        size = sum(file.stat().st_size for file in files if "mathjax" not in file.parts)
        if size > most:
            heavy[name] = (size, sorted(((file.stat().st_size, file.name) for file in files), reverse=True)[:3])
    assert not heavy


def test_icons_are_seen_without_the_theme_s_script(site: Path, visit: Callable[..., Page]) -> None:
    page = visit(site / "part2" / "mmd.html")
    icons = page.locator("i[class*=fa-], span[class*=fa-]")
    drawn = icons.evaluate_all("all => all.map(i => getComputedStyle(i, '::before').content)")
    assert len(drawn) > 5
    assert all(sign not in ("none", "normal", '""') for sign in drawn)
    assert not page.locator("script[src*=fontawesome]").count()


def test_first_paint_is_quick(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
    times = [visit(path).evaluate(paint) for path in book_pages]
    assert statistics.median(times) <= 1000


def test_formulas_are_rendered(pages: list[Path], visit: Callable[..., Page]) -> None:
    count = """() => ({
        written: document.querySelectorAll('.math').length,
        rendered: document.querySelectorAll('.math mjx-container').length,
        wrong: [...document.querySelectorAll('mjx-merror')].map(e => e.textContent)
    })"""
    unrendered = {}
    for path in pages:
        formulas = visit(path).evaluate(count)
        if formulas["wrong"] or formulas["rendered"] < formulas["written"]:
            unrendered[path.name] = formulas
    assert not unrendered


def test_paper_is_white_without_controls_and_shows_whole_lines(site: Path, visit: Callable[..., Page]) -> None:
    """Printed from a dark screen."""
    page = visit(site / "part2" / "mmd.html", **DARK, viewport={"width": 700, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    colours = r"""e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]
        .map(colour => colour.match(/[\d.]+/g).map(Number))"""
    ink, paper = page.locator("body").evaluate(colours)
    assert min(paper[:3]) >= 250 or paper[3:] == [0]
    assert max(ink[:3]) <= 80
    frame = (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", ".copybtn")
    for control in (*frame, ".explore-controls", ".live-controls", ".live-handle"):
        assert page.locator(f"{control}:visible").count() == 0, control
    words = page.locator("figure.live text").first.evaluate("e => getComputedStyle(e).fill.match(/\\d+/g).map(Number)")
    assert max(words[:3]) <= 80
    cut = page.evaluate("""[...document.querySelectorAll('article pre')]
        .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80))""")
    assert not cut


def test_paper_has_what_is_unfolded_and_on_demand_the_solutions(site: Path, visit: Callable[..., Page]) -> None:
    page = visit(site / "part2" / "mmd.html")
    page.emulate_media(media="print")
    answers = page.locator("details:is(.solution, .answer)")
    assert answers.count()
    assert not [fold for fold in answers.all() if fold.is_visible()]
    assert not page.locator("summary:visible").count()
    page.evaluate("window.print = () => { window.printed = document.querySelectorAll('.solution[open]').length; }")
    page.evaluate("printUnfolded()")
    assert page.evaluate("window.printed") == page.locator("details.solution").count()
    assert page.locator("details.solution p:visible").count()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("details.solution[open]").count()
    page.emulate_media(media="screen")
    buttons = {button.get_attribute("onclick") for button in page.locator("button[onclick]").all()}
    assert {"window.print()", "printUnfolded()"} <= buttons


@pytest.mark.parametrize("name", ["index", "part3/cdan"])
def test_paper_can_have_all_text_that_is_folded(name: str, site: Path, visit: Callable[..., Page]) -> None:
    """And code no more than before."""
    page = visit(site / f"{name}.html")
    page.emulate_media(media="print")
    hidden = """kind => [...document.querySelectorAll(`article details.fold ${kind}`)].filter(e => !e.checkVisibility())
        .map(e => e.textContent.slice(0, 60))"""
    text = ":is(p, li, div.math):not(.cell *)"
    assert page.evaluate(hidden, text)
    page.evaluate("window.print = () => { window.opened = document.querySelectorAll('details.fold[open]').length; }")
    folds = page.locator("details.fold").count()
    page.evaluate("printUnfolded()")
    assert not page.evaluate(hidden, text)
    assert 0 < page.evaluate("window.opened") < folds or not page.locator("article .cell").count()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert not page.locator("details.fold[open]").count()


@pytest.mark.parametrize(("words", "found"), [
    ("GRL", "glossary.html"), ("Sinkhorn", "glossary.html"),
    ("bandwidth", "part2/mmd.html"), ("transfer", "index.html"),
])  # fmt: skip
def test_search_finds_usual_names_and_shows_where_without_a_server(
    site: Path, visit: Callable[..., Page], words: str, found: str
) -> None:
    page = visit(site / "search.html")
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto((site / "search.html").as_uri() + f"?q={words}")
    result = page.locator(f"#search-results li:has(> a[href^='{found}']):has(.context)").first
    result.wait_for()
    marked = result.locator(".context mark").all_inner_texts()
    in_title = words.lower() in result.locator("> a").inner_text().lower()
    assert in_title or words.lower()[:4] in {mark.lower()[:4] for mark in marked}
    assert not problems
    assert page.locator("script[src*=search_texts]").count() == 1


def test_digits_of_the_first_page_are_marked_as_the_stored_runs_say(site: Path, visit: Callable[..., Page]) -> None:
    """Chosen from the keyboard, without a script."""
    page = visit(site / "index.html", java_script_enabled=False)
    first = page.locator("#digits-0")
    counts = []
    shown = "digits-source/print-to-pen_source-only_bn", "digits-losses/print-to-pen_cdan+e_bn*"
    for state, runs in enumerate(shown):
        (path,) = RESULTS.glob(f"{runs}_seed0.json")
        stored = json.loads(path.read_text(encoding="utf-8"))
        wrong = [place for place in stored["wrong"] if place < 40]
        places = [
            place
            for place, digit in enumerate(page.locator(".written .digit").all())
            if f"wrong-{state}" in (digit.get_attribute("class") or "").split()
        ]
        assert places == wrong
        assert page.locator(f".said-{state}").is_visible()
        assert page.locator(".digits-said").inner_text() == f"{40 - len(wrong)} of 40 right, {len(wrong)} wrong"
        counts.append(len(wrong))
        if state == 0:
            first.focus()
            page.keyboard.press("ArrowDown")
    assert counts[1] < counts[0]


def test_without_javascript_a_page_says_what_is_missed(site: Path, visit: Callable[..., Page]) -> None:
    path = site / "part2" / "mmd.html"
    (line,) = visit(path, java_script_enabled=False).locator(".without-script").all()
    assert line.is_visible()
    assert "LaTeX source" in line.inner_text()
    assert not visit(path).locator(".without-script").count()


@pytest.mark.parametrize("width", [320, 390, 700, 1000, 1280, 1600])
def test_the_link_that_skips_the_contents_covers_no_control(site: Path, visit: Callable[..., Page], width: int) -> None:
    page = visit(site / "part2" / "mmd.html", viewport={"width": width, "height": 900})
    page.keyboard.press("Tab")
    link = page.locator("#pst-skip-link")
    assert link.locator("a").evaluate("link => link === document.activeElement")
    page.wait_for_timeout(300)  # it slides in
    shown = link.bounding_box()
    assert shown
    assert shown["y"] >= 0
    assert 0 <= shown["x"] <= width - shown["width"]
    covered = """link => { const own = link.getBoundingClientRect(); return [...document.querySelectorAll(
        'a[href], button, input, summary, select')].filter(e => !link.contains(e) && e.checkVisibility()).filter(e => {
        const at = e.getBoundingClientRect();
        return at.width && at.left < own.right && at.right > own.left && at.top < own.bottom && at.bottom > own.top;
        }).map(e => e.outerHTML.slice(0, 80)); }"""
    assert not link.evaluate(covered)
    page.locator(".dropdown-download-buttons > button").click(timeout=3000)
    assert page.locator(".dropdown-download-buttons .dropdown-item").first.is_visible()


def unfolded(page: Page) -> Page:
    """The page with all its folds open."""
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    return page


def explore_figures(page: Page) -> list[Locator]:
    return page.locator(".explore").all()


def shown_frames(figure: Locator) -> list[str]:
    return figure.evaluate("f => [...f.querySelectorAll('img')].filter(i => i.checkVisibility()).map(i => i.src)")


def test_sliders_change_the_frame_from_the_keyboard(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    moved = 0
    for path in book_pages:
        for figure in explore_figures(unfolded(visit(path))):
            for slider in figure.locator("input[type=range]").all():
                seen = []
                slider.focus()
                slider.press("Home")
                for _ in range(int(slider.get_attribute("max") or 0) + 1):
                    frames = shown_frames(figure)
                    assert len(frames) == 1, f"{path.name}: {len(frames)} frames at once"
                    seen.append((frames[0], slider.get_attribute("aria-valuetext")))
                    slider.press("ArrowRight")
                assert len(set(seen)) == len(seen) >= 2, f"{path.name}: a step of a slider shows the frame before"
                moved += 1
    if not moved and any("explore-control" in path.read_text(encoding="utf-8") for path in book_pages):
        pytest.fail("the pages hold interactive figures, but no slider was found")


def test_live_figures_of_the_pages_answer_hand_and_keys(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    for path in book_pages:
        page = visit(path)
        for figure in page.locator("figure.live").all():
            handle = figure.locator(".live-handle").first
            seen = [handle.get_attribute("aria-valuetext")]
            handle.scroll_into_view_if_needed()
            box = handle.locator(".live-knob").bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + 40, y - 20, steps=3)
            page.mouse.up()
            page.evaluate("new Promise(requestAnimationFrame)")
            seen.append(handle.get_attribute("aria-valuetext"))
            handle.press("Shift+ArrowLeft")
            handle.press("Shift+ArrowDown")
            page.evaluate("new Promise(requestAnimationFrame)")
            seen.append(handle.get_attribute("aria-valuetext"))
            assert len(set(seen)) == 3, f"{path.name}: {seen}"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_printed_table_breaks_no_number_and_keeps_its_rows_named(
    site: Path, visit: Callable[..., Page], width: int
) -> None:
    """A wide one scrolls inside itself; only the name of a row may take several lines, and only on a phone."""
    page = visit(site / "results.html", viewport={"width": width, "height": 900})
    cells = page.locator("article .cell_output table:visible :is(td, th)")
    numbers = page.locator("article .cell_output table:visible :is(td, th):not(:first-child)")
    lines = """cells => cells.filter(cell => cell.textContent.trim()).map(cell => {
        const words = document.createRange();
        words.selectNodeContents(cell);
        return words.getBoundingClientRect().height / parseFloat(getComputedStyle(cell).lineHeight);
    })"""
    assert numbers.count() > 50
    assert max(numbers.evaluate_all(lines)) < 1.5
    assert max(cells.evaluate_all(lines)) < (4.5 if width == 390 else 1.5)
    table = page.locator("article .cell_output table:visible").first
    name, number = table.locator("tbody td").first, table.locator("tbody td").nth(1)
    before, beside = (cell.bounding_box()["x"] for cell in (name, number))
    table.evaluate("t => { for (let part = t; part; part = part.parentElement) part.scrollLeft = 100; }")
    assert name.bounding_box()["x"] == pytest.approx(before, abs=1)
    assert width > 390 or number.bounding_box()["x"] <= beside - 50
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_shows_the_frame_a_figure_starts_on(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    for path in book_pages:
        page = unfolded(visit(path))
        for figure in explore_figures(page):
            (start,) = shown_frames(figure)
            for slider in figure.locator("input[type=range]").all():
                slider.focus()
                slider.press("End")
                slider.press("ArrowLeft")
            page.emulate_media(media="print")
            assert shown_frames(figure) == [start], path.name
            page.emulate_media(media="screen")


def test_a_figure_and_its_sliders_fit_a_low_window(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    tall = {}
    for path in book_pages:
        for place, figure in enumerate(explore_figures(visit(path))):
            top, bottom = (figure.locator(part).bounding_box() for part in (".explore-controls", ".explore-frames"))
            if (height := bottom["y"] + bottom["height"] - top["y"]) > 650:
                tall[f"{path.name}, figure {place}"] = height
    assert not tall


@pytest.mark.parametrize("width", [390, 1280, 1600])
def test_pictures_and_text_have_one_width(book_pages: list[Path], visit: Callable[..., Page], width: int) -> None:
    """On a phone pictures go from edge to edge."""
    shown = "es => es.filter(e => e.checkVisibility()).map(e => Math.round(e.getBoundingClientRect().width))"
    for path in book_pages:
        page = visit(path, viewport={"width": width, "height": 900})
        if plates := page.locator("article .plate").evaluate_all(shown):
            text = max(page.locator("article section > p:not(.figure-number)").evaluate_all(shown))
            assert set(plates) == {390 if width == 390 else text}, path.name


def test_figures_show_their_first_frame_without_javascript(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    for path in book_pages:
        page = visit(path, java_script_enabled=False)
        assert all(still.is_visible() for still in page.locator("figure.live svg").all()), path.name
        for figure in page.locator(".explore").all():
            unseen = figure.evaluate("f => Boolean(f.closest('details:not([open])'))")
            visible = [image for image in figure.locator("img").all() if image.is_visible()]
            assert unseen or len(visible) == 1, path.name
