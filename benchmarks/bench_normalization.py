"""Layers against ``BatchNorm`` or ``InstanceNorm`` on the same batch: training, forward and backward; evaluation."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import device, peak_bytes, seconds
from deeptransfer.normalization import (
    AutoDIAL1d,
    AutoDIAL2d,
    CrossNorm,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainWhitening2d,
    DSON2d,
    IBN2d,
    InstanceAwareBatchNorm2d,
    InstanceWhitening2d,
    MixStyle,
    PositionNorm2d,
    ReciprocalNorm1d,
    ReciprocalNorm2d,
    SelfNorm2d,
    TransNorm1d,
    TransNorm2d,
    WeightedBatchNorm2d,
    forward_domains,
)

PLAIN = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}
SHAPE, SMALL, VECTORS = (32, 256, 28, 28), (64, 512, 7, 7), (128, 32)
# Layer, batch, limit in training, limit in evaluation.
CASES = [
    (DomainBatchNorm2d, SHAPE, "–", "≤ 1.1"),
    (TransNorm2d, SHAPE, "≤ 1.15", "≤ 1.1"),
    (AutoDIAL2d, SHAPE, "≤ 1.2", "≤ 1.1"),
    (ReciprocalNorm2d, SHAPE, "≤ 1.25", "≤ 1.1"),
    (ReciprocalNorm2d, SMALL, "≤ 1.5", "≤ 1.1"),
    (DomainWhitening2d, SHAPE, "–", "≤ 2"),
    (DomainBatchNorm1d, VECTORS, "≤ 4", "–"),
    (TransNorm1d, VECTORS, "≤ 4", "–"),
    (AutoDIAL1d, VECTORS, "≤ 4", "–"),
    (ReciprocalNorm1d, VECTORS, "≤ 4", "–"),
]

PART = (64, 64, 28, 28)
ONE = ("target",)
# Layer of a batch of PART, what it is compared with, limit in training.
OTHERS = [
    (partial(InstanceAwareBatchNorm2d, domains=ONE), nn.InstanceNorm2d, "≤ 1.5"),
    (partial(DSON2d, domains=ONE), nn.InstanceNorm2d, "≤ 1.5"),
    (partial(IBN2d, domains=ONE), nn.InstanceNorm2d, "≤ 1.5"),
    (lambda c: MixStyle(p=1.0), nn.InstanceNorm2d, "≤ 1.5"),
    (lambda c: CrossNorm(p=1.0), nn.InstanceNorm2d, "≤ 1.5"),
    (SelfNorm2d, nn.InstanceNorm2d, "≤ 1.5"),
    (InstanceWhitening2d, nn.InstanceNorm2d, "≤ 1.5"),
    (PositionNorm2d, nn.InstanceNorm2d, "≤ 1.5"),
    (partial(DomainBatchNorm2d, domains=4), nn.BatchNorm2d, "≤ 1.15"),
    (partial(WeightedBatchNorm2d, domains=4), nn.BatchNorm2d, "–"),
]


def _train(layer: nn.Module, x: Tensor, grad: Tensor, *more: Tensor) -> None:
    torch.autograd.grad(layer(x, *more), [x, *layer.parameters()], grad)


@torch.no_grad()
def _evaluate(layer: nn.Module, x: Tensor) -> None:
    layer(x)


def rows() -> list[dict]:
    """Measured rows: what, ours, baseline, ratio, target."""
    generator, mib, table = torch.Generator().manual_seed(0), 2**20, []
    for cls, shape, target, limit in CASES:
        x = torch.randn(shape, generator=generator).to(device()).requires_grad_()
        grad = torch.randn(shape, generator=generator).to(device())
        half, calls = shape[0] // 2, 1 if len(shape) == 4 else 50  # of a few microseconds many are one measurement
        # In pairs: among more candidates, each would find the allocator as the one before it left it.
        layer, plain = cls(shape[1]).to(device()), PLAIN[len(shape)](shape[1]).to(device())
        forward_domains(layer, x[:half], x[half:])  # running rows to evaluate with
        layer.membership.fixed = (x.new_empty(half, 0), x.new_empty(half, 0))  # the split stays for the measurement
        train = [partial(_train, module, x, grad) for module in (layer, plain)]
        taken, memory = seconds(train, rounds=25, calls=calls), [peak_bytes(step) for step in train]
        layer.membership.fixed = None
        layer.eval()
        plain.eval()
        evaluated = seconds([partial(_evaluate, module, x) for module in (layer, plain)], rounds=51, calls=calls)
        name = f"{cls.__name__} {shape}"
        table += [
            _row(f"{name} forward + backward / {type(plain).__name__}", taken[0] * 1e3, taken[1] * 1e3, target, "ms"),
            _row(f"{name} evaluation / {type(plain).__name__}", evaluated[0] * 1e3, evaluated[1] * 1e3, limit, "ms"),
        ]
        if shape == SHAPE:
            parts = (memory[0] / mib, memory[1] / mib)
            table.append(_row(f"{name} peak memory in training / {type(plain).__name__}", *parts, "–", "MiB"))
    return table + _others(generator)


def _others(generator: torch.Generator) -> list[dict]:
    """Layers of several or unseen domains, in training."""
    x = torch.randn(PART, generator=generator).to(device()).requires_grad_()
    grad, table = torch.randn(PART, generator=generator).to(device()), []
    weights = torch.rand(PART[0], 4, generator=generator).softmax(1).to(device())
    for make, plain, target in OTHERS:
        layer, beside = make(PART[1]).to(device()), plain(PART[1], affine=True).to(device())
        if isinstance(layer, DomainBatchNorm2d):
            layer.membership.fixed = tuple(x.new_empty(len(x) // 4, 0) for _ in layer.domains)
        given = (weights,) if isinstance(layer, WeightedBatchNorm2d) else ()
        taken = seconds([partial(_train, module, x, grad, *more) for module, more in ((layer, given), (beside, ()))])
        name = f"{type(layer).__name__} {PART} forward + backward / {plain.__name__}"
        table.append(_row(name, taken[0] * 1e3, taken[1] * 1e3, target, "ms"))
    return table


def _row(what: str, ours: float, baseline: float, target: str, unit: str) -> dict:
    return {
        "what": what,
        "ours": f"{ours:.3g} {unit}",
        "baseline": f"{baseline:.3g} {unit}",
        "ratio": ours / baseline,
        "target": target,
    }
