"""Readable for everyone: on a phone, in the dark, and by axe-core's rules for who sees or hears a page otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

DARK = {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}


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
