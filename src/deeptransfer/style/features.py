"""The first layers of a network that was trained on photographs, small enough to come with the book."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeptransfer.data_files import shipped

FILE = "weights/style-features.npz"
# Convolutions in their order, across positions (dw) and across channels (pw).
LAYERS = ("conv1", *(f"{kind}{i}" for i in range(1, 6) for kind in ("dw", "pw")))
HALVING = ("conv1", "dw2", "dw4")  # of stride 2


class StyleFeatures(nn.Module):
    """Features of an image in the first eleven convolutions of a MobileNet that was trained on ImageNet.

    The network is MobileNet v1 of width 0.25: ``conv1``, then ``dw1``, ``pw1`` … ``dw5``, ``pw5``, a depthwise and a
    pointwise convolution in turn, each followed by ReLU6. The norms are folded into the convolutions, with the
    statistics of the training: an image's features depend on no other image. Its weights are constants.

    Parameters
    ----------
    layers
        Which features to return, from ``conv1``, ``pw1`` … ``pw5`` and ``dw1`` … ``dw5``.

    Raises
    ------
    ValueError
        If a layer does not exist, or none is asked for.

    Notes
    -----
    The weights are Google's (Apache-2.0), cut by ``scripts/cut_features.py``. Where the stride is 2 (``conv1``,
    ``dw2``, ``dw4``), zeros are added on the right and at the bottom alone, as in the training.

    References
    ----------
    A. G. Howard et al. MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications. 2017.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in LAYERS]
        if unknown or not layers:
            raise ValueError(f"unknown layers {unknown}: there are {', '.join(LAYERS)}")
        self.layers = tuple(layers)
        self.used = LAYERS[: 1 + max(map(LAYERS.index, layers))]
        with np.load(shipped(FILE), allow_pickle=False) as stored:
            for name in self.used:
                for key in ("weight", "bias"):
                    self.register_buffer(f"{name}_{key}", torch.from_numpy(stored[f"{name}.{key}"]))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features ``(N, C, h, w)`` of images ``(N, 3, H, W)`` with values in [0, 1], layer by layer as asked for.

        Raises
        ------
        ValueError
            If these are no colour images.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"expected colour images (N, 3, H, W), got shape {tuple(images.shape)}")
        x, found = 2 * images - 1, {}
        for name in self.used:
            weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
            side, groups = weight.shape[2] // 2, x.shape[1] // weight.shape[1]
            x = F.pad(x, (0, 1, 0, 1) if name in HALVING else (side,) * 4)
            stride = 2 if name in HALVING else 1
            x = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), stride, groups=groups).clamp(0, 6)
            found[name] = x
        return [found[name] for name in self.layers]
