"""Adaptation: from one labelled source to one unlabelled target, by an objective, with a normalisation.

A run adapts on the target's unlabelled train split and is scored on its test split.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, Self

import torch
from torch import nn
from torchvision import models

from deeptransfer import catalogue
from deeptransfer.adversarial import SoftLabelLoss
from deeptransfer.backbones import finetuning_groups, mobilenet_025, torchvision_backbone
from deeptransfer.data_files import read_toml
from deeptransfer.domains import (
    Domain,
    DomainPair,
    datasets_folder,
    domain_names,
    few_labelled,
    is_domain,
    load_domain,
    random_crop_and_flip,
    randomize_strokes,
    real,
    some_of,
)
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.domains.download import load_sources
from deeptransfer.networks import Network, small_cnn
from deeptransfer.objectives import Objective, SourceOnly
from deeptransfer.runs.checkpoint import Checkpoint
from deeptransfer.runs.distributed import Distributed, place
from deeptransfer.runs.model import save_model
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.runs.result import load_results
from deeptransfer.selection import entropy, information_maximization, soft_neighborhood_density
from deeptransfer.training import (
    Evaluation,
    History,
    default_device,
    evaluate,
    fit,
    predict,
    seed_everything,
    sgd,
)

SELECTIONS = ("last", "label_free", "oracle")
CRITERIA = {"information": information_maximization, "density": soft_neighborhood_density, "entropy": entropy}
BACKBONES = ("small_cnn", "mobilenet_025")  # and all of torchvision's


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """The recipe of one adaptation.

    Attributes
    ----------
    source, target : str
        Domains, by name or path as :func:`~deeptransfer.domains.load_domain` takes them; the same twice with objective
        ``source-only`` is the oracle: training on the target's labels.
    objective, norm : str
        Names in :mod:`~deeptransfer.catalogue`.
    seed : int
        Of the initial weights, the order of images, and what the objective draws.
    steps, batch_size, lr, dtype, every
        Of the training; ``batch_size`` images of each domain in each process; the curve has a point every ``every``
        updates.
    start : int
        Updates on the source alone that come first.
    labelled : int
        Labelled target images per class.
    backbone : str
        ``"small_cnn"``, ``"mobilenet_025"``, or a network of torchvision.
    weights : str
        Of the backbone: empty, ``"default"`` (torchvision's), or a file, relative to
        :func:`~deeptransfer.domains.datasets_folder`.
    backbone_lr : float
        What ``lr`` is multiplied by in the layers that a backbone brings.
    size : int or None
        Height and width that images are resampled to.
    transductive : bool
        Train on, and score, all images of each domain, as papers on photographs do: there is no held-out split.
    augment : bool
        Random crops and mirror images in training.
    randomize : bool
        Train on random variants of the source's digits, :func:`~deeptransfer.domains.randomize_strokes`: a baseline
        that knows nothing of the target.
    amp, channels_last : bool
        Mixed precision (bfloat16) and channels-last memory in the network: other roundings, the same recipe.
    scored : int
        At most so many of the target's unlabelled images are looked at to score without labels, and by AdaBN.
    criteria : sequence of str
        What scores without labels at each point of the curve, of ``CRITERIA``; the first one selects.
    settings, norm_settings, network : mapping
        Arguments of the objective, of the normalisation layer, and of the function that builds the network.

    Raises
    ------
    ValueError
        If a name is unknown, or the parts make no sense together.
    """

    source: str
    target: str
    objective: str = "source-only"
    norm: str = "bn"
    seed: int = 0
    steps: int = 300
    batch_size: int = 64
    lr: float = 0.05
    dtype: str = "float32"
    every: int = 25
    start: int = 0
    labelled: int = 0
    backbone: str = "small_cnn"
    weights: str = ""
    backbone_lr: float = 0.1
    size: int | None = None
    transductive: bool = False
    augment: bool = False
    randomize: bool = False
    amp: bool = False
    channels_last: bool = False
    scored: int = 2000
    criteria: Sequence[str] = field(default_factory=lambda: ["information"])
    settings: Mapping[str, Any] = field(default_factory=dict)
    norm_settings: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if not is_domain(getattr(self, name)):
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}: known ones are {', '.join(domain_names())}; nor is it "
                    "the path of a folder with a folder for each class, or of a list file"
                )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"unknown dtype {self.dtype!r}: known ones are float32, float64")
        if self.backbone not in BACKBONES and self.backbone not in models.list_models(module=models):
            raise ValueError(
                f"unknown backbone {self.backbone!r}: {', '.join(BACKBONES)} or one of torchvision's, such as resnet50"
            )
        method, norm = catalogue.get(self.objective), catalogue.get(self.norm)
        if not method.is_objective or norm.kind != "normalization":
            raise ValueError(f"{self.objective!r} with {self.norm!r} is not an objective with a normalisation")
        if self.objective == "source-only" and norm.has_layer:
            raise ValueError(f"source-only never passes a target batch, which {self.norm!r} needs: use 'bn' or 'adabn'")
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("every", 1),
            ("start", 0),
            ("labelled", 0),
            ("scored", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.criteria or set(self.criteria) - CRITERIA.keys():
            raise ValueError(f"criteria must be some of {', '.join(CRITERIA)}, not {list(self.criteria)}")
        for name, need in (("start", catalogue.START), ("labelled", catalogue.LABELLED)):
            if need in method.needs and getattr(self, name) < 1:
                raise ValueError(f"{self.objective!r} needs {need}: give {name}, not {getattr(self, name)}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        extra = [f"{k}={v}" for k, v in sorted({**self.settings, **self.norm_settings}.items())]
        parts = [f"{self.source}-to-{self.target}", self.objective, self.norm, *extra, f"seed{self.seed}"]
        return re.sub(r"[/\\:]+", "-", "_".join(parts)).replace(" ", "")

    def train(self, means: Means) -> dict[str, Any]:
        """Curve, selections, accuracy per class, wrong images: see :func:`train`."""
        return train(self, means)

    @classmethod
    def untrained(cls, config: Mapping[str, Any], classes: int, shape: Sequence[int]) -> Network:
        """The network of a stored recipe, for the weights of a saved model: its domains need not be here."""
        recipe = cls(**{**config, "source": "print", "target": "print", "weights": ""})
        network = build_network(recipe, classes, shape)
        normalise(recipe, network)
        return network

    def beginning(self) -> dict[str, Any]:
        """The first point of the curve."""
        return {"curve": train(self, stop=self.every)["curve"]}

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Target accuracy of the three selections."""
        return {name: result["selections"][name]["accuracy"] for name in SELECTIONS}

    @staticmethod
    def per_class(result: Mapping[str, Any]) -> dict[str, float]:
        """Mean over the classes, then each of them: by name where a data set was published with these."""
        accuracies = [math.nan if part is None else part for part in result["per_class"]]
        source = load_sources().get(result["config"]["target"].partition("/")[0])
        names = sorted(source.classes) if source is not None else []
        if len(names) != len(accuracies):
            names = [str(k) for k in range(len(accuracies))]
        there = [part for part in accuracies if not math.isnan(part)]
        return {"mean": sum(there) / len(there)} | dict(zip(names, accuracies, strict=True))

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every objective, norm, task, setting and seed, and the oracles.

        With ``tuned``, the name of a grid of searches, each objective has the learning rate and the weight that were
        chosen there; an oracle has those of ``source-only``.
        """
        whole: dict[str, Any] = {
            "norms": ["bn"],
            "settings": [{}],
            "norm_settings": [{}],
            "oracle": False,
            "recipe": {},
            "tuned": None,
        } | dict(grid)
        keys = {"objectives", "tasks", "norms", "settings", "norm_settings", "seeds", "oracle", "recipe", "tuned"}
        if set(whole) != keys or set(whole["recipe"]) - {f.name for f in fields(cls)}:
            known = ", ".join(sorted(keys))
            raise ValueError(f"a grid of adaptations must hold {known}, with the recipe's keys those of RunConfig")
        tasks = [split_task(task) for task in whole["tasks"]]
        axes = product(tasks, whole["objectives"], whole["norms"], whole["settings"], whole["norm_settings"])
        chosen = [(*task, *rest) for task, *rest in axes]
        if whole["oracle"]:
            targets = dict.fromkeys(target for _, target in tasks)
            chosen += [(target, target, "source-only", "bn", {}, {}) for target in targets]
        recipe = {"settings": {}, "norm_settings": {}} | whole["recipe"]
        tuned = {} if whole["tuned"] is None else chosen_settings(whole["tuned"])
        recipes = []
        for seed, (source, target, objective, norm, settings, norm_settings) in product(whole["seeds"], chosen):
            rate, weight = tuned.get(objective, ({}, {}))
            if tuned and not rate:
                raise ValueError(f"{whole['tuned']} holds no search for {objective!r}: run it first")
            own = {
                "settings": recipe["settings"] | weight | settings,
                "norm_settings": recipe["norm_settings"] | norm_settings,
            }
            places = {"source": source, "target": target, "objective": objective, "norm": norm, "seed": seed}
            recipes.append(cls(**places, **{**recipe, **rate, **own}))
        return recipes

    def code(self) -> Code:
        """The story of :func:`train`, with what the recipe's names stand for."""
        method, norm = catalogue.get(self.objective), catalogue.get(self.norm)
        own = (real.load_real if name in real.LOADERS else real.load_own for name in (self.source, self.target))
        loaders = [BUILDERS.get(name, load) for name, load in zip((self.source, self.target), own, strict=True)]
        functions = [part for part in (method.builder, norm.before_evaluation, *loaders) if part is not None]
        roots = [f"{__name__}.train", "deeptransfer.catalogue.Method.factory", method.symbol]
        roots += [f"{function.__module__}.{function.__qualname__}" for function in functions]
        if norm.has_layer:
            roots += ["deeptransfer.catalogue.Method.convert", norm.symbol]
        builders = {name: f"deeptransfer.backbones.{name}" for name in ("mobilenet_025", "torchvision_backbone")}
        builders |= {"small_cnn": "deeptransfer.networks.small_cnn"}
        used = self.backbone if self.backbone in builders else "torchvision_backbone"
        stop = [path for name, path in builders.items() if name != used]
        if used == "small_cnn":
            stop.append("deeptransfer.backbones.finetuning_groups")
        if not self.augment:
            stop.append("deeptransfer.domains.pair.random_crop_and_flip")
        if not self.randomize:
            stop.append("deeptransfer.domains.pair.randomize_strokes")
        if not norm.has_layer:  # a network with plain BatchNorm holds no domain layer
            stop.append("deeptransfer.normalization.base.DomainNorm")
        if catalogue.LABELLED not in method.needs:
            stop.append("deeptransfer.adversarial.SoftLabelLoss")
        return Code(roots, stop, [dict(method.options), dict(norm.options), list(method.needs)])


def chosen_settings(grid: str) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """By objective, the learning rate and the weight that a grid of searches has chosen with BatchNorm."""
    results = [result for result in load_results(grid) if result["config"]["norm"] == "bn"]
    chosen = {result["config"]["objective"]: result["chosen"] for result in results}
    return {
        objective: ({"lr": best["lr"]}, {} if best["weight"] is None else {"weight": best["weight"]})
        for objective, best in chosen.items()
    }


def preset(name: str) -> dict[str, Any]:
    """The recipe of ``data/presets/<name>.toml``: a paper's own, as far as it tells.

    Raises
    ------
    ValueError
        If there is no such preset, or it holds an unknown key; the message lists the known ones.
    """
    recipe = read_toml("presets", name)
    if unknown := set(recipe) - {f.name for f in fields(RunConfig)}:
        raise ValueError(f"{name}.toml holds {sorted(unknown)[0]!r}, which is not a key of RunConfig")
    return recipe


def split_task(task: str) -> tuple[str, str]:
    r"""``"print:pen"`` as source and target; ``"C:\photos:D:\scans"`` too: the colon of a drive divides nothing.

    Raises
    ------
    ValueError
        If the task is not two domains with a colon between them.
    """
    places = [m.start() for m in re.finditer(":", task)]
    between = [place for place in places if is_domain(task[:place]) and is_domain(task[place + 1 :])]
    if len(between) != 1:  # nothing is there, which is another error's to say: a path's colons are those of drives
        drives = [m.end() - 1 for m in re.finditer(r"(?:^|:)[A-Za-z]:(?=[\\/])", task)]
        between = [place for place in places if place not in drives]
    if len(between) != 1 or not (task[: between[0]] and task[between[0] + 1 :]):
        raise ValueError(f"a task is written source:target, such as print:pen; got {task!r}")
    return task[: between[0]], task[between[0] + 1 :]


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what scores it."""

    pair: DomainPair
    source_test: Domain
    target_test: Domain
    unlabelled: Domain  # of the target's training images: scored without their labels, and what AdaBN sees


def train(config: RunConfig, means: Means | None = None, stop: int | None = None) -> dict[str, Any]:
    """Curve, selections, accuracy per class, and which test images were wrong at the end.

    With ``stop`` only so many updates are done of those that the recipe schedules: the curve begins as the whole one.
    """
    means = means or Means()
    seed_everything(config.seed)
    data = load_data(config)
    network = build_network(config, len(data.pair.classes), data.pair.shape)
    if config.start:
        fit(network, data.pair, SourceOnly(), config.start, config.lr, workers=means.workers)
    normalise(config, network)
    objective = build_objective(config, network, data.pair)
    optimizer = build_optimizer(config, network, objective)
    state = Checkpoint(means.checkpoint, config, {"network": network, "objective": objective}, optimizer)
    score = Score(config, data, means.score_batch)

    def keep(history: History) -> None:
        if (state.step + len(history.steps)) % config.every == 0 and place()[0] == 0:
            state.save(history)

    history = fit(
        network,
        data.pair,
        objective if place()[1] == 1 else Distributed(network, objective, default_device()),
        config.steps,
        optimizer=optimizer,
        probes=score.point,
        every=config.every,
        start=state.step,
        stop=stop,
        workers=means.workers,
        after_step=keep,
    )
    if means.save is not None and place()[0] == 0:
        save_model(means.save, config, score.adapted(network), data.pair.classes, data.pair.shape)
    return record(config, state.curve + history.probes, score.target(network))


def load_data(config: RunConfig) -> Data:
    """The domains of the recipe, each with what it is scored on."""
    splits = ("all", "all") if config.transductive else ("train", "test")
    source, source_test = (load_domain(config.source, split, size=config.size) for split in splits)
    target, target_test = (load_domain(config.target, split, size=config.size) for split in splits)
    few = few_labelled(target, config.labelled, config.seed) if config.labelled else None
    rank, world_size = place()
    pair = DomainPair(
        source,
        target,
        config.batch_size,
        config.seed,
        labelled_target=few,
        views=2 if catalogue.VIEWS in catalogue.get(config.objective).needs else 1,
        augment=random_crop_and_flip if config.augment else None,
        randomize=randomize_strokes if config.randomize else None,
        rank=rank,
        world_size=world_size,
    )
    unlabelled = some_of(target, config.scored, config.seed)
    return Data(pair, *(pair.harmonise(domain) for domain in (source_test, target_test, unlabelled)))


def build_network(config: RunConfig, classes: int, shape: Sequence[int]) -> Network:
    """The recipe's network for images ``(C, H, W)``, on the device, its weights not yet trained on the task."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config.network.items()}
    recipe: dict[str, Any] = given | {"classes": classes, "seed": config.seed}
    weights = config.weights
    if weights not in ("", "default"):
        weights = str(datasets_folder() / weights)
    if config.backbone == "small_cnn":
        network = small_cnn(**recipe, channels=shape[0], size=shape[-1])
    elif config.backbone == "mobilenet_025":
        network = mobilenet_025(weights or None, **recipe)
    else:
        network = torchvision_backbone(config.backbone, weights=weights or None, **recipe)
    network.to(default_device(), getattr(torch, config.dtype))
    if config.amp:
        network.autocast = torch.bfloat16
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    return network


def normalise(config: RunConfig, network: Network) -> None:
    """Put the recipe's normalisation into the network, in place."""
    norm, several = catalogue.get(config.norm), place()[1] > 1
    if several and default_device().type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    norm.convert(network, **config.norm_settings, **({"sync": True} if norm.has_layer and several else {}))


def build_objective(config: RunConfig, network: Network, pair: DomainPair) -> Objective:
    """The recipe's objective, on the network's device."""
    build = catalogue.get(config.objective).factory
    objective = build(network, len(pair.classes), config.seed, **config.settings)
    for loss in (part for part in objective.modules() if isinstance(part, SoftLabelLoss)):
        loss.update(*predict(network, pair.source, "source")[1:])
    return objective


def build_optimizer(config: RunConfig, network: Network, objective: Objective) -> torch.optim.SGD:
    """SGD over all that the objective trains; what a backbone brought along learns slower."""
    groups = objective.parameter_groups(network)
    if config.backbone != "small_cnn":
        groups = finetuning_groups(groups, network, config.backbone_lr)
    optimizer = sgd(groups, config.lr)
    objective.to(default_device(), getattr(torch, config.dtype))
    return optimizer


class Score:
    """How a network stands: on the target as its method has it scored, on the source, and without labels."""

    def __init__(self, config: RunConfig, data: Data, batch_size: int | None) -> None:
        self.norm, self.criteria = catalogue.get(config.norm), config.criteria
        self.data, self.batch_size = data, batch_size

    def point(self, network: nn.Module) -> dict[str, float]:
        """The numbers of a point of the curve."""
        adapted = self.adapted(network)
        target = evaluate(adapted, self.data.target_test, batch_size=self.batch_size).accuracy
        source = evaluate(network, self.data.source_test, "source", self.batch_size).accuracy
        # Where the choice may look: on images the run adapts to, without their labels.
        logits = predict(adapted, self.data.unlabelled, batch_size=self.batch_size)[1]
        return {"target": target, "source": source} | {name: CRITERIA[name](logits) for name in self.criteria}

    def target(self, network: nn.Module) -> Evaluation:
        """Accuracy on the target's test images."""
        return evaluate(self.adapted(network), self.data.target_test, batch_size=self.batch_size)

    def adapted(self, network: nn.Module) -> nn.Module:
        """The network, or a copy with the statistics that the method gives it before it is scored."""
        if self.norm.before_evaluation is None:
            return network
        network, unlabelled = copy.deepcopy(network), self.data.unlabelled
        parameter = next(network.parameters())
        images = torch.stack([unlabelled[i][0] for i in range(len(unlabelled))])
        self.norm.before_evaluation(network, images.to(parameter.device, parameter.dtype))
        return network


def record(config: RunConfig, curve: Sequence[Mapping[str, float]], final: Evaluation) -> dict[str, Any]:
    """The numbers of a run, ready for JSON."""
    per_class = [None if value != value else value for value in final.per_class.tolist()]  # NaN is not JSON
    wrong = (~final.correct).nonzero().flatten().tolist()
    return {"curve": curve, "selections": select(curve, config.criteria[0]), "per_class": per_class, "wrong": wrong}


def select(curve: Sequence[Mapping[str, float]], criterion: str) -> dict[str, dict[str, float]]:
    """The three selections: the last point, the best by a criterion without labels, the best by target labels."""
    points = (curve[-1], max(curve, key=lambda p: p[criterion]), max(curve, key=lambda p: p["target"]))
    return {name: {"step": p["step"], "accuracy": p["target"]} for name, p in zip(SELECTIONS, points, strict=True)}
