"""One network for several domains: small linear maps of their own between shared convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deeptransfer.normalization import DomainBatchNorm2d

MODES = ("parallel", "series")


class ResidualAdapter(nn.Module):
    r"""A shared convolution, and for each domain a 1 × 1 convolution and a BatchNorm of its own.

    .. math:: y = \mathrm{BN}_d\big(W * x + A_d\,x\big) \quad\text{(parallel)}

              y = \mathrm{BN}_d\big(z + A_d\,\mathrm{BN}'_d(z)\big),\; z = W * x \quad\text{(series)}

    :math:`A_d` starts at 0: in place of a trained convolution and its BatchNorm the network computes what it did, and
    A has a gradient nevertheless. For a new domain the convolution is frozen (``adapter.conv.requires_grad_(False)``);
    A costs a ninth of a 3 × 3 kernel.

    Parameters
    ----------
    conv
        The shared convolution W; it is kept, not copied. For "parallel" its output must be as large as a 1 × 1
        convolution's of the same stride: padding k // 2 for odd kernels k × k.
    domains
        K, or the names.
    mode
        ``"parallel"`` or ``"series"``.
    **options
        Of the BatchNorm layers, as :class:`~deeptransfer.normalization.DomainNorm` takes them.

    Shape
    -----
    ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``. The rows' domains are named as for every domain layer:
    ``forward_domains``, ``use_domain``.

    Raises
    ------
    ValueError
        When the mode is unknown, or the convolution does not fit.

    Notes
    -----
    After training a parallel adapter is one convolution: A adds to the middle of the kernel. The released code draws A
    at random, which changes a trained network at once.

    References
    ----------
    S.-A. Rebuffi, H. Bilen, A. Vedaldi. Learning Multiple Visual Domains with Residual Adapters. NeurIPS 2017.
    (Series.)
    S.-A. Rebuffi, H. Bilen, A. Vedaldi. Efficient Parametrization of Multi-domain Deep Neural Networks. CVPR 2018.
    (Parallel.)
    """

    def __init__(
        self, conv: nn.Conv2d, domains: int | Sequence[str] = 2, mode: str = "parallel", **options: Any
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        kernel, padding = conv.kernel_size, conv.padding
        fits = padding == "same" or (all(k % 2 for k in kernel) and padding == tuple(k // 2 for k in kernel))
        if mode == "parallel" and not (fits and conv.dilation == (1, 1)):
            raise ValueError(
                f"beside a {kernel[0]} × {kernel[1]} convolution with padding {padding} and dilation {conv.dilation} a "
                "1 × 1 convolution has an output of another size: use padding k // 2, or mode='series'"
            )
        out = conv.out_channels
        options = {"shared_affine": False, "device": conv.weight.device, "dtype": conv.weight.dtype, **options}
        self.conv, self.mode = conv, mode
        self.norm = DomainBatchNorm2d(out, domains=domains, **options)
        self.inner = DomainBatchNorm2d(out, domains=domains, **options) if mode == "series" else None
        width, stride = (conv.in_channels, conv.stride) if mode == "parallel" else (out, 1)
        adapters = (nn.Conv2d(width, out, 1, stride=stride, bias=False) for _ in self.norm.domains)  # type: ignore[arg-type]
        self.adapters = nn.ModuleList(adapters).to(conv.weight)
        for adapter in self.adapters:
            nn.init.zeros_(adapter.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, adapt each domain's rows, normalise."""
        z = self.conv(x)
        inner = x if self.inner is None else self.inner(z)
        parts = inner.split(self.norm._counts(x))
        adapted = [adapter(part) for adapter, part in zip(self.adapters, parts, strict=True) if len(part)]
        return self.norm(z + (torch.cat(adapted) if len(adapted) > 1 else adapted[0]))

    def extra_repr(self) -> str:
        """Show the mode."""
        return f"mode={self.mode!r}"


class CovNorm(nn.Module):
    r"""A trained linear adapter, reduced to the directions in which its input and output vary.

    .. math:: \hat y = C\,M\,W (x - \mu_x) + \mu_y, \qquad W = \Lambda_x^{-1/2} U_x^\top

              C = U_y \Lambda_y^{1/2}, \quad M = \Lambda_y^{-1/2} U_y^\top A\,U_x \Lambda_x^{1/2}

    with the leading eigenvectors :math:`U` and eigenvalues :math:`\Lambda` of the covariances of x and of y = A x on
    the target's data. W whitens, M mixes, C colours. Only M, ``mixing``, is a parameter: it is trained further. With
    all directions :math:`\hat y = y`.

    Parameters
    ----------
    matrix
        A, ``(d_out, d_in)``; or the weight of a 1 × 1 convolution, ``(d_out, d_in, 1, 1)``.
    x
        Inputs of the adapter, ``(n, d_in)`` or ``(n, d_in, ...)``, whose positions are samples, too.
    energy
        Share of the variance that is kept of x and of y, in (0, 1].
    rank
        Instead: how many directions are kept of each.

    Shape
    -----
    ``(N, d_in, ...)`` to ``(N, d_out, ...)``.

    Raises
    ------
    ValueError
        When the sizes do not fit, an option is out of range, or the data hold NaN, no variance, or a single sample.

    Notes
    -----
    Directions with less than a millionth of the largest eigenvalue are left out: W divides by its root. With k
    directions of both, d × d numbers become :math:`2kd + k^2`, which is fewer only for
    :math:`k < (\sqrt 2 - 1)\,d \approx 0.41\,d`. Eigenvectors are unique up to sign; :math:`\hat y` does not depend on
    that.

    References
    ----------
    Y. Li, N. Vasconcelos. Efficient Multi-Domain Learning by Covariance Normalization. CVPR 2019.
    """

    reduce: Tensor
    expand: Tensor
    mean_in: Tensor
    mean_out: Tensor

    def __init__(self, matrix: Tensor, x: Tensor, energy: float = 0.9, rank: int | None = None) -> None:
        super().__init__()
        a = matrix.detach().flatten(1).double()
        if x.dim() < 2 or a.shape[1] != x.shape[1] or matrix.dim() not in (2, 4):
            raise ValueError(
                f"needs A (d_out, d_in) and x (n, d_in, ...), got {tuple(matrix.shape)} and {tuple(x.shape)}"
            )
        if not 0 < energy <= 1 or (rank is not None and rank < 1):
            raise ValueError(f"energy must lie in (0, 1] and rank be 1 or more, got {energy} and {rank}")
        samples = x.detach().double().transpose(0, 1).flatten(1)  # (d_in, n)
        if samples.shape[1] < 2 or not samples.isfinite().all():
            raise ValueError(f"the covariance needs two or more finite samples, got {samples.shape[1]}")
        covariance = torch.cov(samples, correction=0).reshape(len(samples), -1)
        mean = samples.mean(1)
        root_x, u_x = _leading(covariance, energy, rank)
        root_y, u_y = _leading(a @ covariance @ a.T, energy, rank)
        for name, value in (
            ("reduce", (u_x / root_x).T),
            ("expand", u_y * root_y),
            ("mean_in", mean),
            ("mean_out", a @ mean),
        ):
            self.register_buffer(name, value.to(matrix.dtype))
        self.mixing = nn.Parameter(((u_y / root_y).T @ a @ (u_x * root_x)).to(matrix.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten, mix, colour."""
        centred = x.transpose(1, -1) - self.mean_in
        return (centred @ (self.expand @ self.mixing @ self.reduce).T + self.mean_out).transpose(1, -1)

    def extra_repr(self) -> str:
        """Show the sizes."""
        k_y, k_x = self.mixing.shape
        return f"{self.reduce.shape[1]} → {k_x} → {k_y} → {len(self.expand)}"


def _leading(covariance: Tensor, energy: float, rank: int | None) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues' roots ``(k,)`` and their eigenvectors ``(d, k)``."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    if values[0] <= 0:
        raise ValueError("the data have no variance: give samples that differ, and an adapter that is not 0")
    if rank is None:
        shares = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
        rank = int((shares < energy - 1e-12).sum()) + 1
    k = min(rank, int((values > 1e-6 * values[0]).sum()))
    return values[:k].sqrt(), vectors[:, :k]
