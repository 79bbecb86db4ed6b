r"""Normalise the weights, not the activations: orthogonal filters, demodulated filters, and what a layer amplifies.

Spectral normalisation and exact orthogonality are torch's own,
``torch.nn.utils.parametrizations.spectral_norm`` and ``orthogonal``. What is here is what they leave open: how much the
convolution amplifies, of which they know the reshaped matrix only; orthogonality by degrees; demodulation; and weights
that a device stores with errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeptransfer.normalization.passes import wide

__all__ = [
    "NewtonOrthogonal",
    "circular_convolution_norm",
    "convolution_norm",
    "modulated_conv2d",
    "noisy_weights",
    "reshaped_bound",
    "reshaped_norm",
]


class NewtonOrthogonal(nn.Module):
    r"""Orthogonalisation by Newton's iteration (ONI), as a parametrisation of a weight.

    .. math:: W = s\,B_T V, \qquad V = \frac{Z}{\lVert ZZ^\top \rVert_F^{1/2}}, \qquad
              B_{t+1} = \tfrac32 B_t - \tfrac12 B_t^3\,VV^\top, \quad B_0 = I

    Z is the weight as a matrix, one row for each output, its rows centred; where there are more rows than columns, its
    transpose. Each iteration moves every singular value of V, all of them in (0, 1], by :math:`\sigma(3 - \sigma^2)/2`
    towards 1: T = 0 only bounds them, a large T makes the rows orthonormal.

    Use: ``torch.nn.utils.parametrize.register_parametrization(layer, "weight", NewtonOrthogonal())``.

    Parameters
    ----------
    iterations
        T ≥ 0. The release has 5 for convolutions and 4 for linear layers, 2 or 3 in GANs.
    scale
        s, such as √2 in front of a ReLU.
    center
        Subtract the mean of each row of the weight. It costs a rank where there are as many outputs as inputs, or more:
        one singular value stays 0, and the matrix is never orthogonal.

    Notes
    -----
    Nothing is stored, every step is differentiated, training and evaluation are alike. Computed in float32 or better. A
    weight of zeros stays zero; a direction that Z does not have is absent but for rounding, which grows by 1.5 in each
    iteration. The release adds 10⁻⁵ I to
    :math:`ZZ^\top`, and its variant for more outputs than inputs leaves out a division, so that it does not converge.

    References
    ----------
    L. Huang, L. Liu, F. Zhu, D. Wan, Z. Yuan, B. Li, L. Shao. Controllable Orthogonalization in Training DNNs.
    CVPR 2020.
    """

    def __init__(self, iterations: int = 5, scale: float = 1.0, center: bool = True) -> None:
        super().__init__()
        if iterations < 0:
            raise ValueError(f"iterations must be 0 or more, got {iterations}")
        self.iterations, self.scale, self.center = iterations, scale, center

    def forward(self, weight: Tensor) -> Tensor:
        """Map a weight ``(out, ...)`` to one of the same shape.

        Raises
        ------
        ValueError
            For a weight that is no matrix, such as a bias.
        """
        if weight.dim() < 2:
            raise ValueError(f"a weight (out, in, ...) can be orthogonal, one of shape {tuple(weight.shape)} can't")
        with torch.autocast(weight.device.type, enabled=False):
            z = wide(weight).flatten(1)
            if self.center:
                z = z - z.mean(1, keepdim=True)
            tall = z.shape[0] > z.shape[1]
            z = z.T if tall else z
            gram = z @ z.T
            norm = torch.linalg.matrix_norm(gram)
            w = z / torch.where(norm > 0, norm, 1).sqrt()
            for _ in range(self.iterations):
                # W for B V: the same numbers, but B by itself loses its symmetry to rounding, and then diverges.
                w = 1.5 * w - 0.5 * (w @ w.T) @ w
            w = self.scale * w
        return (w.T if tall else w).reshape(weight.shape).to(weight.dtype)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"iterations={self.iterations}, scale={self.scale}, center={self.center}"


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool = True,
    stride: int = 1,
    padding: int = 0,
    eps: float = 1e-8,
) -> Tensor:
    r"""Convolution whose filters each image's style scales, and demodulation then brings back to length 1.

    .. math:: y_i = w''_i * x_i, \qquad w'_{iock} = s_{ic}\,w_{ock}, \qquad
              w''_{iock} = \frac{w'_{iock}}{\sqrt{\sum_{ck} w'^2_{iock} + \epsilon}}

    No statistic of x is measured: the output has variance 1 in expectation, for inputs that are independent with mean 0
    and variance 1. What one image's channels are relative to each other survives, which instance normalisation (AdaIN)
    destroys. A factor a > 0 on a style changes nothing, up to ε.

    Parameters
    ----------
    x
        ``(N, C, H, W)``.
    weight
        ``(C_out, C, k, k)``.
    style
        s, ``(N, C)``; the layer that makes it has bias 1.
    demodulate
        Whether to divide; not where the output is an image.
    stride, padding
        As for ``F.conv2d``.
    eps
        ε. With it a style of zeros gives zeros.

    Returns
    -------
    Tensor
        ``(N, C_out, H', W')`` in the dtype of ``x``; filters are scaled in float32 or better.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    T. Karras, S. Laine, M. Aittala, J. Hellsten, J. Lehtinen, T. Aila. Analyzing and Improving the Image Quality of
    StyleGAN. CVPR 2020.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1] != x.shape[1] or style.shape != x.shape[:2]:
        raise ValueError(
            f"x (N, C, H, W), weight (out, C, k, k) and style (N, C) do not fit: {tuple(x.shape)}, "
            f"{tuple(weight.shape)}, {tuple(style.shape)}"
        )
    n, c = x.shape[:2]
    filters = wide(weight).unsqueeze(0) * wide(style)[:, None, :, None, None]  # (N, out, C, k, k)
    if demodulate:
        filters = filters * (filters.square().sum((2, 3, 4), keepdim=True) + eps).rsqrt()
    images = x.reshape(1, n * c, *x.shape[2:])
    y = F.conv2d(images, filters.flatten(0, 1).to(x.dtype), stride=stride, padding=padding, groups=n)
    return y.view(n, len(weight), *y.shape[2:])


# ------------------------------------------------------------------------------------------ what a layer amplifies


def convolution_norm(layer: nn.Conv2d, size: tuple[int, int], iterations: int = 100, seed: int = 0) -> float:
    r"""Lipschitz constant of a convolution, without its bias, on images of one size: the largest singular value.

    .. math:: \max_{x \ne 0} \frac{\lVert W * x \rVert}{\lVert x \rVert}

    Power iteration on the convolution and its adjoint, in float64: it never exceeds the value, and grows towards it.

    Parameters
    ----------
    layer
        With whatever stride, padding, dilation and groups.
    size
        Height and width of its input.
    iterations
        Of the power method.
    seed
        Of the image it starts with.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    ValueError
        If the kernel does not fit into the image, or there is no iteration.

    Notes
    -----
    Spectral normalisation divides by :func:`reshaped_norm`, another number; :func:`reshaped_bound` ties the two.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")
    weight = layer.weight.detach().double()

    def convolve(x: Tensor) -> Tensor:
        return layer._conv_forward(x, weight, None)

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, layer.in_channels, *size, dtype=torch.float64, generator=generator).to(weight.device)
    try:
        convolve(x)
    except RuntimeError as error:
        raise ValueError(f"a kernel of {layer.kernel_size} does not fit into an image of {size}: {error}") from error
    norm = 0.0
    for _ in range(iterations):
        x = (x / x.norm().clamp(min=1e-300)).requires_grad_()
        with torch.enable_grad():
            y = convolve(x)
            # The gradient of ½‖Ax‖² is AᵀAx.
            (x,) = torch.autograd.grad(y.square().sum() / 2, x)
        norm = y.detach().norm().item()
    return norm


def circular_convolution_norm(weight: Tensor, size: tuple[int, int]) -> float:
    r"""Lipschitz constant of a convolution with stride 1 whose image closes to a ring in both directions: exact.

    .. math:: \max_{f} \left\lVert \hat W(f) \right\rVert_2, \qquad
              \hat W(f) = \sum_k W_k\, e^{-2\pi i f \cdot k} \in \mathbb{C}^{C_{out} \times C}

    over all frequencies of the image. With ``size`` the image's plus k − 1 it is an upper bound for any padding with
    zeros, which :func:`convolution_norm` approaches from below.

    Parameters
    ----------
    weight
        ``(C_out, C, k, k)``, one group.
    size
        Height and width of the ring, at least those of the kernel.

    Raises
    ------
    ValueError
        If the kernel is larger than the ring.

    References
    ----------
    H. Sedghi, V. Gupta, P. M. Long. The Singular Values of Convolutional Layers. ICLR 2019.
    """
    if weight.dim() != 4 or weight.shape[2] > size[0] or weight.shape[3] > size[1]:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} does not fit on a ring of {size}")
    spectrum = torch.fft.fft2(weight.detach().double(), s=size)  # (out, C, H, W)
    return torch.linalg.matrix_norm(spectrum.movedim((0, 1), (2, 3)), ord=2).max().item()


def reshaped_norm(weight: Tensor, groups: int = 1) -> float:
    r"""Largest singular value of a weight as a matrix ``(out, in · k · k)``: what spectral normalisation divides by.

    With groups, the largest over the groups' matrices.

    Raises
    ------
    ValueError
        If the weight is no matrix, or the groups do not divide its outputs.
    """
    if weight.dim() < 2 or groups < 1 or len(weight) % groups:
        raise ValueError(
            f"expected a weight (out, in, ...) whose outputs {groups} groups divide: {tuple(weight.shape)}"
        )
    matrices = weight.detach().double().flatten(1).unflatten(0, (groups, -1))
    return torch.linalg.matrix_norm(matrices, ord=2).max().item()


def reshaped_bound(layer: nn.Conv2d) -> float:
    r"""Upper bound of a convolution's Lipschitz constant, with zeros as padding, by its reshaped matrix.

    .. math:: \lVert W * \rVert \le \sqrt{\lceil k_h / s_h \rceil \lceil k_w / s_w \rceil}\;\lVert W \rVert_2

    for kernels k and strides s, without dilation: a pixel lies in no more than that many patches, squared. It is the
    reshaped norm itself where patches do not overlap (k = s, and 1 × 1), and a constant kernel comes near it.

    Raises
    ------
    ValueError
        If the padding is not zeros: a pixel that padding repeats lies in more patches.
    """
    if layer.padding_mode != "zeros":
        raise ValueError(f"the bound holds for padding with zeros, not {layer.padding_mode!r}")
    patches = 1
    for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        patches *= math.ceil(k / (s // math.gcd(s, d)))  # taps whose distance is a multiple of the stride
    return math.sqrt(patches) * reshaped_norm(layer.weight, layer.groups)


# ------------------------------------------------------------------------------------------ weights stored with errors


@contextmanager
def noisy_weights(model: nn.Module, sigma: float, seed: int = 0) -> Iterator[nn.Module]:
    r"""Run a model inside the ``with`` block with the errors of one device in its weights.

    .. math:: w \to w + \Delta w, \qquad \Delta w \sim \mathcal N\big(0, (\sigma \max|w|)^2\big)

    for the weights of every convolution and linear layer, the maximum over that array. The errors stay as they are in
    the block, as on a chip that was programmed once; another seed is another chip. Then normalisation layers receive
    other moments than they stored; :func:`~deeptransfer.normalization.adapt_statistics` inside the block measures
    those: AdaBN with the device as the domain. Afterwards the weights are as before, while statistics stay.

    Parameters
    ----------
    model
        Any module.
    sigma
        σ ≥ 0, as a share of the largest weight.
    seed
        Of the device, drawn on the CPU.

    Raises
    ------
    ValueError
        If σ is negative, there is no weight, or one is computed (parametrised): it would be computed anew.

    References
    ----------
    L.-H. Tsai, S.-C. Chang, Y.-T. Chen, J.-Y. Pan, W. Wei, D.-C. Juan. Robust Processing-In-Memory Neural Networks via
    Noise-Aware Normalization. 2020.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma must be 0 or more, got {sigma}")
    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
    for layer in layers:
        if "weight" not in layer._parameters:
            raise ValueError(f"a {type(layer).__name__} computes its weight: remove the parametrisation first")
    weights = list(dict.fromkeys(layer.weight for layer in layers))  # a shared one once
    if not weights:
        raise ValueError(f"{type(model).__name__} has no convolution and no linear layer")
    before = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for weight in weights:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(noise * (sigma * weight.abs().max()))
        yield model
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
