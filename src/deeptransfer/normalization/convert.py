"""Put domain layers into a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import DomainNorm
from .split import domain_layers

_DIMS = ((nn.BatchNorm1d, (2, 3)), (nn.BatchNorm2d, (4,)), (nn.BatchNorm3d, (5,)))


def convert_norm(model: nn.Module, cls: type[DomainNorm], **kwargs: Any) -> nn.Module:
    r"""Replace every BatchNorm of a model by a domain layer, in place.

    Weights, running statistics (for all domains), eps, momentum, dtype, device, mode and ``requires_grad`` are kept;
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
    return [getattr(layer, name) for layer in domain_layers(module) for name in layer.gate_names]


def mixes_domains(module: nn.Module) -> bool:
    """Whether in some layer one domain's statistics act on the other, so that both must be passed together.

    True for AutoDIAL, TransNorm and Reciprocal Normalization; false for plain BatchNorm, DomainBatchNorm and whitening.
    """
    return any(layer.mixes for layer in domain_layers(module))
