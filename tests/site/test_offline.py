"""`make offline`: one file that a reader unpacks and opens with the network off."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, unpacked elsewhere, so that no path of the checkout can serve it."""
    run = subprocess.run(
        ["make", "--no-print-directory", "offline"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    bundle = Path(run.stdout.strip().splitlines()[-1].removeprefix("Made "))
    folder = tmp_path_factory.mktemp("a reader's folder")
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    (inside,) = folder.iterdir()
    assert {path.relative_to(site) for path in site.rglob("*")} == {
        path.relative_to(inside) for path in inside.rglob("*")
    }
    return inside


def test_bundle_opens_without_a_network_and_asks_for_nothing_outside(
    unpacked: Path, visit: Callable[..., Page]
) -> None:
    page = visit(unpacked / "index.html")
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    for name in ("index.html", "map.html", "part2/mmd.html"):
        visit(unpacked / name)
        assert page.locator("article h1").is_visible()
        assert page.locator(".math").count() == page.locator(".math mjx-container").count()
    assert not failed
    outside = [url for url in asked if urlsplit(url).scheme not in ("file", "data", "blob")]
    assert not outside
    files = [url for url in asked if urlsplit(url).scheme == "file"]
    assert files
    assert all(url.startswith(unpacked.as_uri()) for url in files)


def test_search_of_the_bundle_finds_a_chapter(unpacked: Path, visit: Callable[..., Page]) -> None:
    page = visit(unpacked / "index.html")
    page.goto((unpacked / "search.html").as_uri() + "?q=bandwidth")
    page.wait_for_selector("#search-results li a[href*='part2/']")
