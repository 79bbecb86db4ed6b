"""Put domain layers into a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .plain import kind, norm_layers, references, replace, replacing
from .split import domain_layers

# DistributedDataParallel and the two generations of FullyShardedDataParallel.
_WRAPPERS = ("torch.nn.parallel.distributed", "torch.distributed.fsdp", "torch.distributed._composable")


def convert_norm(model: nn.Module, cls: type[DomainNorm], **kwargs: Any) -> nn.Module:
    r"""Replace every BatchNorm of a model by a domain layer, in place.

    Weights, running statistics (for all domains), eps, momentum, dtype, device, mode, ``requires_grad`` and forward
    and backward hooks are kept; the parameters stay the same objects, so an optimiser that holds them stays valid
    (unless ``shared_affine=False`` doubles them). A module that occurs twice is converted once. The statistics a model
    comes with count as updated, even those of a fresh BatchNorm, so that evaluation goes on as before.

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
        When the model holds no BatchNorm, or one that cannot be converted; with the layer's path. The model is then
        unchanged.

    Notes
    -----
    Converted are the four classes of ``torch.nn``; torchvision's ``FrozenBatchNorm2d``, whose scale and shift stay
    constants while its statistics become the domains'; and timm's ``BatchNormAct2d``, ``SyncBatchNormAct`` and
    ``FrozenBatchNormAct2d``, whose dropout and activation follow the domain layer in a forward hook. The keys of the
    state stay, too: a scale or shift that a BatchNorm lacks is a constant outside the state.

    Refused are other subclasses of BatchNorm and other layers that keep running statistics (compiled to TorchScript,
    exported, quantised, lazy, within a layer of quantisation-aware training); a BatchNorm with
    ``track_running_stats=False``, one that is pruned, parametrised or given a ``forward`` or a state-dict hook of its
    own, one that a module keeps in a plain list, or by a method of it; and a model wrapped for several processes.
    Other normalisations, such as InstanceNorm, are left as they are.
    """
    for path, module in model.named_modules():
        if any(base.__module__.startswith(_WRAPPERS) for base in type(module).__mro__):
            raise ValueError(
                f"{path or 'the model'} is wrapped as {type(module).__name__}, which knows the old parameters and "
                "buffers: convert the model before it is wrapped"
            )
    layers = norm_layers(model)
    plain: dict[str, Any] = {path: layer for path, layer in layers.items() if not isinstance(layer, DomainNorm)}
    if not plain:
        raise ValueError(
            f"no BatchNorm to convert in {type(model).__name__}: is it converted already, or normalised otherwise?"
        )
    for owner, module, _ in references(model):
        if module in plain.values():
            raise ValueError(
                f"{owner} holds {type(module).__name__} a second time, outside the registered children, where it would "
                "not be replaced: keep it in nn.ModuleList or nn.ModuleDict"
            )
    new: dict[nn.Module, nn.Module] = {}
    doubled: dict[Tensor, nn.Parameter] = {}
    for path, layer in plain.items():
        with replacing(path, layer):
            new[layer] = _converted(layer, cls, kwargs, doubled)
    return replace(model, new)


def _converted(
    module: Any, cls: type[DomainNorm], kwargs: dict[str, Any], doubled: dict[Tensor, nn.Parameter]
) -> DomainNorm:
    """Build the domain layer; what layers share stays shared, also where ``shared_affine=False`` doubles it."""
    if module.running_mean is None or not getattr(module, "track_running_stats", True):
        raise ValueError("has track_running_stats=False: it keeps no statistics that a domain layer could start from")
    if isinstance(module, nn.SyncBatchNorm):
        if module.process_group not in (None, torch.distributed.GroupMember.WORLD):
            raise ValueError("synchronises over a subgroup, but domain layers do over all processes")
        kwargs = {"sync": True, **kwargs}
    dims = known.dims if (known := kind(module)) else ()
    twin = cls if dims == cls.dims else cls.twins.get(dims)
    if twin is None:
        raise ValueError(f"has no twin in the family of {cls.__name__}")
    layer = twin(
        len(module.running_mean),
        eps=module.eps,
        device=module.running_mean.device,
        dtype=module.running_mean.dtype,
        **({"momentum": module.momentum} if hasattr(module, "momentum") else {}),  # a frozen BatchNorm has none
        **kwargs,
    )
    state = module.state_dict()
    layer.fill_from(state)
    layer.load_state_dict(state, strict=False)
    for name in ("weight", "bias"):
        old, new = getattr(module, name), getattr(layer, name).detach()
        value = new if old is None else old.detach().expand_as(new).clone()
        if isinstance(old, nn.Parameter):
            if layer.shared_affine:
                doubled[old] = old
            elif old not in doubled:
                doubled[old] = nn.Parameter(value, old.requires_grad)
            setattr(layer, name, doubled[old])
        else:  # a constant: frozen, or, where the BatchNorm has none, 1 or 0, which its state does not hold either
            delattr(layer, name)
            layer.register_buffer(name, value, persistent=old is not None)
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
    gates = [getattr(layer, name) for layer in domain_layers(module) for name in layer.gate_names]
    return list(dict.fromkeys(gates))  # layers may share a gate, an optimiser takes it once


def mixes_domains(module: nn.Module) -> bool:
    """Whether in some layer one domain's statistics act on the other, so that both must be passed together.

    True for AutoDIAL, TransNorm and Reciprocal Normalization; false for plain BatchNorm, DomainBatchNorm and whitening.
    """
    return any(layer.mixes for layer in domain_layers(module))
