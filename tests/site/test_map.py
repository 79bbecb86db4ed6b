"""The map of methods, the catalogue, the contents and the first page tell the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from notebooks import BOOK
from sphinx.util.inventory import InventoryFile

from deeptransfer.catalogue import CHAPTERS, Method, label, methods

if TYPE_CHECKING:
    from playwright.sync_api import Page

CONTENTS = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
LISTED = [chapter["file"] for part in CONTENTS["parts"] for chapter in part["chapters"]]


@pytest.fixture
def rows(site: Path) -> dict[str, Tag]:
    page = BeautifulSoup((site / "map.html").read_text(encoding="utf-8"), "html.parser")
    rows = page.select(".method-map tbody tr")
    return {row.select_one("code").get_text(): row for row in rows}


def test_every_method_has_its_row_with_every_fact(rows: dict[str, Tag]) -> None:
    assert list(rows) == [method.name for method in methods()]
    for method in methods():
        text = " ".join(rows[method.name].get_text(" ").replace("’", "'").split())
        for fact in (method.title, method.paper, method.shift, method.cost, *method.needs):
            assert " ".join(fact.split()) in text, f"{method.name}: {fact}"


def test_every_row_leads_to_the_chapter_and_to_the_code(rows: dict[str, Tag], site: Path) -> None:
    for method in methods():
        links = {str(link["href"]) for link in rows[method.name].select("a[href]")}
        assert (f"{method.page}.html" in links) == ((BOOK / f"{method.page}.ipynb").exists()), method.name
        if method.symbol.startswith("deeptransfer."):
            assert any(link.endswith(f"#{method.symbol}") for link in links), (
                f"{method.name}: no link to {method.symbol}"
            )
    with (site / "objects.inv").open("rb") as file:
        documented = InventoryFile.load(file, "", lambda base, uri: uri)
    names = {name for kind, objects in documented.items() if kind.startswith("py:") for name in objects}
    assert {method.symbol for method in methods() if method.symbol.startswith("deeptransfer.")} <= names


def test_chapters_stand_in_the_order_of_the_catalogue_and_on_cards(site: Path) -> None:
    """All on the first page, and each on the page of its part; with a picture and a sentence."""
    chapters = [name for name in LISTED if re.match(r"part\d+/(?!index)", name)]
    assert chapters == [name for name in CHAPTERS.values() if name in chapters], "the contents and CHAPTERS differ"
    index = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    cards = {card["href"].removesuffix(".html"): card for card in index.select("a.chapter-card")}
    assert list(cards) == chapters
    for number, page in CHAPTERS.items():
        assert cards[page].svg is not None
        assert cards[page].select_one(".card-title").get_text().startswith(f"{number}. ")
        assert cards[page].select_one(".card-text").get_text().endswith(".")
    for part in sorted({name.partition("/")[0] for name in chapters}):
        page = BeautifulSoup((site / part / "index.html").read_text(encoding="utf-8"), "html.parser")
        named = [f"{part}/{card['href'].removesuffix('.html')}" for card in page.select("a.chapter-card")]
        assert named == [name for name in chapters if name.startswith(f"{part}/")]
        assert index.select(f"article a[href='{part}/index.html']")


def test_where_to_begin_leads_to_the_chapters_that_it_numbers() -> None:
    text = (BOOK / "map.md").read_text(encoding="utf-8").partition("## Where to begin")[2].partition("\n## ")[0]
    link = r"(?:\{doc\}`([\w/-]+)`|\]\(([\w/-]+)\.ipynb#[\w-]+\)) \(chapter (\d+)\)"
    found = re.findall(link, text)
    assert len(found) == text.count("(chapter ") >= 8
    assert all(CHAPTERS[int(number)] == (page or other) for page, other, number in found)


@pytest.mark.parametrize("name", ["map", "part5/index"])
def test_every_method_has_its_field_by_whose_statistics_it_reads(name: str, site: Path) -> None:
    page = BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    table = page.select_one("table.statistics-map")
    for edits, row in zip((False, True), table.select("tbody tr"), strict=True):
        for whose, cell in zip(("set", "image"), row.select("td")[1:], strict=True):
            named = [p.get_text().partition(": ")[2] for p in cell.select("p")[1:]]
            here = [label(m.name) for m in methods() if whose in m.statistics and m.edits == edits]
            assert sorted(", ".join(named).split(", ")) == sorted(", ".join(here).split(", "))
    without = next(p for p in table.find_all_next("p") if table not in p.parents).get_text()
    assert without.startswith("No statistics of a normalisation: ")
    assert all(label(m.name) in without for m in methods() if not m.statistics)


def test_filter_shows_exactly_the_rows_that_fit(site: Path, visit: Callable[..., Page]) -> None:
    """Chosen from the keyboard alone."""
    page = visit(site / "map.html")
    shown = "() => [...document.querySelectorAll('.method-map tbody tr')].filter(r => r.checkVisibility())"
    names = f"({shown})().map(r => r.querySelector('code').textContent)"
    needs, kind = page.get_by_label("What it needs"), page.get_by_label("What it is")
    assert len(page.evaluate(names)) == len(methods())

    def fitting(test: Callable[[Method], bool]) -> list[str]:
        return [method.name for method in methods() if test(method)]

    def choose(select, words: str) -> None:
        select.focus()
        page.keyboard.type(words)

    choose(needs, "a source-trained")
    assert page.evaluate(names) == fitting(lambda m: "a source-trained start" in m.needs)
    choose(kind, "a step at")
    both = fitting(lambda m: "a source-trained start" in m.needs and m.kind == "test-time")
    assert page.evaluate(names) == both
    assert page.locator("#method-filter output").inner_text() == f"{len(both)} of {len(methods())} methods"
    page.get_by_role("button", name="Show all").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"({names}).length == {len(methods())}")
    for option in page.get_by_label("What it assumes").locator("option").all()[1:]:
        page.get_by_label("What it assumes").select_option(option.get_attribute("value"))
        assert page.evaluate(names) == [method.name for method in methods() if method.shift == option.inner_text()]


def test_without_javascript_all_rows_are_there(site: Path, visit: Callable[..., Page]) -> None:
    page = visit(site / "map.html", java_script_enabled=False)
    assert page.locator(".method-map tbody tr:visible").count() == len(methods())
    assert not page.locator("#method-filter").is_visible()
