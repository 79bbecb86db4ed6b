"""Powers of symmetric matrices, with a gradient that stays finite where eigenvalues repeat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deeptransfer.normalization.passes import wide


def matrix_power_psd(a: Tensor, power: float, cut: float = 1e-6) -> Tensor:
    r"""Power of a symmetric positive semi-definite matrix, on the directions that it has.

    .. math:: A^p = \sum_{i\,:\,\lambda_i > c\,\lambda_{\max}} \lambda_i^p\, e_i e_i^\top, \qquad
              A = \sum_i \lambda_i\, e_i e_i^\top

    Directions below the cut have no part in the result, for a negative power too: this is the power of the
    pseudo-inverse. The eigenvalues are found in float64.

    The gradient is that of Daleckiĭ and Kreĭn, for an incoming gradient G and its symmetric part,

    .. math:: \bar A = E\left[K \circ \left(E^\top \tfrac12 (G + G^\top)\, E\right)\right]E^\top, \qquad
              K_{ij} = \frac{f(\lambda_i) - f(\lambda_j)}{\lambda_i - \lambda_j}, \quad K_{ii} = f'(\lambda_i)

    with :math:`f(\lambda) = \lambda^p` above the cut and 0 below. It depends on E only through the eigenspaces, so
    repeated eigenvalues do no harm, where autograd through ``torch.linalg.eigh`` divides by their difference. Which
    directions are cut is constant in it.

    Parameters
    ----------
    a
        ``(..., C, C)``. Only its symmetric part counts. Negative eigenvalues are rounding and are cut.
    power
        p, such as ½ or −½.
    cut
        c ≥ 0, as a share of the largest eigenvalue of each matrix: below it is rounding, or what the data do not have.

    Returns
    -------
    Tensor
        ``(..., C, C)``, symmetric; float32, or float64 if ``a`` is. A matrix of zeros gives zeros.

    Raises
    ------
    ValueError
        For a matrix that is not square, or holds NaN or infinity, which have no eigenvalues; for a negative cut.

    Notes
    -----
    Differentiable once: a second derivative raises.

    References
    ----------
    J. L. Daleckiĭ, S. G. Kreĭn. Integration and differentiation of functions of Hermitian operators and applications to
    the theory of perturbations. 1956; translated in AMS Translations 47, 1965.
    """
    if a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"expected square matrices (..., C, C), got shape {tuple(a.shape)}")
    if not cut >= 0:
        raise ValueError(f"cut must be 0 or more, got {cut}")
    return _PowerPSD.apply(wide(a), power, cut)


class _PowerPSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, power: float, cut: float) -> Tensor:
        a64 = a.double()
        if not a64.isfinite().all():
            raise ValueError(
                "a matrix holds NaN or infinity and has no eigenvalues: look at the features it comes from"
            )
        values, vectors = torch.linalg.eigh((a64 + a64.mT) / 2)
        kept = values > cut * values[..., -1:].clamp(min=0)
        values = torch.where(kept, values, 1)  # a stand-in whose power is finite
        ctx.save_for_backward(values, vectors, kept)
        ctx.power, ctx.dtype = power, a.dtype
        f = torch.where(kept, values**power, 0)
        return ((vectors * f.unsqueeze(-2)) @ vectors.mT).to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        values, vectors, kept = ctx.saved_tensors
        grad = grad.double()
        k = _divided_differences(values, kept, ctx.power)
        inner = k * (vectors.mT @ ((grad + grad.mT) / 2) @ vectors)
        return (vectors @ inner @ vectors.mT).to(ctx.dtype), None, None


def _divided_differences(values: Tensor, kept: Tensor, p: float) -> Tensor:
    r"""K, where both eigenvalues are kept by ``m^{p-1} sinh(p r) / sinh(r)``: without a difference that cancels.

    m² = λ_i λ_j and 2r = log(λ_i / λ_j). An eigenvalue that was cut has f = 0, and is itself as good as 0.
    """
    logs = values.log()
    r = (logs.unsqueeze(-1) - logs.unsqueeze(-2)) / 2
    m = ((logs.unsqueeze(-1) + logs.unsqueeze(-2)) / 2).exp()
    near = r.abs() < 1e-8  # there the quotient is p to the last digit
    r = torch.where(near, 1, r)
    both = m ** (p - 1) * torch.where(near, p, torch.sinh(p * r) / torch.sinh(r))
    rows, columns = kept.unsqueeze(-1), kept.unsqueeze(-2)
    one = values ** (p - 1)  # (λ^p − 0) / (λ − 0)
    mixed = torch.where(rows, one.unsqueeze(-1), one.unsqueeze(-2))
    return torch.where(rows & columns, both, torch.where(rows | columns, mixed, 0))
