"""Independent float64 NumPy versions of the adversarial losses, written from the formulas, row by row."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from deeptransfer.adversarial import DomainDiscriminator

NO_REVERSAL = torch.tensor(-1.0)
"""A coefficient that turns the reversal into the identity, so that gradcheck can look through it."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def discriminator(in_features: int, hidden: int = 6, batch_norm: bool = False) -> DomainDiscriminator:
    """A small one in float64, with the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DomainDiscriminator(in_features, hidden, batch_norm=batch_norm).double()


def np_discriminator(d: nn.Sequential, f: np.ndarray) -> list[float]:
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in d if isinstance(m, nn.Linear)]
    logits = []
    for row in f:
        for i, (w, b) in enumerate(layers):
            row = np.array([sum(w[o, k] * row[k] for k in range(len(row))) + b[o] for o in range(len(b))])
            if i < len(layers) - 1:
                row = np.maximum(row, 0)
        logits.append(float(row[0]))
    return logits


def np_log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z))


def np_domain_loss(zs: list[float], zt: list[float], ws: list[float], wt: list[float]) -> float:
    source = sum(w * -np_log_sigmoid(z) for z, w in zip(zs, ws, strict=True)) / len(zs)
    target = sum(w * -np_log_sigmoid(-z) for z, w in zip(zt, wt, strict=True)) / len(zt)
    return (source + target) / 2


def np_softmax(z: np.ndarray) -> np.ndarray:
    return np.array([[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in z])


def np_entropy_weight(g: np.ndarray) -> float:
    return 1 + math.exp(sum(p * math.log(p) for p in g))


def np_denominators(ws: list[float], wt: list[float], weighting: str) -> tuple[float, float]:
    if weighting == "per-domain":
        return sum(ws) / len(ws), sum(wt) / len(wt)
    if weighting == "joint":
        both = [*ws, *wt]
        return sum(both) / len(both), sum(both) / len(both)
    return max(ws), max(wt)


def np_cdan(
    d: nn.Sequential,
    fs: np.ndarray,
    ft: np.ndarray,
    logits: tuple[np.ndarray, np.ndarray],
    weight_logits: tuple[np.ndarray, np.ndarray] | None = None,
    weighting: str | None = None,
    denominators: tuple[float, float] | None = None,
) -> float:
    """CDAN with f ⊗ g written out.

    The logits that condition, the logits that weigh, and the denominators are separate arguments, so that a finite
    difference can move one of them and hold the others, as `detach` does.
    """
    z = []
    for f, h in zip((fs, ft), logits, strict=True):
        g = np_softmax(h)
        outer = [[f[i, k] * g[i, c] for k in range(f.shape[1]) for c in range(g.shape[1])] for i in range(len(f))]
        z.append(np_discriminator(d, np.array(outer)))
    ws, wt = ([1.0] * len(part) for part in z)
    if weighting is not None:
        ws, wt = ([np_entropy_weight(g) for g in np_softmax(h)] for h in (weight_logits or logits))
        by_s, by_t = denominators or np_denominators(ws, wt, weighting)
        ws, wt = [w / by_s for w in ws], [w / by_t for w in wt]
    return np_domain_loss(z[0], z[1], ws, wt)


def finite_difference(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient
