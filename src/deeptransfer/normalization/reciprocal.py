"""Reciprocal Normalization: complete each domain's statistics by the other's similar channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .gates import clip_gate
from .moments import Moments
from .passes import by_hand, differentiate, wide

TINY = 1e-30  # a sum of similarities from here on is no underflow
WIDE = 256  # blocks beyond which the attention costs more than the batch


def compensate(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    r"""Each statistic made of the other domain's: :math:`\sum_j A_{ij}\,m'_j`.

    Parameters
    ----------
    own, other
        Statistics in B blocks of k channels, ``(2 R, B, k)``: R of the source and the same R of the target, and the
        other way round. Distances are between block means.
    temperature
        T.
    """
    if own.shape[1] > WIDE and by_hand(own):
        source, target = own.chunk(2)
        with torch.no_grad():
            similarity = (source.mean(2).unsqueeze(2) - target.mean(2).unsqueeze(1)).square_().div_(-temperature).exp_()
            rows, columns = similarity.sum(2, keepdim=True), similarity.sum(1).unsqueeze(2)
        if min(rows.min(), columns.min()) > TINY:
            return torch.cat(_Compensate.apply(source, target, temperature, similarity, rows, columns))
    return _compensate(own, other, temperature)


def _compensate(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    distance = (own.mean(2).unsqueeze(2) - other.mean(2).unsqueeze(1)).square()
    return torch.softmax(-distance / temperature, 2) @ other


def _both_ways(source: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, ...]:
    return _compensate(torch.cat([source, target]), torch.cat([target, source]), temperature).chunk(2)


class _Compensate(torch.autograd.Function):
    """The same in few passes over the B² numbers.

    One matrix of similarities :math:`e^{-(m_i - m'_j)^2 / T}` serves both domains: source blocks attend along its rows,
    target blocks along its columns.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(
        ctx: Any, source: Tensor, target: Tensor, temperature: float, similarity: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = (similarity @ target).div_(rows), (similarity.mT @ source).div_(columns)
        ctx.save_for_backward(source, target, similarity, rows, columns, *out)
        ctx.temperature = temperature
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # no product in half precision
    def backward(ctx: Any, grad_s: Tensor, grad_t: Tensor) -> tuple[Tensor | None, ...]:
        source, target, similarity, rows, columns, out_s, out_t = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = lambda source, target: _both_ways(source, target, ctx.temperature)  # noqa: E731
            return *differentiate(formula, [source, target], [grad_s, grad_t]), None, None, None, None
        grad_s, grad_t = grad_s / rows, grad_t / columns
        # Of softmax A over g v: A (g v - Σ A g v), where the sum is g times the output; here for both ways at once.
        slope = torch.baddbmm((grad_s * out_s).sum(2, keepdim=True), grad_s, target.mT, beta=-1)
        slope = slope.baddbmm_(source, grad_t.mT).sub_((grad_t * out_t).sum(2).unsqueeze(1)).mul_(similarity)
        factor = -2 / (ctx.temperature * source.shape[2])
        slope.mul_((source.mean(2) * factor).unsqueeze(2) - (target.mean(2) * factor).unsqueeze(1))
        of_source = (similarity @ grad_t).add_(slope.sum(2, keepdim=True))
        of_target = (similarity.mT @ grad_s).sub_(slope.sum(1).unsqueeze(2))
        return of_source, of_target, None, None, None, None


class ReciprocalNorm(DomainNorm):
    r"""Mix each channel's statistic with the other domain's channels that resemble it.

    .. math:: \hat m_i = g_i\,m_i + (1 - g_i)\sum_j A_{ij}\,m'_j, \qquad
              A_{i\cdot} = \mathrm{softmax}_j\left(-(m_i - m'_j)^2 / T\right)

    for :math:`m` the means and, separately, the variances; :math:`m'` is the other domain's. The gates
    ``gate_mean_source``, ``gate_var_source``, ``gate_mean_target``, ``gate_var_target`` have shape ``(C,)``, lie in
    :math:`[½, 1]` and start at 1, which is :class:`DomainBatchNorm`.

    Parameters
    ----------
    num_features, eps, momentum, **options
        As :class:`DomainNorm`.
    temperature
        T. The paper has none (T = 1); the attention is then almost uniform in a wide layer.
    groups
        Number of blocks of consecutive channels that attend to each other; must divide C. None is as released: blocks
        of ``C // 512`` channels (of fewer, where that does not divide C), so single channels below 1,024.
    unbiased
        Normalise by the unbiased variances, as the released code does; with False, gates at 1 are exactly
        :class:`DomainBatchNorm`.

    Notes
    -----
    Distances are between block means, and each channel receives the values of its place in the other blocks. The
    running rows store the compensated statistics. The released code clips the gates in its training script, and without
    that a variance can turn negative; here the clip is inside (:func:`clip_gate`).

    References
    ----------
    Z. Huang, K. Sheng, K. Li, J. Liang, T. Yao, W. Dong, D. Zhou, X. Sun. Reciprocal Normalization for Domain
    Adaptation. 2021 (Pattern Recognition 2023).
    """

    two_domains = True
    gate_names = ("gate_mean_source", "gate_var_source", "gate_mean_target", "gate_var_target")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        temperature: float = 1.0,
        groups: int | None = None,
        unbiased: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, **options)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if groups is None:
            block = next(size for size in range(max(1, num_features // 512), 0, -1) if num_features % size == 0)
            groups = num_features // block
        if groups < 1 or num_features % groups:
            raise ValueError(f"groups must divide the {num_features} channels, got {groups}")
        self.temperature, self.groups, self.unbiased = temperature, groups, unbiased
        for name in self.gate_names:
            setattr(self, name, nn.Parameter(torch.ones_like(self.running_mean[0])))

    def mix(self, *moments: Moments) -> tuple[Moments, Moments]:
        """Return the compensated statistics."""
        source, target = moments
        var_s, var_t = (source.unbiased, target.unbiased) if self.unbiased else (source.var, target.var)
        own = torch.stack([source.mean, var_s, target.mean, var_t])  # (4, C), as the gates
        other = torch.stack([target.mean, var_t, source.mean, var_s])
        gate = wide(clip_gate(torch.stack([getattr(self, name) for name in self.gate_names])))
        blocks = (self.groups, -1)
        compensated = compensate(own.unflatten(1, blocks), other.unflatten(1, blocks), self.temperature).flatten(1)
        mean_s, var_s, mean_t, var_t = (gate * own + (1 - gate) * compensated).unbind()
        return Moments(mean_s, var_s, source.n), Moments(mean_t, var_t, target.n)

    def corrections(self, *moments: Moments) -> Sequence[float | Tensor]:
        """Return each domain's own correction, or none when the variances are unbiased already."""
        return (1.0, 1.0) if self.unbiased else super().corrections(*moments)

    def extra_repr(self) -> str:
        """Show the options."""
        options = f"temperature={self.temperature}, groups={self.groups}, unbiased={self.unbiased}"
        return f"{super().extra_repr()}, {options}"


class ReciprocalNorm1d(ReciprocalNorm):
    """:class:`ReciprocalNorm` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class ReciprocalNorm2d(ReciprocalNorm):
    """:class:`ReciprocalNorm` for ``(N, C, H, W)``."""

    dims = (4,)


class ReciprocalNorm3d(ReciprocalNorm):
    """:class:`ReciprocalNorm` for ``(N, C, D, H, W)``."""

    dims = (5,)
