"""TransNorm: emphasise the channels whose statistics agree between the domains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import SOURCE, TARGET, DomainNorm
from .moments import Moments

DISTANCES = ("standardized", "mean", "wasserstein")
PROBABILITIES = ("student_t", "gaussian", "softmax", "uniform")


class TransNorm(DomainNorm):
    r"""Normalise each domain apart, then weigh each channel by how transferable it is.

    .. math:: y_j = (1 + \alpha_j)\,z_j, \qquad \alpha_j = \frac{C\,p_j}{\sum_k p_k}, \qquad p_j = \frac{1}{1 + d_j},
              \qquad d_j = \left|\frac{\mu_{s,j}}{\sqrt{v_{s,j}+\epsilon}}
                         - \frac{\mu_{t,j}}{\sqrt{v_{t,j}+\epsilon}}\right|

    where :math:`z` is :class:`DomainBatchNorm`'s output. :math:`\alpha` carries no gradient and sums to C, so a
    pretrained network starts with activations that are doubled on average: its running statistics must settle again.

    Parameters
    ----------
    num_features, eps, momentum, **options
        As :class:`DomainNorm`.
    distance
        ``"standardized"`` as above; ``"mean"``: :math:`|\mu_s-\mu_t|`; ``"wasserstein"``:
        :math:`(\mu_s-\mu_t)^2 + (\sigma_s-\sigma_t)^2`.
    probability
        ``"student_t"`` as above; ``"gaussian"``: :math:`p = e^{-d^2/2}`; ``"softmax"``: :math:`p = e^{-d}`;
        ``"uniform"``: :math:`\alpha = 1`, exactly twice :class:`DomainBatchNorm`.
    halved
        Weigh by :math:`\tfrac12(1 + \alpha_j)`, which is 1 on average: the activations keep their size. Ours, not the
        paper's.

    Notes
    -----
    As in the released code, the variance inside :math:`d` is the unbiased one (the normaliser's is biased, as in
    BatchNorm), and in evaluation :math:`d` compares the two running rows. The released code has the defaults only; the
    other forms are the paper's ablation, written by us from its table.

    References
    ----------
    X. Wang, Y. Jin, M. Long, J. Wang, M. I. Jordan. Transferable Normalization: Towards Improving Transferability of
    Deep Neural Networks. NeurIPS 2019.
    """

    two_domains = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        distance: str = "standardized",
        probability: str = "student_t",
        halved: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, **options)
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        if probability not in PROBABILITIES:
            raise ValueError(f"probability must be one of {', '.join(PROBABILITIES)}, got {probability!r}")
        self.distance, self.probability, self.halved = distance, probability, halved

    @torch.no_grad()
    def gain(self, *moments: Moments) -> Tensor:
        """Return 1 + α, or half of it."""
        source, target = moments
        if self.probability == "uniform":
            return torch.full_like(source.mean, 1 if self.halved else 2)
        (m_s, v_s), (m_t, v_t) = (source.mean, source.unbiased), (target.mean, target.unbiased)
        if self.distance == "standardized":
            d = (m_s * (v_s + self.eps).rsqrt() - m_t * (v_t + self.eps).rsqrt()).abs()
        elif self.distance == "mean":
            d = (m_s - m_t).abs()
        else:
            d = (m_s - m_t).square() + (v_s.sqrt() - v_t.sqrt()).square()
        if self.probability == "student_t":
            p = (1 + d).reciprocal()
        else:  # softmax is e^{...} up to the scale that drops out, and cannot underflow to 0/0
            p = torch.softmax(-d if self.probability == "softmax" else -d.square() / 2, dim=0)
        gain = 1 + p / p.mean()
        return gain / 2 if self.halved else gain

    def rows_read(self, row: int) -> tuple[int, ...]:
        """Return both rows, because the gain compares them."""
        return (row,) if self.probability == "uniform" else (SOURCE, TARGET)

    def extra_repr(self) -> str:
        """Show the switches."""
        halved = ", halved=True" if self.halved else ""
        return f"{super().extra_repr()}, distance={self.distance!r}, probability={self.probability!r}{halved}"


class TransNorm1d(TransNorm):
    """:class:`TransNorm` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class TransNorm2d(TransNorm):
    """:class:`TransNorm` for ``(N, C, H, W)``."""

    dims = (4,)


class TransNorm3d(TransNorm):
    """:class:`TransNorm` for ``(N, C, D, H, W)``."""

    dims = (5,)
