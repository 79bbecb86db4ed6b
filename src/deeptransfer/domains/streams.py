"""Streams: the order in which the images of a domain arrive at test time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ORDERS = ("random", "sorted", "correlated")


def stream_order(labels: Tensor, order: str = "random", seed: int = 0, concentration: float = 0.1) -> Tensor:
    r"""Put images in the order of a stream.

    Parameters
    ----------
    labels
        Integers ``(n,)`` from 0 on: the classes, or whatever else arrives together, such as the corruption.
    order
        ``"random"``: independent draws. ``"sorted"``: one class after another, random within a class.
        ``"correlated"``: the time is cut into as many slots as there are classes, and each class is spread over the
        slots by shares :math:`q \sim \mathrm{Dirichlet}(\delta, \dots, \delta)`; random within a slot.
    seed
        Of all that is random; the same on every machine.
    concentration
        δ > 0. A small one lets a class arrive in few slots, :math:`\delta \to \infty` is the random order.

    Returns
    -------
    Tensor
        A permutation of 0, …, n − 1, int64.

    Raises
    ------
    ValueError
        When the order is unknown, δ is not positive, or the labels are no integers ``(n,)`` from 0 on.

    References
    ----------
    T. Gong, J. Jeong, T. Kim, Y. Kim, J. Shin, S.-J. Lee. NOTE: Robust Continual Test-time Adaptation Against Temporal
    Correlation. NeurIPS 2022. (The correlated order.)
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if not 0 < concentration < float("inf"):
        raise ValueError(f"concentration must be positive and finite, got {concentration}")
    if labels.dim() != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool or (labels < 0).any():
        raise ValueError(f"labels must be integers (n,) from 0 on, got {labels.dtype} {tuple(labels.shape)}")
    generator, labels = torch.Generator().manual_seed(seed), labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    if order == "random" or not len(labels):
        return shuffled
    if order == "sorted":
        return shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels.unique().tolist()
    slot = torch.empty_like(shuffled)
    for c in classes:
        members = (labels[shuffled] == c).nonzero().flatten()
        weights = torch._standard_gamma(
            torch.full((len(classes),), concentration, dtype=torch.float64), generator=generator
        )
        ends = (weights / weights.sum().clamp(min=1e-300)).cumsum(0)[:-1] * len(members)
        slot[members] = torch.bucketize(torch.arange(len(members)) + 0.5, ends)
    return shuffled[slot.argsort(stable=True)]


def stream(
    labels: Tensor, batch_size: int, order: str = "random", seed: int = 0, concentration: float = 0.1
) -> Iterator[Tensor]:
    """Iterate over the places of each batch, int64 ``(m,)``; the last one may be shorter, and nothing is left out.

    Parameters
    ----------
    labels, order, seed, concentration
        As :func:`stream_order` takes them.
    batch_size
        1 or more; a stream shorter than that is one short batch.

    Returns
    -------
    iterator of Tensor

    Raises
    ------
    ValueError
        When the batch size is below 1, or as :func:`stream_order` says.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    whole = stream_order(labels, order, seed, concentration)
    return iter(whole.split(batch_size) if len(whole) else ())
