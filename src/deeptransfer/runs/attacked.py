"""Adversarial images as a domain: how a network is trained on them, and through which branch it is attacked.

Four ways of training share network, batches and attack. Each is scored on clean images and on attacked ones, along
every *route* on which it can predict. Where it has several, an attack meets one, and the prediction may take another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeptransfer.attacks import ADVERSARIAL, CLEAN, auxiliary_loss, projected_gradient
from deeptransfer.domains import Batch, DomainPair, load_domain
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.networks import Network, small_cnn
from deeptransfer.normalization import (
    DomainBatchNorm2d,
    DomainNorm,
    GatedBatchNorm2d,
    convert_norm,
    gate_losses,
    use_domain,
)
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import default_device, fit, seed_everything

METHODS = ("clean", "shared", "auxiliary", "gated")
BRANCHES = (CLEAN, ADVERSARIAL)
GATE = "gate"
WHOLE = "network"  # the route of a network that has one
AT_ONCE = 200  # images


@dataclass(frozen=True, kw_only=True)
class AttackedConfig(Recipe):
    """The recipe of one training.

    Attributes
    ----------
    method : {"clean", "shared", "auxiliary", "gated"}
        Trained on clean images alone; on clean and attacked ones in one batch of one BatchNorm; with a BatchNorm for
        each (AdvProp); so, and with a gate that guesses the branch of an image.
    domain : str
        Built-in domain to train on and to attack.
    other : str
        Built-in domain that the network is scored on besides, not attacked.
    epsilon, attack_steps
        Of :func:`~deeptransfer.attacks.projected_gradient`, in training and in scoring.
    seed : int
        Of the initial weights and the order of images.
    steps, batch_size, lr, every
        Updates; clean images in one of them; learning rate; updates between two points of the curve.
    network : mapping
        Arguments of :func:`~deeptransfer.networks.small_cnn`.

    Raises
    ------
    ValueError
        If the method or a domain is unknown.
    """

    method: str
    domain: str
    other: str
    epsilon: float
    attack_steps: int = 5
    seed: int = 0
    steps: int
    batch_size: int = 64
    lr: float = 0.05
    every: int
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: known ones are {', '.join(METHODS)}")
        for name in (self.domain, self.other):
            if name not in BUILDERS:
                raise ValueError(f"unknown domain {name!r}: built-in ones are {', '.join(BUILDERS)}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        return f"{self.domain}_{self.method}_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy by attack and route: see :func:`train_attacked`."""
        return train_attacked(self)[1]

    def beginning(self) -> dict[str, Any]:
        """The first point of the curve."""
        return {"curve": train_attacked(self, stop=self.every)[1]["curve"]}

    def code(self) -> Code:
        """The training, and what draws its images."""
        loaders = [BUILDERS[name] for name in (self.domain, self.other)]
        return Code([f"{__name__}.train_attacked", *(f"{f.__module__}.{f.__qualname__}" for f in loaders)])

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy along the first route: on clean images, on images attacked along it, on the other domain."""
        route = next(iter(result["accuracy"]))
        own = result["accuracy"][route]
        return {"clean": own["none"], "attacked": own[route], "other": result["other"][route]}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every one of ``methods`` with every one of ``seeds``."""
        rest = cls.shared_by(grid, ["methods", "seeds"], ["method", "seed"])
        return [cls(method=m, seed=s, **rest) for m, s in product(grid["methods"], grid["seeds"])]


def build(config: AttackedConfig, channels: int) -> Network:
    """The network of a recipe, its weights drawn and not yet trained."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.network.items()}
    network = small_cnn(channels=channels, seed=config.seed, **given)
    if config.method == "auxiliary":
        convert_norm(network, DomainBatchNorm2d, domains=BRANCHES, shared_affine=False)
    elif config.method == "gated":  # behind the convolutions; fc1 keeps its BatchNorm
        for block in network.features.children():
            if any(isinstance(part, nn.BatchNorm2d) for part in block.children()):
                _gate(block)
    return network.to(default_device())


def _gate(block: nn.Module) -> None:
    convert_norm(block, DomainBatchNorm2d, domains=BRANCHES, shared_affine=False)
    for name, layer in list(block.named_children()):
        if isinstance(layer, DomainBatchNorm2d):
            gated = GatedBatchNorm2d(layer.num_features, BRANCHES)
            gated.norm = layer
            setattr(block, name, gated)


class Attacked(nn.Module):
    """The objective: cross-entropy on clean and attacked images, as the recipe's method has it."""

    def __init__(self, config: AttackedConfig) -> None:
        super().__init__()
        self.method = config.method
        self.attack = partial(projected_gradient, epsilon=config.epsilon, steps=config.attack_steps)

    def forward(self, network: Network, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named losses of one batch."""
        x, y = batch.xs, batch.ys
        if self.method == "clean":
            return {"classification": F.cross_entropy(network(x).logits, y)}
        if self.method == "auxiliary":
            return {"classification": auxiliary_loss(network, x, y, self.attack)}
        network.eval()
        with use_domain(network, ADVERSARIAL) if self.method == "gated" else nullcontext():
            adversarial = self.attack(network, x, y)
        network.train()
        if self.method == "shared":
            logits = network(torch.cat([x, adversarial])).logits
            return {"classification": F.cross_entropy(logits, torch.cat([y, y]))}
        with gate_losses(network) as losses:
            classification = auxiliary_loss(network, x, y, lambda *_: adversarial)
        return {"classification": classification, "gates": torch.stack(losses).sum()}

    def parameter_groups(self, network: Network) -> list[dict]:
        """All of the network."""
        return [{"params": list(network.parameters())}]


def routes(network: nn.Module) -> dict[str, Callable[[], AbstractContextManager]]:
    """Ways to predict, by name: the block in which the network does so. The first is the one its method means."""
    branches: dict[str, Callable[[], AbstractContextManager]] = {
        name: partial(use_domain, network, name) for name in BRANCHES
    }
    modules = list(network.modules())
    if any(isinstance(module, GatedBatchNorm2d) for module in modules):
        return {GATE: nullcontext, **branches}
    return branches if any(isinstance(module, DomainNorm) for module in modules) else {WHOLE: nullcontext}


def train_attacked(config: AttackedConfig, stop: int | None = None) -> tuple[Network, dict[str, Any]]:
    """Train, and return the network with the numbers of the run.

    These are the ``curve`` of the accuracy on clean test images, along the first route; ``accuracy[route][attack]``,
    of the attacks ``"none"`` and along each route; and ``other[route]``, on the other domain. For branches also
    ``apart``, by layer: see :func:`rows_apart`; for gates ``clean_share[attack]``, by layer: the mean weight of the
    clean branch.
    With ``stop`` only so many updates are done of those that the recipe schedules, and there is the curve alone.
    """
    seed_everything(config.seed)
    train, test, other = (
        load_domain(config.domain),
        load_domain(config.domain, "test"),
        load_domain(config.other, "test"),
    )
    network = build(config, train[0][0].shape[0])
    objective: Any = Attacked(config)
    history = fit(
        network,
        DomainPair(train, train, config.batch_size, config.seed),
        objective,
        config.steps,
        config.lr,
        probes={"clean": lambda net: right_by_route(net, *test.tensors)[0]},  # type: ignore[attr-defined]
        every=config.every,
        stop=stop,
    )
    network.eval()
    if stop is not None and stop < config.steps:
        return network, {"curve": history.probes}
    images, labels = test.tensors  # type: ignore[attr-defined]
    attacked = {"none": images} | {
        name: attack_along(config, network, route, images, labels) for name, route in routes(network).items()
    }
    columns = {
        attack: dict(zip(routes(network), right_by_route(network, x, labels), strict=True))
        for attack, x in attacked.items()
    }
    result: dict[str, Any] = {
        "curve": history.probes,
        "accuracy": {route: {attack: columns[attack][route] for attack in attacked} for route in routes(network)},
        "other": dict(zip(routes(network), right_by_route(network, *other.tensors), strict=True)),  # type: ignore[attr-defined]
    }
    if layers := [module for module in network.modules() if isinstance(module, DomainNorm)]:
        result["apart"] = [rows_apart(layer) for layer in layers]
    if config.method == "gated":
        result["clean_share"] = {name: clean_shares(network, x) for name, x in attacked.items()}
    return network, result


@torch.no_grad()
def right_by_route(network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Share of images that are predicted right, in evaluation, along each route."""
    network.eval()
    parameter = next(network.parameters())
    found = []
    for route in routes(network).values():
        with route():
            parts = images.to(parameter).split(AT_ONCE)
            found.append(torch.cat([network(x).logits.argmax(1).cpu() for x in parts]) == labels)
    return [right.double().mean().item() for right in found]


def attack_along(
    config: AttackedConfig,
    network: Network,
    route: Callable[[], AbstractContextManager],
    images: Tensor,
    labels: Tensor,
) -> Tensor:
    """Images that are attacked on one route of the network, which evaluates."""
    parameter = next(network.parameters())
    parts = zip(images.to(parameter).split(AT_ONCE), labels.to(parameter.device).split(AT_ONCE), strict=True)
    with route():
        moved = [projected_gradient(network, x, y, config.epsilon, config.attack_steps) for x, y in parts]
    return torch.cat(moved).cpu()


def rows_apart(layer: DomainNorm) -> float:
    """How far the moments of the two branches are from each other, in deviations of the clean one."""
    mean, deviation = layer.running_mean, layer.running_var.sqrt()
    squares = ((mean[0] - mean[1]) ** 2 + (deviation[0] - deviation[1]) ** 2) / deviation[0] ** 2
    return squares.mean().sqrt().item()


@torch.no_grad()
def clean_shares(network: Network, images: Tensor) -> list[float]:
    """By layer, the mean weight that the gates give to the clean branch."""
    layers = [module for module in network.modules() if isinstance(module, GatedBatchNorm2d)]
    shares: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: shares.append(layer.gate(args[0]).softmax(1)[:, 0].mean()))
        for layer in layers
    ]
    network(images.to(next(network.parameters())))
    for handle in handles:
        handle.remove()
    return torch.stack(shares).tolist()
