r"""How far apart two samples are: kernels, the maximum mean discrepancy (MMD) and its relatives.

Everything here is a function of two samples of rows, ``x`` of shape ``(n, d)`` and ``y`` of shape ``(m, d)``; the sizes
may differ. The kernels are Gaussian, :math:`k(a, b) = e^{-\lVert a - b\rVert^2 / (2\sigma^2)}`, and take
:math:`\sigma^2`, not :math:`\sigma`. A mixture of kernels has weights :math:`\beta \ge 0` that sum to 1 (released code
of DAN and JAN *sums* five kernels: a trade-off λ of theirs is ours divided by five).

Distances and kernels are computed in float32 or better, also under autocast, from one Gram matrix: no ``(n, m, d)``
tensor is ever built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        If a sample is empty, not two-dimensional or not floating, or the widths differ.
    """
    if y is None:
        _check_samples(1, x=x)
        return _within(_full_precision(x))
    _check_samples(1, x=x, y=y)
    z = _full_precision(x, y)
    with torch.autocast(z.device.type, enabled=False):
        x, y = _centred(z).split((len(x), len(y)))
        norms = x.square().sum(1)[:, None] + y.square().sum(1)
        return torch.addmm(norms, x, y.T, alpha=-2).clamp(min=0)


def mean_squared_distance(*samples: Tensor) -> Tensor:
    r"""Mean squared distance between two different rows of the pooled samples: the scale of a bandwidth.

    .. math:: \frac{1}{N(N-1)}\sum_{i \ne j}\lVert z_i - z_j\rVert^2 = 2\sum_k \operatorname{var}(z_{\cdot k})

    The right-hand side needs no distance matrix. Without any spread the result is 1, so that the kernels of equal rows
    are 1 and their discrepancy is 0 instead of 0/0.

    Parameters
    ----------
    *samples
        Rows of equal width, shapes ``(n, d)``, ``(m, d)``, …; two rows or more in all.

    Returns
    -------
    Tensor
        Shape ``()``, detached.
    """
    _check_samples(1, **{f"sample {i}": sample for i, sample in enumerate(samples)})
    z = _full_precision(*samples)
    if len(z) < 2:
        raise ValueError("a distance needs two rows, got 1")
    return _mean_squared_distance(z)


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
    _check_samples(1, **{f"sample {i}": sample for i, sample in enumerate(samples)})
    z = _full_precision(*samples).detach()
    if len(z) < 2:
        raise ValueError("a distance needs two rows, got 1")
    rows, columns = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    median = _within(z)[rows, columns].median()
    return torch.where(median == 0, torch.ones_like(median), median)


# --------------------------------------------------------------------------------------------------------- kernels


def gaussian_kernel(x: Tensor, y: Tensor, sigma2: float | Tensor) -> Tensor:
    r"""Gaussian kernel between every row of ``x`` and every row of ``y``.

    .. math:: k(x_i, y_j) = \exp\left(-\frac{\lVert x_i - y_j\rVert^2}{2\sigma^2}\right)

    Parameters
    ----------
    x, y
        Rows, shapes ``(n, d)`` and ``(m, d)``.
    sigma2
        The bandwidth σ², positive (a number is checked, a tensor is not: it may live on a GPU).

    Returns
    -------
    Tensor
        Shape ``(n, m)``, entries in [0, 1].
    """
    (bandwidth,) = _as_bandwidths(sigma2)
    return torch.exp(squared_distances(x, y) * (-0.5 / bandwidth))


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
        self.register_buffer("weights", _as_weights(weights, count).float())

    def forward(self, z: Tensor) -> Tensor:
        """Kernel matrix ``(N, N)`` of the rows of ``z``, shape ``(N, d)``."""
        z = _full_precision(z)
        # Normalised once more, because a buffer may have been cast: kernels of equal rows are 1 in any format.
        weights = self.weights.to(z.dtype)
        return _mixture(z, self._bandwidths(z), weights / weights.sum())

    def _bandwidths(self, z: Tensor) -> Sequence[float | Tensor]:
        if self.sigma2 is not None:
            return self.sigma2
        half_spread = _mean_squared_distance(z) / 2
        return [multiplier * half_spread for multiplier in self.multipliers]

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
        For samples without enough rows, of different widths or not floating; for σ² ≤ 0; for weights that do not fit.

    References
    ----------
    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012.
    """
    _check_samples(_least_rows(estimator), x=x, y=y)
    z = _full_precision(x, y)
    return _mmd2(_pooled_kernel(z, sigma2, weights), len(x), estimator)


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
        return distance / _mean_squared_distance(z)
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
    bandwidths = _as_bandwidths(_half_spread(x, y) if sigma2 is None else sigma2)
    means = _quadruples(x, y, bandwidths).mean(0)  # (kernels,)
    return means @ _as_weights(weights, len(bandwidths)).to(means)


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
    if ridge <= 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    with torch.no_grad():
        h = _quadruples(x, y, _as_bandwidths(sigma2)).double().cpu().numpy()  # (quadruples, kernels)
    if not np.isfinite(h).all():
        raise ValueError("x, y or sigma2 hold values that are not finite: clean them before learning kernel weights")
    d = h.mean(0)
    Q = np.atleast_2d(np.cov(h, rowvar=False)) + ridge * np.eye(len(d))
    if (d <= 0).all():
        beta = np.zeros_like(d)
        beta[np.argmax(d / np.sqrt(np.diag(Q)))] = 1.0
    else:
        # βᵀ(Q+ξI)β − 2dᵀβ = ‖Lᵀβ − L⁻¹d‖² + constant; its minimiser over β ≥ 0 is the solution up to scale.
        L = np.linalg.cholesky(Q)
        beta, _ = nnls(L.T, np.linalg.solve(L, d))
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
        As :func:`mmd2`, and for NaN in a sample: a test of NaN would look like a result.

    References
    ----------
    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, section 5.
    """
    _check_samples(_least_rows(estimator), x=x, y=y)
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more, got {permutations}")
    n, m = len(x), len(y)
    z = torch.cat((x, y)).detach().double()
    if z.isnan().any():
        raise ValueError("x or y holds NaN: remove those rows before testing")
    k = _pooled_kernel(z, sigma2, weights)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(permutations, n + m, generator=generator).argsort(1).to(z.device)
    order = torch.cat((torch.arange(n + m, device=z.device)[None], order))  # row 0: the observed assignment
    in_x = torch.zeros(permutations + 1, n + m, dtype=z.dtype, device=z.device).scatter_(1, order[:, :n], 1.0)
    xx = (in_x @ k * in_x).sum(1)  # (B + 1,) sums over the pairs within the first sample
    xy = in_x @ k.sum(1) - xx
    yy = k.sum() - xx - 2 * xy
    if estimator == "biased":
        values = xx / n**2 + yy / m**2 - 2 * xy / (n * m)
    else:  # a kernel of a row with itself is 1
        values = (xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - 2 * xy / (n * m)
    statistic, null = values[0].item(), values[1:]
    # In small samples a permutation often is the observed split again: a tie that rounding must not break.
    p_value = (1 + int((null >= statistic - 1e-12).sum())) / (1 + permutations)
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
    to_x, to_y = squared_distances(points, torch.cat((x, y))).split((len(x), len(y)), dim=1)
    values = [
        torch.exp(to_x * (-0.5 / s)).mean(1) - torch.exp(to_y * (-0.5 / s)).mean(1) for s in _as_bandwidths(sigma2)
    ]
    return torch.stack(values).mean(0)


# --------------------------------------------------------------------------------------------------------- private


class _SquaredDistances(torch.autograd.Function):
    """Squared distances within ``z`` ``(N, d)``, with one matrix product backward where autograd's own takes two."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        z = _centred(z)
        gram = z @ z.T
        norms = gram.diagonal()  # not z.square().sum(1): so d²_ii is exactly 0
        return torch.sub(norms[:, None] + norms, gram, alpha=2).clamp_(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        z = _centred(z)
        pairs = gradient + gradient.T  # each pair occurs twice; ∂‖a − b‖²/∂a = 2(a − b)
        return 2 * (pairs.sum(1, keepdim=True) * z - pairs @ z)


def _within(z: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):
        return _SquaredDistances.apply(z)


def _mean_squared_distance(z: Tensor) -> Tensor:
    spread = _centred(z.detach()).square().sum() * (2 / (len(z) - 1))
    # The margin keeps the reciprocals of bandwidths finite; NaN compares as false and stays.
    return torch.where(spread < 16 * torch.finfo(z.dtype).tiny, torch.ones_like(spread), spread)


def _centred(z: Tensor) -> Tensor:
    """``z`` less a centre that is the mean but for rounding, and exactly the row where all rows are equal."""
    return z - (z[0] + (z - z[0]).mean(0))


def _half_spread(*samples: Tensor) -> Tensor:
    return _mean_squared_distance(_full_precision(*samples)) / 2


def _mixture(z: Tensor, bandwidths: Sequence[float | Tensor], weights: Tensor) -> Tensor:
    """Weighted sum of Gaussian kernels on one distance matrix, ``(N, N)``."""
    d2 = _within(z)
    k = torch.zeros((), dtype=d2.dtype, device=d2.device)
    for weight, sigma2 in zip(weights, bandwidths, strict=True):
        k = torch.addcmul(k, weight, torch.exp(d2 * (-0.5 / sigma2)))
    return k


def _pooled_kernel(z: Tensor, sigma2: Bandwidths | None, weights: Sequence[float] | Tensor | None) -> Tensor:
    bandwidths = _as_bandwidths(_half_spread(z) if sigma2 is None else sigma2)
    return _mixture(z, bandwidths, _as_weights(weights, len(bandwidths)).to(z))


def _mmd2(k: Tensor, n: int, estimator: Estimator) -> Tensor:
    """Squared MMD from the joint kernel matrix, whose first ``n`` rows and columns belong to x."""
    m = len(k) - n
    to_x, to_y = (columns.sum(1) for columns in k.split((n, m), dim=1))  # (n + m,) each
    xx, yy, xy = to_x[:n].sum(), to_y[n:].sum(), to_y[:n].sum()
    if estimator == "biased":
        return xx / n**2 + yy / m**2 - 2 * xy / (n * m)
    diagonal = k.detach().diagonal()  # constant: a row is at distance 0 from itself, wherever it moves
    return (xx - diagonal[:n].sum()) / (n * (n - 1)) + (yy - diagonal[n:].sum()) / (m * (m - 1)) - 2 * xy / (n * m)


def _quadruples(x: Tensor, y: Tensor, bandwidths: Sequence[float | Tensor]) -> Tensor:
    """The terms h of the linear-time statistic, ``(⌊min(n, m)/2⌋, kernels)``."""
    rows = min(len(x), len(y)) // 2 * 2
    x, y = _full_precision(x[:rows]), _full_precision(y[:rows])
    x1, x2, y1, y2 = x[::2], x[1::2], y[::2], y[1::2]
    d2 = [(a - b).square().sum(1) for a, b in ((x1, x2), (y1, y2), (x1, y2), (x2, y1))]
    terms = []
    for sigma2 in bandwidths:
        xx, yy, xy, yx = (torch.exp(d * (-0.5 / sigma2)) for d in d2)
        terms.append(xx + yy - xy - yx)
    return torch.stack(terms, dim=1)


def _full_precision(*samples: Tensor) -> Tensor:
    """The samples below each other, float32 at least: a difference of squares has no digits to spare."""
    z = samples[0] if len(samples) == 1 else torch.cat(samples)
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


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
    widths = {name: sample.shape[1] for name, sample in samples.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"the samples must have one width, got {widths}")


def _as_bandwidths(sigma2: Bandwidths, name: str = "sigma2") -> list[float | Tensor]:
    """One or several bandwidths as a list; numbers are checked, tensors are not (they may live on a GPU)."""
    if isinstance(sigma2, Tensor):
        return list(sigma2.reshape(-1))
    bandwidths: list[float | Tensor] = list(sigma2) if isinstance(sigma2, Sequence) else [sigma2]
    if not bandwidths:
        raise ValueError(f"{name} is empty: give one value or more")
    for value in bandwidths:
        if not isinstance(value, Tensor) and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    return bandwidths


def _as_weights(weights: Sequence[float] | Tensor | None, count: int) -> Tensor:
    if weights is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    if isinstance(weights, Tensor):
        if weights.shape != (count,):
            raise ValueError(f"weights must have shape ({count},), one per kernel, got {tuple(weights.shape)}")
        return weights
    if len(weights) != count:
        raise ValueError(f"weights must have {count} values, one per kernel, got {len(weights)}")
    if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights must not be negative and sum to 1, got {list(weights)}: divide them by their sum")
    return torch.tensor(list(weights), dtype=torch.float64)
