"""Which normalisation layers of a network are understood, and which are refused by name: one answer for every user.

A plain BatchNorm is one of ``torch.nn``'s own classes, torchvision's ``FrozenBatchNorm2d``, or a layer of timm that is
one of these followed by a dropout and an activation of its own. Any other class may compute something else in its
``forward``, which would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from .base import DomainNorm

Norm = _BatchNorm | DomainNorm


class Kind(NamedTuple):
    """What a class of plain BatchNorm is."""

    dims: tuple[int, ...]  # admissible x.dim(); empty: any
    acts: bool = False  # its forward goes on with its children `drop` and `act`


# By name, because timm need not be installed.
_KINDS = {
    "torch.nn.modules.batchnorm.BatchNorm1d": Kind((2, 3)),
    "torch.nn.modules.batchnorm.BatchNorm2d": Kind((4,)),
    "torch.nn.modules.batchnorm.BatchNorm3d": Kind((5,)),
    "torch.nn.modules.batchnorm.SyncBatchNorm": Kind(()),
    "torchvision.ops.misc.FrozenBatchNorm2d": Kind((4,)),
    "timm.layers.norm_act.BatchNormAct2d": Kind((4,), acts=True),
    "timm.layers.norm_act.SyncBatchNormAct": Kind((), acts=True),
    "timm.layers.norm_act.FrozenBatchNormAct2d": Kind((4,), acts=True),
}
# These read the statistics of the BatchNorm that they hold, and fold them into the convolution.
_FOLDING = "torch.ao.nn.intrinsic.qat."
_PACKAGE = __name__.rpartition(".")[0]
_ATTRIBUTES = vars(nn.Module()).keys()  # children, tensors and hooks of any module
_STATE = ("weight", "bias", "running_mean", "running_var")
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def norm_layers(model: nn.Module) -> dict[str, Norm]:
    """Return the plain BatchNorm and the domain layers of a model, each once, by their paths.

    Raises
    ------
    ValueError
        When the model holds another layer with running statistics, or one whose parts are not where they belong; with
        its path and class. InstanceNorm normalises every image by itself and is none of them.
    """
    found: dict[str, Norm] = {}
    for path, module in model.named_modules():
        refuse(path, module)
        if _normalises(module):
            found[path] = module
    refuse_hidden(model)
    return found


def refuse(path: str, module: nn.Module) -> None:
    """Raise the ValueError of :func:`norm_layers` if this module calls for it."""
    reason = _reason(module)
    if reason:
        raise ValueError(f"{_name(path, module)} {reason}")


def refuse_hidden(model: nn.Module) -> None:
    """Raise a ValueError if the model reaches a normalisation past its registered children."""
    registered = set(model.modules())
    for owner, module, bound in references(model):
        parts = set(module.modules())
        if bound and _normalises(module):
            raise ValueError(f"{owner} calls a method of {type(module).__name__}, past whatever takes its place")
        if model not in parts and any(_normalises(part) for part in parts - registered):
            raise ValueError(
                f"{owner} holds {type(module).__name__}, a normalisation that is no registered child, so that neither "
                "model.modules() nor a checkpoint knows it: keep it in nn.ModuleList or nn.ModuleDict"
            )


def kind(module: nn.Module) -> Kind | None:
    """Return what is known about a plain BatchNorm; None for any other module, a subclass of one included."""
    return _KINDS.get(_qualified(type(module)))


def check_input(layer: nn.Module, x: Tensor) -> None:
    """Refuse a batch whose number of axes a plain BatchNorm would refuse."""
    known = kind(layer)
    if known and (x.dim() < 2 or (known.dims and x.dim() not in known.dims)):
        allowed = " or ".join(f"{d}-D" for d in known.dims) or "at least 2-D"
        raise ValueError(f"{type(layer).__name__} expects {allowed} input (N, C, ...), got shape {tuple(x.shape)}")


def references(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Find what a model's modules hold outside their registered children: ``("encoder.norms", layer, False)``.

    The flag says that not the layer is held but a method of it.
    """
    for path, module in model.named_modules():
        for name in vars(module).keys() - _ATTRIBUTES:
            if not isinstance(value := vars(module)[name], int | float | str | Tensor):
                for held, bound in _held(value, set()):
                    yield ".".join(filter(None, (path, name))), held, bound


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put layers in the place of others, wherever these are registered; return the model, or what replaces it."""
    for old, layer in new.items():
        _take_over(layer, old)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


@contextmanager
def replacing(path: str, old: nn.Module) -> Iterator[None]:
    """Name the layer in the errors of the ``with`` block that builds its replacement."""
    try:
        hooks = [name.strip("_") for name in _STATE_HOOKS if vars(old)[name]]
        if hooks:
            raise ValueError(f"has {hooks[0]}, and the layer in its place has a state of another shape: remove them")
        if "forward" in vars(old):
            raise ValueError("is inside prediction_time: leave the with block first")
        yield
    except ValueError as error:
        raise ValueError(f"{_name(path, old)} {error}") from error


def drop_and_act(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    """Apply what follows the BatchNorm in one layer of timm; a forward hook of what replaces it."""
    return layer.act(layer.drop(y))


def _take_over(layer: nn.Module, old: nn.Module) -> None:
    """Give a layer the children and the hooks of the one that it replaces."""
    for name in _HOOKS:
        vars(layer)[name] = vars(old)[name]  # the same dict, so that the hooks' handles still remove them
    layer._modules.update(old._modules)
    known = kind(old)
    if known and known.acts:
        layer.register_forward_hook(drop_and_act, prepend=True)  # other hooks see the activation, as before


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, LazyModuleMixin) and isinstance(module, _BatchNorm):
        return "has no channels yet: pass one batch through the model first"
    known = kind(module)
    if _normalises(module):
        for name in _STATE:
            if name not in module._parameters and name not in module._buffers:
                return (
                    f"computes its {name} (parametrised, pruned, or with weight or spectral norm): make it a plain "
                    "parameter first, with torch.nn.utils.parametrize.remove_parametrizations or prune.remove"
                )
        forward = vars(module).get("forward")
        # An outer prediction_time block puts a partial of this package there.
        if forward is not None and not getattr(getattr(forward, "func", None), "__module__", "").startswith(_PACKAGE):
            return "has a forward of its own, set on the instance: it would be lost"
    if isinstance(module, DomainNorm):
        return None
    if known:
        acts = known.acts or drop_and_act in module._forward_hooks.values()
        others = module._modules.keys() ^ ({"drop", "act"} if acts else set())
        return f"has, or lacks, the part {min(others)!r}: it is no layer known here" if others else None
    if isinstance(module, _BatchNorm):
        base = next(c.__name__ for c in type(module).__mro__ if _qualified(c) in _KINDS or c is _BatchNorm)
        return (
            f"is a subclass of {base}, whose own forward would be lost: build the model with {base}, or pass the parts "
            "of the model that hold no such layer"
        )
    if _qualified(type(module)).startswith(_FOLDING) and "bn" in module._modules:
        return "folds the BatchNorm that it holds into a convolution: do this before the quantisation is prepared"
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    if {"running_mean", "running_var"} <= buffers and not isinstance(module, _InstanceNorm):
        return (
            "keeps running statistics, but is no BatchNorm known here (compiled to TorchScript, exported, or another "
            "library's): build the model with torch.nn.BatchNorm, or pass the parts that hold no such layer"
        )
    return None


def _normalises(module: nn.Module) -> bool:
    return isinstance(module, DomainNorm | _BatchNorm) or kind(module) is not None


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _name(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"


def _held(value: object, seen: set[int]) -> Iterator[tuple[nn.Module, bool]]:
    if isinstance(value, nn.Module):
        yield value, False
    elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        yield value.__self__, True
    elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
        seen.add(id(value))  # a list may hold itself
        for item in value.values() if isinstance(value, dict) else value:
            if not isinstance(item, int | float | str | Tensor):
                yield from _held(item, seen)
