"""The built site as files: links, pictures, weight. These need no browser."""

from __future__ import annotations

import base64
import io
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, NavigableString, Tag
from front_page import COVER, sprite
from PIL import Image

import deeptransfer
from deeptransfer.catalogue import CHAPTERS

MAX_PAGE_BYTES = 1_500_000
BOOK = Path(__file__).resolve().parents[2] / "book"


@cache
def parse(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(
        str(tag.get("id") or tag.get("name")) for tag in parse(page).find_all(id=True) + parse(page).find_all("a")
    )


def references(page: Path) -> Iterator[tuple[Tag, str]]:
    for tag in parse(page).find_all(True):
        for attribute in ("href", "src", "data-src", "poster"):
            if tag.get(attribute):
                yield tag, str(tag[attribute])


def test_no_page_loads_anything_from_elsewhere(pages: list[Path]) -> None:
    """Links may lead away; scripts, styles, fonts and pictures are all on the disk."""
    remote = [
        f"{page.name}: {address}"
        for page in pages
        for tag, address in references(page)
        if urlsplit(address).scheme not in ("", "data") or address.startswith("//")
        if tag.name != "a" and not (tag.name == "link" and tag.get("rel") == ["canonical"])
    ]
    assert not remote


def test_internal_links_and_pictures_exist(pages: list[Path], site: Path) -> None:
    broken = []
    for page in pages:
        for _, address in references(page):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or address == "#":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir():
                target /= "index.html"
            lost_anchor = (
                parts.fragment and target.suffix == ".html" and target.is_file()
                and unquote(parts.fragment) not in anchors(target)
            )  # fmt: skip
            if not target.is_file() or not target.is_relative_to(site.resolve()) or lost_anchor:
                broken.append(f"{page.relative_to(site)}: {address}")
    assert not broken


def test_pages_are_light(pages: list[Path]) -> None:
    """The page with its own pictures; the theme, shared by all pages, comes once."""
    heavy = {}
    for page in pages:
        sources = {str(image["src"]) for image in parse(page).select("article img[src]")}
        pictures = {(page.parent / unquote(source)).resolve() for source in sources if not source.startswith("data:")}
        size = page.stat().st_size + sum(picture.stat().st_size for picture in pictures)
        if size > MAX_PAGE_BYTES:
            heavy[page.name] = size
    assert not heavy


def test_pictures_have_words_and_an_opaque_ground(pages: list[Path]) -> None:
    """Dark letters on a transparent ground vanish where no style turns them over."""
    bad = []
    for page in pages:
        for image in parse(page).select("article img"):
            source = str(image.get("src"))
            if image.get("alt") is None:
                bad.append(f"{page.name}: no alternative text: {source[:80]}")
            if image.find_parent(hidden=True):
                continue  # a frame that lies over the opening one
            if source.startswith("data:image/"):
                file: io.BytesIO | Path = io.BytesIO(base64.b64decode(source.split(",", 1)[1]))
            elif source.endswith(".png"):
                file = (page.parent / unquote(source)).resolve()
            else:
                continue
            with Image.open(file) as picture:
                lowest = picture.convert("RGBA").getextrema()[3][0]
            if lowest < 255:
                bad.append(f"{page.name}: transparent: {source[:80]}")
    assert not bad


def test_every_numbered_equation_says_what_computes_and_what_tests_it(pages: list[Path], site: Path) -> None:
    """All on the page of all equations; below the equation if that leads somewhere."""
    numbered = linked = 0
    listed = parse(site / "equations.html").select("article .equation-source")
    by_library = sum(bool(line.select("a[href*='api/']")) for line in listed)
    for page in pages:
        for number in parse(page).select("article div.math > .eqno"):
            line = number.parent.find_next_sibling()
            numbered += 1
            if line is not None and line.get("class") == ["equation-source"]:
                *code, test = (str(link["href"]) for link in line.select("a"))
                assert code
                assert all("api/" in link for link in code)
                assert "equations.html#source-eq-" in test
                linked += 1
    assert numbered == len(listed) > linked == by_library > 0
    assert all(" · tested by " in line.get_text() for line in listed)


def test_chapters_and_equations_carry_the_numbers_that_the_text_uses(site: Path) -> None:
    """ "Chapter 9" has to be found in the sidebar, and equation (9.2) in chapter 9."""
    for number, chapter in CHAPTERS.items():
        page = parse(site / f"{chapter}.html")
        assert page.select_one("article h1").get_text().startswith(f"{number}. ")
        equations = [tag.contents[0] for tag in page.select("article div.math > .eqno")]
        assert equations == [f"({number}.{i})" for i in range(1, len(equations) + 1)]


def test_no_line_can_begin_with_the_sign_behind_a_formula(pages: list[Path]) -> None:
    loose, kept = [], 0
    for page in pages:
        for formula in parse(page).select("article span.math"):
            behind = formula.next_sibling
            if isinstance(behind, NavigableString) and re.match(r"[.,;:!?)]", behind):
                if "together" in (formula.parent.get("class") or []):
                    kept += 1
                else:
                    loose.append(f"{page.name}: {formula.get_text()}{behind[:20]}")
    assert not loose
    assert kept


def test_pictures_of_the_first_page_are_those_of_the_domains() -> None:
    with Image.open(BOOK / "_static" / "digits.png") as kept:
        assert kept.tobytes() == sprite().tobytes()
    with Image.open(BOOK / "_static" / "cover.png") as kept:
        assert kept.size == COVER


def test_a_shared_link_shows_the_cover(pages: list[Path], site: Path) -> None:
    for page in (site / "index.html", site / "part2" / "mmd.html"):
        facts = {tag["property"]: tag["content"] for tag in parse(page).select("meta[property^='og:']")}
        assert (page.parent / facts["og:image"]).resolve() == (site / "_static" / "cover.png").resolve()
        assert facts["og:title"]


def test_every_module_has_a_sentence_in_the_list(site: Path) -> None:
    (listed,) = parse(site / "api.html").select("article section > ul")
    lines = [line.get_text().strip() for line in listed.select("li")]
    assert [line.partition(":")[0] for line in lines] == sorted(path.stem for path in (BOOK / "api").glob("*.md"))
    assert all(re.fullmatch(r"\w+: .{20,}\.", line) for line in lines)


def test_every_module_has_a_reference_page() -> None:
    public = {
        module.name
        for module in pkgutil.walk_packages(deeptransfer.__path__, "deeptransfer.")
        if not any(part.startswith("_") for part in module.name.split("."))
        if module.name.count(".") == 1 and module.name != "deeptransfer.version"
    }
    pages = "".join(page.read_text(encoding="utf-8") for page in (BOOK / "api").glob("*.md"))
    shown = set(re.findall(r"^\.\. automodule:: (\S+)", pages, flags=re.M))
    packages = {name.rpartition(".")[0] for name in shown}  # shown module by module
    assert not public - shown - packages


def test_an_author_s_initial_is_no_number_of_a_list(site: Path) -> None:
    """Docstrings are reStructuredText, in which a line that begins with "F. " is item F, and "B." an empty item."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html")}
    assert any("F. M. Carlucci" in text for text in pages.values())
    assert not [name for name, text in pages.items() if re.search(r'<ol class="[a-z ]*alpha', text)]
