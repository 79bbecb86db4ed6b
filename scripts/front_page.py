"""Make the pictures of the first page from the domains themselves: digits printed and written, and a cover for links.

    python scripts/front_page.py

``book/_static/digits.png`` holds the first test images of `print` and of `pen` side by side, 28 × 28 pixels each; which
of the written ones a network gets wrong the page takes from the stored results. Both pictures are kept with the book:
building it needs neither PyTorch nor fonts. A test makes them again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeptransfer.domains import load_domain

STATIC = Path(__file__).parents[1] / "book" / "_static"
SIDE, PRINTED, WRITTEN = 28, 20, 40
COVER = (1200, 630)


def first_images(domain: str, count: int) -> np.ndarray:
    """The first test images of a domain of digits, from 0 to 255."""
    images, _ = load_domain(domain, "test").tensors
    return (255 * images[:count, 0].numpy()).round().astype(np.uint8)


def sprite() -> Image.Image:
    """All digits in one row, the printed ones first."""
    return Image.fromarray(np.hstack([*first_images("print", PRINTED), *first_images("pen", WRITTEN)]))


def cover() -> Image.Image:
    """The title above a row of printed and a row of written digits."""
    from matplotlib import font_manager

    picture = Image.new("RGB", COVER, "white")
    write = ImageDraw.Draw(picture)
    for words, size, weight, top in (
        ("Walk through", 56, "normal", 60),
        ("Deep Transfer Learning", 84, "bold", 122),
        ("from the mathematics to experiments that are run again", 34, "normal", 530),
    ):
        file = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
        write.text((60, top), words, fill="#14181e", font=ImageFont.truetype(file, size))
    step = (COVER[0] - 2 * 60 + 12) // 10
    for row, domain in enumerate(("print", "pen")):
        for place, image in enumerate(first_images(domain, 10)):
            large = Image.fromarray(image).resize((step - 12, step - 12), Image.Resampling.BICUBIC)
            picture.paste(large, (60 + place * step, 260 + row * (step + 4)))
    return picture


def main() -> None:
    sprite().save(STATIC / "digits.png", optimize=True)
    cover().quantize(64).save(STATIC / "cover.png", optimize=True)


if __name__ == "__main__":
    main()
