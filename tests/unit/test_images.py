"""An image file is read as what a viewer shows, whatever wrote it; what can't be read is named."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from deeptransfer.domains.images import read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 54).round().astype(np.uint16).reshape(6, 9)


def pixels(path, size=None):
    """What is read, ``(H, W, 3)``."""
    x = read_image(path, size)
    assert x.dtype == torch.uint8
    return x.permute(1, 2, 0).numpy()


def grey(values):
    """Three equal channels of the rounded values."""
    return np.repeat(np.round(values).astype(np.uint8)[..., None], 3, axis=-1)


def saved(tmp_path, array, ending, mode=None, **settings):
    path = tmp_path / f"image.{ending}"
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **settings)
    return path


def tiff(path, values, order="<", photometric=1, bits=16, kind=1):
    """A TIFF of one channel, written from the format's description, which pillow's own can't all write."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).tolist()
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 4, 1, value)
        if tag in (273, 279)
        else struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        for tag, value in sorted(tags.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    path.write_bytes(head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + data)
    return path


# Ordinary images stay what they were


@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("array", [COLOUR, GREY])
def test_eight_bits_are_what_pillow_gives(tmp_path, array, ending, size):
    path = saved(tmp_path, array, ending)
    with Image.open(path) as file:
        expected = file.convert("RGB")
    if size is not None:
        expected = expected.resize((size, size), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels(path, size), np.asarray(expected))
    if ending in ("png", "bmp", "tif", "ppm") and size is None:
        assert np.array_equal(pixels(path), array if array.ndim == 3 else grey(array))


# Depth


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_scaled(tmp_path, ending):
    assert np.array_equal(pixels(saved(tmp_path, RAMP, ending)), grey(RAMP / 257))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_in_either_order_of_bytes(tmp_path, order):
    assert np.array_equal(pixels(tiff(tmp_path / "x.tif", RAMP, order)), grey(RAMP / 257))


def test_white_may_be_zero(tmp_path):
    """TIFF's photometric interpretation 0, as scanners write it, at every depth."""
    for bits, values in ((16, RAMP), (8, GREY)):
        expected = 255 - values / (257 if bits == 16 else 1)
        read = pixels(tiff(tmp_path / "x.tif", values, "<", 0, bits))
        assert abs(read - expected[..., None]).max() <= 0.5


def test_twelve_bits_end_at_4095(tmp_path):
    values = np.linspace(0, 4095, 54).round().astype(np.uint16).reshape(6, 9)
    values = values[:, :8]  # whole bytes in each row
    assert np.array_equal(pixels(tiff(tmp_path / "x.tif", values, bits=12)), grey(values / 4095 * 255))


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "bmp", "pbm"])
def test_one_bit_is_black_or_white(tmp_path, ending):
    bits = GREY > 127
    path = saved(tmp_path, bits, ending)
    assert np.array_equal(pixels(path), grey(bits * 255))


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray(GREY % 3, mode=None).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    colours = np.array([[200, 10, 20], [0, 0, 255], [1, 2, 3]], np.uint8)
    image.putpalette(colours.ravel().tolist())
    for ending in ("png", "gif", "bmp", "tif"):
        assert np.array_equal(pixels(saved(tmp_path, image, ending)), colours[GREY % 3])


def test_floating_point_is_in_zero_to_one(tmp_path):
    values = (RAMP / 65535).astype(np.float32)
    assert np.array_equal(pixels(saved(tmp_path, values, "tif")), grey(values * 255))


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan, 255.0])
def test_floating_point_outside_is_refused(tmp_path, wrong):
    values = np.full((2, 2), 0.5, np.float32)
    values[1, 1] = wrong
    with pytest.raises(ValueError, match=r"image\.tif can't be read.*must be in \[0, 1\]"):
        read_image(saved(tmp_path, values, "tif"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "kind"), [(32, 1), (32, 2), (16, 2)])
def test_integers_whose_white_is_unknown_are_refused(tmp_path, bits, kind, order):
    values = RAMP.astype(np.uint32 if bits == 32 else np.int16)
    with pytest.raises(ValueError, match=r"x\.tif can't be read.*(which is white|pillow doesn't know)"):
        read_image(tiff(tmp_path / "x.tif", values, order, 1, bits, kind))


# Transparency: on white


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "tga"])
def test_what_is_transparent_lies_on_white(tmp_path, ending):
    alpha = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    alpha[0, 0], alpha[0, 1] = 0, 255
    path = saved(
        tmp_path, np.dstack([COLOUR, alpha]), ending, **({"lossless": True, "exact": True} if ending == "webp" else {})
    )
    a = alpha[..., None] / 255
    read = pixels(path)
    assert abs(read - (a * COLOUR + (1 - a) * 255)).max() <= 1
    assert read[0, 0].tolist() == [255] * 3
    assert np.array_equal(read[0, 1], COLOUR[0, 1])


def test_an_alpha_channel_without_effect_changes_nothing(tmp_path):
    path = saved(tmp_path, np.dstack([COLOUR, np.full((6, 9), 255, np.uint8)]), "png")
    assert np.array_equal(pixels(path), COLOUR)


def test_grey_with_alpha(tmp_path):
    alpha = np.where(GREY > 100, 255, 0).astype(np.uint8)
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert np.array_equal(pixels(saved(tmp_path, image, "png")), grey(np.where(alpha, GREY, 255)))


@pytest.mark.parametrize(("array", "mode"), [(GREY, "L"), (COLOUR, "RGB"), (RAMP, "I;16")])
def test_one_colour_may_be_transparent(tmp_path, array, mode):
    """PNG's tRNS."""
    clear = array[3, 4]
    path = saved(tmp_path, array, "png", transparency=tuple(map(int, clear)) if mode == "RGB" else int(clear))
    expected = {"L": grey(GREY), "RGB": COLOUR.copy(), "I;16": grey(RAMP / 257)}[mode]
    expected[(array == clear).all(-1) if mode == "RGB" else array == clear] = 255
    assert np.array_equal(pixels(path), expected)


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_colour_of_the_palette_may_be_transparent(tmp_path, ending):
    image = Image.frombytes("P", (9, 6), (GREY % 3).tobytes())
    colours = np.array([[200, 10, 20], [0, 0, 255], [1, 2, 3]], np.uint8)
    image.putpalette(colours.ravel().tolist())
    colours[1] = 255
    assert np.array_equal(pixels(saved(tmp_path, image, ending, transparency=1)), colours[GREY % 3])


# Colour


@pytest.mark.parametrize("ending", ["tif", "jpg"])
def test_cmyk_is_ink_on_paper(tmp_path, ending):
    """Photoshop's JPEG holds it the other way round, and says so, as pillow's does."""
    ink = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [0, 100, 50, 80]], np.uint8)
    blocks = ink.repeat(16, 0)[:, None].repeat(16, 1)  # JPEG's blocks
    image = Image.frombytes("CMYK", blocks.shape[1::-1], blocks.tobytes())
    read = pixels(saved(tmp_path, image, ending, **({"quality": 100} if ending == "jpg" else {})))
    expected = (255 - ink[:, :3].astype(float)) * (255 - ink[:, 3:]) / 255
    assert abs(read[8::16, 8] - expected).max() <= (1 if ending == "tif" else 4)


def test_cielab_becomes_srgb(tmp_path):
    """Against the formula: CIELAB of D50 to XYZ, by the matrix of sRGB adapted to D50, and its gamma."""
    lab = np.array([[100, 0, 0], [0, 0, 0], [50, 0, 0], [60, 40, 30], [40, 20, -35], [70, -45, 25]], float)
    f = (lab[:, :1] + 16) / 116 + np.stack([lab[:, 1] / 500, 0 * lab[:, 0], -lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1, 0.82521]
    to_srgb = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540]]
    linear = (xyz @ np.transpose([*to_srgb, [0.0719453, -0.2289914, 1.4052427]])).clip(0, 1)
    expected = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    rows = (np.round(lab * [2.55, 1, 1]) % 256).astype(np.uint8)
    path = tmp_path / "x.tif"
    Image.frombytes("LAB", (1, len(rows)), rows.tobytes()).save(path)
    with Image.open(path) as file:
        assert file.mode == "LAB"
    assert abs(pixels(path)[:, 0] - expected).max() <= 3


def test_ycbcr(tmp_path):
    image = Image.fromarray(np.full((8, 8, 3), (200, 30, 60), np.uint8)).convert("YCbCr")
    assert abs(pixels(saved(tmp_path, image, "tif")).astype(int) - (200, 30, 60)).max() <= 2


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
def test_image_is_set_upright(tmp_path, ending, orientation):
    stored = COLOUR.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    read = pixels(saved(tmp_path, stored, ending, exif=exif, **settings))
    swapped = stored.transpose(1, 0, 2)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: swapped,
        6: swapped[:, ::-1],  # a quarter turn clockwise
        7: swapped[::-1, ::-1],
        8: swapped[::-1],
    }[orientation]
    assert read.shape == upright.shape
    assert abs(read[8::16, 8::16].astype(int) - upright[8::16, 8::16]).max() <= (6 if ending == "jpg" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(3)]
)
def test_damaged_exif_does_no_harm(tmp_path, exif):
    plain = pixels(saved(tmp_path, COLOUR, "jpg"))
    assert np.array_equal(pixels(saved(tmp_path, COLOUR, "jpg", exif=exif)), plain)


def test_orientation_comes_before_the_size(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    read = pixels(saved(tmp_path, wide, "png", exif=exif), size=4)
    assert read[0].max() == 0
    assert read[3].min() == 255


# Several frames, and names that say little


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png", "mpo"])
def test_first_frame_is_taken(tmp_path, ending):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    settings = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path, first, ending, save_all=True, append_images=[second], **settings)
    with Image.open(path) as file:
        assert file.n_frames == 2
    assert abs(pixels(path).astype(int) - (255, 0, 0)).max() <= 1


@pytest.mark.parametrize("name", ["x.jpg", "x.JPG", "x.TIFF", "x", "x.heic"])
def test_content_tells_the_format(tmp_path, name):
    saved(tmp_path, COLOUR, "png").rename(tmp_path / name)
    assert np.array_equal(pixels(tmp_path / name), COLOUR)


# What can't be read


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9])
@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "tif", "webp", "ppm", "tga"])
def test_file_that_is_cut_off_is_named(tmp_path, ending, share):
    path = saved(tmp_path, RNG.integers(0, 256, (80, 80, 3), dtype=np.uint8), ending)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"image\.{ending} can't be read"):
        read_image(path)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_called_so(tmp_path, brand):
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(ValueError, match=r"IMG_1\.jpg can't be read: it is HEIC.*store it as PNG or JPEG"):
        read_image(tmp_path / "IMG_1.jpg")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"%!PS", b"\0" * 50])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jpg can't be read"):
        read_image(tmp_path / "x.jpg")


def test_bomb_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path, COLOUR, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"image\.png can't be read .*54 pixels.*make it smaller"):
        read_image(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png can't be read .*No such file"):
        read_image(tmp_path / "gone.png")
