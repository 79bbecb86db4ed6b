"""Readable on a phone: no page scrolls sideways, and no formula runs into its number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

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
