"""One run in several processes, as ``torchrun -m deeptransfer run …`` starts them.

Each process reads its own part of every batch; gradients are averaged. Network and discriminators are wrapped as one
module (:class:`~deeptransfer.objectives.LossModule`), or the discriminators would drift apart. Domain normalisation
layers made with ``sync=True`` join the rows of all processes; discrepancies and entropy weights stay per process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deeptransfer.objectives import LossModule, Objective

if TYPE_CHECKING:
    from deeptransfer.domains import Batch


def place() -> tuple[int, int]:
    """Rank of this process and number of processes, ``(0, 1)`` if it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """The group that ``torchrun`` asks for in the environment, if it does; gives :func:`place`.

    NCCL with a GPU for each process, gloo without GPUs. A process that fails ends the others: none waits for it.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield (0, 1)
        return
    if torch.cuda.is_available() and os.environ.get("DEEPTRANSFER_DEVICE", "cuda").startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield place()
    finally:
        dist.destroy_process_group()


class Distributed(nn.Module):
    """An objective whose gradients are averaged over all processes; everything else as the objective's own.

    The losses it returns have the value of the mean over processes: all of them see the same numbers, and all of them
    stop when one of them is not finite.

    Parameters
    ----------
    network : Module
        The network to train; it is the one that :meth:`forward` means, whatever it is given.
    objective : deeptransfer.objectives.Objective
        What is minimised.
    device : device
        Of the network.
    """

    def __init__(self, network: nn.Module, objective: Objective, device: torch.device) -> None:
        super().__init__()
        module = LossModule(network.to(device), objective.to(device, next(network.parameters()).dtype))
        # A normalisation's parameters of the other domain, or a frozen block, may get no gradient.
        self.wrapped = DistributedDataParallel(module, find_unused_parameters=True)

    def forward(self, network: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Losses by name, with the mean's value and this process's gradient."""
        losses = self.wrapped(batch, progress)
        mean = torch.stack([loss.detach() for loss in losses.values()])
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
        return {name: loss - loss.detach() + value for (name, loss), value in zip(losses.items(), mean, strict=True)}

    def parameter_groups(self, network: nn.Module) -> list[dict]:
        """The objective's own groups."""
        return self.wrapped.module.objective.parameter_groups(network)
