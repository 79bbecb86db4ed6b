"""A number under each picture of a chapter, and the caption that its cell has in its metadata.

Figure 3.2 is the second of chapter 3. A figure with sliders brings its own words.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from deeptransfer.catalogue import CHAPTERS

NUMBERS = {page: number for number, page in CHAPTERS.items()}


def shows_a_picture(output: nodes.Element) -> bool:
    """Whether the output of a cell is a picture or a figure with sliders."""
    return any(output.findall(nodes.image)) or any(
        'class="explore"' in raw.astext() for raw in output.findall(nodes.raw)
    )


def number_figures(app: Sphinx, document: nodes.document) -> None:
    """Put number and caption behind the output, with an anchor to link to."""
    chapter = NUMBERS.get(app.env.docname)
    if chapter is None:
        return
    outputs = [part for part in document.findall(nodes.container) if "cell_output" in part["classes"]]
    for count, output in enumerate(filter(shows_a_picture, outputs), start=1):
        words = f"Figure {chapter}.{count}"
        if caption := output.parent.get("cell_metadata", {}).get("caption"):
            words += f": {caption}"
        output += nodes.paragraph(
            "",
            words,
            classes=["figure-number"],
            ids=[f"figure-{chapter}-{count}"],
        )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", number_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
