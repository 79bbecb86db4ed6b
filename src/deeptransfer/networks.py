"""Networks: an ordered list of blocks (`features`) and a linear `classifier`.

Methods differ in which layers they align, copy or freeze, so a network here is nothing but its blocks in order: their
names are what an objective asks for, and their count is Yosinski's n. There is no dropout anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Output(NamedTuple):
    """What a network returns.

    Attributes
    ----------
    features : Tensor
        Output of the last block before the classifier, ``(n, D)``.
    logits : Tensor
        ``(n, classes)``.
    hidden : dict of str to Tensor
        Outputs of the layers that were asked for; empty otherwise.
    """

    features: Tensor
    logits: Tensor
    hidden: dict[str, Tensor]


class Standardize(nn.Module):
    """Map images in [0, 1] to ``(x − mean) / std``: the network's own first step, so that domains stay in [0, 1].

    A grey batch is repeated to the channels that the network expects, so that one network reads both domains.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        mean, std = list(mean), list(std)
        if not mean or len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"a mean and a positive std for each channel are needed, not {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] not in (1, len(self.mean)):
            raise ValueError(
                f"the network reads images (n, {len(self.mean)}, H, W), or (n, 1, H, W) repeated, not {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"the network reads images in [0, 1], not {x.dtype}: divide bytes by 255")
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class Network(nn.Module):
    """`features` followed by `classifier`, built from blocks in order.

    Parameters
    ----------
    blocks : mapping of str to Module
        In the order in which they are applied; the last one must give ``(n, D)``.
    classifier : Module
        Maps ``(n, D)`` to logits ``(n, classes)``.
    standardize : Module, optional
        Applied to images first.

    Attributes
    ----------
    features : nn.Sequential
        The blocks; children carry the given names.
    autocast : dtype or None
        Mixed precision: what the blocks compute in where that is safe, ``torch.bfloat16`` say. What they return has
        the images' dtype again, so that no loss is computed in half precision.
    """

    autocast: torch.dtype | None = None

    def __init__(self, blocks: Mapping[str, nn.Module], classifier: nn.Module, standardize: nn.Module | None = None):
        super().__init__()
        reserved = {"features", "logits", "classifier"} & set(blocks)
        if reserved:
            raise ValueError(
                f"a block can't be called {sorted(reserved)[0]!r}: the name is taken by a network's output"
            )
        self.standardize = standardize if standardize is not None else nn.Identity()
        self.features = nn.Sequential(OrderedDict(blocks))
        self.classifier = classifier

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """All blocks in order, the classifier last: what "the first n layers" counts."""
        return {**dict(self.features.named_children()), "classifier": self.classifier}

    def forward(self, x: Tensor, layers: Iterable[str] = ()) -> Output:
        """Compute features, logits and the outputs of ``layers`` (block names, ``"features"`` or ``"logits"``).

        Raises
        ------
        ValueError
            If a layer is unknown; the message lists the known ones.
        """
        wanted = tuple(layers)
        hidden: dict[str, Tensor] = {}
        x = self.standardize(x)
        dtype = x.dtype
        with nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast):
            for name, block in self.features.named_children():
                x = block(x)
                if name in wanted:
                    hidden[name] = x.to(dtype)
            logits = self.classifier(x).to(dtype)
        x = x.to(dtype)
        hidden |= {name: value for name, value in (("features", x), ("logits", logits)) if name in wanted}
        unknown = [name for name in wanted if name not in hidden]
        if unknown:
            known = ", ".join([*(name for name, _ in self.features.named_children()), "features", "logits"])
            raise ValueError(f"unknown layer {unknown[0]!r}: this network has {known}")
        return Output(x, logits, hidden)


def initialize(module: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all weights anew, in place, and return the module.

    He's normal initialisation for convolutions and linear layers, zero biases; other layers through their own
    ``reset_parameters``. Weights are drawn by a CPU generator and copied, so that every device starts from the same
    network.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                drawn = torch.empty(part.weight.shape, dtype=torch.float64)
                nn.init.kaiming_normal_(drawn, nonlinearity="relu", generator=generator)
                part.weight.copy_(drawn)
                if part.bias is not None:
                    part.bias.zero_()
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]
    return module


def small_cnn(
    classes: int = 10,
    channels: int = 1,
    size: int = 28,
    widths: tuple[int, ...] = (16, 32, 64),
    hidden: tuple[int, ...] = (128,),
    seed: int = 0,
    norm: str = "bn",
) -> Network:
    """Small convolutional network with BatchNorm, for images of ``size`` × ``size`` pixels.

    Blocks: ``block1``, ``block2``, … (5 × 5 convolution, norm, ReLU, 2 × 2 max pooling) and for each width in
    ``hidden`` a pair ``fc1`` (linear, norm: the *pre-activation*) and ``relu1``, ….

    The pre-activation comes after its norm on purpose. A discrepancy with a fixed bandwidth could be made small on the
    bare linear output by shrinking its weights, and the norm behind it would undo the shrinking: nothing would have
    been aligned.

    Parameters
    ----------
    classes, channels, size : int
        Number of classes; channels and side of an image.
    widths : tuple of int
        Channels of the convolutional blocks.
    hidden : tuple of int
        Widths of the fully connected blocks.
    seed : int
        Of the initial weights, drawn on the CPU.
    norm : str
        A normalisation of :mod:`~deeptransfer.catalogue`, ``"transnorm"`` say, in place of BatchNorm.

    Raises
    ------
    ValueError
        If the image is too small for that many poolings, there is no hidden layer, a number is not positive, or the
        normalisation is unknown.
    """
    if min(classes, channels, *widths, *hidden) < 1:
        raise ValueError(
            f"classes, channels and widths must be 1 or more, not {classes}, {channels}, {widths}, {hidden}"
        )
    side = size >> len(widths)
    if side < 1:
        raise ValueError(f"an image of {size} × {size} pixels can't be halved {len(widths)} times: use fewer blocks")
    if not hidden:
        raise ValueError("hidden must hold at least one width, such as (128,)")
    blocks: dict[str, nn.Module] = {}
    before = channels
    for i, width in enumerate(widths, start=1):
        # No bias: the norm that follows subtracts it again.
        blocks[f"block{i}"] = nn.Sequential(
            nn.Conv2d(before, width, 5, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )
        before = width
    before *= side * side
    for i, width in enumerate(hidden, start=1):
        linear = [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width)]
        blocks[f"fc{i}"] = nn.Sequential(*([nn.Flatten(), *linear] if i == 1 else linear))
        blocks[f"relu{i}"] = nn.ReLU()
        before = width
    network = Network(blocks, nn.Linear(before, classes), Standardize([0.5] * channels, [0.5] * channels))
    initialize(network, torch.Generator().manual_seed(seed))
    if norm != "bn":
        from deeptransfer.catalogue import get  # it knows all methods, and these need networks

        get(norm).convert(network)
    return network
