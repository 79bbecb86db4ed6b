"""Corruptions of images: the same domain under other conditions, in five strengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

Corrupt = Callable[[Tensor, float, torch.Generator], Tensor]


def _contrast(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return 0.5 + scale * (x - 0.5)


def _brightness(x: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    return x + shift


def _noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _blur(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    radius = min(round(3 * deviation), min(x.shape[2:]) - 1)  # the border is mirrored, and needs so many pixels
    return gaussian_blur(x, [2 * radius + 1] * 2, [deviation] * 2) if radius else x


def _fog(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    n, _, *size = x.shape
    fog = x.new_zeros(n, 1, *size)
    for octave in range(1, 4):  # coarse to fine, each half as strong
        coarse = torch.rand(n, 1, 2**octave, 2**octave, generator=generator, dtype=x.dtype)
        fog += F.interpolate(coarse, size=size, mode="bilinear", align_corners=True) / 2**octave
    fog /= 1 / 2 + 1 / 4 + 1 / 8
    return (1 - share) * x + share * (0.5 + 0.5 * fog)


def _occlusion(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    inside = torch.ones(len(x), 1, 1, 1, dtype=torch.bool)
    for axis in (2, 3):
        side = round(share * x.shape[axis])
        start = torch.randint(x.shape[axis] - side + 1, (len(x), 1, 1, 1), generator=generator)
        place = torch.arange(x.shape[axis]).view([-1 if a == axis else 1 for a in range(4)])
        inside = inside & (place >= start) & (place < start + side)
    return x.masked_fill(inside, 0.5)


# Name: how it is done, and its parameter at strengths 1 to 5.
CORRUPTIONS: dict[str, tuple[Corrupt, tuple[float, ...]]] = {
    "contrast": (_contrast, (0.6, 0.45, 0.3, 0.2, 0.15)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "noise": (_noise, (0.08, 0.15, 0.22, 0.28, 0.35)),
    "blur": (_blur, (0.5, 0.9, 1.3, 1.7, 2.1)),
    "fog": (_fog, (0.2, 0.35, 0.5, 0.6, 0.7)),
    "occlusion": (_occlusion, (0.15, 0.25, 0.35, 0.42, 0.5)),
}


def corrupt(images: Tensor, name: str, strength: int = 3, seed: int = 0) -> Tensor:
    r"""Corrupt images.

    ==========  ======================================================================================
    contrast    :math:`\tfrac12 + s\,(x - \tfrac12)`, one affine map of all images
    brightness  :math:`x + s`
    noise       :math:`x + s\,\xi`, :math:`\xi \sim N(0, 1)` for each value
    blur        Gaussian of standard deviation s pixels
    fog         :math:`(1 - s)\,x + s\,f`, with a smooth random field f in [½, 1] for each image
    occlusion   a square of side s times the image's, at a random place of each image, grey
    ==========  ======================================================================================

    and then cut off to [0, 1]; s are the five values of ``CORRUPTIONS[name]``.

    Parameters
    ----------
    images
        ``(N, C, H, W)`` in [0, 1].
    name
        A name of the table.
    strength
        1 to 5.
    seed
        Of what is random. The draws are made in float64 on the CPU, for all images in turn: equal on every machine.

    Returns
    -------
    Tensor
        New images of the same shape, dtype and device.

    Raises
    ------
    ValueError
        When the name or the strength is unknown, or the images are not such.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}: known ones are {', '.join(CORRUPTIONS)}")
    how, values = CORRUPTIONS[name]
    if strength not in range(1, len(values) + 1):
        raise ValueError(f"strength must be a whole number from 1 to {len(values)}, got {strength!r}")
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating point (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got {images.min():g} to {images.max():g}")
    if not images.numel():
        return images.clone()
    x = images.detach().to("cpu", torch.float64)
    corrupted = how(x, values[strength - 1], torch.Generator().manual_seed(seed))
    return corrupted.clamp(0, 1).to(images)
