"""Discrepancies: the multi-kernel MMD against its bare arithmetic, and the linear-time statistic against itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import device, peak_bytes, seconds
from deeptransfer.discrepancy import MULTIPLIERS, MultiKernelMMD, linear_time_mmd2


def bare_gram(z: Tensor, scales: Sequence[float]) -> Tensor:
    """The least that five Gaussian kernels cost: one Gram matrix and five exponentials."""
    gram = z @ z.T
    return torch.stack([torch.exp(gram * scale).mean() for scale in scales]).mean()


def all_differences(x: Tensor, y: Tensor) -> Tensor:
    """The multi-kernel MMD as released code writes it, through every difference of two rows, ``(N, N, d)``."""
    z = torch.cat((x, y))
    d2 = (z[None] - z[:, None]).square().sum(2)
    bandwidth = d2.detach().sum() / (len(z) * (len(z) - 1))
    k = torch.stack([torch.exp(-d2 / (m * bandwidth)) for m in MULTIPLIERS]).mean(0)
    n = len(x)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def _forward_backward(loss: Callable[[], Tensor], *leaves: Tensor) -> None:
    torch.autograd.grad(loss(), leaves)


def rows() -> list[dict]:
    """Measured rows: what, ours, baseline, ratio, target."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 512, generator=generator).to(device()).requires_grad_()
    y = (torch.randn(128, 512, generator=generator) + 0.1).to(device()).requires_grad_()
    z = torch.cat((x, y)).detach().requires_grad_()
    scales = [-1e-3 / m for m in MULTIPLIERS]
    mmd = MultiKernelMMD().to(device())
    torch.testing.assert_close(mmd(x, y), all_differences(x, y))

    ours = partial(_forward_backward, lambda: mmd(x, y), x, y)
    gram = partial(_forward_backward, lambda: bare_gram(z, scales), z)
    differences = partial(_forward_backward, lambda: all_differences(x, y), x, y)
    t_ours, t_gram = seconds([ours, gram], rounds=60, warm_up=10)
    # Not in turns: half a gigabyte of differences leaves cold caches to whatever follows.
    (t_differences,) = seconds([differences], rounds=5, warm_up=1)
    what = "MK-MMD, 5 kernels, forward + backward, 128 + 128 × 512"
    table = [
        _row(f"{what} / Gram matrix + 5 exp", t_ours, t_gram, t_ours / t_gram, "≤ 1.5"),
        _row(f"{what}: (n, n, d) form / ours", t_ours, t_differences, t_differences / t_ours, "≥ 50"),
    ]
    p_ours, p_square = peak_bytes(ours) / 2**20, 256 * 256 * 4 / 2**20
    p_differences = peak_bytes(differences) / 2**20
    table += [
        _row(f"{what}: peak memory in n × n matrices", p_ours, p_square, p_ours / p_square, "O(n²)", "MiB"),
        _row(f"{what}: peak memory, (n, n, d) / ours", p_ours, p_differences, p_differences / p_ours, "–", "MiB"),
    ]

    big = torch.randn(2, 100_000, 256, generator=generator).to(device())
    half, full = (partial(linear_time_mmd2, *big[:, :n]) for n in (50_000, 100_000))
    t_half, t_full = seconds([half, full], rounds=5, warm_up=1)
    p_half, p_full = peak_bytes(half) / 2**20, peak_bytes(full) / 2**20
    table += [
        _row("linear-time MMD, n = 50,000, d = 256 / one second", t_half, 1.0, t_half, "< 1"),
        _row("linear-time MMD, n = 100,000 / n = 50,000", t_full, t_half, t_full / t_half, "≈ 2"),
        _row("linear-time MMD, peak memory, n = 100,000 / n = 50,000", p_full, p_half, p_full / p_half, "≈ 2", "MiB"),
    ]
    return table


def _row(what: str, ours: float, baseline: float, ratio: float, target: str, unit: str = "ms") -> dict:
    factor = 1000 if unit == "ms" else 1
    return {
        "what": what,
        "ours": f"{ours * factor:.2f} {unit}",
        "baseline": f"{baseline * factor:.2f} {unit}",
        "ratio": ratio,
        "target": target,
    }
