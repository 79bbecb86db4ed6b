"""The two passes over the data that all domain layers share: measure each domain's rows, then scale and shift them.

Between the two, a layer works on vectors of one number per channel, which autograd differentiates. Each pass is
written twice: plainly, for compilers and accelerators, and by hand for a CPU, where the variance of a batch of images
is most of BatchNorm's cost, and where every new tensor of the batch's size costs more than the arithmetic on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

BLOCK = 2**20  # values that stay in the cache
FEW = 2**13  # values of a batch for which calling operations costs more than what they do


def measure(x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and biased variance per channel of consecutive parts of a batch, in float32 or better.

    Parameters
    ----------
    x
        Batch ``(N, C, ...)``.
    sizes
        Rows of each part; they sum to N.

    Returns
    -------
    tuple of Tensor
        ``x`` itself, for :func:`scale_and_shift` and nothing else: the two gradients meet in one tensor, in place;
        means and variances ``(len(sizes), C)``.
    """
    if few(x):
        return x, *_measure_few(x, sizes)
    return _Measure.apply(x, sizes) if by_hand(x) else (x, *_measure(x, sizes))


def scale_and_shift(x: Tensor, sizes: list[int], mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    r"""Return ``(x - mean) * scale + shift`` per channel, each part of the batch with its own vectors.

    Parameters
    ----------
    x
        Batch ``(N, C, ...)``.
    sizes
        Rows of each part; they sum to N.
    mean, scale, shift
        ``(len(sizes), C)``, in float32 or better.

    Returns
    -------
    Tensor
        The batch, in its own dtype and memory format.
    """
    if few(x):
        return _scale_and_shift_few(x, sizes, mean, scale, shift)
    passes = _ScaleAndShift.apply if by_hand(x) else _scale_and_shift
    return passes(x, sizes, mean, scale, shift)


def measure_images(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and biased variance of each image apart, over its positions, in float32 or better.

    .. math:: m_{ic} = \frac1P \sum_p x_{icp}, \qquad b_{ic} = \frac1P \sum_p (x_{icp} - m_{ic})^2

    Parameters
    ----------
    x
        Batch ``(N, C, ...)`` of P positions; a vector has one, so its variance is 0.

    Returns
    -------
    tuple of Tensor
        Means and variances ``(N, C)``.
    """
    var, mean = torch.var_mean(wide(x).flatten(2) if x.dim() > 2 else wide(x).unsqueeze(2), 2, correction=0)
    return mean, var


def measure_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Mean and biased variance of K domains to which every image belongs by some weight.

    .. math:: \mu_d = \sum_i s_{id}\, m_i, \qquad v_d = \sum_i s_{id} \left(b_i + (m_i - \mu_d)^2\right), \qquad
              s_{id} = \frac{w_{id}}{\sum_j w_{jd}}

    from the moments :math:`m_i, b_i` of :func:`measure_images`, which is the weighted mean over all values, and the
    weighted mean of their squared distances from it. Weights of 0 and 1 measure the parts of a batch.

    Parameters
    ----------
    x
        Batch ``(N, C, ...)`` of P positions.
    weights
        ``(N, K)``, at least 0. Gradients reach them.

    Returns
    -------
    tuple of Tensor
        Means and variances ``(K, C)``, and the number of equally weighted values that would estimate as well,
        :math:`n_d = P\,(\sum_i w_{id})^2 / \sum_i w_{id}^2`: ``(K,)``. A domain without weight has mean, variance
        and n of 0.
    """
    mean, var = measure_images(x)
    weights = weights.to(mean.dtype)
    total = weights.sum(0)
    shares = weights / torch.where(total > 0, total, 1)  # (N, K)
    centre = shares.T @ mean  # (K, C)
    spread = var.unsqueeze(1) + (mean.unsqueeze(1) - centre).square()  # (N, K, C)
    squares = shares.square().sum(0)
    n = x[0, 0].numel() * torch.where(squares > 0, squares, math.inf).reciprocal()
    return centre, (shares.unsqueeze(2) * spread).sum(0), n


def scale_and_shift_images(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    r"""Return ``(x - mean) * scale + shift`` per channel, each image with its own vectors.

    Parameters
    ----------
    x
        Batch ``(N, C, ...)``.
    mean, scale, shift
        ``(N, C)``, in float32 or better.

    Returns
    -------
    Tensor
        The batch, in its own dtype; contiguous.
    """
    # One row of N · C channels is what the pass for parts takes.
    rows = x.reshape(1, mean.numel(), -1)
    return scale_and_shift(rows, [1], *(v.reshape(1, -1) for v in (mean, scale, shift))).view(x.shape)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def by_hand(x: Tensor) -> bool:
    """Whether derivatives are written by hand: on a CPU, unless a compiler, ``torch.func`` or forward mode looks in."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return x.device.type == "cpu" and forward_ad._current_level < 0


def few(x: Tensor) -> bool:
    """Whether a batch is so small that the number of operations is its cost: a batch of vectors, mostly."""
    return x.numel() < FEW and by_hand(x)


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 2 else vector


def _measure(x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    axes = [0, *range(2, x.dim())]
    moments = [torch.var_mean(part, axes, correction=0) for part in wide(x).split(sizes)]
    return torch.stack([mean for _, mean in moments]), torch.stack([var for var, _ in moments])


def _scale_and_shift(x: Tensor, sizes: list[int], mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # F.batch_norm gives no gradient to its mean: the value goes in as a constant, the gradient through the shift.
    centre = mean.detach()
    shift = shift - scale * (mean - centre)
    parts = [
        F.batch_norm(rows, c, torch.ones_like(c), a, b, False, 0.0, 0.0)
        for rows, c, a, b in zip(x.split(sizes), centre, scale, shift, strict=True)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _measure_few(x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The same for all parts at once, where they are of one size."""
    if min(sizes) != max(sizes):
        return _measure(x, sizes)
    parts = wide(x).reshape(len(sizes), sizes[0], x.shape[1], -1)
    mean = parts.mean((1, 3), keepdim=True)
    var = (parts - mean).square().mean((1, 3))
    return mean.view_as(var), var


def _scale_and_shift_few(x: Tensor, sizes: list[int], mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    if min(sizes) != max(sizes):
        parts = zip(x.split(sizes), *(v.split(1) for v in (mean, scale, shift)), strict=True)
        return torch.cat([_scale_and_shift_few(rows, [len(rows)], *vectors) for rows, *vectors in parts])
    rows = wide(x).reshape(len(sizes), sizes[0], x.shape[1], -1)
    m, a, b = (v.view(len(sizes), 1, -1, 1) for v in (mean, scale, shift))
    return torch.addcmul(b, rows - m, a).view(x.shape).to(x.dtype)


def _two_pass_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, centred before squaring, in blocks of rows that stay in the cache.

    Faster than the kernel of ``F.batch_norm`` on contiguous images, and accurate to float32's last digits when the mean
    is large and the variance small.
    """
    axes = [0, *range(2, x.dim())]
    n = x.numel() // x.shape[1]
    mean = x.sum(axes) / n
    centre = _per_channel(mean, x)
    if x.numel() <= BLOCK:
        return mean, (x - centre).square_().sum(axes) / n
    total = torch.zeros_like(mean)
    for rows in x.split(max(1, BLOCK // x[0].numel())):
        total += (rows - centre).square_().sum(axes)
    return mean, total / n


def differentiate(formula: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Any, ...]:
    """Differentiate the plain formula, so that the derivative can be differentiated again."""
    # Aliases: one input may be computed from another, and each must receive its own derivative only.
    inputs = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(formula(*inputs), inputs, grads, create_graph=True)


class _Measure(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        moments = [_two_pass_moments(part) for part in wide(x).split(sizes)]
        mean, var = torch.stack([mean for mean, _ in moments]), torch.stack([var for _, var in moments])
        ctx.save_for_backward(x, mean)
        ctx.sizes = sizes
        return x.view_as(x), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            (through,) = differentiate(lambda x: _measure(x, ctx.sizes), [x], [grad_mean, grad_var])
            return grad + through, None
        per_row = x.shape.numel() // (x.shape[0] * x.shape[1])
        n = mean.new_tensor([[size * per_row] for size in ctx.sizes])
        slope = grad_var * 2 / n
        if x.dtype != mean.dtype:
            return grad + _scale_and_shift(x, ctx.sizes, mean, slope, grad_mean / n), None
        shift = grad_mean / n - slope * mean
        for part, rows, *vectors in zip(grad.split(ctx.sizes), x.split(ctx.sizes), slope, shift, strict=True):
            # In place: the second pass made this gradient for us, and nobody else has seen it.
            a, b = (_per_channel(vector, x) for vector in vectors)
            part.addcmul_(rows, a).add_(b)
        return grad, None


class _ScaleAndShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, scale, shift)
        ctx.sizes = sizes
        y = torch.empty_like(x)
        one, unused = torch.ones_like(mean[0]), (mean.new_empty(0), mean.new_empty(0))
        for part, rows, m, a, b in zip(y.split(sizes), x.split(sizes), mean, scale, shift, strict=True):
            torch.native_batch_norm(rows, a, b, m, one, False, 0.0, 0.0, out=(part, *unused))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, shift = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = lambda x, *vectors: _scale_and_shift(x, ctx.sizes, *vectors)  # noqa: E731
            grad_x, *grads = differentiate(formula, [x, mean, scale, shift], [grad])
            return grad_x, None, *grads
        sizes, one, needed = ctx.sizes, torch.ones_like(mean[0]), ctx.needs_input_grad[0]
        zero, unused = torch.zeros_like(one), (one.new_empty(0), one.new_empty(0))
        grad_x, sums = torch.empty_like(x) if needed else x, []
        parts = zip(x.split(sizes), grad.split(sizes), grad_x.split(sizes), mean, scale, strict=True)
        for rows, g, out, m, a in parts:
            # BatchNorm's own reduction, Σ g (x - mean) and Σ g, without its gradient for x.
            sums += torch.ops.aten.native_batch_norm_backward(
                g, rows, one, None, None, m, one, True, 0.0, [False, True, True]
            )[1:]
            if needed and g.stride() == out.stride():
                # g times a: faster than a product with a vector per channel where images are small.
                torch.native_batch_norm(g, a, zero, zero, one, False, 0.0, 0.0, out=(out, *unused))
            elif needed:
                torch.mul(g, _per_channel(a, x), out=out)
        grad_scale, grad_shift = torch.stack(sums[::2]), torch.stack(sums[1::2])
        return grad_x if needed else None, None, -scale * grad_shift, grad_scale, grad_shift
