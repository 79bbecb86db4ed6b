"""Figures that answer the hand: ``{live-figure} adabn`` on a page without code, with the caption as its content.

A notebook stores each of its figures whole; on a page what all of them need stands once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))  # the library itself is not installed to build pages

from deeptransfer.live import FOLDER, LiveFigure, share


class LiveFigureDirective(SphinxDirective):
    """One of the modules of :mod:`deeptransfer.live`, as a notebook stores it."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The figure as it stands in the page."""
        for path in FOLDER.rglob("*.*"):
            self.env.note_dependency(str(path))
        try:
            figure = LiveFigure(self.arguments[0], " ".join(self.content))
        except ValueError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", figure.page(), format="html")]


def share_scripts(app: Sphinx, document: nodes.document) -> None:
    """Keep one copy of the style, the drawing and the loader on a page."""
    figures = [raw for raw in document.findall(nodes.raw) if raw.astext().startswith('<figure class="live"')]
    for raw, page in zip(figures, share([raw.astext() for raw in figures]), strict=True):
        raw.clear()
        raw += nodes.Text(page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("live-figure", LiveFigureDirective)
    app.connect("doctree-read", share_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
