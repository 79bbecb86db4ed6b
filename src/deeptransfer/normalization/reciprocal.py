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


def _attend(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Softmax over j of −(own_i − other_j)² / T: (R, B) and (R, B) to (R, B, B)."""
    difference = own.unsqueeze(2) - other.unsqueeze(1)
    return torch.softmax(-difference.square() / temperature, dim=2)


class _Attend(torch.autograd.Function):
    """The same in few passes over the B² numbers, which cost a wide layer more than its batch."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, temperature: float) -> Tensor:
        distance = (own.unsqueeze(2) - other.unsqueeze(1)).square_()
        attention = torch.softmax(distance.div_(-temperature), dim=2)
        ctx.save_for_backward(own, other, attention)
        ctx.temperature = temperature
        return attention

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        own, other, attention = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = lambda own, other: _attend(own, other, ctx.temperature)  # noqa: E731
            grads = differentiate(formula, [own, other], [grad])
            return *grads, None
        slope = torch._softmax_backward_data(grad, attention, 2, attention.dtype).div_(-ctx.temperature)
        # In place of the gradient, which the product with the values made for us alone.
        slope.mul_(torch.sub(own.unsqueeze(2), other.unsqueeze(1), out=grad))
        return 2 * slope.sum(2), -2 * slope.sum(1), None


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
        mean_s, var_s, mean_t, var_t = (gate * own + (1 - gate) * self._compensate(own, other)).unbind()
        return Moments(mean_s, var_s, source.n), Moments(mean_t, var_t, target.n)

    def _compensate(self, own: Tensor, other: Tensor) -> Tensor:
        own, other = own.unflatten(1, (self.groups, -1)), other.unflatten(1, (self.groups, -1))  # (4, B, C / B)
        attend = _Attend.apply if by_hand(own) else _attend
        return (attend(own.mean(2), other.mean(2), self.temperature) @ other).flatten(1)

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
