"""DSON: each domain learns how much of an image's own statistics its normalisation takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .images import ImageNorm, has_positions
from .moments import Moments
from .passes import wide


class DSON(ImageNorm):
    r"""Domain-specific optimised normalisation: a learned mixture of instance and batch statistics for each domain.

    .. math:: y = \gamma_d\,\frac{x - \mu_{id}}{\sqrt{v_{id} + \epsilon}} + \beta_d

              \mu_{id} = w^\mu_d m_i + (1 - w^\mu_d)\,\mu_d, \qquad v_{id} = w^v_d b_i + (1 - w^v_d)\,v_d

    with mean :math:`m_i` and biased variance :math:`b_i` of image i over its positions, and the statistics
    :math:`\mu_d, v_d` of the domain's rows in training, its running row in evaluation. :math:`w` = 0 is BatchNorm of
    each domain, :math:`w` = 1 InstanceNorm. Convolutions are shared; an image of no known domain is predicted by every
    domain, and the predictions are averaged (:func:`average_domains`).

    Parameters
    ----------
    num_features, eps, momentum
        As :class:`DomainNorm`.
    per_channel
        One w for each channel instead of one for the layer.
    tied
        One w for mean and variance: ``mix_var`` is ``mix_mean``.
    shared_affine
        False, other than elsewhere: each domain has its γ and β.
    **options
        As :class:`DomainNorm`.

    Notes
    -----
    ``mix_mean`` and ``mix_var`` are logits ``(domains, 2)``, or ``(domains, 2, C)``, in the order instance, batch;
    their softmax is (w, 1 − w), ½ each at the start. This is the version of one mixture for each layer, as in public
    code of the layer (we know of no official one); that code divides by another variance of the batch, which exceeds
    the biased one by the mean of :math:`b_i / (P - 1)` over P positions, starts its running variance at 0, and has no
    answer for one position. Here variances are biased, the rows start at (0, 1), and a vector, which has one position,
    is normalised by its domain alone.

    References
    ----------
    S. Seo, Y. Suh, D. Kim, G. Kim, J. Han, B. Han. Learning to Optimize Domain Specific Normalization for Domain
    Generalization. ECCV 2020.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        per_channel: bool = False,
        tied: bool = False,
        shared_affine: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, shared_affine=shared_affine, **options)
        self.per_channel, self.tied = per_channel, tied
        shape = (len(self.domains), 2, *([num_features] if per_channel else []))
        self.mix_mean = nn.Parameter(torch.ones(shape).to(self.weight))
        self.mix_var = self.mix_mean if tied else nn.Parameter(torch.ones(shape).to(self.weight))

    def shares(self) -> tuple[Tensor, Tensor]:
        """Return w of the mean and of the variance, the shares of the instance: ``(domains,)`` or ``(domains, C)``."""
        return wide(self.mix_mean).softmax(1)[:, 0], wide(self.mix_var).softmax(1)[:, 0]

    def blend(self, x: Tensor, row: int, moments: Moments) -> Moments:
        """Return the mixed moments of each image, ``(n, C)``."""
        if not has_positions(x):
            return moments
        mean, var = self.of_images(x, moments)
        of_mean, of_var = (share[row] for share in self.shares())
        return Moments(moments.mean.lerp(mean, of_mean), moments.var.lerp(var, of_var), moments.n)

    def fill_from(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Rewrite the state of a plain BatchNorm: the mixtures stay as they are."""
        super().fill_from(state, prefix)
        state |= {f"{prefix}{name}": getattr(self, name).detach().clone() for name in ("mix_mean", "mix_var")}

    def extra_repr(self) -> str:
        """Show the switches."""
        flags = [f", {name}=True" for name in ("per_channel", "tied") if getattr(self, name)]
        return super().extra_repr() + "".join(flags)


class DSON1d(DSON):
    """:class:`DSON` for ``(N, C)`` and ``(N, C, L)``."""

    dims = (2, 3)


class DSON2d(DSON):
    """:class:`DSON` for ``(N, C, H, W)``."""

    dims = (4,)


class DSON3d(DSON):
    """:class:`DSON` for ``(N, C, D, H, W)``."""

    dims = (5,)
