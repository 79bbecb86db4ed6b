"""What the pages of the book refer to: chapters, equations, exercises, works, and where each is found.

Numbers are those of the built book: an equation with a label and an exercise are counted within their chapter, on pages
without a number through all such pages together.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.plugin import find_plugin

PARSER = (
    MarkdownIt("commonmark")
    .enable("table")
    .use(colon_fence_plugin)
    .use(dollarmath_plugin, allow_labels=True)
    .use(myst_block_plugin)
)
DIRECTIVE = re.compile(r"\{(?P<name>[\w:-]+)\}\s*(?P<argument>.*)", flags=re.DOTALL)
OPTION = re.compile(r":(?P<key>[\w-]+):\s*(?P<value>.*)")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
NEEDLESS = re.compile(r"\\([-.()!#+{}])")  # what pybtex escapes though it stands in the middle of a line
GITHUB = re.compile(r"https://github\.com/([^/]+)/([^/]+?)(?:\.git)?/?$")


@dataclass(frozen=True)
class Directive:
    """A fenced block of MyST, such as ``:::{admonition} Title``."""

    name: str
    argument: str
    options: dict[str, str]
    body: str


def directive_of(token: Token) -> Directive | None:
    """What a block holds, if it is a directive."""
    head = DIRECTIVE.fullmatch(token.info.strip()) if token.type in ("fence", "colon_fence") else None
    if head is None:
        return None
    options = {}
    lines = token.content.splitlines()
    while lines and (option := OPTION.fullmatch(lines[0].strip())):
        options[option["key"]] = option["value"].strip()
        del lines[0]
    return Directive(head["name"], head["argument"].strip(), options, "\n".join(lines).strip("\n"))


@dataclass(frozen=True)
class Page:
    """A page of the book: ``part2/mmd``, its title, the number of the chapter, and its text without code cells."""

    name: str
    title: str
    number: int | None
    is_notebook: bool
    texts: tuple[str, ...]
    chapter: int | None = None  # whose equations and exercises it goes on counting, if it is a section of a chapter


def read_page(folder: Path, name: str, number: int | None, chapter: int | None = None) -> Page:
    """A page from its notebook or its Markdown file."""
    path = folder / f"{name}.ipynb"
    if path.exists():
        cells = nbformat.read(path, as_version=4).cells
        texts = tuple(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        texts = (path.with_suffix(".md").read_text(encoding="utf-8"),)
    heading = re.search(r"^# (.+)$", "\n\n".join(texts), flags=re.MULTILINE)
    return Page(name, heading[1].strip() if heading else name, number, path.exists(), texts, chapter)


def read_pages(folder: Path) -> list[Page]:
    """All pages in the order of the contents; the parts that are numbered hold the chapters, with their sections."""
    contents = yaml.safe_load((folder / "_toc.yml").read_text(encoding="utf-8"))
    pages, chapter = [read_page(folder, contents["root"], None)], 0
    for part in contents["parts"]:
        for entry in part["chapters"]:
            chapter += bool(part.get("numbered"))
            number = chapter if part.get("numbered") else None
            sections = [section["file"] for section in entry.get("sections", ()) if "file" in section]
            pages.append(read_page(folder, entry["file"], number))
            pages += [read_page(folder, name, None, number) for name in sections]
    return pages


@dataclass
class Book:
    """The book as its pages refer to it.

    Parameters
    ----------
    folder
        Where the pages lie.
    address
        Where the built book is published, with a slash at the end; empty if it is not.
    """

    folder: Path
    address: str = ""
    equations: dict[str, str] = field(default_factory=dict)
    exercises: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)  # the page of each exercise

    def __post_init__(self) -> None:
        self.pages = {page.name: page for page in read_pages(self.folder)}
        counters: dict[str, Counter[int | None]] = {"equation": Counter(), "exercise": Counter()}
        for page in self.pages.values():
            for kind, label in _numbered(page):
                chapter = page.number or page.chapter
                counters[kind][chapter] += 1
                count = counters[kind][chapter]
                number = f"{chapter}.{count}" if chapter else str(count)
                (self.equations if kind == "equation" else self.exercises)[label] = number
                if kind == "exercise":
                    self.where[label] = page.name

    def resolve(self, target: str, here: str) -> str:
        """The page that a link on the page ``here`` leads to.

        Raises
        ------
        KeyError
            If there is none.
        """
        path = target.removesuffix(".ipynb").removesuffix(".md")
        path = path[1:] if path.startswith("/") else posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if path not in self.pages:
            raise KeyError(f"{here} leads to a page that is not in the book: {target}")
        return path

    def link(self, words: str, page: str, here: str, anchor: str = "") -> str:
        """A link to the published page; without one to the notebook beside this, and else the words alone."""
        if self.address:
            return f"[{words}]({self.address}{page}.html{'#' * bool(anchor)}{anchor})"
        if self.pages[page].is_notebook and page != here:
            return f"[{words}]({os.path.relpath(page, posixpath.dirname(here) or '.')}.ipynb)"
        return words

    def link_to_code(self, words: str, path: str, is_module: bool) -> str:
        """A name of the library, with a link to its published description."""
        if not self.address or not path.startswith("deeptransfer."):
            return words
        anchor = f"module-{path}" if is_module else path
        return f"[{words}]({self.address}api/{path.split('.')[1]}.html#{anchor})"

    @cached_property
    def works(self) -> BibliographyData:
        return parse_file(self.folder / "references.bib")

    def authors(self, key: str) -> str:
        """Tzeng et al., Ganin and Lempitsky, Dietterich."""
        persons = self._work(key).persons["author"]
        names = [
            " ".join(str(part) for part in (*person.rich_prelast_names, *person.rich_last_names)) for person in persons
        ]
        if len(names) > 2:
            return f"{names[0]} et al."
        return " and ".join(names)

    def year(self, key: str) -> str:
        return str(self._work(key).fields["year"])

    def cite(self, words: str, key: str) -> str:
        """Words that lead to a work: to itself if its entry has an address, else to where it is listed."""
        entry = self._work(key)
        if doi := entry.fields.get("doi"):
            return f"[{words}](https://doi.org/{doi})"
        if url := entry.fields.get("url"):
            return f"[{words}]({url})"
        for name in ("howpublished", "note", "journal"):
            if preprint := ARXIV.search(entry.fields.get(name, "")):
                return f"[{words}](https://arxiv.org/abs/{preprint[1]})"
        return f"[{words}]({self.address}bibliography.html)" if self.address else f"[{words}](#Bibliography)"

    def _work(self, key: str) -> Entry:
        if key not in self.works.entries:
            raise KeyError(f"references.bib has no entry {key}")
        return self.works.entries[key]

    def bibliography(self, keys: set[str]) -> str:
        """The works as a list, in the order of their authors."""
        style = find_plugin("pybtex.style.formatting", "plain")()
        markdown = find_plugin("pybtex.backends", "markdown")()
        entries = style.format_bibliography(self.works, sorted(keys))
        lines = (NEEDLESS.sub(r"\1", entry.text.render(markdown)) for entry in entries)
        return "\n".join("- " + " ".join(line.split()) for line in lines)


def _numbered(page: Page) -> Iterator[tuple[str, str]]:
    """Labels of the equations and exercises of a page, each with its kind."""
    for text in page.texts:
        for token in PARSER.parse(text):
            directive = directive_of(token)
            if token.type == "math_block_label":
                yield "equation", token.info
            elif directive and directive.name == "exercise":
                yield "exercise", directive.options["label"]
            elif directive and directive.body:
                yield from _numbered(Page(page.name, "", page.number, page.is_notebook, (directive.body,)))


def published_at(repository: str) -> str:
    """Where GitHub publishes the pages of a repository; empty for any other address."""
    found = GITHUB.match(repository)
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else ""
