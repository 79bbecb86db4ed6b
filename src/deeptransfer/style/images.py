"""Pictures with a style, drawn by code: no photograph, no licence, the same on every machine."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NIGHT = ((0.05, 0.09, 0.28), (0.12, 0.29, 0.58), (0.42, 0.64, 0.78), (0.95, 0.83, 0.35), (0.98, 0.95, 0.78))
TILES = ((0.80, 0.22, 0.16), (0.93, 0.60, 0.17), (0.96, 0.87, 0.58), (0.13, 0.47, 0.45), (0.12, 0.26, 0.42))
JOINT = (0.07, 0.06, 0.08)


def swirls(height: int = 128, width: int = 128, seed: int = 0, vortices: int = 6, length: int = 12) -> Tensor:
    r"""Brush strokes along a flow with vortices, in blues and yellows.

    Line integral convolution: noise is averaged along the lines of a flow, ``length`` steps of one pixel to either
    side; the mean becomes a colour of the palette.

    Parameters
    ----------
    height, width
        Of the picture, in pixels.
    seed
        Of the noise and of the places of the vortices.
    vortices
        Number of centres that the flow turns around.
    length
        Half the length of a stroke, in pixels.

    Returns
    -------
    Tensor
        ``(3, height, width)`` in [0, 1], float32.

    Raises
    ------
    ValueError
        If a size is less than 1.

    References
    ----------
    B. Cabral, L. C. Leedom. Imaging Vector Fields Using Line Integral Convolution. SIGGRAPH 1993.
    """
    _check(height=height, width=width, vortices=vortices, length=length)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(height, width, generator=generator, dtype=torch.float64)
    y, x = _grid(height, width)
    flow_x, flow_y = torch.full_like(x, 0.6), 0.2 * torch.sin(2 * math.pi * x / width)
    centres = torch.rand(vortices, 2, generator=generator, dtype=torch.float64)
    turns = torch.where(torch.rand(vortices, generator=generator) < 0.5, -1.0, 1.0)
    reach = 0.18 * min(height, width)
    glow = torch.zeros_like(x)
    for (cy, cx), turn in zip(centres.tolist(), turns.tolist(), strict=True):
        dy, dx = y - cy * height, x - cx * width
        near = torch.exp(-(dx**2 + dy**2) / (2 * reach**2))
        flow_x, flow_y = flow_x - 3 * turn * near * dy / reach, flow_y + 3 * turn * near * dx / reach
        glow = torch.maximum(glow, near)
    speed = (flow_x**2 + flow_y**2).sqrt().clamp(min=1e-9)
    flow = torch.stack([flow_x / speed, flow_y / speed])
    total, count = noise.clone(), 1
    for side in (1.0, -1.0):
        at = torch.stack([x, y])
        for _ in range(length):
            at = at + side * _sample(flow, at)
            total += _sample(noise.unsqueeze(0), at)[0]
            count += 1
    strokes = (total / count - 0.5) * 2 * math.sqrt(count) / math.sqrt(12)  # as if uniform again
    return _palette((0.42 + 0.35 * strokes + 0.35 * (glow - 0.4)).clamp(0, 1), NIGHT)


def mosaic(height: int = 128, width: int = 128, seed: int = 0, tiles: int = 150, joint: float = 1.2) -> Tensor:
    r"""Stones of five colours with dark joints: the cells of Voronoi around random points.

    A pixel belongs to the stone of its nearest point, and to a joint where the second nearest is hardly farther.

    Parameters
    ----------
    height, width
        Of the picture, in pixels.
    seed
        Of the points and colours.
    tiles
        Number of stones, 2 or more.
    joint
        Half the width of a joint, in pixels.

    Returns
    -------
    Tensor
        ``(3, height, width)`` in [0, 1], float32.

    Raises
    ------
    ValueError
        If a size is less than 1, or there are fewer than two stones.
    """
    _check(height=height, width=width, tiles=tiles - 1)
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(tiles, 2, generator=generator, dtype=torch.float64) * torch.tensor([height, width])
    colors = torch.tensor(TILES, dtype=torch.float64)[torch.randint(len(TILES), (tiles,), generator=generator)]
    colors = (colors + 0.06 * torch.randn(tiles, 1, generator=generator, dtype=torch.float64)).clamp(0, 1)
    y, x = _grid(height, width)
    pixels = torch.stack([y.flatten(), x.flatten()], 1)
    distance, nearest = torch.cdist(pixels, points).topk(2, largest=False)
    # The border of two cells is at (d₂² − d₁²) / (2 |p₂ − p₁|) from here.
    gap = (points[nearest[:, 1]] - points[nearest[:, 0]]).norm(dim=1).clamp(min=1e-9)
    border = (distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * gap)
    stone = (border / joint - 0.5).clamp(0, 1).unsqueeze(1)  # 0 in the joint, 1 in the stone
    image = stone * colors[nearest[:, 0]] + (1 - stone) * torch.tensor(JOINT, dtype=torch.float64)
    return image.T.reshape(3, height, width).float()


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is too small: {size}, and at least 1 is needed" + " beyond" * (name == "tiles"))


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return y, x


def _sample(values: Tensor, at: Tensor) -> Tensor:
    """Values ``(c, H, W)`` between the pixels, at points ``(x, y)`` of shape ``(2, H, W)``."""
    height, width = values.shape[1:]
    size = torch.tensor([width, height], dtype=at.dtype).view(2, 1, 1)
    where = ((2 * at + 1) / size - 1).movedim(0, -1).unsqueeze(0)
    return F.grid_sample(values.unsqueeze(0), where, padding_mode="reflection", align_corners=False)[0]


def _palette(level: Tensor, colors: tuple[tuple[float, ...], ...]) -> Tensor:
    """Colours for levels in [0, 1], linear between those given: ``(3, H, W)``."""
    table = torch.tensor(colors, dtype=level.dtype)
    place = level * (len(table) - 1)
    below = place.floor().clamp(max=len(table) - 2).long()
    part = (place - below).unsqueeze(-1)
    return ((1 - part) * table[below] + part * table[below + 1]).movedim(-1, 0).float()
