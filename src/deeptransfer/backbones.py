"""Backbones: networks that were trained on ImageNet, with the papers' head for a new task.

All of them are a :class:`~deeptransfer.networks.Network`: blocks in order, then ``fc1`` (linear, norm), ``relu1`` and
the classifier, named as in :func:`~deeptransfer.networks.small_cnn`, so that every method finds the layers it knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import nn
from torchvision import models

from deeptransfer.networks import Network, Standardize, initialize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)  # images in [−1, 1]
# Children of torchvision's networks that are not passed on the way to the features, or only do what the pooling does.
PASSED_BY = ("aux1", "aux2", "AuxLogits", "dropout", "avgpool", "fc", "classifier")


def torchvision_backbone(
    name: str, classes: int, weights: str | Path | None = None, bottleneck: int = 256, seed: int = 0
) -> Network:
    """Any of torchvision's classification networks that has BatchNorm, with a bottleneck and a new classifier.

    Blocks are torchvision's own modules up to the features, under their names; a block of a plain list is called
    ``block0``, ``block1``, …; then ``pool``, ``fc1`` (linear, norm), ``relu1``. Dropout and auxiliary classifiers are
    left out.

    Parameters
    ----------
    name : str
        Such as ``"resnet50"``; ``torchvision.models.list_models()`` has them all.
    classes : int
        Of the new task.
    weights : "default", path or None
        torchvision's pretrained weights, downloaded by it; or a file with a state dict of the torchvision network,
        whose own head is not used; or none: drawn by ``seed``.
    bottleneck : int
        Width of ``fc1``.
    seed : int
        Of the weights that are drawn, on the CPU.

    Raises
    ------
    ValueError
        If there is no such network, it has no BatchNorm or can't be taken apart, or the weights can't be had or don't
        fit.

    References
    ----------
    Long, Cao, Wang, Jordan, *Conditional Adversarial Domain Adaptation*, NeurIPS 2018 (the bottleneck).
    """
    if name not in models.list_models(module=models):
        raise ValueError(f"unknown network {name!r}: torchvision.models.list_models() has them all, such as 'resnet50'")
    generator = torch.Generator().manual_seed(seed)
    pretrained = str(weights).lower() == "default"
    arguments: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if name in ("googlenet", "inception_v3") and not pretrained:
        arguments["init_weights"] = False  # slow, and drawn below
    try:
        model = models.get_model(name, **arguments)
    except (URLError, OSError) as error:
        raise ValueError(
            f"the weights of {name} could not be downloaded ({error}): save the network's state_dict() on a machine "
            "that can, and give that file as weights"
        ) from error
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError(f"{name} has no BatchNorm, which the normalisation methods need: try resnet50 or mobilenet_v2")
    if weights is None:
        initialize(model, generator)
    elif not pretrained:
        _load(model, Path(weights))
    blocks = _blocks(name, model)
    blocks["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    # GoogLeNet's and Inception's weights come from images in [−1, 1].
    mean_std = HALF if name in ("googlenet", "inception_v3") else IMAGENET
    return _with_head(blocks, _width(blocks, name), classes, bottleneck, Standardize(*mean_std), generator)


def _load(model: nn.Module, path: Path) -> None:
    """Read a state dict; weights of the head may be missing or of another size, no other."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in [key for key in state if key.split(".")[0] in PASSED_BY]:
            del state[key]  # in place: the dict's own record of versions stays with it
        wrong = model.load_state_dict(state, strict=False)
        missing = [key for key in wrong.missing_keys if key.split(".")[0] not in PASSED_BY]
    except Exception as error:  # torch.load alone raises half a dozen types
        raise ValueError(f"{path} does not hold the weights of this network: {error}") from error
    if missing or wrong.unexpected_keys:
        first = (missing or wrong.unexpected_keys)[0]
        raise ValueError(f"{path} does not hold the weights of this network: look at {first!r}")


def _blocks(name: str, model: nn.Module) -> dict[str, nn.Module]:
    """The modules up to the features, in order; what torchvision computes between them is added as a module."""
    blocks: dict[str, nn.Module] = {}
    for child_name, child in model.named_children():
        if child_name in PASSED_BY:
            continue
        if child_name in ("features", "layers", "trunk_output"):  # a list: its parts are the blocks
            for part_name, part in child.named_children():
                blocks[f"block{part_name}" if part_name.isdigit() else part_name] = part
        else:
            blocks[child_name] = child
    if name.startswith("densenet"):
        blocks["relu5"] = nn.ReLU()
    return blocks


def _width(blocks: dict[str, nn.Module], name: str) -> int:
    """Number of features; measured, and at the same time a proof that the blocks fit together."""
    trunk = nn.Sequential(*blocks.values()).eval()
    try:
        with torch.no_grad():
            features = trunk(torch.zeros(1, 3, 96, 96))
    except Exception as error:
        raise ValueError(f"{name} is no chain of blocks ({error}): try resnet50 or mobilenet_v2") from error
    finally:
        trunk.train()
    return features.shape[1]


def _with_head(
    blocks: dict[str, nn.Module],
    width: int,
    classes: int,
    bottleneck: int,
    standardize: nn.Module,
    generator: torch.Generator,
) -> Network:
    if classes < 1 or bottleneck < 1:
        raise ValueError(f"classes and bottleneck must be 1 or more, not {classes} and {bottleneck}")
    head = nn.Sequential(nn.Linear(width, bottleneck, bias=False), nn.BatchNorm1d(bottleneck))
    classifier = nn.Linear(bottleneck, classes)
    initialize(nn.ModuleList([head, classifier]), generator)
    return Network({**blocks, "fc1": head, "relu1": nn.ReLU()}, classifier, standardize)


def finetuning_groups(groups: Iterable[dict], network: Network, lr_mult: float = 0.1) -> list[dict]:
    """An objective's parameter groups, those of the pretrained blocks apart with a smaller learning rate.

    The new layers (``fc1``, the classifier, the method's own) keep the full rate, ten times that of the blocks, as in
    the papers: ``SGD([{"lr": lr * g.get("lr_mult", 1.0), **g} for g in finetuning_groups(…)])``, or as the
    ``parameter_groups`` of an objective that :func:`~deeptransfer.training.fit` reads.

    Parameters
    ----------
    groups : iterable of dict
        ``objective.parameter_groups(network)``.
    network : Network
        Of this module.
    lr_mult : float
        Of the pretrained blocks; multiplies a group's own.
    """
    new = [*network.features.get_submodule("fc1").parameters(), *network.classifier.parameters()]
    old = {id(p) for p in network.parameters()} - {id(p) for p in new}
    split = []
    for group in groups:
        parameters = list(group["params"])
        scaled = {**group, "lr_mult": lr_mult * group.get("lr_mult", 1.0)}
        split += [
            {**scaled, "params": [p for p in parameters if id(p) in old]},
            {**group, "params": [p for p in parameters if id(p) not in old]},
        ]
    return [group for group in split if group["params"]]


MOBILENET_WIDTHS = (8, 16, 32, 32, 64, 64, *(128,) * 6, 256, 256)  # of conv1 and of block1 … block13
MOBILENET_STRIDES = {2: 2, 4: 2, 6: 2, 12: 2}


def mobilenet_025(path: str | Path | None, classes: int, bottleneck: int = 256, seed: int = 0) -> Network:
    """MobileNet v1 of width 0.25 with its ImageNet weights: a network with BatchNorm that a laptop fine-tunes.

    Blocks ``conv1``, ``block1`` … ``block13`` (a depthwise and a pointwise convolution, each with norm and ReLU6),
    ``pool``, ``fc1`` (linear, norm), ``relu1``.

    Parameters
    ----------
    path : path or None
        ``.npz`` with ``<layer>.weight`` of each convolution (output, input, height, width) and
        ``<layer>_bn.weight``, ``.bias``, ``.running_mean``, ``.running_var`` of its norm; or none: drawn by ``seed``.
    classes, bottleneck, seed
        As in :func:`torchvision_backbone`.

    Raises
    ------
    ValueError
        If the file is not there, or not such a file.

    References
    ----------
    Howard et al., *MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications*, 2017.
    """
    widths = MOBILENET_WIDTHS
    blocks: dict[str, nn.Module] = {"conv1": _conv_norm(3, widths[0], 3, stride=2)}
    for i, (into, out) in enumerate(pairwise(widths), start=1):
        depthwise = _conv_norm(into, into, 3, MOBILENET_STRIDES.get(i, 1), groups=into)
        blocks[f"block{i}"] = nn.Sequential(*depthwise, *_conv_norm(into, out, 1))
    generator = torch.Generator().manual_seed(seed)
    if path is None:
        initialize(nn.ModuleDict(blocks), generator)
    else:
        _fill(blocks, path)
    blocks["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _with_head(blocks, widths[-1], classes, bottleneck, Standardize(*HALF), generator)


def _conv_norm(into: int, out: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU6; where the stride is 2, padded on the right and at the bottom as by TensorFlow."""
    padding = [nn.ZeroPad2d((0, 1, 0, 1))] if stride == 2 else []
    inside = side // 2 if stride == 1 else 0
    convolution = nn.Conv2d(into, out, side, stride, inside, groups=groups, bias=False)
    return nn.Sequential(*padding, convolution, nn.BatchNorm2d(out, eps=1e-3), nn.ReLU6())


@torch.no_grad()
def _fill(blocks: dict[str, nn.Module], path: str | Path) -> None:
    """Copy the stored weights into the convolutions and norms, in their order."""
    names = ["conv1", *(f"conv_{kind}_{i}" for i in range(1, len(MOBILENET_WIDTHS)) for kind in ("dw", "pw"))]
    parts = [module for block in blocks.values() for module in block.modules()]
    convolutions = [module for module in parts if isinstance(module, nn.Conv2d)]
    norms = [module for module in parts if isinstance(module, nn.BatchNorm2d)]
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name, convolution, norm in zip(names, convolutions, norms, strict=True):
                tensors = {f"{name}.weight": convolution.weight}
                tensors |= {f"{name}_bn.{key}": value for key, value in norm.state_dict(keep_vars=True).items()}
                del tensors[f"{name}_bn.num_batches_tracked"]
                for key, tensor in tensors.items():
                    values = torch.from_numpy(stored[key])
                    if values.shape != tensor.shape:
                        raise ValueError(f"{key} is of shape {tuple(values.shape)}, not {tuple(tensor.shape)}")
                    tensor.copy_(values)
    except Exception as error:  # absent, damaged or of another network
        raise ValueError(f"{path} does not hold the weights of MobileNet 0.25 ({error})") from error
