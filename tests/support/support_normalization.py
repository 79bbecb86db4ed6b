"""The normalisation layers once more, in float64 NumPy, channel by channel, from the papers' formulas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from deeptransfer import normalization as norm
from deeptransfer.normalization import passes

METHODS = ("DomainBatchNorm", "AutoDIAL", "TransNorm", "ReciprocalNorm", "DomainWhitening")


@pytest.fixture(autouse=True, params=["few values", "many"])
def few_and_many(request, monkeypatch):
    """A small batch takes fewer operations, a large one fewer passes over the data: both are tried on small ones."""
    if request.param == "many":
        monkeypatch.setattr(passes, "FEW", 0)


@dataclass
class Result:
    source: np.ndarray  # outputs, before weight and bias
    target: np.ndarray
    mean: np.ndarray  # (2, C): what the running rows move towards
    var: np.ndarray


def make(method, shape, **kwargs):
    """The layer of a method for an input of this shape, in float64, with weight and bias that matter."""
    number = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[len(shape)]
    c = shape[1]
    layer = getattr(norm, method + number)(c, dtype=torch.float64, **kwargs)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, layer.weight.numel()).view_as(layer.weight))
        layer.bias.copy_(torch.linspace(-1, 1, layer.bias.numel()).view_as(layer.bias))
        for i, name in enumerate(layer.gate_names):
            gate = getattr(layer, name)
            gate.copy_(torch.linspace(0.55 + 0.1 * i, 0.95, max(gate.numel(), 1)).view_as(gate))
    return layer


def values(x):
    """(N, C, ...) to one row of values per channel."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def images(rows, shape):
    n, c, *rest = shape
    return np.moveaxis(rows.reshape(c, n, *rest), 0, 1)


def batchnorm(xs, xt, layer):
    out, means, variances = [], [], []
    for x in (xs, xt):
        rows = values(x)
        y = np.empty_like(rows)
        mean, var = np.empty(len(rows)), np.empty(len(rows))
        for j, row in enumerate(rows):
            m = sum(row) / len(row)
            v = sum((row - m) ** 2) / len(row)
            y[j] = (row - m) / np.sqrt(v + layer.eps)
            mean[j], var[j] = m, v * len(row) / (len(row) - 1)
        out.append(images(y, x.shape))
        means.append(mean)
        variances.append(var)
    return Result(*out, np.stack(means), np.stack(variances))


def autodial(xs, xt, layer):
    alpha = layer.alpha.item()
    out, means, variances = [], [], []
    for own, other in ((xs, xt), (xt, xs)):
        a, b = values(own), values(other)
        y = np.empty_like(a)
        mean, var = np.empty(len(a)), np.empty(len(a))
        for j in range(len(a)):
            m = alpha * a[j].mean() + (1 - alpha) * b[j].mean()
            v = alpha * ((a[j] - m) ** 2).mean() + (1 - alpha) * ((b[j] - m) ** 2).mean()
            y[j] = (a[j] - m) / np.sqrt(v + layer.eps)
            weights = np.concatenate(
                [np.full(a.shape[1], alpha / a.shape[1]), np.full(b.shape[1], (1 - alpha) / b.shape[1])]
            )
            mean[j], var[j] = m, v / (1 - (weights**2).sum())
        out.append(images(y, own.shape))
        means.append(mean)
        variances.append(var)
    return Result(*out, np.stack(means), np.stack(variances))


def transferability(mean, var, eps, distance="standardized", probability="student_t"):
    """α of TransNorm from two rows of statistics."""
    c = mean.shape[1]
    p = np.empty(c)
    for j in range(c):
        (ms, mt), (vs, vt) = mean[:, j], var[:, j]
        d = {
            "standardized": abs(ms / np.sqrt(vs + eps) - mt / np.sqrt(vt + eps)),
            "mean": abs(ms - mt),
            "wasserstein": (ms - mt) ** 2 + (np.sqrt(vs) - np.sqrt(vt)) ** 2,
        }[distance]
        p[j] = {"student_t": 1 / (1 + d), "gaussian": np.exp(-d * d / 2), "softmax": np.exp(-d), "uniform": 1.0}[
            probability
        ]
    return c * p / p.sum()


def transnorm(xs, xt, layer):
    result = batchnorm(xs, xt, layer)
    alpha = transferability(result.mean, result.var, layer.eps, layer.distance, layer.probability)
    return alpha, result


def reciprocal(xs, xt, layer):
    gates = [
        g.detach().numpy()
        for g in (layer.gate_mean_source, layer.gate_var_source, layer.gate_mean_target, layer.gate_var_target)
    ]
    rows = [values(x) for x in (xs, xt)]
    ddof = 1 if layer.unbiased else 0
    stats = [(r.mean(1), r.var(1, ddof=ddof)) for r in rows]
    block = len(rows[0]) // layer.groups
    out, means, variances = [], [], []
    for own, x in enumerate((xs, xt)):
        hat = []
        for kind in range(2):
            m, other = stats[own][kind], stats[1 - own][kind]
            compensated = np.empty_like(m)
            for i in range(layer.groups):
                mine = m[i * block : (i + 1) * block].mean()
                logits = [
                    -((mine - other[j * block : (j + 1) * block].mean()) ** 2) / layer.temperature
                    for j in range(layer.groups)
                ]
                weights = np.exp(np.array(logits) - max(logits))
                weights /= weights.sum()
                for k in range(block):
                    compensated[i * block + k] = sum(w * other[j * block + k] for j, w in enumerate(weights))
            g = gates[2 * own + kind]
            hat.append(g * m + (1 - g) * compensated)
        mean, var = hat
        out.append(images((rows[own] - mean[:, None]) / np.sqrt(var + layer.eps)[:, None], x.shape))
        n = rows[own].shape[1]
        means.append(mean)
        variances.append(var if layer.unbiased else var * n / (n - 1))
    return Result(*out, np.stack(means), np.stack(variances))


def whitening(xs, xt, layer):
    g, e = layer.group_size, layer.shrinkage
    out, means, variances = [], [], []
    for x in (xs, xt):
        rows = values(x)
        y, mean, var = np.empty_like(rows), rows.mean(1), rows.var(1, ddof=1)
        for start in range(0, len(rows), g):
            block = rows[start : start + g]
            covariance = np.cov(block, ddof=0).reshape(g, g)
            factor = np.linalg.cholesky((1 - e) * covariance + e * np.eye(g))
            y[start : start + g] = np.linalg.inv(factor) @ (block - block.mean(1, keepdims=True))
        out.append(images(y, x.shape))
        means.append(mean)
        variances.append(var)
    return Result(*out, np.stack(means), np.stack(variances))


def reference(method, xs, xt, layer):
    """Outputs (source, target) and the rows (mean, var), from NumPy arrays."""
    gain = 1.0
    if method == "TransNorm":
        alpha, result = transnorm(xs, xt, layer)
        gain = (1 + alpha) / 2 if layer.halved else 1 + alpha
    else:
        result = {
            "DomainBatchNorm": batchnorm,
            "AutoDIAL": autodial,
            "ReciprocalNorm": reciprocal,
            "DomainWhitening": whitening,
        }[method](xs, xt, layer)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    outputs = []
    for d, z in enumerate((result.source, result.target)):
        w, b = (weight, bias) if weight.ndim == 1 else (weight[d], bias[d])
        axes = (-1,) + (1,) * (z.ndim - 2)
        outputs.append(z * (w * gain).reshape(axes) + (b * gain).reshape(axes))
    return outputs, result.mean, result.var
