"""Mean and variance of one domain, and how those of several processes become those of all their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Moments(NamedTuple):
    """Mean and variance of one domain, one number per channel.

    ``var`` divides by the number of values per channel, ``n``. Statistics that were stored, not measured, carry
    ``n = inf``: they are taken as they are.
    """

    mean: Tensor  # (C,); (n, C) where every image of the domain has its own
    var: Tensor  # as the mean; for whitening the covariance (G, g, g)
    n: float | Tensor

    @property
    def unbiased(self) -> Tensor:
        """The variance that divides by ``n - 1``."""
        return self.var if self.n is math.inf else self.var / (1 - 1 / self.n)


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes; so is the gradient, because every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def merge_ranks(moments: Sequence[Moments], spread: Callable[[Tensor], Tensor]) -> tuple[list[Moments], Tensor]:
    r"""Merge the moments of all processes (Chan et al. 1979), every row counted once.

    .. math:: \mu = \sum_r \frac{n_r}{n}\mu_r, \qquad v = \sum_r \frac{n_r}{n}\left(v_r + (\mu_r - \mu)^2\right)

    Parameters
    ----------
    moments
        Of each domain, here; a domain without rows here carries ``n = inf`` and its running row, and has no share.
    spread
        What a shift ``(C,)`` of the mean adds to the second moment: its square, or for whitening an outer product.

    Returns
    -------
    tuple
        The merged moments, and which domains have rows in any process, a bool ``(K,)``.
    """
    n = torch.tensor([0 if m.n == math.inf else m.n for m in moments]).to(moments[0].mean)
    total = _SumOverRanks.apply(n)
    present = total > 0
    shares = n / total.clamp(min=1)
    mean = _SumOverRanks.apply(torch.stack([m.mean * shares[d] for d, m in enumerate(moments)]))  # (K, C)
    var = _SumOverRanks.apply(
        torch.stack([(m.var + spread(m.mean - mean[d])) * shares[d] for d, m in enumerate(moments)])
    )
    merged = [
        Moments(
            torch.where(present[d], mean[d], m.mean),
            torch.where(present[d], var[d], m.var),
            torch.where(present[d], total[d], math.inf),
        )
        for d, m in enumerate(moments)
    ]
    return merged, present
