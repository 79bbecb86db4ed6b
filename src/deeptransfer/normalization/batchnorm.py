"""Domain-specific batch normalisation: separate statistics, shared or separate scale and shift."""

from __future__ import annotations

from .base import DomainNorm


class DomainBatchNorm(DomainNorm):
    r"""One BatchNorm per domain.

    .. math:: y = \gamma\,\frac{x - \mu_d}{\sqrt{v_d + \epsilon}} + \beta, \qquad d \in \{1, \dots, K\}

    With ``shared_affine=True`` only the statistics are separate, which is what AdaBN evaluates, trained jointly; with
    ``shared_affine=False`` each domain has its own :math:`\gamma_d, \beta_d` (DSBN). Parameters: :class:`DomainNorm`.

    References
    ----------
    W.-G. Chang, T. You, S. Seo, S. Kwak, B. Han. Domain-Specific Batch Normalization for Unsupervised Domain
    Adaptation. CVPR 2019.
    """


class DomainBatchNorm1d(DomainBatchNorm):
    """:class:`DomainBatchNorm` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class DomainBatchNorm2d(DomainBatchNorm):
    """:class:`DomainBatchNorm` for ``(N, C, H, W)``."""

    dims = (4,)


class DomainBatchNorm3d(DomainBatchNorm):
    """:class:`DomainBatchNorm` for ``(N, C, D, H, W)``."""

    dims = (5,)
