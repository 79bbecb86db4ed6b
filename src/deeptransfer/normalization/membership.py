"""Which rows of a batch belong to which domain, as one layer knows it.

While ``forward_domains`` or ``use_domain`` runs, the split stands in a context variable, under the layer's own key: no
other thread or task sees it, and no copy of the layer has that key.

A gradient checkpoint runs a part of the network a second time, in the backward pass, when that block is long over and
perhaps in another thread. So a layer keeps what it needs to repeat its latest passes, and knows each by what came in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .moments import Moments
from .names import rows_of_each

if TYPE_CHECKING:
    from .base import DomainNorm

# A row: the whole batch is of that domain. Or the number of rows of each domain, n_d, as the *shapes* (n_d, 0) of empty
# tensors: a compiled model treats a shape as a variable, but would compile again for every value of a number.
Split = int | tuple[Tensor, ...]

PASSES = 32  # that a layer remembers


class Pass(NamedTuple):
    """One forward pass of a layer, as far as a repetition needs it."""

    training: bool
    counts: list[int]  # rows of each domain
    absent: dict[int, Moments]  # the constants that stood for the domains without rows
    mark: Tensor  # what the layer received at one place, (C,)


class Membership:
    """The split of the batches that a layer receives, and its latest passes.

    ``fixed`` holds a split where a context variable cannot: in traced code, and in the replicas of ``DataParallel``,
    which run in other threads.
    """

    def __init__(self, fixed: Split | None = None) -> None:
        self.fixed = fixed
        self.passes: deque[Pass] = deque(maxlen=PASSES)

    def __reduce__(self) -> tuple[type[Membership], tuple[()]]:
        return Membership, ()  # a copy, or what is loaded, belongs to no block and has passed nothing

    def split(self) -> Split | None:
        """The split of the block that the layer runs in; None outside, and in a backward unless it began there."""
        return SPLITS.get().get((self, in_backward())) if self.fixed is None else self.fixed

    def keep(self, training: bool, x: Tensor, counts: list[int], absent: dict[int, Moments]) -> None:
        """Remember a pass, if a gradient checkpoint may repeat it."""
        if len(x) and _may_be_repeated():
            self.passes.append(Pass(training, counts, absent, _mark(x)))

    def repeated(self, layer: DomainNorm, x: Tensor) -> Pass | None:
        """The pass that this one, inside a backward, repeats; None for one of its own, in a block in the backward."""
        mark = _mark(x)
        passes = [
            p
            for p in self.passes
            if (p.training, sum(p.counts), p.mark.shape) == (layer.training, len(x), mark.shape)
            and torch.allclose(p.mark, mark, rtol=0, atol=0, equal_nan=True)
        ]
        name = type(layer).__name__
        if not passes and self.split() is not None:
            return None
        if not passes:
            raise ValueError(
                f"{name} runs inside a backward pass, on a batch that none of its latest {PASSES} passes received: did "
                "a gradient checkpoint repeat its forward with other numbers, or too late? A forward that is no "
                "repetition needs use_domain or forward_domains around it"
            )
        first, *others = passes
        for other in others:
            if other.counts != first.counts or (layer.mixes and not _equal(other.absent, first.absent)):
                raise ValueError(
                    f"a gradient checkpoint repeats a pass of {name}, but the same batch passed it with different "
                    f"statistics ({rows_of_each(layer.domains, first.counts)}; "
                    f"{rows_of_each(layer.domains, other.counts)}): call backward between the two"
                )
        return first


# By membership, and whether the block began inside a backward pass: others do not concern what runs there.
SPLITS: ContextVar[Mapping[tuple[Membership, bool], Split]] = ContextVar("splits", default={})  # noqa: B039 (never changed in place)


def in_backward() -> bool:
    """Whether autograd is at work in this thread: then a forward pass is the repetition of an earlier one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _may_be_repeated() -> bool:
    # A checkpoint runs its part without gradient (use_reentrant=True), or sees to what is saved (False).
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or torch.jit.is_tracing():
        return False
    if torch._C._are_functorch_transforms_active():  # their tensors do not outlive them
        return False
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _mark(x: Tensor) -> Tensor:
    for axis in range(x.dim() - 1, 1, -1):
        x = x.select(axis, x.shape[axis] // 2)
    return x[0].detach().clone()


def _equal(a: dict[int, Moments], b: dict[int, Moments]) -> bool:
    return all(torch.equal(a[row].mean, b[row].mean) and torch.equal(a[row].var, b[row].var) for row in a)
