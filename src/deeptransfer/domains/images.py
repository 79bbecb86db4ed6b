"""Image files as cameras, scanners and design tools write them, read as what a viewer shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from torch import Tensor

# What a file is called that is an image, whether pillow reads it here or not: what it can't read is an error, no gap.
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif"),
)
# How to set upright what a camera has stored turned or mirrored, by EXIF's tag "Orientation".
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PHOTOMETRIC, MIN_IS_WHITE, BITS = 262, 0, 258  # TIFF's tags


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Whatever goes wrong while ``path`` is read becomes a ValueError that names it, and what to do."""
    try:
        yield
    except Image.DecompressionBombError as error:
        message = f"{path} can't be read ({error}): make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ValueError(message) from error
    except UnidentifiedImageError as error:
        what = "it is HEIC" if _is_heic(path) else "it is no image, or of a format that pillow doesn't know"
        raise ValueError(f"{path} can't be read: {what}; remove it, or store it as PNG or JPEG") from error
    except Exception as error:  # a damaged image or archive raises a dozen types
        message = f"{path} can't be read ({type(error).__name__}: {error}): remove it, or get a sound copy"
        raise ValueError(message) from error


def read_image(path: Path | str, size: int | None = None) -> Tensor:
    """The pixels of a file, uint8 ``(3, H, W)``, as a viewer shows them.

    * The first frame or page, turned upright as EXIF says.
    * What is transparent lies on white.
    * Sixteen bits are scaled to eight, floating point from [0, 1]. Integers of 32 bits are refused: nothing says which
      number is white.
    * CMYK, YCbCr and CIELAB become sRGB. An embedded colour profile is not applied: numbers stand for sRGB.
    * The content tells the format, not the file's name.

    Parameters
    ----------
    path : path
    size : int, optional
        Height and width to resample to, bilinear with antialiasing, whatever the image's shape.

    Raises
    ------
    ValueError
        If the file is damaged or cut off, of a format or depth that can't be read, or larger than pillow takes for
        harmless; the message names it.
    """
    with reading(path), Image.open(path) as file:
        image = _to_rgb(file)  # and with it all of the file is read, also what PNG says behind the pixels
        upright = UPRIGHT.get(_orientation(file))
        image = image if upright is None else image.transpose(upright)
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is None only where an image is changed in place
        return converted
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or in floating point; pillow would cut off what is above 255."""
    values = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    if image.mode == "I" and tags:
        raise ValueError(
            f"integers of 32 bits or with a sign, here {values.min():.0f} … {values.max():.0f}, don't say which is "
            "white: store 8 or 16 bits"
        )
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # also where one is NaN
            raise ValueError(f"floating point must be in [0, 1], not {values.min():g} … {values.max():g}")
    else:  # "I" is 16 bits too, where it is not a TIFF's
        white = 2 ** tags.get(BITS, (16,))[0] - 1
        clear = values == image.info.get("transparency", -1)
        values = np.where(clear, 1, values / white)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        values = 1 - values
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none: a viewer shows an image whose EXIF is damaged too."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _is_heic(path: Path | str) -> bool:
    with Path(path).open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
