"""A figure's picture on a page: as wide as the text, and at home on light and dark pages.

On a dark page a picture is turned over: white becomes the page's own ground, dark ink light ink, and hues stay. Images
within it (digits, photographs, heat maps) are turned back. Where styles are gone, as in a notebook that is not trusted,
the picture keeps its white ground. The pages are built where matplotlib is not installed, so nothing here needs it.
"""

from __future__ import annotations

import base64
import html
import json
import struct
from collections.abc import Sequence

__all__ = ["DPI", "KEPT", "STYLE", "TEXT_PIXELS", "WIDTH", "boxes_of", "kept_boxes", "picture_html", "plate"]

WIDTH = 5.0  # inches of a figure; on a page the width of the text, in which nine points are as large as its letters
TEXT_PIXELS = 640
DPI = 2 * TEXT_PIXELS / WIDTH  # two pixels for each of the page: sharp on a fine screen

#: Where a picture shows images: (left, top, width, height) of each in per cent.
Boxes = Sequence[Sequence[float]]
#: Under this word the text of a PNG holds its boxes, as JSON.
KEPT = "keeps its colours"

_DARK = ':is(html[data-theme="dark"], html[theme="dark"], [data-jp-theme-light="false"], .vscode-dark)'
_TURN = "invert(1) hue-rotate(180deg)"
#: What :func:`plate` needs once on a page.
STYLE = f"""<style>
.plate {{ position: relative; max-width: {TEXT_PIXELS}px; margin: 0; }}
.plate img {{ display: block; margin: 0; }}
.plate i {{ position: absolute; pointer-events: none; }}
@media screen {{
  {_DARK} .plate img {{ background-color: #fff !important; padding: 0 !important; }}
  {_DARK} .plate img {{ filter: {_TURN}; mix-blend-mode: screen; }}
  {_DARK} .plate i {{ -webkit-backdrop-filter: {_TURN}; backdrop-filter: {_TURN}; }}
}}
</style>
"""


def plate(picture: bytes, kind: str, size: tuple[int, int], alt: str, boxes: Boxes) -> str:
    """One piece of HTML with a picture inside.

    Parameters
    ----------
    picture, kind
        Its bytes, and ``"png"`` or ``"webp"``.
    size
        Width and height in pixels of the picture.
    alt
        Words instead of it.
    boxes
        Where it shows images.
    """
    width, height = (round(pixels * TEXT_PIXELS / WIDTH / DPI) for pixels in size)
    # decoding=sync: a frame must not flicker in when the slider first reaches it
    return (
        f'<div class="plate"><img src="data:image/{kind};base64,{base64.b64encode(picture).decode()}" '
        f'alt="{html.escape(alt)}" width="{width}" height="{height}" decoding="sync" '
        f'style="width: 100%; height: auto; background-color: #fff">{kept_boxes(boxes)}</div>'
    )


def picture_html(png: bytes, alt: str) -> str:
    """The HTML of a PNG that knows its own boxes."""
    width, height = struct.unpack(">II", png[16:24])
    return plate(png, "png", (width, height), alt, boxes_of(png))


def kept_boxes(boxes: Boxes) -> str:
    """HTML that lies over the images within a picture and takes back what a dark page does to the rest of it."""
    return "".join(f'<i style="left: {x}%; top: {y}%; width: {w}%; height: {h}%"></i>' for x, y, w, h in boxes)


def boxes_of(png: bytes) -> Boxes:
    """The boxes that a PNG holds, none if it says nothing of them."""
    place = 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        word, _, text = png[place + 8 : place + 8 + length].partition(b"\0")
        if kind == b"tEXt" and word.decode("latin-1") == KEPT:
            return list(json.loads(text))
        place += 12 + length
    return []
