"""Discrepancies written from their formulas: NumPy, float64, one pair of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def gaussian(a: np.ndarray, b: np.ndarray, sigma2: float) -> float:
    return float(np.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma2)))


def mixture(a: np.ndarray, b: np.ndarray, sigma2s: Sequence[float], weights: Sequence[float]) -> float:
    return sum(w * gaussian(a, b, s) for w, s in zip(weights, sigma2s, strict=True))


def mean_distance2(z: np.ndarray) -> float:
    total = 0.0
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                total += ((z[i] - z[j]) ** 2).sum()
    return total / (len(z) * (len(z) - 1))


def mmd2(x: Sequence, y: Sequence, kernel, estimator: str = "biased") -> float:
    """``kernel(a, b)`` of two samples; a sample may be rows of anything, such as tuples of layers."""
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j or estimator == "biased")
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j or estimator == "biased")
    xy = sum(kernel(x[i], y[j]) for i in range(n) for j in range(m))
    if estimator == "biased":
        return xx / n**2 + yy / m**2 - 2 * xy / (n * m)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def linear_mmd2(x: np.ndarray, y: np.ndarray, estimator: str = "biased") -> float:
    """With the kernel −‖a − b‖²/2, which differs from the linear one by what cancels."""
    return mmd2(x, y, lambda a, b: -((a - b) ** 2).sum() / 2, estimator)


def linear_time(x: np.ndarray, y: np.ndarray, kernel) -> float:
    quadruples = min(len(x), len(y)) // 2
    total = 0.0
    for i in range(quadruples):
        x1, x2, y1, y2 = x[2 * i], x[2 * i + 1], y[2 * i], y[2 * i + 1]
        total += kernel(x1, x2) + kernel(y1, y2) - kernel(x1, y2) - kernel(x2, y1)
    return total / quadruples


def central_differences(f, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient
