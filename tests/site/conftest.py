"""The built site, and a browser to read it with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from missing_tool import missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built site, renewed if anything it is built from has changed."""
    if shutil.which("make") is None:
        missing("make")
    (ROOT / "_build").mkdir(exist_ok=True)
    with FileLock(ROOT / "_build" / "site.lock"):  # two workers of one run must not build at once
        run = subprocess.run(["make", "book"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.fail(f"the book does not build:\n{run.stdout[-4000:]}\n{run.stderr[-4000:]}", pytrace=False)
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def pages(site: Path) -> list[Path]:
    """Every page of the site, the theme's own sample pages left out."""
    found = sorted(page for page in site.rglob("*.html") if "_static" not in page.relative_to(site).parts)
    assert site / "index.html" in found
    return found


@pytest.fixture(scope="session")
def book_pages(pages: list[Path], site: Path) -> list[Path]:
    """The pages that are written by hand, and of those made from docstrings and source one each for all."""
    docstrings = [page for page in pages if page.is_relative_to(site / "api")]
    listings = [page for page in pages if page.is_relative_to(site / "_modules") and page.stem != "index"]
    made = {*docstrings, *listings, site / "_modules" / "index.html"}
    lightest = [min(group, key=lambda page: page.stat().st_size) for group in (docstrings, listings) if group]
    return [page for page in pages if page not in made] + lightest


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = next((found for name in BROWSERS if (found := shutil.which(name))), playwright.chromium.executable_path)
        if not Path(path).exists():
            missing("Chromium or Chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages one after the other in one window; options of the window are given with the first page."""
    windows = {}

    def open_page(path: Path, **options: object) -> Page:
        key = repr(sorted(options.items()))
        if key not in windows:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": True, **options})
            windows[key] = context.new_page()
        page = windows[key]
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise")
            page.evaluate("window.MathJax?.startup?.promise")
        return page

    yield open_page
    for page in windows.values():
        page.context.close()
