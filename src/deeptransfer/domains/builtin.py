"""Three domains of digits that need no download: ``print``, ``pen`` and ``scene``.

They are drawn from what the required packages already bring: the fonts of matplotlib, the handwritten digits and
the two photographs of scikit-learn. ``print → pen`` is the book's running example: synthetic images with unlimited
labels on one side, a few real ones on the other.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DIGITS = tuple("0123456789")

# Faces in which all ten digits are plain text digits: no symbol fonts, no old-style figures.
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)  # fmt: skip

# print: images in each split. pen: scikit-learn's 1,797 digits, stratified. scene: pen's test digits only, so that
# pen → scene shares no digit; every digit is blended with several patches.
PRINT_COUNT = {"train": 6000, "test": 2000}
PEN_TRAIN = 1000
SCENE_TRAIN_DIGITS = 497
SCENE_PATCHES = {"train": 4, "test": 2}
SIDE = 28
PEN_SIDE = 22  # of the handwritten digit, which fills its 8 × 8 pixels, inside the image


def _glyphs(side: int = 96) -> Tensor:
    """Every digit in every face, white on black, its height ``side / 2``: float64 ``(faces, 10, side, side)``."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(get_data_path(), "fonts", "ttf")
    drawn = np.zeros((len(FACES), 10, side, side))
    for i, face in enumerate(FACES):
        # One size per face: the height of a "0" becomes half the canvas.
        probe = ImageFont.truetype(str(fonts / f"{face}.ttf"), 100)
        _, top, _, bottom = probe.getbbox("0")
        font = ImageFont.truetype(str(fonts / f"{face}.ttf"), round(100 * side / 2 / (bottom - top)))
        for digit in range(10):
            image = Image.new("L", (side, side))
            left, top, right, bottom = font.getbbox(DIGITS[digit])
            origin = ((side - left - right) / 2, (side - top - bottom) / 2)
            ImageDraw.Draw(image).text(origin, DIGITS[digit], fill=255, font=font)
            drawn[i, digit] = np.asarray(image) / 255
    return torch.from_numpy(drawn)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)


def _soften(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image of ``(n, 1, H, W)`` with its own Gaussian of ``sigma`` pixels, ``(n,)``."""
    reach = 4
    offsets = torch.arange(-reach, reach + 1, dtype=sigma.dtype)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), dim=1)  # (n, 9), each row sums to 1
    # Not a convolution with a group per image: that makes threads wait for each other at every image.
    for axis in (2, 3):
        padded = F.pad(images, (0, 0, reach, reach) if axis == 2 else (reach, reach))
        images = torch.einsum("nchwk,nk->nchw", padded.unfold(axis, 2 * reach + 1, 1), kernel)
    return images


def _eight_bits(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 0…255.

    Where ink is symmetric, 127.5 comes out but for the last bit, which differs between processors. A small push decides
    all such ties upwards.
    """
    return (images * 255 + 1e-6).round().to(torch.uint8)


def draw_print(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` printed digits, classes in equal parts: random face, size, rotation, slant, shift and softness.

    Everything is drawn in float64 from a CPU generator and rounded to 8 bits, so that machines agree.

    Returns
    -------
    images : uint8 Tensor ``(count, 1, 28, 28)``
    labels : int64 Tensor ``(count,)``
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    faces = torch.randint(len(FACES), (count,), generator=generator)
    angle = _uniform(count, -15, 15, generator) * math.pi / 180
    slant = _uniform(count, -0.35, 0.35, generator)
    height = _uniform(count, 16, 23, generator) / SIDE  # of the digit, as a part of the image
    aspect = _uniform(count, 1.0, 1.5, generator)  # width, against the width that belongs to this height
    shift = torch.stack([_uniform(count, -2, 2, generator) for _ in range(2)], dim=1) * 2 / SIDE
    softness = _uniform(count, 0.3, 1.2, generator)  # pixels
    # The glyph is half of its canvas: image coordinates are multiplied by 0.5 / height to find their ink.
    scale = 0.5 / height
    theta = torch.zeros(count, 2, 3, dtype=torch.float64)
    theta[:, 0, 0] = scale / aspect * angle.cos()
    theta[:, 0, 1] = scale * (angle.sin() / aspect + slant)
    theta[:, 1, 0] = -scale * angle.sin()
    theta[:, 1, 1] = scale * angle.cos()
    theta[:, :, 2] = shift
    glyphs = _glyphs()
    images = torch.empty(count, 1, SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, count, 500):  # in parts: 500 double-size images in float64 are 12 MB
        part = slice(start, min(start + 500, count))
        grid = F.affine_grid(theta[part], [len(labels[part]), 1, 2 * SIDE, 2 * SIDE], align_corners=False)
        ink = F.grid_sample(glyphs[faces[part], labels[part]].unsqueeze(1), grid, align_corners=False)
        soft = _soften(F.avg_pool2d(ink, 2), softness[part])
        images[part] = _eight_bits(soft.clamp(0, 1))
    order = torch.randperm(count, generator=generator)
    return images[order], labels[order]


def _pen() -> tuple[Tensor, Tensor]:
    """All 1,797 handwritten digits, uint8 ``(1797, 1, 28, 28)``; the first ``PEN_TRAIN`` are the training split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    order = np.concatenate(
        train_test_split(np.arange(len(digits.target)), train_size=PEN_TRAIN, stratify=digits.target, random_state=0)
    )
    small = torch.from_numpy(digits.images[order]).unsqueeze(1) / 16  # (1797, 1, 8, 8)
    images = F.interpolate(small, size=(PEN_SIDE, PEN_SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    images = F.pad(images, ((SIDE - PEN_SIDE) // 2,) * 4)
    return _eight_bits(images), torch.from_numpy(digits.target[order]).long()


def _build_print(split: str) -> tuple[Tensor, Tensor]:
    return draw_print(PRINT_COUNT[split], seed=0 if split == "train" else 1)


def _build_pen(split: str) -> tuple[Tensor, Tensor]:
    images, labels = _pen()
    part = slice(PEN_TRAIN) if split == "train" else slice(PEN_TRAIN, None)
    return images[part], labels[part]


def _build_scene(split: str) -> tuple[Tensor, Tensor]:
    """Digits blended with patches of a photograph, |patch − digit|; train and test share neither digit nor patch."""
    from sklearn.datasets import load_sample_images
    from sklearn.model_selection import train_test_split

    images, labels = _pen()
    digits = torch.arange(PEN_TRAIN, len(labels))
    parts = train_test_split(digits, train_size=SCENE_TRAIN_DIGITS, stratify=labels[digits], random_state=0)
    chosen = parts[0 if split == "train" else 1].repeat_interleave(SCENE_PATCHES[split])
    generator = torch.Generator().manual_seed(2 if split == "train" else 3)
    photographs = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in load_sample_images().images]
    _, height, width = photographs[0].shape
    # Eight vertical strips of each photograph, two of them for testing: alike in content, no pixel in common.
    strips = torch.tensor([0, 1, 3, 4, 6, 7] if split == "train" else [2, 5]) * (width // 8)
    photo = torch.randint(2, (len(chosen),), generator=generator)
    top = torch.randint(height - SIDE + 1, (len(chosen),), generator=generator)
    left = strips[torch.randint(len(strips), (len(chosen),), generator=generator)]
    left = left + torch.randint(width // 8 - SIDE + 1, (len(chosen),), generator=generator)
    patches = torch.stack(
        [photographs[p][:, t : t + SIDE, x : x + SIDE] for p, t, x in zip(photo, top, left, strict=True)]
    )
    blended = (patches.int() - images[chosen].int()).abs().to(torch.uint8)
    order = torch.randperm(len(chosen), generator=generator)
    return blended[order], labels[chosen][order]


BUILDERS: dict[str, Callable[[str], tuple[Tensor, Tensor]]] = {
    "print": _build_print,
    "pen": _build_pen,
    "scene": _build_scene,
}


def load_builtin(name: str, split: str, cache: Path) -> tuple[Tensor, Tensor]:
    """Images and labels of a built-in domain, from ``cache`` if it holds them intact, else drawn and stored there.

    The file's name carries a hash of this module, so that a changed recipe never meets an old file. It is written
    under a temporary name and renamed: another process sees all of it or nothing. A folder that can't be written is
    no error: the domain is then drawn anew each time.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = cache / f"{name}-{split}-{recipe}.npz"
    try:
        with path.open("rb") as file, np.load(file) as stored:  # opened here: numpy forgets to close a broken archive
            return torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])
    except Exception:  # absent, or broken: a damaged archive raises a dozen types, zlib.error and RuntimeError too
        pass
    images, labels = BUILDERS[name](split)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # goes away even when the disk is full
            temporary = Path(folder, path.name)
            np.savez_compressed(temporary, images=images.numpy(), labels=labels.numpy())
            os.replace(temporary, path)
    except OSError:
        pass
    return images, labels
