"""Domain-specific whitening, and the consensus loss that was published with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DomainNorm
from .moments import Moments
from .passes import wide


class DomainWhitening(DomainNorm):
    r"""Whiten small groups of channels, each domain by its own covariance.

    .. math:: y = \gamma\,L_d^{-1}(x - \mu_d) + \beta, \qquad L_d L_d^\top = (1-\varepsilon)\,\Sigma_d + \varepsilon I

    within each group of ``group_size`` consecutive channels, :math:`L_d` lower triangular. Groups of 1 are BatchNorm
    with :math:`(1-\varepsilon)v + \varepsilon` for its variance.

    Parameters
    ----------
    num_features, momentum, **options
        As :class:`DomainNorm`.
    eps
        Kept for conversion; the shrinkage takes its place.
    group_size
        g; must divide C. A layer of fewer channels is one group.
    shrinkage
        :math:`\varepsilon` in (0, 1].

    Notes
    -----
    One more buffer, ``running_cov`` ``(K, G, g, g)``: the unshrunk covariance of each domain; ``running_var`` is its
    diagonal. A plain BatchNorm checkpoint fills the diagonal. The released code lets the domains share one buffer by
    mistake. A covariance that float32 cannot factor gives NaN, not an exception that would wait for the device.

    References
    ----------
    S. Roy, A. Siarohin, E. Sangineto, S. Rota Bulò, N. Sebe, E. Ricci. Unsupervised Domain Adaptation using
    Feature-Whitening and Consensus Loss. CVPR 2019.
    """

    running_cov: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        group_size: int = 4,
        shrinkage: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, **options)
        if group_size < 1 or num_features % min(group_size, num_features):
            raise ValueError(f"group_size must divide the {num_features} channels, got {group_size}")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage must lie in (0, 1], got {shrinkage}")
        self.group_size, self.shrinkage = min(group_size, num_features), shrinkage
        self.register_buffer("running_cov", torch.diag_embed(self._grouped(self.running_var)))

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.group_size))  # (K, C) to (K, G, g)

    def measure(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[Moments]]:
        """Measure mean and covariance of each group."""
        return x, [self._measure_part(part) for part in x.split(sizes)]

    def _measure_part(self, x: Tensor) -> Moments:
        channels = wide(x).transpose(0, 1).flatten(1)  # (C, n)
        mean = channels.mean(1, keepdim=True)
        centred = (channels - mean).unflatten(0, (-1, self.group_size))  # (G, g, n)
        n = channels.shape[1]
        return Moments(mean.flatten(), centred @ centred.mT / n, n)

    def normalise(
        self, x: Tensor, sizes: list[int], moments: Sequence[Moments], affines: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Whiten each part by its moments, then apply its weight and bias."""
        out = []
        for part, own, (weight, bias) in zip(x.split(sizes), moments, affines, strict=True):
            centred = (part.transpose(0, 1).flatten(1) - own.mean.unsqueeze(1)).unflatten(0, (-1, self.group_size))
            z = torch.linalg.solve_triangular(self._factor(own), centred, upper=False).flatten(0, 1)  # (C, n)
            y = z * weight.unsqueeze(1) + bias.unsqueeze(1)
            out.append(y.view(part.transpose(0, 1).shape).transpose(0, 1).to(x.dtype))
        return torch.cat(out)

    def _factor(self, moments: Moments) -> Tensor:
        """The Cholesky factor L of each group's shrunk covariance."""
        eye = torch.eye(self.group_size, dtype=moments.var.dtype, device=moments.var.device)
        factor, info = torch.linalg.cholesky_ex((1 - self.shrinkage) * moments.var + self.shrinkage * eye)
        return factor.masked_fill(info[:, None, None] != 0, math.nan)

    def evaluate(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the one matrix of each group, γ L⁻¹, and then the shift β − γ L⁻¹ μ."""
        eye = torch.eye(self.group_size, dtype=moments.var.dtype, device=x.device)
        matrix = torch.linalg.solve_triangular(self._factor(moments), eye, upper=False)
        matrix = weight.view(-1, self.group_size, 1) * matrix
        shift = bias.view(-1, self.group_size, 1) - matrix @ moments.mean.view(-1, self.group_size, 1)
        groups = wide(x).reshape(len(x), *shift.shape[:2], -1)  # (N, G, g, positions)
        return (matrix @ groups).add_(shift).view(x.shape).to(x.dtype)

    def spread(self, difference: Tensor) -> Tensor:
        """Return the outer product of each group's shift."""
        shift = difference.view(-1, self.group_size, 1)
        return shift @ shift.mT

    def stored(self, row: int) -> Moments:
        """Return a running row as constant moments."""
        return Moments(wide(self.running_mean[row]), wide(self.running_cov[row]), math.inf)

    def store(self, row: int | slice, moments: Moments, weight: float | Tensor) -> None:
        """Move the covariance and, as its diagonal, the variance."""
        old = self.running_cov[row]
        old.add_((moments.var - old) * weight)
        diagonal = moments.var.diagonal(dim1=-2, dim2=-1).flatten(-2)
        super().store(row, moments._replace(var=diagonal), weight)

    def reset_running_stats(self) -> None:
        """Forget all running rows."""
        super().reset_running_stats()
        self.running_cov.copy_(torch.diag_embed(self._grouped(self.running_var)))

    def fill_from(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Rewrite the state of a plain BatchNorm: its variances become the diagonal."""
        super().fill_from(state, prefix)
        state[prefix + "running_cov"] = torch.diag_embed(self._grouped(state[prefix + "running_var"]))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, group_size={self.group_size}, shrinkage={self.shrinkage}"


class DomainWhitening1d(DomainWhitening):
    """:class:`DomainWhitening` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class DomainWhitening2d(DomainWhitening):
    """:class:`DomainWhitening` for ``(N, C, H, W)``."""

    dims = (4,)


class DomainWhitening3d(DomainWhitening):
    """:class:`DomainWhitening` for ``(N, C, D, H, W)``."""

    dims = (5,)


def min_entropy_consensus(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    r"""Min-entropy consensus: two views of an image should agree, confidently, on some class.

    .. math:: L = \frac1n\sum_i \min_y\ \tfrac12\left(-\log p(y \mid x^a_i) - \log p(y \mid x^b_i)\right)

    Parameters
    ----------
    logits_a, logits_b
        Logits ``(n, classes)`` of two views of the same rows.

    Returns
    -------
    Tensor
        A scalar, at least 0; equal views with a certain class give 0.

    Raises
    ------
    ValueError
        When the two do not have one shape ``(n, classes)``.
    """
    if logits_a.shape != logits_b.shape or logits_a.dim() != 2:
        raise ValueError(
            f"expected two views of the same rows, (n, classes) each, got {tuple(logits_a.shape)} "
            f"and {tuple(logits_b.shape)}"
        )
    consensus = (F.log_softmax(logits_a, dim=1) + F.log_softmax(logits_b, dim=1)) / 2
    return -consensus.amax(dim=1).mean()
