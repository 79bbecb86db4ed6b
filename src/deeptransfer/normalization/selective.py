"""Instance selective whitening: make the channels of each image uncorrelated where style makes them correlate."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .passes import wide


def instance_correlation(x: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Return the correlation of the channels within each image.

    .. math:: R_i = \frac{1}{P - 1}\,z_i z_i^\top, \qquad z_i = \mathrm{InstanceNorm}(x_i)

    Parameters
    ----------
    x
        ``(N, C, ...)`` of P > 1 positions.
    eps
        Of the normalisation, whose variance is biased: :math:`|R|` reaches P / (P − 1).

    Returns
    -------
    Tensor
        ``(N, C, C)``, in float32 or better. It is left as it is by :math:`x \to a_c x + b_c` with a > 0, up to ε.

    Raises
    ------
    ValueError
        When an image has one position.

    Notes
    -----
    Its rank is at most P − 1: with more channels than positions it can never become the unit matrix.
    """
    positions = x.shape[2:].numel()
    if x.dim() < 3 or positions < 2:
        raise ValueError(f"a correlation within an image needs more than one position, got shape {tuple(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
        z = wide(x).flatten(2)
        var, mean = torch.var_mean(z, 2, correction=0, keepdim=True)
        z = (z - mean) * (var + eps).rsqrt()
        return z @ z.mT / (positions - 1)


def whitening_loss(x: Tensor, mask: Tensor | None = None, margin: float = 0.0, eps: float = 1e-5) -> Tensor:
    r"""Penalise correlations between the channels of an image.

    .. math:: L = \frac1N \sum_i \max\left(0,\; \frac{1}{n_M} \Big(\sum_{j,k} |R_i|_{jk} M_{jk} - \delta\Big)\right)

              n_M = \sum_{jk} M_{jk}

    All pairs and δ = 0 is IW, all pairs and a margin is IRW (the released code's is a 32nd of the number of pairs), the
    pairs that :func:`sensitive_pairs` finds and δ = 0 is ISW.

    Parameters
    ----------
    x
        What a layer receives or returns, ``(N, C, ...)``.
    mask
        M, bool ``(C, C)``. None: every pair once, the strict upper triangle. A mask without a pair gives 0.
    margin
        δ ≥ 0: correlation, summed over the pairs of M, that is let pass.
    eps
        As :func:`instance_correlation`'s.

    Returns
    -------
    Tensor
        Shape ``()``, in float32 or better.

    Raises
    ------
    ValueError
        When the mask is no bool ``(C, C)``, the margin is negative, or an image has one position.

    References
    ----------
    S. Choi, S. Jung, H. Yun, J. T. Kim, S. Kim, J. Choo. RobustNet: Improving Domain Generalization in Urban-Scene
    Segmentation via Instance Selective Whitening. CVPR 2021.
    """
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    c = x.shape[1]
    if mask is None:
        mask = torch.ones(c, c, dtype=torch.bool, device=x.device).triu(1)
    if mask.shape != (c, c) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool ({c}, {c}), got {mask.dtype} {tuple(mask.shape)}")
    pairs = mask.sum()
    total = (instance_correlation(x, eps).abs() * mask).sum((1, 2))
    return F.relu((total - margin) / pairs.clamp(min=1)).mean()


def sensitive_pairs(first: Tensor, second: Tensor, clusters: int = 3) -> Tensor:
    r"""Find the pairs of channels whose correlation changes when only the style of an image does.

    .. math:: V = \frac1N \sum_i \tfrac14 \big(R_i - R'_i\big)^2

    is the mean variance of the two correlations; the values of the strict upper triangle are clustered, and all but
    the lowest cluster are sensitive.

    Parameters
    ----------
    first, second
        :func:`instance_correlation` ``(N, C, C)`` of the same images as they are and with another style: colour
        jitter and blur, with the network in evaluation.
    clusters
        k of one-dimensional k-means, from 2 on.

    Returns
    -------
    Tensor
        The mask for :func:`whitening_loss`, bool ``(C, C)``. Fewer distinct values than clusters make as many
        clusters; where all pairs vary alike, also not at all, none is sensitive.

    Raises
    ------
    ValueError
        When the two are not such correlations, hold NaN, or there are fewer than two clusters.

    Notes
    -----
    A transform that is affine for each channel at this layer changes no correlation: what InstanceNorm removes anyway
    is never selected. The released code clusters all :math:`C^2` entries, with the zeros of diagonal and lower
    triangle, which fill the lowest cluster: other pairs are whitened than by the paper's rule, which is used here.

    References
    ----------
    As :func:`whitening_loss`.
    """
    from sklearn.cluster import KMeans

    if first.dim() != 3 or first.shape != second.shape or first.shape[1] != first.shape[2] or not len(first):
        raise ValueError(
            f"needs correlations (N, C, C) of the same images, got shapes {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    if clusters < 2:
        raise ValueError(f"clusters must be 2 or more, got {clusters}: the lowest one is left alone")
    variance = (first.detach().double() - second.detach().double()).square().mean(0) / 4
    if not variance.isfinite().all():
        raise ValueError("the correlations hold NaN or infinity: is there some in the images?")
    rows, columns = torch.triu_indices(len(variance), len(variance), offset=1)
    values = variance[rows, columns].cpu().numpy()
    mask = torch.zeros(variance.shape, dtype=torch.bool, device=first.device)
    distinct = len(np.unique(values))
    if distinct < 2:
        return mask
    scaled = values[:, None] / values.max()
    labels = KMeans(min(clusters, distinct), n_init=10, random_state=0).fit_predict(scaled)
    mask[rows, columns] = torch.from_numpy(labels != labels[values.argmin()]).to(mask.device)
    return mask


class InstanceWhitening2d(nn.Module):
    r"""InstanceNorm without scale and shift, and the pairs of channels that its loss is to whiten.

    The layer takes the place of the first BatchNorm of a network, or stands behind the addition of a residual block;
    the network goes on with its output, and :meth:`loss` is taken of that output, too.

    Parameters
    ----------
    num_features
        Number of channels C.
    margin
        δ of :func:`whitening_loss`.
    eps
        Added to the variance.

    Shape
    -----
    ``(N, C, H, W)`` to the same shape.

    Notes
    -----
    State: the buffer ``mask``, bool ``(C, C)``, at the start all pairs; :meth:`select` narrows it. The released code
    keeps it outside the state, so that a resumed run has none.

    References
    ----------
    As :func:`whitening_loss`.
    """

    mask: Tensor

    def __init__(self, num_features: int, margin: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.margin, self.eps = num_features, margin, eps
        self.register_buffer("mask", torch.ones(num_features, num_features, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each image."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"expected images (N, {self.num_features}, H, W), got shape {tuple(x.shape)}")
        if x.shape[2:].numel() < 2:
            raise ValueError(f"an image needs more than one position, got shape {tuple(x.shape)}")
        return F.instance_norm(x, eps=self.eps)

    def loss(self, y: Tensor) -> Tensor:
        """Return the whitening loss of the layer's output, under its mask and margin."""
        return whitening_loss(y, self.mask, self.margin, self.eps)

    def select(self, first: Tensor, second: Tensor, clusters: int = 3) -> None:
        """Leave of the mask the pairs that :func:`sensitive_pairs` finds; it only shrinks."""
        self.mask &= sensitive_pairs(first, second, clusters).to(self.mask.device)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.num_features}, margin={self.margin}, eps={self.eps}"
