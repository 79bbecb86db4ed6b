"""Instance-aware normalisation (NOTE): let an image leave the batch's statistics where it clearly differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .images import ImageNorm, has_positions
from .moments import Moments


class InstanceAwareBatchNorm(ImageNorm):
    r"""BatchNorm, corrected for each image by what chance does not explain of its own mean and variance.

    .. math:: \hat\mu_i = \mu + \psi(m_i - \mu;\, k s_\mu), \qquad
              \hat v_i = \max\big(0,\; v + \psi(v_i - v;\, k s_v)\big)

              s_\mu = \sqrt{\frac{v + \epsilon}{P}}, \quad s_v = (v + \epsilon) \sqrt{\frac{2}{P - 1}}

    with the soft shrinkage :math:`\psi(z; \lambda) = \mathrm{sign}(z)\max(|z| - \lambda, 0)`, the mean :math:`m_i` and
    variance :math:`v_i` of image i over its P positions, and the statistics :math:`\mu, v` of the batch in training,
    the running ones in evaluation. All variances are unbiased. :math:`k \to \infty` is BatchNorm, k = 0 is
    InstanceNorm. A network is trained with the layer; at test time it needs no batch.

    Parameters
    ----------
    num_features, eps, momentum
        As :class:`DomainNorm`.
    k
        Standard errors of an image's mean and variance that are left to chance; at least 0.
    domains, **options
        As :class:`DomainNorm`; one domain, the target, where the method knows none.

    Notes
    -----
    A vector has one position: there the layer is BatchNorm.

    References
    ----------
    T. Gong, J. Jeong, T. Kim, Y. Kim, J. Shin, S.-J. Lee. NOTE: Robust Continual Test-time Adaptation Against Temporal
    Correlation. NeurIPS 2022.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        k: float = 4.0,
        domains: int | Sequence[str] = ("target",),
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, domains=domains, **options)
        if not k >= 0:
            raise ValueError(f"k counts standard errors, so it must be at least 0; got {k}")
        self.k = k

    def blend(self, x: Tensor, row: int, moments: Moments) -> Moments:
        """Return the corrected moments of each image, ``(n, C)``."""
        mean, var = moments.mean, moments.unbiased
        if not has_positions(x):
            return Moments(mean, var, moments.n)
        p = x[0, 0].numel()
        own_mean, own_var = self.of_images(x, moments)
        own_var = own_var / (1 - 1 / p)
        noise = var + self.eps
        mean = mean + _shrink(own_mean - mean, self.k * (noise / p).sqrt())
        var = F.relu(var + _shrink(own_var - var, self.k * noise * (2 / (p - 1)) ** 0.5))
        return Moments(mean, var, moments.n)

    def extra_repr(self) -> str:
        """Show k."""
        return f"{super().extra_repr()}, k={self.k}"


def _shrink(z: Tensor, most: Tensor) -> Tensor:
    return F.relu(z - most) - F.relu(-z - most)


class InstanceAwareBatchNorm1d(InstanceAwareBatchNorm):
    """:class:`InstanceAwareBatchNorm` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class InstanceAwareBatchNorm2d(InstanceAwareBatchNorm):
    """:class:`InstanceAwareBatchNorm` for ``(N, C, H, W)``."""

    dims = (4,)


class InstanceAwareBatchNorm3d(InstanceAwareBatchNorm):
    """:class:`InstanceAwareBatchNorm` for ``(N, C, D, H, W)``."""

    dims = (5,)
