"""The search page shows where in a page the words stand, also when the book was opened from a disk.

Sphinx's own summaries read the found pages one by one, which browsers forbid for files. Here the texts of all sections come
with the search page, and with no other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SCRIPT = Path(__file__).with_suffix(".js")
TEXTS = "search_texts.js"
UNSAID = (nodes.raw, nodes.comment, nodes.target, nodes.title, nodes.Invisible)


def sections_of(document: nodes.document) -> Iterator[dict[str, str]]:
    """Anchor, title and own text of each section."""
    for section in document.findall(nodes.section):
        parts = [part for part in section.children if not isinstance(part, (nodes.section, *UNSAID))]
        text = " ".join(" ".join(_words(part) for part in parts).split())
        title = next(section.findall(nodes.title), None)
        yield {"anchor": section["ids"][0], "title": title.astext() if title else "", "text": text}


def _words(part: nodes.Node) -> str:
    """What is read, words of one paragraph apart from those of the next."""
    if isinstance(part, UNSAID):
        return ""
    if isinstance(part, nodes.TextElement | nodes.Text):
        return part.astext()
    return " ".join(map(_words, part.children))


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], document: Any) -> None:
    """To the search page alone."""
    if page == "search":
        app.add_js_file(TEXTS)
        app.add_js_file(SCRIPT.name)


def write_texts(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        texts = {page: list(sections_of(app.env.get_doctree(page))) for page in sorted(app.env.found_docs)}
        static = Path(app.outdir, "_static")
        written = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        (static / TEXTS).write_text(f"const SEARCH_TEXTS = {written};\n", encoding="utf-8")
        shutil.copy(SCRIPT, static)


def turn_summaries_off(_: Sphinx, config: Any) -> None:
    config.html_show_search_summary = False


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", turn_summaries_off)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_texts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
