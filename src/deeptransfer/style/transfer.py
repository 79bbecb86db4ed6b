"""Give one image the statistics of another: per channel (AdaIN), or with the covariance of the channels (WCT)."""

from __future__ import annotations

import torch
from torch import Tensor

from deeptransfer.normalization.passes import measure, wide

from .psd import matrix_power_psd


def adaptive_instance_norm(content: Tensor, style: Tensor, alpha: float = 1.0, eps: float = 1e-5) -> Tensor:
    r"""Adaptive instance normalisation (AdaIN): the content with the style's mean and variance in each channel.

    .. math:: y = \alpha\, t + (1 - \alpha)\, c, \qquad
              t = \sqrt{v_s + \epsilon}\;\frac{c - \mu_c}{\sqrt{v_c + \epsilon}} + \mu_s

    with mean and biased variance of each image and channel over its positions. A style of the content itself changes
    nothing, whatever ε. It is instance normalisation whose scale and shift are the style's statistics, and so AdaBN
    with the content image as the target domain. Nothing is stored; training and evaluation are alike.

    Parameters
    ----------
    content
        ``(N, C, ...)`` of any positions.
    style
        ``(N, C, ...)``, an image for each content, or ``(1, C, ...)``, one for all. The number of positions and their
        arrangement may be another.
    alpha
        Strength; 0 returns the content. Outside [0, 1] it extrapolates.
    eps
        ε ≥ 0. A constant channel of the content becomes the style's mean; with ε = 0 it is NaN.

    Returns
    -------
    Tensor
        As ``content``, in its dtype; statistics are taken in float32 or better. NaN or infinity stays in its image and
        channel.

    Raises
    ------
    ValueError
        If the channels or the numbers of images do not fit, or an image has no position.

    Notes
    -----
    Released versions differ: the one in Lua divides the content by :math:`\sqrt{v_c + \epsilon}` and multiplies by the
    style's standard deviation without ε; a well-known port to PyTorch takes the unbiased variance.

    References
    ----------
    X. Huang, S. Belongie. Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization. ICCV 2017.
    """
    _check(content, style)
    with torch.autocast(content.device.type, enabled=False):
        values = _channels(content)
        _, mean, var = measure(_channels(style), [1])
        scale, shift = ((v[0] if len(style) == len(content) else v[0].repeat(len(content))) for v in (var, mean))
        scale = (scale + eps).sqrt()
        # Not F.batch_norm, which refuses an image of one position: here that becomes the style's mean.
        t = torch.batch_norm(values, scale, shift, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
        y = t if alpha == 1 else values.lerp(t, alpha)
    return y.view(content.shape).to(content.dtype)


def whiten_color(content: Tensor, style: Tensor, alpha: float = 1.0, eps: float = 1e-5, cut: float = 1e-6) -> Tensor:
    r"""Whitening and colouring transform (WCT): the content with the style's mean and covariance of its channels.

    .. math:: y = \alpha\, t + (1 - \alpha)\, c, \qquad
              t = (\Sigma_s + \epsilon I)^{1/2}\,(\Sigma_c + \epsilon I)^{-1/2}\,(c - \mu_c) + \mu_s

    with the biased covariance of each image over its positions, and symmetric roots
    (:func:`~deeptransfer.style.matrix_power_psd`): of all maps that whiten, the symmetric one moves the features least.
    Where the covariances are diagonal it is :func:`~deeptransfer.style.adaptive_instance_norm`. On the rows of two
    domains in place of the pixels of two images it is CORAL.

    Parameters
    ----------
    content, style
        As for :func:`~deeptransfer.style.adaptive_instance_norm`.
    alpha
        Strength; the release uses 0.6.
    eps
        ε ≥ 0, a ridge on both covariances. With ε = 0 the cut alone keeps the result finite.
    cut
        Directions whose eigenvalue, with the ridge, is below this share of the largest are left out. Relative, so that
        the scale of the features does not decide, as it does in the release (10⁻⁵). An image of P positions has
        P − 1 directions at most, however many channels there are.

    Returns
    -------
    Tensor
        As ``content``, in its dtype; statistics and products are float32 or better, eigenvalues float64. The covariance
        is the style's as far as the content has the rank for it. A constant content becomes the style's mean.

    Raises
    ------
    ValueError
        If the channels or the numbers of images do not fit, an image has no position, or a value is NaN or infinite.

    Notes
    -----
    The gradient is finite where eigenvalues repeat; the second derivative raises. Cost: O(C³) for the eigenvalues, once
    for a style that is shared by the batch, and O(C²) for each position.

    References
    ----------
    Y. Li, C. Fang, J. Yang, Z. Wang, X. Lu, M.-H. Yang. Universal Style Transfer via Feature Transforms. NeurIPS 2017.
    B. Sun, J. Feng, K. Saenko. Return of Frustratingly Easy Domain Adaptation. AAAI 2016.
    """
    _check(content, style)
    if not eps >= 0:
        raise ValueError(f"eps must be 0 or more, got {eps}")
    with torch.autocast(content.device.type, enabled=False):
        flat, mean, covariance = _covariance(content)
        _, style_mean, style_covariance = _covariance(style)
        ridge = eps * torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
        white = matrix_power_psd(covariance + ridge, -0.5, cut)
        matrix = alpha * (matrix_power_psd(style_covariance + ridge, 0.5, cut) @ white)  # (N, C, C)
        centre = alpha * style_mean + (1 - alpha) * mean
        y = torch.baddbmm(centre.expand_as(mean), matrix, flat - mean)
        if alpha != 1:
            y = y + (1 - alpha) * (flat - mean)
    return y.view(content.shape).to(content.dtype)


def _channels(x: Tensor) -> Tensor:
    """Each channel of each image as a channel of one image, (1, N · C, P)."""
    return wide(x).reshape(1, x.shape[0] * x.shape[1], -1)


def _covariance(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values of each channel (N, C, P), their mean (N, C, 1) and biased covariance (N, C, C)."""
    flat = wide(x).flatten(2)
    mean = flat.mean(2, keepdim=True)
    centred = flat - mean
    return flat, mean, centred @ centred.mT / flat.shape[2]


def _check(content: Tensor, style: Tensor) -> None:
    for name, x in (("content", content), ("style", style)):
        if x.dim() < 3:
            raise ValueError(f"the {name} must be images (N, C, ...) with positions, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"the {name} must be floating, got {x.dtype}: divide bytes by 255")
        if x.numel() == 0:
            raise ValueError(f"the {name} of shape {tuple(x.shape)} has no values to measure")
    if content.shape[1] != style.shape[1]:
        raise ValueError(f"content has {content.shape[1]} channels and style {style.shape[1]}: they must be the same")
    if len(style) not in (1, len(content)):
        raise ValueError(f"got {len(style)} styles for {len(content)} contents: give one for each, or one for all")
