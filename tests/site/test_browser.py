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
        for figure in visit(path, java_script_enabled=False).locator(".explore").all():
            visible = [image for image in figure.locator("img").all() if image.is_visible()]
            assert len(visible) == 1, path.name
