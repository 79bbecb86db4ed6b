r"""Smaller networks: cut channels by the scales of BatchNorm or the size of filters, and mend the statistics.

Everything here is for a chain: an ``nn.Sequential``, nested or not, or a :class:`~deeptransfer.networks.Network`. A
choice of channels is a dict from the path of a BatchNorm to a bool tensor ``(C,)``, True where a channel stays; a
BatchNorm that is not named keeps all. :func:`prune_channels` then builds the network that is really smaller.

A channel with γ = 0 is not silent: it emits its shift β, through the activation, everywhere. To leave it out moves what
the next layer receives. There are three cures:

1. none: ``fold=False``, and fine-tune;
2. fold: ``fold=True`` takes the constant out of the next layer's running mean, or adds it to its bias;
3. measure: :func:`~deeptransfer.normalization.adapt_statistics` on the smaller network. Only this one sees that a
   channel whose γ was small, not 0, took variance along. It scores a network before fine-tuning, too (EagleEye).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeptransfer.networks import Network, Standardize
from deeptransfer.normalization.adabn import evaluation_mode

__all__ = [
    "mask_channels",
    "multiply_adds",
    "prune_channels",
    "random_channels",
    "slimmest_channels",
    "sparsify_",
]

Channels = dict[str, Tensor]
NormLayer = nn.BatchNorm1d | nn.BatchNorm2d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POINTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid,
    nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
# Of a constant channel these give the same constant; but for what pooling pads with zeros.
KEEP_A_CONSTANT = (
    nn.Flatten, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Upsample, Standardize,
)  # fmt: skip


def sparsify_(model: nn.Module, strength: float) -> None:
    r"""Add the subgradient of an L1 penalty on every BatchNorm's scale to its gradient: call it after ``backward()``.

    .. math:: \partial_\gamma \Big( L + s \sum |\gamma| \Big) = \partial_\gamma L + s \operatorname{sign}(\gamma)

    Parameters
    ----------
    model
        With BatchNorm layers whose scale trains.
    strength
        s ≥ 0; 10⁻⁴ in the paper's long runs.

    Raises
    ------
    ValueError
        If s is negative, there is no such layer, or one has no gradient yet.

    References
    ----------
    Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang. Learning Efficient Convolutional Networks through Network
    Slimming. ICCV 2017.
    """
    if not strength >= 0:
        raise ValueError(f"strength must be 0 or more, got {strength}")
    norms = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None and module.weight.requires_grad
    }
    if not norms:
        raise ValueError(f"{type(model).__name__} has no BatchNorm whose scale trains")
    for path, norm in norms.items():
        if norm.weight.grad is None:
            raise ValueError(f"the scale of {path or 'the model'} has no gradient: call this after backward()")
        norm.weight.grad.add_(norm.weight.detach().sign(), alpha=strength)


# ------------------------------------------------------------------------------------------------- which channels stay


def slimmest_channels(model: nn.Module, share: float, least: float = 0.1) -> Channels:
    r"""Drop the given share of all channels of a network: the smallest scales :math:`|\gamma|`, whatever their layer.

    Parameters
    ----------
    model
        A chain, trained with :func:`sparsify_`: without it the layers' scales do not compare, and the first layers
        vanish.
    share
        Of all channels in front of which there is a layer to cut, in [0, 1); rounded down.
    least
        The share of its channels that every layer keeps whatever its scales, and never less than one. So fewer channels
        may go than asked for.

    Raises
    ------
    ValueError
        If the network is no chain with BatchNorm, or a share is out of range.
    """
    if not 0 <= share < 1 or not 0 <= least <= 1:
        raise ValueError(f"share must lie in [0, 1) and least in [0, 1], got {share} and {least}")
    scales = {path: stage.norm.weight.detach().abs().cpu() for path, stage in _prunable(model).items()}  # type: ignore
    order = torch.cat(list(scales.values())).argsort(stable=True)
    keep = torch.ones(len(order), dtype=torch.bool)
    keep[order[: int(len(order) * share)]] = False
    parts = keep.split([len(scale) for scale in scales.values()])
    chosen = {}
    for (path, scale), part in zip(scales.items(), parts, strict=True):
        part = part.clone()
        part[scale.argsort(descending=True, stable=True)[: max(1, math.ceil(least * len(scale)))]] = True
        chosen[path] = part
    return chosen


def random_channels(model: nn.Module, lowest: float, highest: float, seed: int) -> Channels:
    r"""Drop a random share of each layer's channels: those whose filters have the smallest L1 norm (EagleEye).

    A candidate among many. Score each by :func:`prune_channels`, then
    :func:`~deeptransfer.normalization.adapt_statistics`, then accuracy on images kept back; fine-tune the best.

    Parameters
    ----------
    model
        A chain.
    lowest, highest
        Between which the share that a layer loses is drawn, evenly, 0 ≤ lowest ≤ highest < 1.
    seed
        Of the shares.

    Raises
    ------
    ValueError
        If the network is no chain with BatchNorm, or a share is out of range.

    References
    ----------
    B. Li, B. Wu, J. Su, G. Wang. EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning. ECCV 2020.
    """
    if not 0 <= lowest <= highest < 1:
        raise ValueError(f"shares must be 0 ≤ lowest ≤ highest < 1, got {lowest} and {highest}")
    draw = torch.Generator().manual_seed(seed)
    chosen = {}
    for path, stage in _prunable(model).items():
        norms = stage.layer.weight.detach().flatten(1).abs().sum(1).cpu()  # the choice is made there
        rate = lowest + (highest - lowest) * torch.rand((), generator=draw).item()
        keep = torch.ones(len(norms), dtype=torch.bool)
        keep[norms.argsort(stable=True)[: min(int(rate * len(norms)), len(norms) - 1)]] = False
        chosen[path] = keep
    return chosen


# ------------------------------------------------------------------------------------------------------ leave them out


def mask_channels(model: nn.Module, keep: Mapping[str, Tensor], shift: bool = True) -> nn.Module:
    """Set the scale of dropped channels to 0, and their shift, too: a copy of the same size.

    Parameters
    ----------
    model
        Any module with BatchNorm.
    keep
        Which channels stay.
    shift
        Whether β becomes 0 as well, as released code does. Otherwise a dropped channel emits β, and the copy computes
        what :func:`prune_channels` with ``fold=True`` does.

    Raises
    ------
    ValueError
        If a path or a mask does not fit.
    """
    model = copy.deepcopy(model)
    norms = {path: module for path, module in model.named_modules() if isinstance(module, NORMS)}
    for path, mask in _checked(keep, norms).items():
        norm = norms[path]
        if norm.weight is None:
            raise ValueError(f"{path} has no scale to set to 0")
        with torch.no_grad():
            norm.weight[~mask] = 0
            if shift:
                norm.bias[~mask] = 0
    return model


def prune_channels(model: nn.Module, keep: Mapping[str, Tensor], fold: bool = True) -> nn.Module:
    r"""Build the network without the dropped channels: a copy that is really smaller.

    With ``fold`` the constant that a dropped channel emits, its shift after the activation, is taken into the next
    layer,

    .. math:: \mu'_o = \mu_o - \sum_{k\ \text{dropped}} a(\beta_k) \sum_{ij} W_{okij}

    its running mean, or where no BatchNorm follows into its bias with the other sign. In evaluation that equals
    ``mask_channels(model, keep, shift=False)``: exactly for linear layers and for convolutions without padding; padding
    with zeros is not that constant, and an image's border differs.

    Parameters
    ----------
    model
        A chain.
    keep
        Which channels stay, by the path of the BatchNorm behind the convolution or linear layer that makes them.
    fold
        Whether to fold, or to leave the constant out.

    Returns
    -------
    nn.Module
        In the mode of ``model``, with its weights and statistics.

    Raises
    ------
    ValueError
        If the network is no chain, or holds a layer that is not understood, with its path; if a path or a mask does not
        fit, or a mask keeps no channel.
    """
    stages = _stages(model)
    keep = _checked(keep, {stage.norm_path: stage.norm for stage in stages if stage.norm is not None})
    if stages[-1].norm_path in keep:
        raise ValueError(f"the channels of {stages[-1].norm_path} are the network's output, and all of them stay")
    new: dict[str, nn.Module] = {}
    alive: Tensor | None = None  # which of the channels that come in stay; None: all
    constant = torch.empty(0)  # what each of them emits once its scale is 0
    with torch.no_grad():
        for stage in stages:
            mask = keep.get(stage.norm_path)
            layer = new[stage.path] = _cut(stage.layer, alive, mask)
            lost = _lost(stage.layer, alive, constant, mask) if fold and alive is not None else None
            if stage.norm is not None:
                norm = new[stage.norm_path] = _cut_norm(stage.norm, mask)
                if lost is not None and norm.running_mean is not None:  # a batch's own mean has lost it already
                    norm.running_mean.sub_(lost)
            elif lost is not None:
                layer.bias = nn.Parameter(lost if layer.bias is None else layer.bias + lost)
            alive = mask
            if mask is None:
                continue
            bias = stage.norm.bias if stage.norm is not None else None
            constant = stage.layer.weight.new_zeros(len(mask)) if bias is None else bias.detach().clone()
            for path, module in stage.after:
                if isinstance(module, NORMS):
                    new[path] = _cut_norm(module, mask)
                if isinstance(module, NORMS + POINTWISE):
                    # As one row: a BatchNorm of images and one of vectors compute the same.
                    evaluated = copy.deepcopy(module).eval()
                    row = constant.view(1, -1, 1, 1) if isinstance(module, nn.BatchNorm2d) else constant.view(1, -1)
                    constant = evaluated(row).flatten()
    model = copy.deepcopy(model)
    for path, module in new.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)
    return model


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    r"""Multiplications of a network's convolutions and linear layers for one image.

    .. math:: \sum_{\text{conv}} H' W'\, C_{out}\, \frac{C_{in}}{g}\, k_h k_w + \sum_{\text{linear}} C_{out} C_{in}

    Parameters
    ----------
    model
        Any module; it runs once, in evaluation.
    x
        Images ``(n, ...)`` of the size in question; the first is used.

    Raises
    ------
    ValueError
        If there is no image.
    """
    if not len(x):
        raise ValueError("one image is needed to know the sizes of the layers' outputs")
    total = 0

    def count(module: nn.Module, _: object, y: Tensor) -> None:
        nonlocal total
        total += y[0].numel() * module.weight[0].numel()  # type: ignore[index]

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return total


# ------------------------------------------------------------------------------------------------------------- a chain


class Stage(NamedTuple):
    """A layer with weights and what follows it, up to the next one."""

    path: str
    layer: nn.Conv2d | nn.Linear
    norm_path: str  # of the BatchNorm that follows directly; "" without one
    norm: NormLayer | None
    after: list[tuple[str, nn.Module]]


def _chain(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The leaves in the order in which they are applied."""
    if isinstance(model, nn.Sequential | Network):
        # Of a Network: standardize, features, classifier. named_children() would leave out what occurs again.
        for name, child in model._modules.items():
            if child is not None:
                yield from _chain(child, f"{path}.{name}" if path else name)
        return
    plain = type(model) in (nn.Conv2d, nn.Linear, *NORMS, *POINTWISE, *KEEP_A_CONSTANT)
    if not plain or not path:  # a parametrised layer has a class of its own
        raise ValueError(
            f"{path or 'the model'} ({type(model).__name__}) is not understood: pruning follows a chain of Conv2d, "
            "Linear, BatchNorm, activations and pooling (a domain layer becomes BatchNorm by to_batchnorm)"
        )
    if isinstance(model, nn.Conv2d) and model.groups > 1:
        raise ValueError(f"{path} has {model.groups} groups: channels of a grouped convolution can't be cut one by one")
    yield path, model


def _stages(model: nn.Module) -> list[Stage]:
    stages: list[Stage] = []
    seen: set[nn.Module] = set()
    for path, module in _chain(model):
        if module in seen and any(True for _ in module.parameters()):
            raise ValueError(f"{path} occurs twice in the chain, and can't be cut in two ways")
        seen.add(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            stages.append(Stage(path, module, "", None, []))
        elif stages:
            last = stages[-1]
            if isinstance(module, NORMS) and last.norm is None and not last.after:
                stages[-1] = last._replace(norm_path=path, norm=module)
            else:
                last.after.append((path, module))
    if not stages:
        raise ValueError(f"{type(model).__name__} has no convolution and no linear layer")
    return stages


def _prunable(model: nn.Module) -> dict[str, Stage]:
    """The stages whose channels may go: with a BatchNorm that has a scale, and a layer after them."""
    able = {stage.norm_path: stage for stage in _stages(model)[:-1] if stage.norm is not None}
    able = {path: stage for path, stage in able.items() if stage.norm is not None and stage.norm.weight is not None}
    if not able:
        raise ValueError(f"{type(model).__name__} has no BatchNorm with a scale between two layers: nothing to cut")
    return able


def _checked(keep: Mapping[str, Tensor], norms: Mapping[str, NormLayer]) -> Channels:
    checked = {}
    for path, mask in keep.items():
        norm = norms.get(path)
        if norm is None:
            raise ValueError(f"there is no BatchNorm {path!r} whose channels can be cut: there are {', '.join(norms)}")
        if mask.dtype != torch.bool or mask.shape != (norm.num_features,):
            raise ValueError(
                f"the mask of {path} must be a bool tensor ({norm.num_features},), got {mask.dtype} {tuple(mask.shape)}"
            )
        if not mask.any():
            raise ValueError(f"the mask of {path} keeps no channel, and nothing would pass: keep one at least")
        checked[path] = mask.to(next(iter([*norm.parameters(), *norm.buffers()]), mask).device)
    return checked


def _columns(layer: nn.Conv2d | nn.Linear, alive: Tensor) -> Tensor:
    """Which inputs of a layer stay: behind a Flatten there are several for a channel."""
    inputs = layer.weight.shape[1]
    if inputs % len(alive):
        raise ValueError(f"a layer reads {inputs} inputs of {len(alive)} channels, which is no whole number for each")
    return alive.repeat_interleave(inputs // len(alive))


def _cut(layer: nn.Conv2d | nn.Linear, alive: Tensor | None, mask: Tensor | None) -> nn.Conv2d | nn.Linear:
    """The layer with the inputs and outputs that stay."""
    weight, bias = layer.weight.detach(), layer.bias
    if alive is not None:
        weight = weight[:, _columns(layer, alive)]
    if mask is not None:
        weight, bias = weight[mask], bias if bias is None else bias.detach()[mask]
    new = copy.deepcopy(layer)
    new.weight = nn.Parameter(weight.clone(), layer.weight.requires_grad)
    new.bias = None if bias is None else nn.Parameter(bias.detach().clone(), layer.weight.requires_grad)
    names = ("out_channels", "in_channels") if isinstance(layer, nn.Conv2d) else ("out_features", "in_features")
    for name, size in zip(names, weight.shape[:2], strict=True):
        setattr(new, name, size)
    return new


def _cut_norm(norm: NormLayer, mask: Tensor | None) -> NormLayer:
    new = copy.deepcopy(norm)
    if mask is not None:
        new.num_features = int(mask.sum())
        for name, parameter in norm.named_parameters():
            setattr(new, name, nn.Parameter(parameter.detach()[mask].clone(), parameter.requires_grad))
        for name, buffer in norm.named_buffers():
            if buffer.dim():
                setattr(new, name, buffer[mask].clone())
    return new


def _lost(layer: nn.Conv2d | nn.Linear, alive: Tensor, constant: Tensor, mask: Tensor | None) -> Tensor:
    """What the dropped inputs, constant, added to each output that stays."""
    weight = layer.weight.detach().flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight.detach()
    inputs = weight.shape[1] // len(alive)
    lost = weight @ (constant * ~alive).repeat_interleave(inputs)
    return lost if mask is None else lost[mask]
