"""IBN: some channels normalised by the image, the others by the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .images import ImageNorm, has_positions
from .moments import Moments


class IBN(ImageNorm):
    r"""InstanceNorm for the first channels, BatchNorm for the rest, each channel with its own scale and shift.

    .. math:: y_{ic} = \gamma_c\,\frac{x_{ic} - m_{ic}}{\sqrt{b_{ic} + \epsilon}} + \beta_c \quad
              \text{for } c < h = \lfloor r\,C \rfloor

              y_{ic} = \gamma_c\,\frac{x_{ic} - \mu_c}{\sqrt{v_c + \epsilon}} + \beta_c \quad\text{for } c \geq h

    with the moments :math:`m_{ic}, b_{ic}` of image i over its positions. r = 0 is BatchNorm, r = 1 InstanceNorm.

    Parameters
    ----------
    num_features, eps, momentum
        As :class:`DomainNorm`.
    ratio
        r in [0, 1].
    domains, **options
        As :class:`DomainNorm`; one domain, the target, where the method knows none.

    Notes
    -----
    Any C and r will do; the released code fails where C is odd or r below ½. Its variants differ in where the layer
    stands: IBN-a takes the place of the first BatchNorm of a residual block, IBN-b is an InstanceNorm behind the
    addition. A vector has one position: there the layer is BatchNorm.

    References
    ----------
    X. Pan, P. Luo, J. Shi, X. Tang. Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net. ECCV
    2018.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        ratio: float = 0.5,
        domains: int | Sequence[str] = ("target",),
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, domains=domains, **options)
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is the share of the channels that the image normalises, in [0, 1]; got {ratio}")
        self.ratio, self.by_image = ratio, math.floor(ratio * num_features)

    def blend(self, x: Tensor, row: int, moments: Moments) -> Moments:
        """Return the moments of each image, ``(n, C)``: its own in the first channels."""
        h = self.by_image
        if not h or not has_positions(x):
            return moments
        pairs = zip(self.of_images(x, moments), (moments.mean, moments.var), strict=True)
        mean, var = (torch.cat([own[:, :h], batch[h:].expand(len(x), -1)], 1) for own, batch in pairs)
        return Moments(mean, var, moments.n)

    def extra_repr(self) -> str:
        """Show the ratio."""
        return f"{super().extra_repr()}, ratio={self.ratio}"


class IBN1d(IBN):
    """:class:`IBN` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class IBN2d(IBN):
    """:class:`IBN` for ``(N, C, H, W)``."""

    dims = (4,)


class IBN3d(IBN):
    """:class:`IBN` for ``(N, C, D, H, W)``."""

    dims = (5,)
