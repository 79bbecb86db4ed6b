r"""How far apart two samples are: kernels, the maximum mean discrepancy (MMD) and its relatives.

Everything here is a function of two samples of rows, ``x`` of shape ``(n, d)`` and ``y`` of shape ``(m, d)``; the sizes
may differ. The kernels are Gaussian, :math:`k(a, b) = e^{-\lVert a - b\rVert^2 / (2\sigma^2)}`, and take
:math:`\sigma^2`, not :math:`\sigma`. A mixture of kernels has weights :math:`\beta \ge 0` that sum to 1 (released code
of DAN and JAN *sums* five kernels: a trade-off λ of theirs is ours divided by five).

Distances and kernels are computed in float32 or better, also under autocast, from one Gram matrix: no ``(n, m, d)``
tensor is ever built. Results are float32, or float64 if an input is; a gradient has its input's dtype. Rows are first
brought to a unit, a power of two, in which no distance leaves the format, so very small and very large features lose
nothing.

What can be checked without a look at values raises ValueError. Values may live on a GPU, and a look would wait for it:
NaN and infinity in a sample come out as NaN, and so does a tensor of bandwidths or weights that does not fit.
Functions that end in Python numbers or NumPy (:func:`mmd_test`, :func:`optimal_kernel_weights`) raise instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

__all__ = [
    "MULTIPLIERS",
    "GaussianKernels",
    "JointMMD",
    "MMDTest",
    "MultiKernelMMD",
    "gaussian_kernel",
    "linear_mmd2",
    "linear_time_mmd2",
    "mean_squared_distance",
    "median_squared_distance",
    "mmd2",
    "mmd_test",
    "optimal_kernel_weights",
    "squared_distances",
    "witness",
]

#: The default family of bandwidths, as multiples of the mean squared distance.
MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)

Estimator = Literal["biased", "unbiased"]
Bandwidths = float | Tensor | Sequence[float | Tensor]


# ------------------------------------------------------------------------------------------------------- distances


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Squared Euclidean distances between the rows of two samples, by one Gram matrix.

    .. math:: d^2_{ij} = \lVert x_i\rVert^2 + \lVert y_j\rVert^2 - 2\,x_i^\top y_j

    Both samples are first shifted by their common mean, which changes no distance and saves digits; what rounding
    pushes below zero is set to zero.

    Parameters
    ----------
    x
        Rows, shape ``(n, d)``.
    y
        Rows, shape ``(m, d)``. None: the distances within ``x``, whose diagonal is then exactly zero.

    Returns
    -------
    Tensor
        Shape ``(n, m)``; float32, or float64 if an input is.

    Raises
    ------
    ValueError
        If a sample is empty, not two-dimensional or not floating, or widths or devices differ.
    """
    if y is None:
        _check_samples(1, x=x)
        z, unit = _prepared(x)
        return _within(z) * unit * unit
    _check_samples(1, x=x, y=y)
    d2, unit = _between(x, y)
    return d2 * unit * unit


def mean_squared_distance(*samples: Tensor) -> Tensor:
    r"""Mean squared distance between two different rows of the pooled samples: the scale of a bandwidth.

    .. math:: \frac{1}{N(N-1)}\sum_{i \ne j}\lVert z_i - z_j\rVert^2 = 2\sum_k \operatorname{var}(z_{\cdot k})

    The right-hand side needs no distance matrix. Without any spread the result is 1, so that the kernels of equal rows
    are 1 and their discrepancy is 0 instead of 0/0. A spread beyond the format is 0 or infinite.

    Parameters
    ----------
    *samples
        Rows of equal width, shapes ``(n, d)``, ``(m, d)``, …; two rows or more in all.

    Returns
    -------
    Tensor
        Shape ``()``, detached.
    """
    z, unit = _prepared(*_pairable(samples))
    spread = _spread(z)
    return torch.where(spread == 0, torch.ones_like(spread), spread * unit * unit)


def median_squared_distance(*samples: Tensor) -> Tensor:
    r"""Median squared distance between two different rows of the pooled samples: the median heuristic.

    Half of it is the usual :math:`\sigma^2`. Unlike the mean it ignores a few far outliers, and it needs the distance
    matrix of all rows. Of an even number of distances it is the lower one of the two in the middle.

    Parameters
    ----------
    *samples
        Rows of equal width, shapes ``(n, d)``, ``(m, d)``, …; two rows or more in all.

    Returns
    -------
    Tensor
        Shape ``()``, detached; 1 where the median is 0 (half of the pairs coincide).

    References
    ----------
    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, section 8.
    """
    z, unit = _prepared(*(sample.detach() for sample in _pairable(samples)))
    rows, columns = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    median = _within(z)[rows, columns].median()
    return torch.where(median == 0, torch.ones_like(median), median * unit * unit)


# --------------------------------------------------------------------------------------------------------- kernels


def gaussian_kernel(x: Tensor, y: Tensor, sigma2: float | Tensor) -> Tensor:
    r"""Gaussian kernel between every row of ``x`` and every row of ``y``.

    .. math:: k(x_i, y_j) = \exp\left(-\frac{\lVert x_i - y_j\rVert^2}{2\sigma^2}\right)

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``.
    sigma2
        The bandwidth σ², positive and finite. A number that is not raises; a tensor that is not, and may live on a GPU,
        gives NaN.

    Returns
    -------
    Tensor
        Shape ``(n, m)``, entries in [0, 1].
    """
    (bandwidth,) = _as_bandwidths(sigma2)
    _check_samples(1, x=x, y=y)
    d2, unit = _between(x, y)
    return torch.exp(d2 * _exponent(bandwidth, unit))


class GaussianKernels(nn.Module):
    r"""A convex combination of Gaussian kernels on the rows of a joint batch.

    .. math:: k = \sum_u \beta_u \exp\left(-\frac{\lVert z_i - z_j\rVert^2}{2\sigma_u^2}\right), \qquad
              2\sigma_u^2 = m_u \cdot \frac{1}{N(N-1)}\sum_{i \ne j}\lVert z_i - z_j\rVert^2

    Parameters
    ----------
    multipliers
        The :math:`m_u`. The mean squared distance they multiply is that of the batch at hand, without gradient.
    weights
        The β, one per kernel, not negative, with sum 1. None: uniform.
    sigma2
        Fixed bandwidths :math:`\sigma_u^2`, in place of the multipliers.

    References
    ----------
    Long et al., *Learning Transferable Features with Deep Adaptation Networks*, ICML 2015.
    """

    weights: Tensor

    def __init__(
        self,
        multipliers: Sequence[float] = MULTIPLIERS,
        weights: Sequence[float] | Tensor | None = None,
        sigma2: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.multipliers = tuple(_as_bandwidths(multipliers, "multipliers"))
        self.sigma2 = None if sigma2 is None else tuple(_as_bandwidths(sigma2))
        count = len(self.multipliers if self.sigma2 is None else self.sigma2)
        beta = _as_weights(weights, count)
        if isinstance(weights, Tensor) and not beta.isfinite().all():
            raise ValueError(f"weights must not be negative and sum to 1, got {weights.tolist()}")
        self.register_buffer("weights", beta.float())

    def forward(self, z: Tensor) -> Tensor:
        """Kernel matrix ``(N, N)`` of the rows of ``z``, shape ``(N, d)``; two rows or more unless σ² is fixed."""
        _check_samples(2 if self.sigma2 is None else 1, z=z)
        z, unit = _prepared(z)
        # Normalised once more, because a buffer may have been cast: kernels of equal rows are 1 in any format.
        weights = self.weights.to(z.dtype)
        return _mixture(z, self._exponents(z, unit), weights / weights.sum())

    def _exponents(self, z: Tensor, unit: Tensor) -> list[Tensor]:
        if self.sigma2 is not None:
            return [_exponent(sigma2, unit) for sigma2 in self.sigma2]
        half_spread = _half_spread(z)
        return [-0.5 / (multiplier * half_spread) for multiplier in self.multipliers]

    def extra_repr(self) -> str:
        family = f"multipliers={self.multipliers}" if self.sigma2 is None else f"sigma2={self.sigma2}"
        return f"{family}, weights={[round(w, 4) for w in self.weights.tolist()]}"


# ------------------------------------------------------------------------------------------------------------- MMD


def mmd2(
    x: Tensor,
    y: Tensor,
    sigma2: Bandwidths | None = None,
    weights: Sequence[float] | Tensor | None = None,
    estimator: Estimator = "biased",
) -> Tensor:
    r"""Squared maximum mean discrepancy of two samples under Gaussian kernels.

    .. math:: \mathrm{MMD}^2(P, Q) = \mathbb{E}\,k(x, x') + \mathbb{E}\,k(y, y') - 2\,\mathbb{E}\,k(x, y)

    *Biased* (V-statistic): the means run over all pairs, a row with itself included. Never negative, and 0 on identical
    samples, but for rounding. *Unbiased* (U-statistic): a row is never paired with itself in the first two means. Its
    expectation is the true value, so where P = Q it scatters around 0 and many of its values are negative.

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``.
    sigma2
        σ², or a sequence of them for several kernels. None: half the mean squared distance of the pooled rows,
        detached.
    weights
        The β of several kernels, not negative, with sum 1. None: uniform.
    estimator
        ``"biased"`` or ``"unbiased"``; the latter needs two rows in each sample.

    Returns
    -------
    Tensor
        Shape ``()``.

    Raises
    ------
    ValueError
        For samples without enough rows, of different widths or devices, or not floating; for σ² ≤ 0; for weights that
        do not fit.

    References
    ----------
    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012.
    """
    _check_samples(_least_rows(estimator), x=x, y=y)
    z, unit = _prepared(x, y)
    exponents = _exponents(z, unit, sigma2)
    return _mmd2(_mixture(z, exponents, _as_weights(weights, len(exponents)).to(z)), len(x), estimator)


class MultiKernelMMD(nn.Module):
    r"""Squared MMD under a family of Gaussian kernels that follows the spread of the batch (DAN's loss of one layer).

    .. math:: k = \sum_u \beta_u k_u, \qquad 2\sigma_u^2 = m_u \cdot \text{mean}_{i \ne j}\lVert z_i - z_j\rVert^2

    with z the rows of both domains and the mean held fixed in the gradient. DAN adds this over several layers.
    The released code sums the five kernels instead: its λ is ours divided by five.

    Parameters
    ----------
    multipliers
        The :math:`m_u`.
    weights
        The β, not negative, with sum 1 (see :func:`optimal_kernel_weights`). None: uniform. Kept in ``state_dict``.
    estimator
        ``"biased"`` or ``"unbiased"``, see :func:`mmd2`.
    sigma2
        Fixed bandwidths :math:`\sigma_u^2`, in place of the multipliers.

    References
    ----------
    Long et al., *Learning Transferable Features with Deep Adaptation Networks*, ICML 2015.
    """

    def __init__(
        self,
        multipliers: Sequence[float] = MULTIPLIERS,
        weights: Sequence[float] | Tensor | None = None,
        estimator: Estimator = "biased",
        sigma2: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _least_rows(estimator)
        self.kernels = GaussianKernels(multipliers, weights, sigma2)
        self.estimator: Estimator = estimator

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared discrepancy, shape ``()``, of ``x`` ``(n, d)`` and ``y`` ``(m, d)``."""
        _check_samples(_least_rows(self.estimator), x=x, y=y)
        return _mmd2(self.kernels(_full_precision(x, y)), len(x), self.estimator)

    def extra_repr(self) -> str:
        return f"estimator={self.estimator!r}"


class JointMMD(nn.Module):
    r"""Joint maximum mean discrepancy: MMD under the product over layers of each layer's kernel (JAN).

    .. math:: k\big((z^1, …, z^L), (z'^1, …, z'^L)\big) = \prod_\ell k^\ell(z^\ell, z'^\ell)

    Both domains enter with their *predicted* softmax, never with labels, and the softmax is not detached. With one
    layer it is :class:`MultiKernelMMD`; a layer that is constant drops out.

    Parameters
    ----------
    kernels
        One :class:`GaussianKernels` per layer. None: JAN's two layers, five Gaussians on the features and one fixed
        Gaussian with :math:`2\sigma^2 = 1.69` on the softmax.
    estimator
        ``"biased"`` or ``"unbiased"``, see :func:`mmd2`.

    References
    ----------
    Long et al., *Deep Transfer Learning with Joint Adaptation Networks*, ICML 2017.
    """

    def __init__(self, kernels: Sequence[GaussianKernels] | None = None, estimator: Estimator = "biased") -> None:
        super().__init__()
        _least_rows(estimator)
        if kernels is None:
            kernels = (GaussianKernels(), GaussianKernels(sigma2=1.69 / 2))
        if not kernels:
            raise ValueError("JointMMD needs the kernels of one layer or more, got none")
        self.kernels = nn.ModuleList(kernels)
        self.estimator: Estimator = estimator

    def forward(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        """Squared joint discrepancy, shape ``()``.

        Parameters
        ----------
        xs, ys
            The layers of either domain in the same order, shapes ``(n, d_l)`` and ``(m, d_l)``.

        Raises
        ------
        ValueError
            If the number of layers, their widths or, within a domain, their numbers of rows do not agree.
        """
        if not len(xs) == len(ys) == len(self.kernels):
            raise ValueError(
                f"got {len(xs)} layers of x and {len(ys)} of y for {len(self.kernels)} kernels: the three must agree"
            )
        for layer, (x, y) in enumerate(zip(xs, ys, strict=True)):
            _check_samples(_least_rows(self.estimator), **{f"x of layer {layer}": x, f"y of layer {layer}": y})
        for name, layers in (("x", xs), ("y", ys)):
            if len({len(layer) for layer in layers}) > 1:
                raise ValueError(f"the layers of {name} must have equal rows, got {[len(layer) for layer in layers]}")
        joint = None
        for kernel, x, y in zip(self.kernels, xs, ys, strict=True):
            k = kernel(_full_precision(x, y))
            joint = k if joint is None else joint * k  # (n + m, n + m)
        assert joint is not None
        return _mmd2(joint, len(xs[0]), self.estimator)

    def extra_repr(self) -> str:
        return f"estimator={self.estimator!r}"


def linear_mmd2(x: Tensor, y: Tensor, normalization: Literal["none", "width", "spread"] = "none") -> Tensor:
    r"""Squared distance between the means of two samples: MMD² (biased) with the linear kernel, as DDC uses it.

    .. math:: \Big\lVert \frac1n\sum_i x_i - \frac1m\sum_j y_j \Big\rVert^2 / c

    It sees nothing but the means, and it grows with the scale of the features and the number of them: to compare layers
    or widths, say by what it is divided.

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``.
    normalization
        ``"none"``: c = 1; ``"width"``: c = d; ``"spread"``: c is the mean squared distance of the pooled rows,
        detached, which makes the value free of scale and width.

    Returns
    -------
    Tensor
        Shape ``()``.

    References
    ----------
    Tzeng et al., *Deep Domain Confusion: Maximizing for Domain Invariance*, arXiv 2014.
    """
    _check_samples(1, x=x, y=y)
    z = _centred(_full_precision(x, y))
    distance = (z[: len(x)].mean(0) - z[len(x) :].mean(0)).square().sum()
    if normalization == "none":
        return distance
    if normalization == "width":
        return distance / z.shape[1]
    if normalization == "spread":
        z = z / _unit(z)
        distance = (z[: len(x)].mean(0) - z[len(x) :].mean(0)).square().sum()
        return distance / (2 * _half_spread(_centred(z)))
    raise ValueError(f"normalization must be 'none', 'width' or 'spread', got {normalization!r}")


def linear_time_mmd2(
    x: Tensor,
    y: Tensor,
    sigma2: Bandwidths | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    r"""Unbiased squared MMD from disjoint quadruples, in time and memory linear in the number of rows.

    .. math:: \frac{2}{n}\sum_{i=1}^{n/2} h(x_{2i-1}, x_{2i}, y_{2i-1}, y_{2i}), \quad
              h(x, x', y, y') = k(x, x') + k(y, y') - k(x, y') - k(x', y)

    Rows are paired in the order given, so shuffle sorted data first. Rows beyond :math:`2\lfloor\min(n, m)/2\rfloor` of
    either sample are left out. Averaged over permutations of the rows it is the unbiased :func:`mmd2`; a single value
    scatters more, which is the price.

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``, two or more each.
    sigma2
        σ², or a sequence of them. None: half the mean squared distance of the pooled rows, detached (which costs
        linear time as well).
    weights
        The β of several kernels, not negative, with sum 1. None: uniform.

    Returns
    -------
    Tensor
        Shape ``()``.

    References
    ----------
    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, section 6; Long et al., ICML 2015, equation 6.
    """
    _check_samples(2, x=x, y=y)
    means = _quadruples(x, y, sigma2).mean(0)  # (kernels,)
    with _autocast_off(means):
        return means @ _as_weights(weights, len(means)).to(means)


def optimal_kernel_weights(x: Tensor, y: Tensor, sigma2: Sequence[float | Tensor], ridge: float = 1e-4) -> Tensor:
    r"""Kernel weights β that maximise the power of the linear-time test (DAN, section 3).

    .. math:: \min_\beta\ \beta^\top (Q + \xi I)\,\beta \quad\text{subject to}\quad d^\top\beta = 1,\ \beta \ge 0

    with :math:`d_u` the linear-time MMD² under kernel u and Q the covariance of its terms h. The solution is
    scaled to sum 1. If no kernel sees a positive discrepancy the problem has no solution, and the kernel with the
    largest :math:`d_u / \sqrt{Q_{uu}}` gets all the weight.

    Learn β on one half of the data and test on the other: on the same rows the p-values are invalid.

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``, four or more each.
    sigma2
        The bandwidths :math:`\sigma_u^2`.
    ridge
        The ξ.

    Returns
    -------
    Tensor
        Shape ``(len(sigma2),)``, float64 on the CPU, not negative, with sum 1.

    References
    ----------
    Gretton et al., *Optimal Kernel Choice for Large-Scale Two-Sample Tests*, NeurIPS 2012.
    """
    _check_samples(4, x=x, y=y)
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge must be positive, got {ridge}")
    with torch.no_grad():
        h = _quadruples(x, y, sigma2).double().cpu().numpy()  # (quadruples, kernels)
    if not np.isfinite(h).all():
        raise ValueError("x, y or sigma2 hold values that are not finite: clean them before learning kernel weights")
    d = h.mean(0)
    Q = np.atleast_2d(np.cov(h, rowvar=False)) + ridge * np.eye(len(d))
    if (d <= 0).all():
        beta = np.zeros_like(d)
        beta[np.argmax(d / np.sqrt(np.diag(Q)))] = 1.0
    else:
        # βᵀ(Q+ξI)β − 2dᵀβ = ‖Lᵀβ − L⁻¹d‖² + constant; its minimiser over β ≥ 0 is the solution up to scale.
        # nnls takes what is small beside Q for zero: the largest d goes in near 1, by a power of two.
        L = np.linalg.cholesky(Q)
        beta, _ = nnls(L.T, np.linalg.solve(L, np.ldexp(d, -np.frexp(d.max())[1])))
        beta /= beta.sum()
    return torch.from_numpy(beta)


# ------------------------------------------------------------------------------------------------------ inspection


@dataclass(frozen=True)
class MMDTest:
    """Result of a two-sample test: the ``statistic`` (squared MMD), its ``p_value`` and the ``null`` sample."""

    statistic: float
    p_value: float
    null: Tensor


def mmd_test(
    x: Tensor,
    y: Tensor,
    sigma2: Bandwidths | None = None,
    weights: Sequence[float] | Tensor | None = None,
    estimator: Estimator = "biased",
    permutations: int = 1000,
    seed: int = 0,
) -> MMDTest:
    r"""Permutation test of whether two samples come from one distribution.

    .. math:: p = \frac{1 + \#\{b : T_b \ge T\}}{1 + B}

    with T the squared MMD and :math:`T_b` its value after the rows of both samples have been dealt out anew. The kernel
    matrix is computed once and its index is permuted. The bandwidth must not know which row is whose: the default is
    pooled, and a σ² or weights of your own must come from other data.

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``.
    sigma2, weights, estimator
        As in :func:`mmd2`.
    permutations
        B.
    seed
        Of the permutations, which are drawn on the CPU: the same on every device.

    Returns
    -------
    MMDTest
        ``statistic``, ``p_value`` and the ``null`` sample, float64 of shape ``(B,)``.

    Raises
    ------
    ValueError
        As :func:`mmd2`, and for NaN or infinity in a sample, in σ² or in the weights: a test of them would look like a
        result.

    References
    ----------
    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, section 5.
    """
    _check_samples(_least_rows(estimator), x=x, y=y)
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more, got {permutations}")
    n, m = len(x), len(y)
    z = torch.cat((x, y)).detach().double()
    if not z.isfinite().all():
        raise ValueError("x or y holds NaN or infinity: remove those rows before testing")
    z, unit = _prepared(z)
    exponents = _exponents(z, unit, sigma2)
    # k − 1 in place of k: a constant cancels in every T, and a wide kernel has its digits in the difference.
    k = _mixture(z, exponents, _as_weights(weights, len(exponents)).to(z), torch.expm1)
    if not k.isfinite().all():
        raise ValueError("sigma2 must be positive and finite, and weights not negative with sum 1")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(permutations, n + m, generator=generator).argsort(1).to(z.device)
    order = torch.cat((torch.arange(n + m, device=z.device)[None], order))  # row 0: the observed assignment
    in_x = torch.zeros(permutations + 1, n + m, dtype=z.dtype, device=z.device).scatter_(1, order[:, :n], 1.0)
    xx = (in_x @ k * in_x).sum(1)  # (B + 1,) sums over the pairs within the first sample
    xy = in_x @ k.sum(1) - xx
    yy = k.sum() - xx - 2 * xy
    of_x, of_y = (n**2, m**2) if estimator == "biased" else (n * (n - 1), m * (m - 1))  # k − 1 is 0 on the diagonal
    values = xx / of_x + yy / of_y - 2 * xy / (n * m)
    statistic, null = values[0].item(), values[1:]
    # In small samples a permutation often is the observed split again: a tie that rounding must not break. Rounding
    # grows with the sums of entries that a value is made of, whatever the scale of the kernel.
    rounding = (n + m) * torch.finfo(k.dtype).eps * k.abs().sum().item() / min(of_x, of_y)
    p_value = (1 + int((null >= statistic - rounding).sum())) / (1 + permutations)
    return MMDTest(statistic, p_value, null.cpu())


def witness(points: Tensor, x: Tensor, y: Tensor, sigma2: Bandwidths) -> Tensor:
    r"""Witness function: where the kernel sees more of ``x`` than of ``y``.

    .. math:: f(p) = \frac1n\sum_i k(p, x_i) - \frac1m\sum_j k(p, y_j)

    Its mean over the rows of ``x`` minus its mean over those of ``y`` is the biased :func:`mmd2`.

    Parameters
    ----------
    points
        Where to evaluate it, shape ``(q, d)``.
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``.
    sigma2
        σ², or a sequence of them, averaged.

    Returns
    -------
    Tensor
        Shape ``(q,)``.
    """
    _check_samples(1, points=points, x=x, y=y)
    d2, unit = _between(points, torch.cat((x, y)))
    to_x, to_y = d2.split((len(x), len(y)), dim=1)
    values = [
        torch.exp(to_x * c).mean(1) - torch.exp(to_y * c).mean(1)
        for c in (_exponent(s, unit) for s in _as_bandwidths(sigma2))
    ]
    return torch.stack(values).mean(0)


# --------------------------------------------------------------------------------------------------------- private


class _SquaredDistances(torch.autograd.Function):
    """Squared distances within ``z`` ``(N, d)``, with one matrix product backward where autograd's own takes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        gram = z @ z.T
        norms = gram.diagonal()  # not z.square().sum(1): so d²_ii is exactly 0
        return torch.sub(norms[:, None] + norms, gram, alpha=2).clamp_min_(0)  # vmap knows no clamp_

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        pairs = gradient + gradient.T  # each pair occurs twice; ∂‖a − b‖²/∂a = 2(a − b)
        with _autocast_off(z):  # a backward may be called where autocast is on
            return 2 * (pairs.sum(1, keepdim=True) * z - pairs @ z)


class _SquaredDistancesWithForwardMode(_SquaredDistances):
    """The same with its directional derivative, for ``torch.func.jvp``; ``torch.compile`` refuses what has one."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        with _autocast_off(z):
            cross = z @ tangent.T
            own = cross.diagonal()
            return 2 * (own[:, None] + own - cross - cross.T)  # 2 (z_i − z_j)ᵀ(ż_i − ż_j)


def _within(z: Tensor) -> Tensor:
    """Squared distances within prepared rows."""
    function = _SquaredDistances if torch.compiler.is_compiling() else _SquaredDistancesWithForwardMode
    with _autocast_off(z):
        return function.apply(z)


def _between(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances between the rows of two samples, in the square of a unit, and that unit."""
    z, unit = _prepared(x, y)
    with _autocast_off(z):
        x, y = z.split((len(x), len(y)))
        norms = x.square().sum(1)[:, None] + y.square().sum(1)
        return torch.addmm(norms, x, y.T, alpha=-2).clamp(min=0), unit


def _prepared(*samples: Tensor) -> tuple[Tensor, Tensor]:
    """The samples below each other less their mean, in a unit in which their entries are about 1, and that unit.

    No distance depends on the mean, so it is held fixed in the gradient.
    """
    z = _full_precision(*samples)
    z = z - _centre(z.detach())
    unit = _unit(z)
    return z.div_(unit), unit


def _unit(z: Tensor) -> Tensor:
    """The power of two at the largest entry: to divide by it changes no digit. Infinite or NaN where that is."""
    low, high = z.detach().aminmax()
    largest = torch.maximum(high, -low)
    integer, exponent = (torch.int64, 0x7FF << 52) if z.dtype == torch.float64 else (torch.int32, 0xFF << 23)
    return (largest.view(integer) & exponent).view(z.dtype).clamp(min=torch.finfo(z.dtype).tiny)


def _centre(z: Tensor) -> Tensor:
    """The mean row but for rounding, and exactly the row where all rows are equal."""
    return z[0] + (z - z[0]).mean(0)


def _centred(z: Tensor) -> Tensor:
    return z - _centre(z)


def _spread(z: Tensor) -> Tensor:
    """Mean squared distance of prepared rows, detached."""
    return z.detach().square().sum() * (2 / (len(z) - 1))


def _half_spread(z: Tensor) -> Tensor:
    """Half of it, the default σ²; without any spread as if it were 1."""
    spread = _spread(z)
    return torch.where(spread == 0, torch.ones_like(spread), spread) / 2


def _exponent(sigma2: float | Tensor, unit: Tensor) -> Tensor:
    """−1/(2σ²), for squared distances in the square of ``unit``; NaN for a tensor that is no bandwidth."""
    if isinstance(sigma2, Tensor):
        value = (unit / sigma2 * unit * -0.5).to(unit.dtype)
        value = torch.where((sigma2 > 0) & sigma2.isfinite(), value, torch.full_like(value, math.nan))
    else:
        fraction, power = math.frexp(-0.5 / sigma2)  # which may lie outside the format where the result does not
        value = (unit * 2.0 ** (power // 2)).square() * (fraction * 2.0 ** (power % 2))
    return value.clamp(min=torch.finfo(value.dtype).min)  # −∞ · 0 on the diagonal would be NaN


def _exponents(z: Tensor, unit: Tensor, sigma2: Bandwidths | None) -> list[Tensor]:
    """Of all kernels on prepared rows; the default bandwidth where none is given."""
    if sigma2 is None:
        return [-0.5 / _half_spread(z)]
    return [_exponent(value, unit) for value in _as_bandwidths(sigma2)]


def _mixture(
    z: Tensor, exponents: Sequence[Tensor], weights: Tensor, function: Callable[[Tensor], Tensor] = torch.exp
) -> Tensor:
    """Weighted sum of Gaussian kernels on one distance matrix, ``(N, N)``."""
    d2 = _within(z)
    k = torch.zeros((), dtype=d2.dtype, device=d2.device)
    for weight, exponent in zip(weights, exponents, strict=True):
        k = torch.addcmul(k, weight, function(d2 * exponent))
    return k


def _mmd2(k: Tensor, n: int, estimator: Estimator) -> Tensor:
    """Squared MMD from the joint kernel matrix, whose first ``n`` rows and columns belong to x."""
    m = len(k) - n
    to_x, to_y = (columns.sum(1) for columns in k.split((n, m), dim=1))  # (n + m,) each
    xx, yy, xy = to_x[:n].sum(), to_y[n:].sum(), to_y[:n].sum()
    if estimator == "biased":
        return xx / n**2 + yy / m**2 - 2 * xy / (n * m)
    diagonal = k.detach().diagonal()  # constant: a row is at distance 0 from itself, wherever it moves
    return (xx - diagonal[:n].sum()) / (n * (n - 1)) + (yy - diagonal[n:].sum()) / (m * (m - 1)) - 2 * xy / (n * m)


def _quadruples(x: Tensor, y: Tensor, sigma2: Bandwidths | None) -> Tensor:
    """The terms h of the linear-time statistic, ``(⌊min(n, m)/2⌋, kernels)``."""
    rows = min(len(x), len(y)) // 2 * 2
    xs, ys = _full_precision(x[:rows]), _full_precision(y[:rows])
    if sigma2 is None:
        z, unit = _prepared(x.detach(), y.detach())
        exponents = [-0.5 / _half_spread(z)]
        del z
    else:
        ends = torch.stack([end for z in (xs.detach(), ys.detach()) for end in (z.amin(0), z.amax(0))])
        unit = _unit(ends.amax(0) - ends.amin(0))  # not of the rows themselves: a column's mean is in no difference
        exponents = [_exponent(value, unit) for value in _as_bandwidths(sigma2)]
    x1, x2, y1, y2 = xs[::2], xs[1::2], ys[::2], ys[1::2]
    d2 = [((a - b) / unit).square().sum(1) for a, b in ((x1, x2), (y1, y2), (x1, y2), (x2, y1))]
    terms = []
    for exponent in exponents:
        xx, yy, xy, yx = (torch.exp(d * exponent) for d in d2)
        terms.append(xx + yy - xy - yx)
    return torch.stack(terms, dim=1)


def _full_precision(*samples: Tensor) -> Tensor:
    """The samples below each other, float32 at least: a difference of squares has no digits to spare."""
    z = samples[0] if len(samples) == 1 else torch.cat(samples)
    return z.float() if z.dtype.itemsize < 4 else z


def _autocast_off(z: Tensor) -> torch.autocast:
    return torch.autocast(z.device.type, enabled=False)


def _least_rows(estimator: str) -> int:
    if estimator not in ("biased", "unbiased"):
        raise ValueError(f"estimator must be 'biased' or 'unbiased', got {estimator!r}")
    return 2 if estimator == "unbiased" else 1


def _check_samples(least: int, **samples: Tensor) -> None:
    for name, sample in samples.items():
        if sample.ndim != 2:
            raise ValueError(f"{name} must have shape (rows, width), got {tuple(sample.shape)}: flatten it first")
        if not sample.is_floating_point():
            raise ValueError(f"{name} must be floating, got {sample.dtype}: convert it with .float()")
        if len(sample) < least:
            raise ValueError(f"{name} must have {least} rows or more, got {len(sample)}")
        if sample.shape[1] < 1:
            raise ValueError(f"{name} must have one column or more, got {tuple(sample.shape)}")
    widths = {name: sample.shape[1] for name, sample in samples.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"the samples must have one width, got {widths}")
    if len({sample.device for sample in samples.values()}) > 1:
        devices = {name: str(sample.device) for name, sample in samples.items()}
        raise ValueError(f"the samples must be on one device, got {devices}")


def _pairable(samples: Sequence[Tensor]) -> Sequence[Tensor]:
    """The samples, checked: two rows or more in all."""
    _check_samples(1, **{f"sample {i}": sample for i, sample in enumerate(samples)})
    if sum(len(sample) for sample in samples) < 2:
        raise ValueError(f"a distance needs two rows, got {sum(len(sample) for sample in samples)}")
    return samples


def _as_bandwidths(sigma2: Bandwidths, name: str = "sigma2") -> list[float | Tensor]:
    """One or several bandwidths as a list; numbers are checked, tensors are not (they may live on a GPU)."""
    if isinstance(sigma2, Tensor):
        bandwidths: list[float | Tensor] = list(sigma2.reshape(-1))
    else:
        bandwidths = list(sigma2) if isinstance(sigma2, Sequence) else np.ravel(sigma2).tolist()
    if not bandwidths:
        raise ValueError(f"{name} is empty: give one value or more")
    for value in bandwidths:
        if not isinstance(value, Tensor) and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    return bandwidths


def _as_weights(weights: Sequence[float] | Tensor | None, count: int) -> Tensor:
    """The β as a tensor; a tensor of them that is no convex combination becomes NaN (it may live on a GPU)."""
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    if isinstance(weights, Tensor):
        if weights.shape != (count,):
            raise ValueError(f"weights must have shape ({count},), one per kernel, got {tuple(weights.shape)}")
        rounding = max(1e-6, count * torch.finfo(weights.dtype).eps) if weights.is_floating_point() else 0
        fits = (weights >= 0).all() & ((weights.sum() - 1).abs() <= rounding)
        return torch.where(fits, weights, math.nan)
    if len(weights) != count:
        raise ValueError(f"weights must have {count} values, one per kernel, got {len(weights)}")
    if not (min(weights) >= 0 and abs(sum(weights) - 1) <= 1e-6):
        raise ValueError(f"weights must not be negative and sum to 1, got {list(weights)}: divide them by their sum")
    return torch.tensor(list(weights), dtype=torch.float64)
