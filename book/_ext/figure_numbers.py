"""A number under each picture of a chapter, and the caption that its cell has in its metadata.

Figure 3.2 is the second of chapter 3. A figure with sliders brings its own words. On a page without a number pictures are
counted alone, Figure 2, and only those that have a caption.
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
    outputs = [part for part in document.findall(nodes.container) if "cell_output" in part["classes"]]
    shown = [(part, part.parent.get("cell_metadata", {}).get("caption")) for part in filter(shows_a_picture, outputs)]
    if chapter is None:
        shown = [(output, caption) for output, caption in shown if caption]
    for count, (output, caption) in enumerate(shown, start=1):
        number = f"{chapter}.{count}" if chapter else f"{count}"
        words = f"Figure {number}" + (f": {caption}" if caption else "")
        output += nodes.paragraph(
            "",
            words,
            classes=["figure-number"],
            ids=["figure-" + number.replace(".", "-")],
        )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", number_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
