"""Gates: learned proportions that a layer keeps inside an interval."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Clip(torch.autograd.Function):
    """Clamp whose gradient is stopped only where a descent step would lead further outside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((x >= ctx.high) & (grad < 0)) | ((x <= ctx.low) & (grad > 0))
        return grad.masked_fill(outward, 0), None, None


def clip_gate(gate: Tensor, low: float = 0.5, high: float = 1.0) -> Tensor:
    r"""Clamp a gate to ``[low, high]`` without locking it there.

    The gradient of ``torch.clamp`` is 0 from the bound on, so a gate that starts at 1, or that an optimiser pushed to
    1.2, would never move again. Here every gradient that leads back inside passes.

    Parameters
    ----------
    gate
        A parameter of any shape.
    low, high
        The closed interval.

    Returns
    -------
    Tensor
        The clamped gate, same shape.
    """
    if not torch.is_grad_enabled():
        return gate.clamp(low, high)
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return gate.clamp(low, high)  # a tangent does not say where a step would lead
    return _Clip.apply(gate, low, high)
