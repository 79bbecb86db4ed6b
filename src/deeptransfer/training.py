"""One training loop for all chapters, and the evaluation that goes with it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from deeptransfer.domains import Batch, Domain, DomainPair
from deeptransfer.normalization import use_domain

Probe = Callable[[nn.Module], float]


class Objective(Protocol):
    """What :func:`fit` needs of an objective; :mod:`deeptransfer.objectives` has them all."""

    def __call__(self, network: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named losses of one batch, already weighted: their sum is minimised."""

    def parameter_groups(self, network: nn.Module) -> list[dict]:
        """All that is trained, as an optimiser's groups; a group's ``lr_mult`` multiplies the learning rate."""


def default_device() -> torch.device:
    """``DEEPTRANSFER_DEVICE`` if it is set, else a CUDA device if there is one, else the CPU."""
    name = os.environ.get("DEEPTRANSFER_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch, keep float32 products exact (no TF32), and return a CPU generator with the seed."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that a notebook calls may read the global state
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.Generator().manual_seed(seed)


def progress_bar(steps: range, description: str) -> tqdm:
    """A progress bar over ``steps``; ``DEEPTRANSFER_PROGRESS=0`` hides it (stored notebooks, logs)."""
    return tqdm(steps, desc=description, disable=os.environ.get("DEEPTRANSFER_PROGRESS") == "0", leave=False)


def annealed(progress: float) -> float:
    """Learning-rate factor (1 + 10 p)^−0.75 of DANN's training, p the progress in [0, 1]."""
    return (1 + 10 * progress) ** -0.75


@dataclass
class History:
    """What happened in a run.

    Attributes
    ----------
    steps : list of dict
        For each step: ``step``, ``progress``, ``lr`` (of the optimizer's first group) and every loss term.
    probes : list of dict
        For each probed step: ``step`` (number of updates done) and the value of every probe.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    probes: list[dict[str, float]] = field(default_factory=list)

    @property
    def losses(self) -> pd.DataFrame:
        """The steps as a table, indexed by step."""
        return _table(self.steps)

    @property
    def curves(self) -> pd.DataFrame:
        """The probes as a table, indexed by the number of updates."""
        return _table(self.probes)


def _table(records: list[dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=None if records else ["step"]).set_index("step")


def sgd(groups: Iterable[dict], lr: float, momentum: float = 0.9, weight_decay: float = 5e-4) -> torch.optim.SGD:
    """SGD with Nesterov momentum over an objective's groups; a group's ``lr_mult`` multiplies its learning rate."""
    scaled = [{"lr": lr * group.get("lr_mult", 1.0), **group} for group in groups]
    return torch.optim.SGD(scaled, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0)


class _Batches(Dataset[Batch]):
    """The batches of a pair by their step: what a loader's processes prepare ahead."""

    def __init__(self, pair: DomainPair) -> None:
        self.pair = pair

    def __getitem__(self, step: int) -> Batch:
        return self.pair.batch(step)


class OutOfMemory(RuntimeError):
    """Memory ran out; the message says what needs less."""


@contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """Say what needs less, where torch only says that memory ran out; as a block or as a decorator."""
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error) or isinstance(error, OutOfMemory):
            raise
        raise OutOfMemory(f"out of memory {remedy} ({error})") from error


@out_of_memory("in a training step: give a smaller batch size or image size, or mixed precision")
def fit(
    network: nn.Module,
    pair: DomainPair,
    objective: Objective,
    steps: int,
    lr: float = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Callable[[float], float] = annealed,
    optimizer: torch.optim.Optimizer | None = None,
    probes: Mapping[str, Probe] | Callable[[nn.Module], Mapping[str, float]] | None = None,
    every: int | None = None,
    device: torch.device | str | None = None,
    start: int = 0,
    stop: int | None = None,
    workers: int = 0,
    after_step: Callable[[History], None] | None = None,
) -> History:
    """Train ``network`` on batches of ``pair`` so that the sum of ``objective``'s losses falls.

    Parameters
    ----------
    network : Module
        Moved to ``device``; batches and objective take its dtype, so a float64 network trains in float64.
    pair : DomainPair
        Where batches come from; step ``i`` takes ``pair.batch(i)``.
    objective : Objective
        ``objective(network, batch, progress)`` returns named losses; ``progress = step / steps`` in [0, 1) is the only
        clock that schedules (DANN's λ, say) may read.
    steps : int
        Number of updates of the whole run.
    lr, momentum, weight_decay : float
        Of :func:`sgd`. ``schedule(progress)`` multiplies ``lr``.
    optimizer : Optimizer, optional
        Used instead of SGD; its groups' own learning rates are scheduled.
    probes : dict of str to callable, or callable, optional
        ``probe(network) → float`` by name, called every ``every`` updates and after the last one; or one function that
        returns all of them.
    device : device, optional
        :func:`default_device` by default.
    start : int
        Step to resume at; network, objective and optimizer must be those of that step.
    stop : int, optional
        End after this many updates of the ``steps``; every schedule is that of the whole run.
    workers : int
        Processes that prepare the next batches; 0 prepares each when it is needed. The batches are the same.
    after_step : callable, optional
        Called with the history after each update and its probes (to save a checkpoint, say).

    Raises
    ------
    FloatingPointError
        If a loss is not finite: the message names step and term. The network keeps the weights it had before.
    ValueError
        If ``steps``, ``every`` or ``stop`` is not positive.
    OutOfMemory
        If a training step needs more memory than there is.
    """
    last = steps if stop is None else min(stop, steps)
    if last < 1 or (every is not None and every < 1):
        raise ValueError(f"steps, stop and every must be at least 1, not steps={steps}, stop={stop}, every={every}")
    device = default_device() if device is None else torch.device(device)
    network.to(device)
    dtype = next(network.parameters()).dtype
    if isinstance(objective, nn.Module):
        objective.to(device, dtype)
    if optimizer is None:
        optimizer = sgd(objective.parameter_groups(network), lr, momentum, weight_decay)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    history = History()
    todo = range(start, last)
    # A generator of its own: a loader draws from the global one, even when it does not shuffle.
    batches = DataLoader(
        _Batches(pair), batch_size=None, sampler=todo, num_workers=workers, generator=torch.Generator()
    )
    for step, batch in zip(progress_bar(todo, type(objective).__name__), batches, strict=True):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(progress)
        rate = optimizer.param_groups[0]["lr"]
        network.train()
        losses = objective(network, batch.to(device, dtype), progress)
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()  # one transfer for all terms
        for name, value in zip(losses, values, strict=True):
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"loss {name!r} is {value} at step {step}: lower lr={rate:.3g} or this term's weight, or look for "
                    "NaN in the images"
                )
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        record = {"step": step, "progress": progress, "lr": rate}
        history.steps.append(record | dict(zip(losses, values, strict=True)))
        done = step + 1
        if probes and (done == last or (every and done % every == 0)):
            found = probes(network) if callable(probes) else {name: float(p(network)) for name, p in probes.items()}
            history.probes.append({"step": done, **found})
        if after_step is not None:
            after_step(history)
    return history


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a network on a domain.

    Attributes
    ----------
    accuracy : float
        Part of the images that are classified correctly, in [0, 1].
    per_class : Tensor
        The same for each class, ``(classes,)``; NaN for a class without images.
    confusion : Tensor
        Counts ``(classes, classes)``, rows true, columns predicted.
    correct : Tensor
        For each image whether it was right, bool ``(n,)``: what a paired test needs.
    """

    accuracy: float
    per_class: Tensor
    confusion: Tensor
    correct: Tensor


SCORED_VALUES = 2**20 + 2**17  # values of the images that go through a network at once: 500 colour images of 28 × 28


@torch.no_grad()
@out_of_memory("when scoring: give a smaller batch_size (--score-batch on the command line) or image size")
def predict(
    network: nn.Module, domain: Domain, statistics: str = "target", batch_size: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``(n, D)``, logits ``(n, classes)`` and labels ``(n,)`` of a whole domain, in eval mode, on the CPU.

    Parameters
    ----------
    network : Module
        Returns an :class:`~deeptransfer.networks.Output`. The mode of every module is restored.
    domain : Domain
    statistics : str
        Names the domain whose running statistics normalise, ``"source"`` or ``"target"``: layers with statistics of
        one domain only don't mind.
    batch_size : int, optional
        Images that go through the network at once: by default 500 small ones, fewer of large ones.

    Raises
    ------
    ValueError
        If the domain has no image, or ``batch_size`` is not positive.
    OutOfMemory
        If so many images at once need more memory than there is.
    """
    if len(domain) == 0:
        raise ValueError(f"the domain {domain.name!r} has no image to predict")
    if batch_size is None:
        batch_size = max(1, min(500, SCORED_VALUES // domain[0][0].numel()))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    parameter = next(network.parameters())
    modes = {module: module.training for module in network.modules()}
    network.eval()
    features, logits, labels = [], [], []
    try:
        with use_domain(network, statistics):
            # A generator of its own: a loader draws from the global one, even when it does not shuffle.
            for x, y in DataLoader(domain, batch_size, generator=torch.Generator()):
                output = network(x.to(parameter.device, parameter.dtype))
                features.append(output.features.cpu())
                logits.append(output.logits.cpu())
                labels.append(y)
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.cat(features), torch.cat(logits), torch.cat(labels)


def evaluate(
    network: nn.Module, domain: Domain, statistics: str = "target", batch_size: int | None = None
) -> Evaluation:
    """Accuracy in [0, 1], per class, and the confusion matrix, on a whole domain in eval mode.

    Parameters
    ----------
    network : Module
        Returns an :class:`~deeptransfer.networks.Output`.
    domain : Domain
        Its labels are used: never for a choice, only for a report.
    statistics : {"target", "source"}
        Whose running statistics normalise.
    batch_size : int, optional
        As :func:`predict`'s.
    """
    _, logits, labels = predict(network, domain, statistics, batch_size)
    predicted = logits.argmax(1)
    classes = logits.shape[1]
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    correct = predicted == labels
    per_class = confusion.diagonal() / confusion.sum(1)
    return Evaluation(correct.double().mean().item(), per_class, confusion, correct)
