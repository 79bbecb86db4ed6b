"""The built site in a browser, opened from the disk without a network."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LOCAL = ("file", "data", "blob", "about")
DARK = {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}


@pytest.fixture
def book_pages(pages: list[Path], site: Path) -> list[Path]:
    """The pages that are written by hand, and of those made from docstrings and source one each for all."""
    docstrings = [page for page in pages if page.is_relative_to(site / "api")]
    listings = [page for page in pages if page.is_relative_to(site / "_modules") and page.stem != "index"]
    made = {*docstrings, *listings, site / "_modules" / "index.html"}
    lightest = [min(group, key=lambda page: page.stat().st_size) for group in (docstrings, listings) if group]
    return [page for page in pages if page not in made] + lightest


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


def test_nothing_scrolls_sideways_on_a_phone(pages: list[Path], visit: Callable[..., Page]) -> None:
    wide = {}
    measure = """() => [document.documentElement.scrollWidth, [...document.querySelectorAll('article *')]
        .filter(e => e.getBoundingClientRect().right > 391).slice(0, 3).map(e => e.outerHTML.slice(0, 100))]"""
    for path in pages:
        width, elements = visit(path, **PHONE).evaluate(measure)
        if width > 390:
            wide[path.name] = (width, elements)
    assert not wide


def test_numbers_of_formulas_stand_clear_of_them_on_a_phone(pages: list[Path], visit: Callable[..., Page]) -> None:
    """A formula that is too wide scrolls in its own box, and all of it can be reached."""
    measure = """() => [...document.querySelectorAll('div.math:has(.eqno)')].filter(e => {
        if (!e.checkVisibility()) return false;
        const [box, formula, number] = ['mjx-container', 'mjx-math', '.eqno'].map(
            part => e.querySelector(part).getBoundingClientRect());
        const right = Math.min(box.right, formula.right);
        return box.left < 0 || box.right > 391 || (right > number.left && box.bottom > number.top + 1);
    }).map(e => e.id)"""
    found = {path.name: ids for path in pages if (ids := visit(path, **PHONE).evaluate(measure))}
    assert not found


# Without the lines of source code and without the slow rule.
QUICK = {"context": {"exclude": [[".highlight pre"]]}, "rules": {"color-contrast": {"enabled": False}}}


def serious(page: Page, context: dict[str, object] | None = None, **options: object) -> list[str]:
    """What axe-core holds to be a serious or critical obstacle."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page, context, options).response["violations"]
    return [
        f"{v['id']} at {node['target']}: {' '.join(node['failureSummary'].split())}"
        for v in violations
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


def test_axe_finds_nothing_serious(pages: list[Path], book_pages: list[Path], visit: Callable[..., Page]) -> None:
    """Every page; of those that are made alike, all but one by the quick rules."""
    found = {}
    for path in pages:
        part = {} if path in book_pages else QUICK
        if violations := serious(visit(path), **part):
            found[path.name] = violations
    assert not found


def test_contrast_holds_in_the_dark(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    """The theme changes colours and nothing else."""
    found = {}
    for path in book_pages:
        page = visit(path, **DARK)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        if violations := serious(page, runOnly={"type": "rule", "values": ["color-contrast"]}):
            found[path.name] = violations
    assert not found


def test_paper_is_white_without_controls_and_shows_whole_lines(site: Path, visit: Callable[..., Page]) -> None:
    """Printed from a dark screen."""
    page = visit(site / "part2" / "mmd.html", **DARK, viewport={"width": 700, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    colours = r"""e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]
        .map(colour => colour.match(/[\d.]+/g).map(Number))"""
    ink, paper = page.locator("body").evaluate(colours)
    assert min(paper[:3]) >= 250 or paper[3:] == [0]
    assert max(ink[:3]) <= 80
    for control in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", ".copybtn", ".explore-controls"):
        assert page.locator(f"{control}:visible").count() == 0, control
    cut = page.evaluate("""[...document.querySelectorAll('article pre')]
        .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80))""")
    assert not cut


def test_search_works_without_a_server(site: Path, visit: Callable[..., Page]) -> None:
    page = visit(site / "search.html")
    page.goto((site / "search.html").as_uri() + "?q=transfer")
    page.wait_for_selector("#search-results li a")


def explore_figures(page: Page) -> list[Locator]:
    return page.locator(".explore").all()


def shown_frames(figure: Locator) -> list[str]:
    return figure.evaluate("f => [...f.querySelectorAll('img')].filter(i => i.checkVisibility()).map(i => i.src)")


def test_sliders_change_the_frame_from_the_keyboard(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    moved = 0
    for path in book_pages:
        for figure in explore_figures(visit(path)):
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


def test_print_shows_the_frame_a_figure_starts_on(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    for path in book_pages:
        page = visit(path)
        for figure in explore_figures(page):
            (start,) = shown_frames(figure)
            for slider in figure.locator("input[type=range]").all():
                slider.focus()
                slider.press("End")
                slider.press("ArrowLeft")
            page.emulate_media(media="print")
            assert shown_frames(figure) == [start], path.name
            page.emulate_media(media="screen")


def test_figures_show_their_first_frame_without_javascript(book_pages: list[Path], visit: Callable[..., Page]) -> None:
    for path in book_pages:
        for figure in visit(path, java_script_enabled=False).locator(".explore").all():
            visible = [image for image in figure.locator("img").all() if image.is_visible()]
            assert len(visible) == 1, path.name
