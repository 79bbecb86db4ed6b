"""Tell the domain layers of a network which rows of a batch belong to which domain."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .membership import SPLITS, Split, in_backward
from .names import DOMAINS, listed, rows_of_each


def forward_domains(
    model: nn.Module, *batches: Tensor, domain: Tensor | Sequence[int] | None = None, **kwargs: Any
) -> Any:
    r"""Pass the batches of several domains through a model together, and return its outputs apart.

    They go as one batch, ``[xs; xt]``: a plain BatchNorm sees the pooled batch, a domain layer is told where each
    domain ends. In evaluation each domain is normalised by its own running row.

    Rows that come interleaved go as ``forward_domains(model, x, domain=index)``: they are sorted by domain, pass, and
    their outputs return in the order of ``x``. Here a domain may be absent.

    Parameters
    ----------
    model
        Any module, compiled or wrapped or not.
    *batches
        The rows of each domain, ``(n_d, ...)``, in the order of the layers' ``domains``: source rows, target rows. The
        numbers may differ. With ``domain``, one batch ``(N, ...)``.
    domain
        The number of each row's domain, integers ``(N,)``.
    **kwargs
        Passed to the model as they are.

    Returns
    -------
    tuple or Any
        The output for each batch; with ``domain``, one output. Tensors inside tuples, named tuples, lists, dicts and
        dataclasses are split, or put back in order, along axis 0; other values are handed to all.

    Raises
    ------
    ValueError
        When a part is empty, the parts do not fit together, a layer has another number of domains, ``domain`` is not a
        number for each row, or an output tensor has no row per input row.

    Notes
    -----
    The layers know the split until this returns, and only in this thread or task; a copy made meanwhile does not. A
    gradient checkpoint inside the model (``torch.utils.checkpoint``, either kind) may be repeated later, in the
    backward pass: each layer then knows the pass that is repeated by its input, uses the split it had, and does not
    count the batch again. It remembers 32 passes. What it cannot tell is an error in the backward: an input that passed
    with two different splits, or one that is not repeated exactly. Only compiled code cannot look back: compile the
    model around its checkpoints, not a block inside one.
    """
    layers = domain_layers(model)
    if domain is not None:
        return _forward_index(model, layers, batches, domain, kwargs)
    counts = [len(batch) for batch in batches]
    for layer in layers:
        if len(layer.domains) != len(batches):
            raise ValueError(
                f"{type(layer).__name__} has the domains {listed(layer.domains)}, but got {len(batches)} batches: give "
                "one for each, or name the rows' domains with forward_domains(model, x, domain=index)"
            )
    names = layers[0].domains if layers else DOMAINS if len(batches) == 2 else tuple(map(str, range(len(batches))))
    if not batches:
        raise ValueError("got no batch: forward_domains(model, xs, xt)")
    if 0 in counts:
        way_out = (
            "a batch of one domain is use_domain(model, 'source')"
            if len(batches) == 2
            else "forward_domains(model, x, domain=index) takes a batch in which some are absent"
        )
        raise ValueError(f"got {rows_of_each(names, counts)}: {way_out}")
    for name, batch in zip(names[1:], batches[1:], strict=True):
        if batch.shape[1:] != batches[0].shape[1:]:
            raise ValueError(
                f"{names[0]} rows {tuple(batches[0].shape[1:])} and {name} rows {tuple(batch.shape[1:])} "
                "differ in shape"
            )
    split = tuple(batches[0].new_empty(count, 0) for count in counts)
    with _splits(dict.fromkeys(layers, split)):
        out = model(torch.cat(batches), **kwargs)
    ends = [sum(counts[: d + 1]) for d in range(len(counts))]
    return tuple(_part(out, slice(end - count, end), ends[-1]) for count, end in zip(counts, ends, strict=True))


def _forward_index(
    model: nn.Module, layers: list[DomainNorm], batches: tuple[Tensor, ...], domain: Any, kwargs: dict[str, Any]
) -> Any:
    index = torch.as_tensor(domain)
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    if len(batches) != 1 or not whole or index.shape != (len(batches[0]),):
        raise ValueError(
            f"domain needs one batch and an integer for each of its rows, got {len(batches)} batches of "
            f"{', '.join(str(len(batch)) for batch in batches)} rows and {tuple(index.shape)} of {index.dtype}"
        )
    (x,) = batches
    counts = torch.bincount(index.clamp(min=0)).tolist()
    if not len(x):
        raise ValueError("got a batch without rows")
    for layer in layers:
        if index.min() < 0 or len(counts) > len(layer.domains):
            raise ValueError(
                f"domain holds numbers from {index.min()} to {index.max()}, but {type(layer).__name__} has "
                f"{len(layer.domains)} domains, {listed(layer.domains)}: 0 to {len(layer.domains) - 1}"
            )
    order = index.to(x.device).argsort(stable=True)
    splits = {
        layer: tuple(x.new_empty(count, 0) for count in counts + [0] * (len(layer.domains) - len(counts)))
        for layer in layers
    }
    with _splits(splits):
        out = model(x[order], **kwargs)
    return _part(out, order.argsort(), len(x))


@contextmanager
def use_domain(model: nn.Module, domain: str | int) -> Iterator[nn.Module]:
    r"""Name the domain of the batches that pass inside the ``with`` block, in training or evaluation.

    Only this thread or task knows it: another goes on as before, and so does a copy of the model that is made inside.

    Parameters
    ----------
    model
        Any module.
    domain
        ``"source"`` or ``"target"``, or what the layers' ``domains`` name; or its number.

    Yields
    ------
    nn.Module
        The model.

    Raises
    ------
    ValueError
        When a layer does not know the domain.
    """
    with _splits(rows_named(model, domain)):
        yield model


def rows_named(model: nn.Module, domain: str | int) -> dict[DomainNorm, int]:
    """The row of a domain in each domain layer; a model without any knows every number, and the two usual names."""
    layers = domain_layers(model)
    if not layers and domain not in DOMAINS and not isinstance(domain, numbers.Integral):
        raise ValueError(f"domain must be {listed(DOMAINS)}, got {domain!r}")
    return {layer: layer.row(domain) for layer in layers}


def domain_layers(model: nn.Module) -> list[DomainNorm]:
    """All domain layers of a model, each once."""
    return [module for module in model.modules() if isinstance(module, DomainNorm)]


@contextmanager
def _splits(splits: Mapping[DomainNorm, Split]) -> Iterator[None]:
    """Let each layer know its split inside the block."""
    if torch.compiler.is_compiling():  # no context variable can be set in traced code
        before = [layer.membership.fixed for layer in splits]
        for layer, split in splits.items():
            layer.membership.fixed = split
        try:
            yield
        finally:
            for layer, fixed in zip(splits, before, strict=True):
                layer.membership.fixed = fixed
        return
    inside, outside = in_backward(), SPLITS.get()
    mine = {(layer.membership, inside): split for layer, split in splits.items()}
    SPLITS.set({**outside, **mine})
    try:
        yield
    finally:
        # Not simply what was there: blocks of other models may have begun meanwhile, in a generator, and go on.
        others = {key: split for key, split in SPLITS.get().items() if key not in mine}
        SPLITS.set(others | {key: outside[key] for key in mine if key in outside})


def _part(value: Any, rows: slice | Tensor, total: int) -> Any:
    """Take some rows out of a nested output."""
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != total:
            raise ValueError(
                f"an output of shape {tuple(value.shape)} has no row for each of the {total} input rows, so it cannot "
                "be split by domain: let the model return per-row tensors"
            )
        return value[rows]
    if isinstance(value, Mapping):
        part = copy.copy(value)
        for key in value:
            part[key] = _part(value[key], rows, total)  # type: ignore[index]
        return part
    if isinstance(value, tuple | list):
        parts = [_part(item, rows, total) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        part = copy.copy(value)  # type: ignore[arg-type]
        for field in dataclasses.fields(value):
            object.__setattr__(part, field.name, _part(getattr(value, field.name), rows, total))
        return part
    return value
