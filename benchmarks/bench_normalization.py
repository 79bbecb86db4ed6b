"""Domain layers against ``BatchNorm2d`` on the same batch: training, forward and backward, and evaluation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import device, peak_bytes, seconds
from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm2d,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    forward_domains,
)

SHAPE = (32, 256, 28, 28)
LAYERS = {
    DomainBatchNorm2d: "–",
    TransNorm2d: "≤ 1.15",
    AutoDIAL2d: "≤ 1.2",
    ReciprocalNorm2d: "≤ 1.2",
    DomainWhitening2d: "–",
}


def _train(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)


@torch.no_grad()
def _evaluate(layer: nn.Module, x: Tensor) -> None:
    layer(x)


def rows() -> list[dict]:
    """Measured rows: what, ours, baseline, ratio, target."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(device()).requires_grad_()
    grad = torch.randn(SHAPE, generator=generator).to(device())
    half, mib, table = SHAPE[0] // 2, 2**20, []
    for cls, target in LAYERS.items():
        # In pairs: among more candidates, each would find the allocator as the one before it left it.
        layer, plain = cls(SHAPE[1]).to(device()), nn.BatchNorm2d(SHAPE[1]).to(device())
        forward_domains(layer, x[:half], x[half:])  # running rows to evaluate with
        layer.membership.fixed = (x.new_empty(half, 0), x.new_empty(half, 0))  # the split stays for the measurement
        train = [partial(_train, module, x, grad) for module in (layer, plain)]
        taken, memory = seconds(train, rounds=25), [peak_bytes(step) for step in train]
        layer.membership.fixed = None
        layer.eval()
        plain.eval()
        evaluated = seconds([partial(_evaluate, module, x) for module in (layer, plain)], rounds=51)
        limit = "–" if cls is DomainWhitening2d else "≤ 1.05"
        name = cls.__name__
        table += [
            _row(f"{name} forward + backward {SHAPE} / BatchNorm2d", taken[0] * 1e3, taken[1] * 1e3, target, "ms"),
            _row(f"{name} evaluation / BatchNorm2d", evaluated[0] * 1e3, evaluated[1] * 1e3, limit, "ms"),
            _row(f"{name} peak memory in training / BatchNorm2d", memory[0] / mib, memory[1] / mib, "–", "MiB"),
        ]
    return table


def _row(what: str, ours: float, baseline: float, target: str, unit: str) -> dict:
    return {
        "what": what,
        "ours": f"{ours:.2f} {unit}",
        "baseline": f"{baseline:.2f} {unit}",
        "ratio": ours / baseline,
        "target": target,
    }
