"""Robust batch normalisation (RoTTA): normalise by a slow average of the batches, in training too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .base import DomainNorm
from .membership import in_backward
from .moments import Moments


class RobustBatchNorm(DomainNorm):
    r"""Normalise every batch by an average that it enters with a small weight.

    .. math:: \bar\mu \leftarrow (1 - \alpha)\,\bar\mu + \alpha\,\mu_{batch}, \qquad
              \bar v \leftarrow (1 - \alpha)\,\bar v + \alpha\,v_{batch}

              y = \gamma\,\frac{x - \bar\mu}{\sqrt{\bar v + \epsilon}} + \beta

    in training, with the biased variance of the batch; the gradient passes through its share α. Evaluation uses the
    average as it stands. α = 1 is BatchNorm, α = 0 the statistics that the layer came with. The layer takes the place
    of a trained BatchNorm (:func:`convert_norm`), whose running statistics are the start of the average.

    Parameters
    ----------
    num_features, eps
        As :class:`DomainNorm`.
    momentum
        Kept for conversion; ``alpha`` takes its place.
    alpha
        α in [0, 1].
    domains, **options
        As :class:`DomainNorm`; one domain, the target, where the method knows none.

    Raises
    ------
    ValueError
        When ``alpha`` lies outside, or a gradient checkpoint repeats a batch: the average has moved since.

    References
    ----------
    L. Yuan, B. Xie, S. Li. Robust Test-Time Adaptation in Dynamic Scenarios. CVPR 2023.
    """

    mixes = False  # the average is the domain's own

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        alpha: float = 0.05,
        domains: int | Sequence[str] = ("target",),
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, 1.0, domains=domains, **options)  # the row becomes what mix returns
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        self.alpha = alpha

    def mix(self, *moments: Moments) -> Sequence[Moments]:
        """Return the moved averages of the domains that are present."""
        if in_backward():
            raise ValueError(
                "RobustBatchNorm moves its average with each batch, so no gradient checkpoint can repeat one: leave "
                "the layer outside"
            )
        moved = []
        for row, batch in enumerate(moments):
            old = self._frozen(row)
            moved.append(
                batch
                if batch.n is math.inf
                else Moments(old.mean.lerp(batch.mean, self.alpha), old.var.lerp(batch.var, self.alpha), batch.n)
            )
        return moved

    def corrections(self, *moments: Moments) -> Sequence[float]:
        """Return ones: what normalises is what is stored."""
        return [1.0] * len(moments)

    def extra_repr(self) -> str:
        """Show α."""
        return f"{super().extra_repr()}, alpha={self.alpha}"


class RobustBatchNorm1d(RobustBatchNorm):
    """:class:`RobustBatchNorm` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class RobustBatchNorm2d(RobustBatchNorm):
    """:class:`RobustBatchNorm` for ``(N, C, H, W)``."""

    dims = (4,)


class RobustBatchNorm3d(RobustBatchNorm):
    """:class:`RobustBatchNorm` for ``(N, C, D, H, W)``."""

    dims = (5,)
