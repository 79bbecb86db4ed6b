"""Tell the domain layers of a network which rows of a batch belong to which domain."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import DOMAINS, DomainNorm


def forward_domains(model: nn.Module, xs: Tensor, xt: Tensor, **kwargs: Any) -> tuple[Any, Any]:
    r"""Pass source and target through a model together, and return its outputs apart.

    The two go as one batch, ``[xs; xt]``: a plain BatchNorm sees the pooled batch, a domain layer is told where the
    source ends. In evaluation each domain is normalised by its own running row.

    Parameters
    ----------
    model
        Any module, compiled or wrapped or not.
    xs, xt
        Source rows ``(n_s, ...)`` and target rows ``(n_t, ...)``; the numbers may differ.
    **kwargs
        Passed to the model.

    Returns
    -------
    tuple
        The output for the source and for the target. Tensors inside tuples, named tuples, lists, dicts and dataclasses
        are split along axis 0; other values are handed to both.

    Raises
    ------
    ValueError
        When a part is empty, the parts do not fit together, or an output tensor has no row per input row.

    Notes
    -----
    The layers know the split until this returns. What runs later, such as the recomputation of a gradient checkpoint
    in the backward pass, does not.
    """
    n_s, n_t = len(xs), len(xt)
    if n_s == 0 or n_t == 0:
        raise ValueError(
            f"got {n_s} source and {n_t} target rows: a batch of one domain is use_domain(model, 'source')"
        )
    if xs.shape[1:] != xt.shape[1:]:
        raise ValueError(f"source rows {tuple(xs.shape[1:])} and target rows {tuple(xt.shape[1:])} differ in shape")
    with _prediction_rows(model, rows=xs.new_empty(n_s, n_t, 0)):
        out = model(torch.cat([xs, xt]), **kwargs)
    return _part(out, slice(0, n_s), n_s + n_t), _part(out, slice(n_s, None), n_s + n_t)


@contextmanager
def use_domain(model: nn.Module, domain: str) -> Iterator[nn.Module]:
    r"""Name the domain of the batches that pass inside the ``with`` block, in training or evaluation.

    Parameters
    ----------
    model
        Any module.
    domain
        ``"source"`` or ``"target"``.

    Yields
    ------
    nn.Module
        The model.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain must be 'source' or 'target', got {domain!r}")
    with _prediction_rows(model, domain=domain):
        yield model


@contextmanager
def _prediction_rows(model: nn.Module, domain: str | None = None, rows: Tensor | None = None) -> Iterator[None]:
    layers = domain_layers(model)
    before = [(layer.domain, layer.rows) for layer in layers]
    for layer in layers:
        layer.domain, layer.rows = domain, rows
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer.domain, layer.rows = state


def domain_layers(model: nn.Module) -> list[DomainNorm]:
    """All domain layers of a model, each once."""
    return [module for module in model.modules() if isinstance(module, DomainNorm)]


def _part(value: Any, rows: slice, total: int) -> Any:
    """Cut the rows of one domain out of a nested output."""
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
