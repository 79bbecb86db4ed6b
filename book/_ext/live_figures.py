"""Figures that answer the hand, on a page without code: ``{live-figure} adabn``, with the caption as its content."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))  # the library itself is not installed to build pages

from deeptransfer.live import FOLDER, LiveFigure


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


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("live-figure", LiveFigureDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
