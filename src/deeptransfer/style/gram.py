"""Losses of neural style transfer: statistics over positions as the style, the features themselves as the content."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deeptransfer.normalization.passes import measure_images, wide


def gram_matrix(x: Tensor) -> Tensor:
    r"""Mean product of every two channels over the positions of each image.

    .. math:: G = \frac1P F F^\top, \qquad F \in \mathbb{R}^{C \times P}

    Parameters
    ----------
    x
        ``(N, C, ...)`` of P positions.

    Returns
    -------
    Tensor
        ``(N, C, C)``, symmetric; float32, or float64 if ``x`` is: the sum over positions overflows in half precision.

    Raises
    ------
    ValueError
        If there is no position, or ``x`` is not floating.

    Notes
    -----
    The paper does not divide, others divide by P, or by C · P: weights of a style loss do not carry over.

    References
    ----------
    L. A. Gatys, A. S. Ecker, M. Bethge. Image Style Transfer Using Convolutional Neural Networks. CVPR 2016.
    """
    _check(x)
    with torch.autocast(x.device.type, enabled=False):
        flat = wide(x).flatten(2)
        return flat @ flat.mT / flat.shape[2]


def channel_moments(x: Tensor) -> Tensor:
    r"""Mean and standard deviation of every channel over the positions of each image.

    .. math:: (\mu_c, \sigma_c), \qquad \sigma_c = \sqrt{v_c + 10^{-5}}

    The statistics of AdaIN; the squared distance of two of them is its style loss.

    Parameters
    ----------
    x
        ``(N, C, ...)``.

    Returns
    -------
    Tensor
        ``(N, 2, C)``: means, standard deviations; float32, or float64 if ``x`` is.

    Raises
    ------
    ValueError
        As :func:`gram_matrix`.
    """
    _check(x)
    mean, var = measure_images(x)
    return torch.stack([mean, (var + 1e-5).sqrt()], 1)


class _LayerLoss(nn.Module):
    """The weighted sum over layers of squared distances from constants."""

    factor = 1.0
    names: tuple[str, ...]

    def __init__(self, targets: Sequence[Tensor], weights: Sequence[float] | None, relative: bool) -> None:
        super().__init__()
        if isinstance(targets, Tensor) or not targets:
            raise ValueError("expected the features of one layer or more, in a list: [features]")
        weights = [1.0] * len(targets) if weights is None else list(weights)
        if len(weights) != len(targets):
            raise ValueError(f"got {len(weights)} weights for the features of {len(targets)} layers")
        self.names = tuple(f"target{i}" for i in range(len(targets)))
        self.weights, self.relative = weights, relative
        for name, target in zip(self.names, targets, strict=True):
            self.register_buffer(name, target.detach().clone())
            if relative and not _squares(wide(target)) > 0:
                raise ValueError(
                    f"the features behind {name} are zero, and nothing is relative to them: leave them out"
                )

    def distances(self, values: Sequence[Tensor]) -> Tensor:
        """Sum over layers, mean over images."""
        if isinstance(values, Tensor) or len(values) != len(self.names):
            raise ValueError(f"expected a list of the features of {len(self.names)} layers")
        terms = []
        for name, weight, value in zip(self.names, self.weights, values, strict=True):
            target = wide(getattr(self, name))
            if value.shape[1:] != target.shape[1:] or len(target) not in (1, len(value)):
                raise ValueError(f"{name} is of shape {tuple(target.shape)}, and does not fit {tuple(value.shape)}")
            # The target's norm anew, since a state that is loaded brings other targets.
            scale = 1 / _squares(target) if self.relative else self.factor
            terms.append(weight * scale * _squares(value - target))
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        """Show the options."""
        return f"layers={len(self.names)}, weights={self.weights}, relative={self.relative}"


class StyleLoss(_LayerLoss):
    r"""Squared distance between the statistics of an image and those of a style, summed over layers.

    .. math:: L = \sum_\ell w_\ell \left\lVert S(F_\ell) - S(F'_\ell) \right\rVert^2

    With the Gram matrix as S this is the squared MMD (biased) between the positions of the two images under the kernel
    :math:`(x^\top y)^2`. With :func:`channel_moments` it is the style loss of AdaIN.

    Parameters
    ----------
    style
        Features of the style in each layer, ``(1, C, ...)`` or as many as images; constants from here on. The number of
        positions may be another.
    weights
        :math:`w_\ell`; None: all 1.
    relative
        Divide each layer by :math:`\lVert S(F'_\ell) \rVert^2`, so that no layer rules by its scale.
    statistic
        S: :func:`gram_matrix`, :func:`channel_moments`, or a function of your own from ``(N, C, ...)`` to ``(N, ...)``.

    Raises
    ------
    ValueError
        If layers are missing, do not fit or, for a relative loss, are zero.

    Notes
    -----
    The loss of the paper is ours times :math:`1 / (4 C^2)` in each layer, where both images are of one size.

    References
    ----------
    L. A. Gatys, A. S. Ecker, M. Bethge. Image Style Transfer Using Convolutional Neural Networks. CVPR 2016.
    Y. Li, N. Wang, J. Liu, X. Hou. Demystifying Neural Style Transfer. IJCAI 2017.
    """

    def __init__(
        self,
        style: Sequence[Tensor],
        weights: Sequence[float] | None = None,
        relative: bool = False,
        statistic: Callable[[Tensor], Tensor] = gram_matrix,
    ) -> None:
        super().__init__([statistic(features) for features in style], weights, relative)
        self.statistic = statistic

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The loss of features ``(N, C, ...)`` of each layer: a scalar, the mean over images."""
        return self.distances([self.statistic(x) for x in features])


class ContentLoss(_LayerLoss):
    r"""Squared distance between the features of an image and those of the content.

    .. math:: L = \tfrac12 \sum_\ell w_\ell \left\lVert F_\ell - F'_\ell \right\rVert^2

    Parameters
    ----------
    content
        Features of the content in each layer, of the shape that the image's will have, or ``(1, ...)``; constants from
        here on.
    weights
        :math:`w_\ell`; None: all 1.
    relative
        Divide each layer by :math:`\lVert F'_\ell \rVert^2` in place of the ½.

    Raises
    ------
    ValueError
        If layers are missing, do not fit or, for a relative loss, are zero.

    References
    ----------
    L. A. Gatys, A. S. Ecker, M. Bethge. Image Style Transfer Using Convolutional Neural Networks. CVPR 2016.
    """

    factor = 0.5

    def __init__(
        self, content: Sequence[Tensor], weights: Sequence[float] | None = None, relative: bool = False
    ) -> None:
        super().__init__(content, weights, relative)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The loss of features of each layer: a scalar, the mean over images."""
        return self.distances([wide(x) for x in features])


def _squares(x: Tensor) -> Tensor:
    """Squared norm of each image, averaged over images."""
    return x.square().flatten(1).sum(1).mean()


def _check(x: Tensor) -> None:
    if x.dim() < 3 or x.numel() == 0:
        raise ValueError(f"expected images (N, C, ...) with positions, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected floating features, got {x.dtype}")
