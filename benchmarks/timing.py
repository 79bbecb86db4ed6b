"""Side-by-side measurement: the candidates take turns, so a busy machine slows them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(
    candidates: Sequence[Callable[[], object]], rounds: int = 15, warm_up: int = 3, calls: int = 1
) -> list[float]:
    """Median time of one call of each candidate, in seconds; CUDA events where there is a GPU.

    A clock that is read for microseconds measures itself: then make several ``calls`` in a row.
    """
    for _ in range(warm_up):
        for candidate in candidates:
            candidate()
    times: list[list[float]] = [[] for _ in candidates]
    turns = list(zip(candidates, times, strict=True))
    for _ in range(rounds):
        for candidate, taken in turns:
            taken.append(_time(candidate, calls) / calls)
        turns.reverse()  # A B, B A: neither always finds the caches and the allocator as the other left them
    return [statistics.median(taken) for taken in times]


def _time(candidate: Callable[[], object], calls: int) -> float:
    if device().type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            candidate()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    for _ in range(calls):
        candidate()
    return time.perf_counter() - begin


def peak_bytes(candidate: Callable[[], object]) -> int:
    """Most memory that tensors made during one call hold at the same time."""
    if device().type == "cuda":
        candidate()  # workspaces of cuBLAS are made once and are not ours
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        candidate()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Live() as live:
        candidate()
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the storages that operations return and that are still referenced, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:  # a view is not an allocation
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result
