"""Normalise a hole and its surroundings apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .passes import wide


class RegionNorm2d(nn.Module):
    r"""Region normalisation: each image's hole and its surroundings by their own statistics.

    .. math:: y_p = \gamma_{r(p)}\,\frac{x_p - \mu_{r(p)}}{\sqrt{v_{r(p)} + \epsilon}} + \beta_{r(p)}, \qquad
              r(p) = m_p \in \{0, 1\}

    with mean and biased variance over the positions of one region of one image, channel by channel. What fills the hole
    changes nothing outside, which is the point: with BatchNorm or InstanceNorm it shifts every feature. With a mask of
    zeros it is InstanceNorm. Nothing is stored; training and evaluation are alike.

    Never abbreviated here: the letters RN stand for reciprocal normalisation.

    Parameters
    ----------
    num_features
        Number of channels C.
    eps
        Added to the variances.
    affine
        Whether there are γ and β, ``weight`` and ``bias`` ``(2, C)``: row 0 the surroundings, row 1 the hole.

    Notes
    -----
    A region without positions has nothing to normalise, and one of a single position, or of a constant, becomes its β:
    both are finite. The release pools each region over the batch, in evaluation too, so that an image's result depends
    on its neighbours; adds both β to every position; and divides ε by the region's share of the image.

    References
    ----------
    T. Yu, Z. Guo, X. Jin, S. Wu, Z. Chen, W. Li, Z. Zhang, S. Liu. Region Normalization for Image Inpainting. AAAI 2020
    (its basic form, RN-B).
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.weight = nn.Parameter(torch.ones(2, num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(2, num_features)) if affine else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)`` by regions.

        Parameters
        ----------
        x
            The batch.
        mask
            1 in the hole, 0 around it; any dtype, ``(N, 1, h, w)`` or ``(1, 1, h, w)`` for all. A mask of another size
            takes the value of the nearest pixel; where it is not binary, what is above ½ is hole.

        Raises
        ------
        ValueError
            If a shape does not fit.
        """
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"expected (N, {self.num_features}, H, W), got shape {tuple(x.shape)}")
        if mask.dim() != 4 or mask.shape[1] != 1 or len(mask) not in (1, len(x)) or not mask.numel():
            raise ValueError(f"mask must be ({len(x)}, 1, h, w) or (1, 1, h, w), got shape {tuple(mask.shape)}")
        values = wide(x)
        hole = F.interpolate(mask.detach().to(values.dtype), x.shape[2:], mode="nearest-exact") > 0.5
        out = torch.zeros_like(values)
        for row, region in enumerate((~hole, hole)):
            count = region.sum((2, 3), keepdim=True).clamp(min=1)
            # `where`, not a product: NaN in the hole must not reach its surroundings.
            mean = torch.where(region, values, 0).sum((2, 3), keepdim=True) / count
            centred = torch.where(region, values - mean, 0)
            y = centred * (centred.square().sum((2, 3), keepdim=True) / count + self.eps).rsqrt()
            if self.weight is not None and self.bias is not None:
                y = y * wide(self.weight[row])[:, None, None] + wide(self.bias[row])[:, None, None]
            out = torch.where(region, y, out)
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class LearnedRegionNorm2d(nn.Module):
    r"""Region normalisation where the layer finds the hole itself, and one scale and shift for each position.

    .. math:: y = (1 + \gamma(s))\,\mathrm{RegionNorm}(x, s \ge \tau) + \beta(s), \qquad
              s = \sigma\Big(W * \big[\operatorname{mean}_c x, \max_c x\big]\Big)

    The map s, in (0, 1), is one for all channels; γ and β are convolutions of it with one output channel. Which side of
    the threshold a position lies on has no gradient: the map learns through γ and β alone.

    Parameters
    ----------
    num_features
        Number of channels C.
    threshold
        τ, 0.8 in the release.
    kernel_size
        Of the three convolutions; odd. Their images are padded with zeros.
    eps
        Added to the variances.

    References
    ----------
    As :class:`RegionNorm2d` (its learnable form, RN-L, for layers in which the hole has been filled by and by).
    """

    def __init__(self, num_features: int, threshold: float = 0.8, kernel_size: int = 7, eps: float = 1e-5) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the map keeps its size, got {kernel_size}")
        self.threshold, padding = threshold, kernel_size // 2
        self.norm = RegionNorm2d(num_features, eps, affine=False)
        self.detect = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=False)
        self.gamma = nn.Conv2d(1, 1, kernel_size, padding=padding)
        self.beta = nn.Conv2d(1, 1, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)``.

        Raises
        ------
        ValueError
            If the shape does not fit.
        """
        s = self.map(x)
        return self.norm(x, s.detach() >= self.threshold) * (1 + self.gamma(s)) + self.beta(s)

    def map(self, x: Tensor) -> Tensor:
        """Return s, ``(N, 1, H, W)`` in (0, 1): high where the layer sees the hole."""
        if x.dim() != 4 or x.shape[1] != self.norm.num_features:
            raise ValueError(f"expected (N, {self.norm.num_features}, H, W), got shape {tuple(x.shape)}")
        return self.detect(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

    def extra_repr(self) -> str:
        """Show the options."""
        return f"threshold={self.threshold}"
