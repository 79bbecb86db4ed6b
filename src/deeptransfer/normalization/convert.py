"""Put domain layers into a network, and tell them which rows belong to which domain."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import DOMAINS, DomainNorm

_DIMS = ((nn.BatchNorm1d, (2, 3)), (nn.BatchNorm2d, (4,)), (nn.BatchNorm3d, (5,)))


def convert_norm(model: nn.Module, cls: type[DomainNorm], **kwargs: Any) -> nn.Module:
    r"""Replace every BatchNorm of a model by a domain layer, in place.

    Weights, running statistics (for both domains), eps, momentum, dtype, device, mode and ``requires_grad`` are kept;
    the parameters stay the same objects, so an optimiser that holds them stays valid (unless ``shared_affine=False``
    doubles them). A module that occurs twice is converted once. The statistics a model comes with count as updated,
    even those of a fresh BatchNorm, so that evaluation goes on as before.

    Parameters
    ----------
    model
        Any module; a BatchNorm itself cannot be replaced in place, so use what is returned.
    cls
        Any member of a family: ``TransNorm2d`` stands for its 1-D and 3-D twins, too. A ``SyncBatchNorm``, which admits
        every shape, becomes the family's class without a number, with ``sync=True``.
    **kwargs
        Passed to the layer's constructor.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    ValueError
        When the model holds no BatchNorm, or one that keeps no running statistics.
    """
    done: dict[nn.Module, DomainNorm] = {}

    def convert(module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return module
        if module not in done:
            done[module] = _converted(module, cls, kwargs)
        return done[module]

    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = convert(child)
    model = convert(model)
    if not done:
        raise ValueError(
            f"no BatchNorm to convert in {type(model).__name__}: is it converted already, or normalised otherwise?"
        )
    return model


def _converted(module: nn.modules.batchnorm._BatchNorm, cls: type[DomainNorm], kwargs: dict[str, Any]) -> DomainNorm:
    if isinstance(module.running_mean, nn.UninitializedBuffer):
        raise ValueError("a lazy BatchNorm has no channels yet: pass one batch through the model before convert_norm")
    if module.running_mean is None:
        raise ValueError(
            "a BatchNorm with track_running_stats=False keeps no statistics that a domain layer could start from: "
            "build the model with track_running_stats=True"
        )
    dims = next((dims for kind, dims in _DIMS if isinstance(module, kind)), ())
    if isinstance(module, nn.SyncBatchNorm):
        if module.process_group not in (None, torch.distributed.GroupMember.WORLD):
            raise ValueError(
                "a SyncBatchNorm over a subgroup cannot be converted: domain layers synchronise over all processes"
            )
        kwargs = {"sync": True, **kwargs}
    kind = cls if dims == cls.dims else cls.twins.get(dims)
    if kind is None:
        raise ValueError(f"{cls.__name__} has no twin for {type(module).__name__}")
    layer = kind(
        module.num_features,
        eps=module.eps,
        momentum=module.momentum,
        device=module.running_mean.device,
        dtype=module.running_mean.dtype,
        **kwargs,
    )
    state = module.state_dict()
    layer.fill_from(state)
    layer.load_state_dict(
        state, strict=False
    )  # a BatchNorm with affine=False brings no weight and bias: 1 and 0, frozen
    for name in ("weight", "bias"):
        old = getattr(module, name)
        if old is not None and layer.shared_affine:
            setattr(layer, name, old)
        else:
            getattr(layer, name).requires_grad_(old is not None and old.requires_grad)
    return layer.train(module.training)


def gate_parameters(module: nn.Module) -> list[nn.Parameter]:
    r"""List the gates of all domain layers: proportions in ``[½, 1]``, which get no weight decay.

    Parameters
    ----------
    module
        A network.

    Returns
    -------
    list of nn.Parameter
        AutoDIAL's ``alpha`` and Reciprocal Normalization's four gates, layer by layer.
    """
    return [getattr(layer, name) for layer in _domain_layers(module) for name in layer.gate_names]


def mixes_domains(module: nn.Module) -> bool:
    """Whether in some layer one domain's statistics act on the other, so that both must be passed together.

    True for AutoDIAL, TransNorm and Reciprocal Normalization; false for plain BatchNorm, DomainBatchNorm and whitening.
    """
    template = (DomainNorm.mix, DomainNorm.gain)
    return any((type(layer).mix, type(layer).gain) != template for layer in _domain_layers(module))


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
    layers = _domain_layers(model)
    before = [(layer.domain, layer.rows) for layer in layers]
    for layer in layers:
        layer.domain, layer.rows = domain, rows
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer.domain, layer.rows = state


def _domain_layers(model: nn.Module) -> list[DomainNorm]:
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
