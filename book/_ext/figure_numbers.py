"""A number and a caption under each picture of a chapter, and what lets it follow dark and light.

Figure 3.2 is the second of chapter 3. A figure that the reader moves brings its own words. On a page without a number pictures are
counted alone, Figure 2, and only those that have a caption.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from deeptransfer.catalogue import CHAPTERS
from deeptransfer.pictures import STYLE, boxes_of, kept_boxes

NUMBERS = {page: number for number, page in CHAPTERS.items()}
MOVED = ('<figure class="explore"', '<figure class="live"')


def pictures(output: nodes.Element) -> list[nodes.Element]:
    """The pictures and the figures that the reader moves among the outputs of a cell."""
    moved = [raw for raw in output.findall(nodes.raw) if raw.astext().startswith(MOVED)]
    return [*output.findall(nodes.image), *moved]


def number_figures(app: Sphinx, document: nodes.document) -> None:
    """Put number and caption right behind the picture, with an anchor to link to."""
    chapter = NUMBERS.get(app.env.docname)
    outputs = [part for part in document.findall(nodes.container) if "cell_output" in part["classes"]]
    shown = [(found[-1], output) for output in outputs if (found := pictures(output))]
    captions = [(picture, output, output.parent.get("cell_metadata", {}).get("caption")) for picture, output in shown]
    if chapter is None:
        captions = [(picture, output, caption) for picture, output, caption in captions if caption]
    for count, (picture, output, caption) in enumerate(captions, start=1):
        number = f"{chapter}.{count}" if chapter else f"{count}"
        anchor = "figure-" + number.replace(".", "-")
        if isinstance(picture, nodes.raw):
            _number_own_caption(picture, f"Figure {number}", anchor)
            continue
        words = f"Figure {number}" + (f": {caption}" if caption else "")
        line = nodes.paragraph("", words, classes=["figure-number"], ids=[anchor])
        behind = next(part for part in output.children if part is picture or picture in part.findall())
        output.insert(output.index(behind) + 1, line)
    for image in [image for output in outputs for image in output.findall(nodes.image)]:
        _follow_the_page(image, Path(app.srcdir))
    if shown:
        document.insert(0, nodes.raw("", STYLE, format="html"))


def _number_own_caption(figure: nodes.raw, number: str, anchor: str) -> None:
    """Into the figure's own caption."""
    name = f'<span class="figure-number" id="{anchor}">{html.escape(number)}'
    text = figure.astext()
    if "<figcaption>" in text:
        text = text.replace("<figcaption>", f"<figcaption>{name}: </span>", 1)
    else:
        text = text.replace("</figure>", f"<figcaption>{name}</span></figcaption></figure>", 1)
    figure.clear()
    figure += nodes.Text(text)


def _follow_the_page(image: nodes.image, source: Path) -> None:
    """Wrap a picture as those of sliders are, so that one style serves both."""
    file = source / image["uri"]
    boxes = kept_boxes(boxes_of(file.read_bytes())) if file.suffix == ".png" else ""
    place = image.parent.index(image)
    image.parent.insert(place + 1, nodes.raw("", f"{boxes}</div>", format="html"))
    image.parent.insert(place, nodes.raw("", '<div class="plate">', format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", number_figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
