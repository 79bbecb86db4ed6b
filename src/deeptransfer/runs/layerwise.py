"""Yosinski's experiment: accuracy on task B against the number of layers that are kept, for every treatment.

The classes of one list are dealt to two tasks: A is learned from many labelled images of the source, B from a few of
the target. A result holds all treatments of :mod:`~deeptransfer.transferability` at every depth, for one seed, and the
same for a *harmful* base, whose labels of A were shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch

from deeptransfer.domains import DomainPair, TensorDomain, few_labelled, load_domain
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.networks import Network, small_cnn
from deeptransfer.objectives import SourceOnly
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import evaluate, fit, seed_everything
from deeptransfer.transferability import TREATMENTS, treatment

HARMFUL = ("AnB", "AnB+")  # the treatments that the harmful base goes through in A's place


@dataclass(frozen=True, kw_only=True)
class LayerwiseConfig(Recipe):
    """The recipe of one seed.

    Attributes
    ----------
    source, target : str
        Built-in domains of the images of task A and of task B.
    labelled : int
        Labelled images of each class of B; A has all of its own.
    seed : int
        Of the split of the classes, the labelled images, the initial weights and the order of images.
    base_steps, steps : int
        Updates of the bases of A, and of every training on B.
    batch_size, lr
        Of all trainings, in float64; no batch is larger than its task.
    widths, hidden : tuple of int
        Of :func:`~deeptransfer.networks.small_cnn`.

    Raises
    ------
    ValueError
        If a domain is not built in.
    """

    source: str
    target: str
    labelled: int
    seed: int = 0
    base_steps: int = 100
    steps: int = 80
    batch_size: int = 64
    lr: float = 0.05
    widths: tuple[int, ...] = (8, 16, 32)
    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if getattr(self, name) not in BUILDERS:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: built-in ones are {', '.join(BUILDERS)}")
        for name in ("widths", "hidden"):  # lists, when they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        return f"{self.source}-to-{self.target}_{self.labelled}-labelled_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy of every treatment at every depth: see :func:`train_layerwise`."""
        return train_layerwise(self)

    def beginning(self) -> dict[str, Any]:
        """The tasks, base B's accuracy, and every treatment's at n = 0."""
        trial = start_trial(self)
        scratch = trial.score("AnB+", 0, trial.base_a)
        facts = {"classes": trial.classes, "cuts": trial.cuts, "base_b": trial.accuracy(trial.base_b)}
        return facts | {"accuracy": {name: [scratch] for name in TREATMENTS}}

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy on B of every treatment at every depth."""
        cuts, curves = result["cuts"], result["accuracy"].items()
        return {f"{name} {n}": curve[i] for name, curve in curves for i, n in enumerate(cuts)}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """One recipe for each of ``seeds``."""
        rest = cls.shared_by(grid, ["seeds"], ["seed"])
        return [cls(**rest, seed=seed) for seed in grid["seeds"]]

    def code(self) -> Code:
        """The experiment, and what draws its images."""
        loaders = [BUILDERS[name] for name in (self.source, self.target)]
        roots = [f"{__name__}.train_layerwise", *(f"{f.__module__}.{f.__qualname__}" for f in loaders)]
        # A network with plain BatchNorm holds no domain layer.
        return Code(roots, ["deeptransfer.normalization.base.DomainNorm"])


@dataclass(frozen=True)
class Tasks:
    """Both tasks of one seed: classes by name, images to train on, images to score B on."""

    a: TensorDomain
    b: TensorDomain
    b_test: TensorDomain


def restrict(domain: TensorDomain, classes: Sequence[int]) -> TensorDomain:
    """The images of some classes; label ``k`` then means ``classes[k]``."""
    images, labels = domain.tensors
    chosen = torch.cat([(labels == k).nonzero()[:, 0] for k in classes])
    new = torch.full((len(domain.classes),), -1)
    new[list(classes)] = torch.arange(len(classes))
    return TensorDomain(domain.name, images[chosen], new[labels[chosen]], [domain.classes[k] for k in classes])


def deal_tasks(config: LayerwiseConfig) -> Tasks:
    """Deal the classes into two halves and load the images of both tasks."""
    source, target, test = (load_domain(config.source), load_domain(config.target), load_domain(config.target, "test"))
    dealt = torch.randperm(len(source.classes), generator=torch.Generator().manual_seed(config.seed)).tolist()
    half = len(dealt) // 2
    a, b = sorted(dealt[:half]), sorted(dealt[half:])
    few = few_labelled(restrict(target, b), config.labelled, config.seed)  # type: ignore[arg-type]
    return Tasks(restrict(source, a), few, restrict(test, b))  # type: ignore[arg-type]


def shuffle_labels(task: TensorDomain, seed: int) -> TensorDomain:
    """The same images, their labels dealt out anew: nothing about the classes can be learned from them."""
    images, labels = task.tensors
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return TensorDomain(task.name, images, labels[order], task.classes)


def train_on(network: Network, task: TensorDomain, config: LayerwiseConfig, steps: int) -> Network:
    """Train on one task and return the network."""
    pair = DomainPair(task, task, min(config.batch_size, len(task)), config.seed)
    fit(network, pair, SourceOnly(), steps, config.lr)
    return network


def train_base(task: TensorDomain, config: LayerwiseConfig, steps: int) -> Network:
    """Train a network on one task from its initial weights."""
    classes, (channels, size, _) = len(task.classes), task.tensors[0].shape[1:]
    network = small_cnn(classes, channels, size, config.widths, config.hidden, config.seed).double()
    return train_on(network, task, config, steps)


def train_treatment(
    name: str, n: int, base_a: Network, base_b: Network, task: TensorDomain, config: LayerwiseConfig
) -> Network:
    """Build the network of a treatment and train it on B.

    All treatments draw the same new weights: at one seed, networks differ in what was kept and in nothing else.
    """
    generator = torch.Generator().manual_seed(config.seed + 1000)
    return train_on(treatment(name, n, base_a, base_b, generator), task, config, config.steps)


def depths(network: Network) -> list[int]:
    """Numbers of blocks at which to cut: 0, and after every block that has weights, the classifier excepted."""
    blocks = list(network.features.children())
    return [0, *(i for i, block in enumerate(blocks, start=1) if list(block.parameters()))]


class Trial(NamedTuple):
    """What the treatments of one seed start from."""

    config: LayerwiseConfig
    tasks: Tasks
    base_a: Network
    base_b: Network
    cuts: list[int]

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of both tasks."""
        return {"a": self.tasks.a.classes, "b": self.tasks.b.classes}

    def accuracy(self, network: Network) -> float:
        """Accuracy on B's test images."""
        return evaluate(network, self.tasks.b_test).accuracy

    def score(self, name: str, n: int, base: Network) -> float:
        """Accuracy of a treatment that keeps n blocks of a base."""
        return self.accuracy(train_treatment(name, n, base, self.base_b, self.tasks.b, self.config))


def start_trial(config: LayerwiseConfig) -> Trial:
    """Deal the tasks and train both bases."""
    seed_everything(config.seed)
    tasks = deal_tasks(config)
    base_a, base_b = train_base(tasks.a, config, config.base_steps), train_base(tasks.b, config, config.steps)
    return Trial(config, tasks, base_a, base_b, depths(base_b))


def train_layerwise(config: LayerwiseConfig) -> dict[str, Any]:
    """Accuracy on B's test images: of the base, and of every treatment for n = 0 … L kept layers."""
    trial = start_trial(config)
    harmful = train_base(shuffle_labels(trial.tasks.a, config.seed), config, config.base_steps)
    scratch = trial.score("AnB+", 0, trial.base_a)  # what every treatment is at n = 0
    return {
        "classes": trial.classes,
        "cuts": trial.cuts,
        "base_b": trial.accuracy(trial.base_b),
        "accuracy": {
            name: [scratch, *(trial.score(name, n, trial.base_a) for n in trial.cuts[1:])] for name in TREATMENTS
        },
        "harmful": {name: [scratch, *(trial.score(name, n, harmful) for n in trial.cuts[1:])] for name in HARMFUL},
    }
