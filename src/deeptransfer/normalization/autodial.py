"""AutoDIAL: let each layer learn how far the two domains share their statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .gates import clip_gate
from .moments import Moments
from .passes import wide


class AutoDIAL(DomainNorm):
    r"""Normalise each domain by a learned mixture of the two distributions.

    .. math:: \mu_{st} = \alpha\mu_s + (1-\alpha)\mu_t, \qquad
              v_{st} = \alpha\,E_s[(x-\mu_{st})^2] + (1-\alpha)\,E_t[(x-\mu_{st})^2]

    for source rows, and with the roles exchanged for target rows. The variance is the mixture's: it contains
    :math:`\alpha(1-\alpha)(\mu_s-\mu_t)^2`. One ``alpha`` in :math:`[½, 1]` per layer, shape ``()``: 1, the start,
    keeps the domains apart; ½ pools them. Other parameters: :class:`DomainNorm`.

    Notes
    -----
    The paper's code writes the clipped ``alpha`` back after each step; here the clip is inside the layer
    (:func:`clip_gate`). The running rows store the mixed statistics.

    References
    ----------
    F. M. Carlucci, L. Porzi, B. Caputo, E. Ricci, S. Rota Bulò. AutoDIAL: Automatic DomaIn Alignment Layers. ICCV 2017.
    """

    two_domains = True
    gate_names = ("alpha",)

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, **options: Any) -> None:
        super().__init__(num_features, eps, momentum, **options)
        self.alpha = nn.Parameter(torch.ones_like(self.weight.flatten()[0]))

    def mix(self, *moments: Moments) -> tuple[Moments, Moments]:
        """Return the moments of the two mixture distributions."""
        source, target = moments
        alpha = wide(clip_gate(self.alpha))

        def mixture(own: Moments, other: Moments) -> Moments:
            mean = alpha * own.mean + (1 - alpha) * other.mean
            var_own = own.var + (own.mean - mean).square()  # E_own[(x - mean)²]
            var_other = other.var + (other.mean - mean).square()
            return Moments(mean, alpha * var_own + (1 - alpha) * var_other, own.n)

        return mixture(source, target), mixture(target, source)

    def corrections(self, *moments: Moments) -> tuple[Tensor, Tensor]:
        """Return 1 / (1 − Σw²), the rows' weights w being α/n and (1 − α)/n."""
        source, target = moments
        alpha = wide(clip_gate(self.alpha))
        own, other = alpha**2, (1 - alpha) ** 2
        return 1 / (1 - own / source.n - other / target.n), 1 / (1 - own / target.n - other / source.n)


class AutoDIAL1d(AutoDIAL):
    """:class:`AutoDIAL` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class AutoDIAL2d(AutoDIAL):
    """:class:`AutoDIAL` for ``(N, C, H, W)``."""

    dims = (4,)


class AutoDIAL3d(AutoDIAL):
    """:class:`AutoDIAL` for ``(N, C, D, H, W)``."""

    dims = (5,)
