"""Style transfer once more, in float64 NumPy, image by image, from the papers' formulas."""

from __future__ import annotations

import numpy as np


def adain(content, style, alpha=1.0, eps=1e-5):
    out = np.empty_like(content)
    for i in range(len(content)):
        own = style[i if len(style) > 1 else 0]
        for c in range(content.shape[1]):
            x, s = content[i, c], own[c]
            mean, var = x.sum() / x.size, ((x - x.mean()) ** 2).sum() / x.size
            style_mean, style_var = s.sum() / s.size, ((s - s.mean()) ** 2).sum() / s.size
            t = np.sqrt(style_var + eps) * (x - mean) / np.sqrt(var + eps) + style_mean
            out[i, c] = alpha * t + (1 - alpha) * x
    return out


def power(a, p, cut=1e-6):
    """Through the singular value decomposition, which no code of the library uses."""
    u, s, _ = np.linalg.svd(a)
    kept = s > cut * s[0] if s[0] > 0 else np.zeros(len(s), bool)
    return sum((s[i] ** p * np.outer(u[:, i], u[:, i]) for i in np.flatnonzero(kept)), np.zeros_like(a))


def covariance(flat):
    """Biased, of rows of channels."""
    mean = flat.mean(1)
    total = np.zeros((len(flat), len(flat)))
    for column in flat.T:
        total += np.outer(column - mean, column - mean)
    return total / flat.shape[1]


def wct(content, style, alpha=1.0, eps=1e-5, cut=1e-6):
    out = np.empty_like(content)
    for i in range(len(content)):
        c = content[i].reshape(len(content[i]), -1)
        s = style[i if len(style) > 1 else 0].reshape(len(c), -1)
        ridge = eps * np.eye(len(c))
        white = power(covariance(c) + ridge, -0.5, cut) @ (c - c.mean(1, keepdims=True))
        t = power(covariance(s) + ridge, 0.5, cut) @ white + s.mean(1, keepdims=True)
        out[i] = (alpha * t + (1 - alpha) * c).reshape(content[i].shape)
    return out


def gram(x):
    """(C, H, W) to (C, C), position by position."""
    flat = x.reshape(len(x), -1)
    return sum(np.outer(column, column) for column in flat.T) / flat.shape[1]


def gdwct(content, mean, factor, alpha):
    """Of one image (C, H, W), means (C,), factors (G, n, n)."""
    groups, n = factor.shape[:2]
    flat = content.reshape(len(content), -1)
    out = np.empty_like(flat)
    for g in range(groups):
        rows = slice(g * n, (g + 1) * n)
        d = np.array([np.sqrt((factor[g][:, j] ** 2).sum()) for j in range(n)])
        u = factor[g] / np.where(d > 0, d, 1)
        centred = flat[rows] - flat[rows].mean(1, keepdims=True)
        out[rows] = u @ np.diag(d) @ u.T @ centred + mean[rows, None]
    return alpha * out.reshape(content.shape) + (1 - alpha) * content


def convolve(x, weight, padding=0):
    """Plain loops: (C, H, W) and (out, C, k, k) to (out, H', W')."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    out, _, kh, kw = weight.shape
    height, width = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    y = np.empty((out, height, width))
    for o in range(out):
        for i in range(height):
            for j in range(width):
                y[o, i, j] = (weight[o] * x[:, i : i + kh, j : j + kw]).sum()
    return y


def instance_norm(x, eps=1e-5):
    """(C, H, W)."""
    flat = x.reshape(len(x), -1)
    centred = flat - flat.mean(1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(1, keepdims=True) + eps)).reshape(x.shape)
