"""Matching BatchNorm statistics: move the features to the stored statistics, and not these to the features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .adabn import batch_moments, stored_moments
from .moments import Moments
from .passes import wide
from .plain import Norm, norm_layers
from .test_time import entropies


def gaussian_divergence(batch: Moments, stored: Moments, eps: float = 1e-5) -> Tensor:
    r"""Kullback-Leibler divergence of two diagonal Gaussians, averaged over the channels.

    .. math:: \frac1C \sum_c \mathrm{KL}\big(N(m_c, b_c)\,\|\,N(\mu_c, v_c)\big)
              = \frac1C \sum_c \left[\tfrac12 \ln\frac{v_c}{b_c} + \frac{b_c + (m_c - \mu_c)^2}{2 v_c} - \tfrac12\right]

    Parameters
    ----------
    batch, stored
        Means m, μ and biased variances b, v: ``(C,)``.
    eps
        Least variance of either; :math:`b \to 0` would diverge.

    Returns
    -------
    Tensor
        In nats, shape ``()``; at least 0, and 0 only where the moments are equal.
    """
    b, v = batch.var.clamp(min=eps), stored.var.clamp(min=eps)
    return ((v / b).log() + (b + (batch.mean - stored.mean).square()) / v - 1).mean() / 2


@contextmanager
def statistics_divergences(model: nn.Module, domain: str | int = "source") -> Iterator[list[Tensor]]:
    r"""Collect, inside the ``with`` block, how far each layer's input is from the statistics that it has stored.

    One :func:`gaussian_divergence` is appended for each pass of a layer through the list that is yielded: their sum is
    the loss that moves what stands *before* these layers. Pass the part of the network that is frozen: it evaluates
    with its stored statistics, while the encoder before it learns from unlabelled images alone.

    Parameters
    ----------
    model
        Holds the BatchNorm or domain layers, those of :func:`~deeptransfer.normalization.convert_norm`.
    domain
        Whose row of a domain layer is the stored one.

    Yields
    ------
    list of Tensor
        Divergences, shape ``()``, in the order of the passes; gradients reach the layers' inputs.

    Raises
    ------
    ValueError
        When there is no layer with running statistics, or a batch has one value per channel.

    Notes
    -----
    With an affine map just before a layer the divergence can be driven to 0 in closed form, and that is AdaBN: whatever
    the method gains beyond it comes from the convolutions, or from :func:`information_maximization`. We know of no
    released code; the direction of the divergence and equal weights of the layers are our reading.

    References
    ----------
    M. Ishii, M. Sugiyama. Source-free Domain Adaptation via Distributional Alignment by Matching Batch Normalization
    Statistics. 2021.
    """
    layers = [layer for layer in norm_layers(model).values() if layer.running_mean is not None]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer with running statistics to match")
    collected: list[Tensor] = []

    def compare(layer: Norm, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        if x.numel() <= x.shape[1]:
            raise ValueError(f"a batch of shape {tuple(x.shape)} has no variance to match: give it more rows")
        with torch.autocast(x.device.type, enabled=False):
            _, batch = batch_moments(layer, x)
        collected.append(gaussian_divergence(batch, stored_moments(layer, domain), layer.eps))

    handles = [layer.register_forward_pre_hook(compare) for layer in layers]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def information_maximization(logits: Tensor) -> Tensor:
    r"""Certain predictions of each row, and even ones over the batch.

    .. math:: \frac1n \sum_i H(p_i) - H\Big(\frac1n \sum_i p_i\Big)

    Parameters
    ----------
    logits
        ``(n, C)``.

    Returns
    -------
    Tensor
        In nats, from −log C to 0, shape ``()``: minus the mutual information of row and class.
    """
    mean = wide(logits).softmax(1).mean(0)
    return entropies(logits).mean() + torch.special.xlogy(mean, mean).sum()
