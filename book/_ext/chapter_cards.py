"""A card for each chapter: picture, title, what it tells, minutes to read. The directive ``chapter-cards`` makes them.

Its argument is a part (``part2``) or nothing, for all of them under the parts' titles. The sentences are in
``reading.toml``, the pictures in ``pictures``, one for each chapter.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deeptransfer.catalogue import CHAPTERS
from reading_order import minutes_to_read, read_order


def title_of(notebook: dict[str, Any]) -> str:
    """The heading that a chapter begins with."""
    first = re.match(r"# (.+)", "".join(notebook["cells"][0]["source"]))
    if first is None:
        raise ValueError("a chapter begins with its title")
    return first[1].strip()


class ChapterCards(SphinxDirective):
    """Links with a picture, in the order of the book."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        part = self.arguments[0] if self.arguments else ""
        cards = [
            self._card(number, page)
            for number, page in CHAPTERS.items()
            if page in self.env.found_docs and page.partition("/")[0] == (part or page.partition("/")[0])
        ]
        if not cards:
            raise self.error(f"no chapter lies in {part}")
        return [nodes.raw("", f'<ul class="chapter-cards">{"".join(cards)}</ul>', format="html")]

    def _card(self, number: int, page: str) -> str:
        source = Path(self.env.srcdir)
        picture, register, path = (
            source / "pictures" / f"{page.rpartition('/')[2]}.svg",
            source / "reading.toml",
            source / f"{page}.ipynb",
        )
        for file in (picture, register, path):
            self.env.note_dependency(str(file))
        notebook = json.loads(path.read_text(encoding="utf-8"))
        sentence = read_order(register)[page]["sentence"]
        link = self.env.app.builder.get_relative_uri(self.env.docname, page)
        return (
            f'<li><a class="chapter-card" href="{link}">'
            f'<span class="picture">{picture.read_text(encoding="utf-8").strip()}</span>'
            f'<span class="card-title">{number}. {html.escape(title_of(notebook))}</span>'
            f'<span class="card-text">{html.escape(sentence)}</span>'
            f'<span class="card-time">{minutes_to_read(notebook)} minutes</span></a></li>'
        )


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("chapter-cards", ChapterCards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
