"""Cheaper networks, scored with the statistics that they inherit and with new ones.

Four studies of one small network on noisy 8 × 8 digits: channels cut by their scales (network slimming), candidates cut
at random (EagleEye), weights that a device stores with errors, and one network at several widths. A result holds the
accuracy of every treatment at every level of its study, for one seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple, Self

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from deeptransfer.networks import initialize
from deeptransfer.normalization import adapt_statistics
from deeptransfer.normalization.switchable import SwitchableBatchNorm2d, channels_at
from deeptransfer.pruning import multiply_adds, prune_channels, random_channels, slimmest_channels, sparsify_
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.slimmable import (
    SlimmableBatchNorm2d,
    SlimmableConv2d,
    SlimmableLinear,
    narrow,
    slimmable_loss,
)
from deeptransfer.training import annealed, sgd
from deeptransfer.weights import noisy_weights

TRAIN, HELD_OUT = 1000, 300  # images; the others are the test


@dataclass(frozen=True, kw_only=True)
class CheaperConfig(Recipe):
    """The recipe of one study for one seed.

    Attributes
    ----------
    study : {"slimming", "candidates", "noise", "widths"}
        Which one.
    levels : tuple of float
        What varies: the shares of channels that go; the lowest and the highest share that a layer of a candidate loses;
        the deviations σ of a device's errors, in units of a layer's largest weight; the widths that are trained.
    count : int
        Candidates; devices of each σ.
    few : tuple of int
        Numbers of unlabelled images from which a device's statistics are measured.
    seed : int
        Of the images' noise, their split, the initial weights and the order of images.
    strength : float
        s of :func:`~deeptransfer.pruning.sparsify_`.
    scale : float
        γ at the start.
    steps, tuning : int
        Updates of the training, and of fine-tuning what was cut.
    batch_size, lr
        Of the training, in float64.
    tuning_lr : float
        Rate of fine-tuning.
    noise : float
        Standard deviation of the noise on images in [0, 1].
    channels : tuple of int
        Of the three convolutions.

    Raises
    ------
    ValueError
        If the study is unknown.
    """

    study: str
    levels: tuple[float, ...]
    count: int = 1
    few: tuple[int, ...] = ()
    seed: int = 0
    strength: float = 0.0
    scale: float = 1.0
    steps: int = 400
    tuning: int = 32
    batch_size: int = 64
    lr: float = 0.05
    tuning_lr: float = 0.01
    noise: float = 0.35
    channels: tuple[int, ...] = (24, 24, 48)

    def __post_init__(self) -> None:
        if self.study not in STUDIES:
            raise ValueError(f"unknown study {self.study!r}: known ones are {', '.join(STUDIES)}")
        for name in ("levels", "few", "channels"):  # lists, when they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        return f"{self.study}_strength{self.strength:g}_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy of every treatment at every level."""
        return STUDIES[self.study](self, None)

    def beginning(self) -> dict[str, Any]:
        """The training, and the first level."""
        return STUDIES[self.study](self, 1)

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Test accuracy of every treatment at every level."""
        return {
            f"{name} {level:g}": value
            for name, curve in result["accuracy"].items()
            for level, value in zip(result["levels"], curve, strict=True)
            if value is not None
        }

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """One recipe for each of ``strengths``, 0 if there are none, and each of ``seeds``."""
        grid = {"strengths": [0.0], **grid}
        rest = cls.shared_by(grid, ["strengths", "seeds"], ["strength", "seed"])
        pairs = product(grid["strengths"], grid["seeds"])
        return [cls(**rest, strength=strength, seed=seed) for strength, seed in pairs]

    def code(self) -> Code:
        """The study."""
        # A network with plain BatchNorm holds no domain layer.
        stop = ["deeptransfer.normalization.base.DomainNorm", f"{__name__}.CheaperConfig"]
        return Code([f"{__name__}.{STUDIES[self.study].__name__}"], stop)


class Labelled(NamedTuple):
    """Images ``(n, 1, 8, 8)`` and their digits."""

    x: Tensor
    y: Tensor


class Digits(NamedTuple):
    """The images of one seed."""

    train: Labelled
    held_out: Labelled
    test: Labelled


def noisy_digits(config: CheaperConfig) -> Digits:
    """Scikit-learn's 1,797 handwritten digits in [0, 1], with noise that is drawn once, in float64."""
    digits, generator = load_digits(), torch.Generator().manual_seed(config.seed)
    x, y = torch.from_numpy(digits.images / 16).unsqueeze(1), torch.from_numpy(digits.target)
    x = x + config.noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    parts = torch.randperm(len(x), generator=generator).tensor_split([TRAIN, TRAIN + HELD_OUT])
    return Digits(*(Labelled(x[rows], y[rows]) for rows in parts))


def plain_network(config: CheaperConfig, width: float = 1.0) -> nn.Sequential:
    """Three convolutions with BatchNorm, one pooling and a linear layer, at a share of the channels.

    Only the first convolution pads: the others read channels that may be cut, and a constant folded into the statistics
    is then exact.
    """
    a, b, c = (channels_at(channels, width) for channels in config.channels)
    return _started(
        nn.Sequential(
            nn.Conv2d(1, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
            nn.Conv2d(a, b, 3, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(b, c, 3, bias=False), nn.BatchNorm2d(c), nn.ReLU(), nn.Flatten(),
            nn.Linear(c, 10),
        ),
        config,
    )  # fmt: skip


def slimmable_network(config: CheaperConfig, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """The same with slimmable layers; ``norm`` makes the normalisation of so many channels."""
    a, b, c = config.channels
    return _started(
        nn.Sequential(
            SlimmableConv2d(1, a, 3, slim_in=False, padding=1, bias=False), norm(a), nn.ReLU(),
            SlimmableConv2d(a, b, 3, bias=False), norm(b), nn.ReLU(), nn.MaxPool2d(2),
            SlimmableConv2d(b, c, 3, bias=False), norm(c), nn.ReLU(), nn.Flatten(),
            SlimmableLinear(c, 10),
        ),
        config,
    )  # fmt: skip


def _started(network: nn.Sequential, config: CheaperConfig) -> nn.Sequential:
    initialize(network, torch.Generator().manual_seed(config.seed))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, config.scale)
    return network.double()


def train_network(
    network: nn.Module,
    images: Labelled,
    config: CheaperConfig,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train in place by stochastic gradient descent, and leave the network in evaluation mode.

    Parameters
    ----------
    network
        Logits ``(n, 10)`` for images.
    images
        The training images.
    config
        Number of updates, batch size, rate, which falls along them, seed, and s of the penalty on the scales.
    loss
        Of a network, images and labels; by default the cross-entropy.
    """
    optimizer = sgd([{"params": list(network.parameters())}], config.lr)
    network.train()
    for step, rows in enumerate(_rows(len(images.x), config.batch_size, config.steps, config.seed)):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * annealed(step / config.steps)
        optimizer.zero_grad()
        x, y = images.x[rows], images.y[rows]
        (F.cross_entropy(network(x), y) if loss is None else loss(network, x, y)).backward()
        if config.strength:
            sparsify_(network, config.strength)
        optimizer.step()
    return network.eval()


def _rows(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The rows of each batch: every image once before any comes again, but for what is left of a pass."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.randperm(count, generator=generator)
        yield waiting[:size]
        waiting = waiting[size:]


def accuracy(network: nn.Module, images: Labelled) -> float:
    """Share of right answers of a network in evaluation mode."""
    with torch.no_grad():
        return (network(images.x).argmax(1) == images.y).double().mean().item()


def measured(network: nn.Module, x: Tensor) -> nn.Module:
    """A copy with the statistics of these images."""
    return adapt_statistics(copy.deepcopy(network), x)


def base_network(config: CheaperConfig, digits: Digits) -> nn.Module:
    """The full network, trained."""
    return train_network(plain_network(config), digits.train, config)


def fine_tuned(network: nn.Module, config: CheaperConfig, digits: Digits) -> nn.Module:
    """The network, trained further in place, without a penalty."""
    return train_network(network, digits.train, replace(config, steps=config.tuning, lr=config.tuning_lr, strength=0.0))


# ------------------------------------------------------------------------------------------------------------- studies


def study_slimming(config: CheaperConfig, points: int | None) -> dict[str, Any]:
    """Cut the channels of smallest scale; then nothing, the constant folded in, new statistics, or fine-tuning."""
    digits = noisy_digits(config)
    network = base_network(config, digits)
    shares = config.levels[:points]
    curves: dict[str, list[float]] = {name: [] for name in ("ignored", "folded", "measured", "tuned")}
    kept, parameters, operations = [], [], []
    for share in shares:
        keep = slimmest_channels(network, share)
        ignored, folded = (prune_channels(network, keep, fold) for fold in (False, True))
        treated = (ignored, folded, measured(ignored, digits.train.x))
        scores = [accuracy(cut, digits.test) for cut in treated]
        parameters.append(sum(p.numel() for p in ignored.parameters()))
        operations.append(multiply_adds(ignored, digits.test.x))
        kept.append([int(mask.sum()) for mask in keep.values()])
        scores.append(accuracy(fine_tuned(ignored, config, digits), digits.test))
        for curve, score in zip(curves.values(), scores, strict=True):
            curve.append(score)
    scales = torch.cat([m.weight.detach().abs() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    return {
        "levels": list(shares),
        "full": accuracy(network, digits.test),
        "full_measured": accuracy(measured(network, digits.train.x), digits.test),
        "full_parameters": sum(p.numel() for p in network.parameters()),
        "full_operations": multiply_adds(network, digits.test.x),
        "scales": sorted(scales.tolist()),
        "accuracy": curves,
        "kept": kept,
        "parameters": parameters,
        "operations": operations,
    }


def study_candidates(config: CheaperConfig, points: int | None) -> dict[str, Any]:
    """Score random cuts on images kept back, before fine-tuning, and compare with the test accuracy after it."""
    digits = noisy_digits(config)
    network = base_network(config, digits)
    lowest, highest = config.levels
    candidates = range(config.count)[:points]
    scores: dict[str, list[float]] = {"inherited": [], "measured": []}
    tuned, operations = [], []
    for candidate in candidates:
        cut = prune_channels(network, random_channels(network, lowest, highest, candidate), fold=False)
        scores["inherited"].append(accuracy(cut, digits.held_out))
        scores["measured"].append(accuracy(measured(cut, digits.train.x), digits.held_out))
        operations.append(multiply_adds(cut, digits.test.x))
        tuned.append(accuracy(fine_tuned(cut, config, digits), digits.test))
    return {
        "levels": list(candidates),
        "full": accuracy(network, digits.test),
        "full_operations": multiply_adds(network, digits.test.x),
        "scores": scores,
        "accuracy": {"tuned": tuned},
        "operations": operations,
    }


def study_noise(config: CheaperConfig, points: int | None) -> dict[str, Any]:
    """Run the network on devices with errors: with the statistics of the exact weights, and with measured ones."""
    digits = noisy_digits(config)
    network = base_network(config, digits)
    sigmas = config.levels[:points]
    sets = {f"{n} images": digits.train.x[:n] for n in (*config.few, len(digits.train.x))}
    curves: dict[str, list[float]] = {name: [] for name in ("inherited", *sets)}
    for sigma in sigmas:
        scores: dict[str, list[float]] = {name: [] for name in curves}
        for device in range(config.count):
            with noisy_weights(network, sigma, device):
                scores["inherited"].append(accuracy(network, digits.test))
                for name, x in sets.items():
                    scores[name].append(accuracy(measured(network, x), digits.test))
        for name, curve in curves.items():
            curve.append(sum(scores[name]) / config.count)
    return {"levels": list(sigmas), "full": accuracy(network, digits.test), "accuracy": curves}


def study_widths(config: CheaperConfig, points: int | None) -> dict[str, Any]:
    """Train one network at several widths, with a BatchNorm for each or one for all, and a network for each width."""
    digits = noisy_digits(config)
    trained = config.levels

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return slimmable_loss(network, x, y, trained)

    shared, switchable = (
        train_network(slimmable_network(config, norm), digits.train, config, loss)
        for norm in (SlimmableBatchNorm2d, lambda c: SwitchableBatchNorm2d(c, trained))
    )
    between = [(a + b) / 2 for a, b in pairwise(trained)]
    widths = sorted([*trained, *between])[:points]
    curves: dict[str, list[float | None]] = {
        name: [] for name in ("shared", "shared, measured", "switchable", "on its own")
    }
    ratios = []
    for width in widths:
        listed = width in trained
        plain = narrow(shared, width)
        own = measured(plain, digits.train.x)
        alone = train_network(plain_network(config, width), digits.train, config) if listed else None
        curves["shared"].append(accuracy(plain, digits.test))
        curves["shared, measured"].append(accuracy(own, digits.test))
        ratios.append(_variance_ratios(plain, own))
        curves["switchable"].append(accuracy(narrow(switchable, width), digits.test) if listed else None)
        curves["on its own"].append(None if alone is None else accuracy(alone, digits.test))
    return {"levels": widths, "accuracy": curves, "variance_ratios": ratios}


def _variance_ratios(network: nn.Module, other: nn.Module) -> list[float]:
    """Of each BatchNorm, the median over its channels of one network's running variance over the other's."""
    pairs = zip(network.modules(), other.modules(), strict=True)
    return [
        (a.running_var / b.running_var).median().item()  # type: ignore[arg-type, operator]
        for a, b in pairs
        if isinstance(a, nn.BatchNorm2d)
    ]


STUDIES: dict[str, Callable[[CheaperConfig, int | None], dict[str, Any]]] = {
    "slimming": study_slimming,
    "candidates": study_candidates,
    "noise": study_noise,
    "widths": study_widths,
}
