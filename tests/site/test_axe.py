"""By axe-core's rules for who sees or hears a page otherwise, on every page, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

DARK = {"color_scheme": "dark"}
# A page takes up to twenty seconds: in parts, so that the file starts early and both workers end together.
PARTS = 24
every_part = pytest.mark.parametrize("part", range(PARTS))

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


@every_part
def test_axe_finds_nothing_serious(
    part: int, pages: list[Path], book_pages: list[Path], visit: Callable[..., Page]
) -> None:
    """Every page; of those that are made alike, all but one by the quick rules."""
    found = {}
    for path in pages[part::PARTS]:
        rules = {} if path in book_pages else QUICK
        if violations := serious(visit(path), **rules):
            found[path.name] = violations
    assert not found


@every_part
def test_contrast_holds_in_the_dark(part: int, book_pages: list[Path], visit: Callable[..., Page]) -> None:
    """The theme changes colours and nothing else."""
    found = {}
    for path in book_pages[part::PARTS]:
        page = visit(path, **DARK)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        if violations := serious(page, runOnly={"type": "rule", "values": ["color-contrast"]}):
            found[path.name] = violations
    assert not found
