"""Layers of image translation that carry a style: MUNIT's block, dynamic filters, colouring in groups of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeptransfer.normalization.passes import wide


class AdaptiveResidualBlock(nn.Module):
    r"""MUNIT's residual block: the style enters as the scale and shift of two instance normalisations.

    .. math:: y = x + N_2\big(W_2 * \max(0, N_1(W_1 * x))\big), \qquad N_k(h) = \gamma_k\,\mathrm{IN}(h) + \beta_k

    The style arrives as arguments, not as state of the layer: nothing of one batch is left for the next.

    Parameters
    ----------
    channels
        C.
    eps
        Of the instance normalisation, which uses the biased variance.

    Notes
    -----
    The release takes γ and β from one vector, β before γ and layer by layer, and γ as it is, not 1 + γ. Convolutions
    are 3 × 3 on an image mirrored at its border; their bias cancels in the normalisation and is left out here.

    References
    ----------
    X. Huang, M.-Y. Liu, S. Belongie, J. Kautz. Multimodal Unsupervised Image-to-Image Translation. ECCV 2018.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        convolution = {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False}
        self.conv1 = nn.Conv2d(channels, channels, **convolution)  # type: ignore[arg-type]
        self.conv2 = nn.Conv2d(channels, channels, **convolution)  # type: ignore[arg-type]

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Apply the block to ``(N, C, H, W)``, H and W at least 2, with γ and β ``(N, 2, C)``.

        Raises
        ------
        ValueError
            If γ or β is of another shape.
        """
        for name, value in (("gamma", gamma), ("beta", beta)):
            if value.shape != (len(x), 2, self.channels):
                raise ValueError(f"{name} must be ({len(x)}, 2, {self.channels}), got {tuple(value.shape)}")
        h = self._norm(self.conv1(x), gamma[:, 0], beta[:, 0]).relu()
        return x + self._norm(self.conv2(h), gamma[:, 1], beta[:, 1])

    def _norm(self, h: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return gamma[:, :, None, None] * F.instance_norm(h, eps=self.eps) + beta[:, :, None, None]

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.channels}, eps={self.eps}"


def dynamic_instance_norm(content: Tensor, weight: Tensor, bias: Tensor, padding: int = 0, eps: float = 1e-5) -> Tensor:
    r"""Dynamic instance normalisation: after it, a convolution whose filters are made from the style.

    .. math:: y_i = W(s_i) * \mathrm{IN}(c_i) + b(s_i)

    Each image has filters of its own; one grouped convolution applies them all. With 1 × 1 filters of a single channel,
    :math:`W = \sigma(s)` and :math:`b = \mu(s)`, it is AdaIN.

    Parameters
    ----------
    content
        ``(N, C, H, W)``.
    weight
        W(s), ``(N, C_out, C / g, k, k)``: g groups, found from the shapes.
    bias
        b(s), ``(N, C_out)``.
    padding
        Zeros around the normalised image.
    eps
        Of the instance normalisation.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Notes
    -----
    Written from the paper's abstract; no released code was found. The networks that make W and b are up to the caller.

    References
    ----------
    Y. Jing, X. Liu, Y. Ding, X. Wang, E. Ding, M. Song, S. Wen. Dynamic Instance Normalization for Arbitrary Style
    Transfer. AAAI 2020.
    """
    n, c = content.shape[:2]
    if content.dim() != 4 or weight.dim() != 5 or len(weight) != n or bias.shape != weight.shape[:2]:
        raise ValueError(
            f"content {tuple(content.shape)} needs filters ({n}, C_out, C / g, k, k) and a bias ({n}, C_out), got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    out, width = weight.shape[1:3]
    if c % width or out % (c // width):
        raise ValueError(f"filters of {width} channels do not divide {c} into groups for {out} outputs")
    normalised = F.instance_norm(content, eps=eps).reshape(1, n * c, *content.shape[2:])
    y = F.conv2d(normalised, weight.flatten(0, 1), bias.flatten(), padding=padding, groups=n * (c // width))
    return y.view(n, out, *y.shape[2:])


class GroupwiseWhitenColor(nn.Module):
    r"""Colouring in groups of channels by a matrix that a network predicts (GDWCT).

    .. math:: y = \alpha\left(X(c - \mu_c) + \mu_s\right) + (1 - \alpha)\,c, \qquad X_g = U_g D_g U_g^\top,
              \quad U_g = S_g D_g^{-1}

    within each of G groups of :math:`n = C / G` channels. :math:`D_g` holds the norms of the columns of
    :math:`S_g`; X is symmetric and positive semi-definite.

    What is called whitening in the name is a penalty on the layer before (:func:`whitening_penalty`): the layer
    subtracts a mean and never multiplies by :math:`\Sigma^{-1/2}`. Where the penalty is zero, G = 1 and
    :math:`X = \Sigma_s^{1/2}`, it is WCT.

    Parameters
    ----------
    channels, groups
        C and G, which divides C. One channel per group is a scale :math:`|s|` for each: AdaIN's shape.

    Attributes
    ----------
    alpha : Parameter
        The strength, ``()``, 0.6 at the start. The release clamps it to [0, 1] after each step.

    Notes
    -----
    The mean is each image's own. The release pools mean and covariance over the batch, in evaluation too: there an
    image's result depends on its neighbours. A column of zeros, NaN in the release, counts as a direction of norm 0.

    References
    ----------
    W. Cho, S. Choi, D. K. Park, I. Shin, J. Choo. Image-to-Image Translation via Group-wise Deep
    Whitening-and-Coloring Transformation. CVPR 2019.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, got {groups}")
        self.channels, self.groups = channels, groups
        self.alpha = nn.Parameter(torch.tensor(0.6))

    def forward(self, content: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
        """Apply to ``(N, C, ...)`` the means ``(N, C)`` and matrices S ``(N, G, n, n)`` of the style.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        n, size = len(content), self.channels // self.groups
        shapes = (n, self.channels), (n, self.groups, size, size)
        if content.dim() < 3 or content.shape[1] != self.channels or (mean.shape, factor.shape) != shapes:
            raise ValueError(
                f"content ({n}, {self.channels}, ...) needs a mean {shapes[0]} and a factor {shapes[1]}, got "
                f"{tuple(content.shape)}, {tuple(mean.shape)} and {tuple(factor.shape)}"
            )
        with torch.autocast(content.device.type, enabled=False):
            flat = wide(content).flatten(2)
            centred = flat - flat.mean(2, keepdim=True)
            u, d = directions(wide(factor))
            x = (u * d.unsqueeze(-2)) @ u.mT
            colored = (x @ centred.unflatten(1, (self.groups, size))).flatten(1, 2) + wide(mean).unsqueeze(2)
            y = flat.lerp(colored, self.alpha.to(flat.dtype))
        return y.view(content.shape).to(content.dtype)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.channels}, groups={self.groups}"


def directions(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of unit length U ``(..., n, n)`` and their norms D ``(..., n)`` of the matrices S."""
    norms = torch.linalg.vector_norm(factor, dim=-2)
    return factor / torch.where(norms > 0, norms, 1).unsqueeze(-2), norms


def whitening_penalty(x: Tensor, groups: int = 1) -> Tensor:
    r"""Mean absolute distance of the covariance from the identity, within groups of channels.

    .. math:: \frac{1}{G n^2} \sum_g \left\lVert \Sigma_g - I \right\rVert_1

    Parameters
    ----------
    x
        ``(N, C, ...)``; the biased covariance is each image's own.
    groups
        G, which divides C.

    Returns
    -------
    Tensor
        A scalar, the mean over images. An image with fewer than n + 1 positions can't reach 0.

    Raises
    ------
    ValueError
        If the groups do not divide the channels, or there is no position.

    References
    ----------
    As :class:`GroupwiseWhitenColor`, whose release weighs it by 0.001.
    """
    if x.dim() < 3 or x.numel() == 0 or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"expected images (N, C, ...) whose channels {groups} groups divide, got {tuple(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        flat = wide(x).flatten(2).unflatten(1, (groups, -1))
        centred = flat - flat.mean(3, keepdim=True)
        covariance = centred @ centred.mT / flat.shape[3]
        return (covariance - torch.eye(flat.shape[2], dtype=flat.dtype, device=x.device)).abs().mean()


def orthogonality(factor: Tensor) -> Tensor:
    r"""Mean absolute distance of :math:`U^\top U` from the identity, U the columns of S at unit length.

    Then :math:`X = U D U^\top` has the eigenvalues D: what a colouring matrix is to be.

    Parameters
    ----------
    factor
        S, ``(..., n, n)``.

    Returns
    -------
    Tensor
        A scalar.

    Notes
    -----
    The release penalises :math:`|U - I|`, which draws the colouring towards a diagonal matrix, and so towards AdaIN.

    References
    ----------
    As :class:`GroupwiseWhitenColor`.
    """
    if factor.dim() < 2 or factor.shape[-1] != factor.shape[-2]:
        raise ValueError(f"expected square matrices (..., n, n), got {tuple(factor.shape)}")
    with torch.autocast(factor.device.type, enabled=False):
        u, _ = directions(wide(factor))
        return (u.mT @ u - torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)).abs().mean()
