"""One run from one recipe: what ``python -m deeptransfer run`` does, and a grid does many times.

A run adapts on the target's unlabelled train split and is scored on its test split. Each result carries a fingerprint
of its recipe and of the code that made its numbers: a number that the library would no longer give is recognised.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision import models

from deeptransfer import __version__, catalogue
from deeptransfer.adversarial import SoftLabelLoss
from deeptransfer.backbones import finetuning_groups, mobilenet_025, torchvision_backbone
from deeptransfer.checkpoints import restore_checkpoint, save_checkpoint
from deeptransfer.distributed import Distributed, place
from deeptransfer.domains import (
    Domain,
    DomainPair,
    datasets_folder,
    domain_names,
    load_domain,
    random_crop_and_flip,
    real,
)
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.networks import Network, small_cnn
from deeptransfer.objectives import SourceOnly
from deeptransfer.provenance import fingerprint_code
from deeptransfer.results import SELECTIONS
from deeptransfer.selection import information_maximization
from deeptransfer.training import History, default_device, evaluate, fit, predict, seed_everything, sgd

# What a run reaches and no number depends on; what draws a domain's images is named for each domain instead.
NO_NUMBER = (
    "deeptransfer.training.progress_bar",
    "deeptransfer.domains.load_domain",
    "deeptransfer.experiments.fingerprint",
    "deeptransfer.checkpoints.save_checkpoint",
    "deeptransfer.checkpoints.restore_checkpoint",
    "deeptransfer.distributed.place",
    "deeptransfer.distributed.Distributed",
)
BACKBONES = ("small_cnn", "mobilenet_025")  # and all of torchvision's


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The recipe of one run.

    Attributes
    ----------
    source, target : str
        Domains; the same twice with objective ``source-only`` is the oracle: training on the target's labels.
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
    amp, channels_last : bool
        Mixed precision (bfloat16) and channels-last memory in the network: other roundings, the same recipe.
    scored : int
        At most so many of the target's unlabelled images are looked at to score without labels, and by AdaBN.
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
    amp: bool = False
    channels_last: bool = False
    scored: int = 2000
    settings: Mapping[str, Any] = field(default_factory=dict)
    norm_settings: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("source", domain_names()), ("target", domain_names()), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: known ones are {', '.join(known)}")
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
        for name, need in (("start", catalogue.START), ("labelled", catalogue.LABELLED)):
            if need in method.needs and getattr(self, name) < 1:
                raise ValueError(f"{self.objective!r} needs {need}: give {name}, not {getattr(self, name)}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        extra = [f"{k}={v}" for k, v in sorted({**self.settings, **self.norm_settings}.items())]
        parts = [f"{self.source}-to-{self.target}", self.objective, self.norm, *extra, f"seed{self.seed}"]
        return "_".join(parts).replace("/", "-").replace(" ", "")


def data_folder() -> Path:
    """``data`` in a checkout of the book, else in the current folder."""
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"


def preset(name: str) -> dict[str, Any]:
    """The recipe of ``data/presets/<name>.toml``: a paper's own, as far as it tells.

    Raises
    ------
    ValueError
        If there is no such preset, or it holds an unknown key; the message lists the known ones.
    """
    folder = data_folder() / "presets"
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise ValueError(f"unknown preset {name!r}: known ones are {known}")
    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    if unknown := set(recipe) - {f.name for f in fields(RunConfig)}:
        raise ValueError(f"{path.name} holds {sorted(unknown)[0]!r}, which is not a key of RunConfig")
    return recipe


def split_task(task: str) -> tuple[str, str]:
    """``"print:pen"`` as source and target."""
    source, colon, target = task.partition(":")
    if not (source and colon and target):
        raise ValueError(f"a task is written source:target, such as print:pen; got {task!r}")
    return source, target


def run(config: RunConfig, workers: int = 0, checkpoint: Path | None = None) -> dict[str, Any]:
    """Train and score one recipe: its numbers, and how they were made, ready for JSON.

    Parameters
    ----------
    config : RunConfig
    workers : int
        Processes that load images ahead.
    checkpoint : Path, optional
        Where the state is kept at each point of the curve. If it is there, the run goes on from it, on a CPU to the
        same numbers; it is removed when the run is done.

    Raises
    ------
    RuntimeError
        If memory runs out; the message says what needs less.
    """
    began, mark = time.perf_counter(), fingerprint(config)  # of the code as it is when the run begins
    try:
        numbers = train(config, workers, checkpoint)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise RuntimeError(
            f"out of memory with {config.batch_size} + {config.batch_size} images a step: give a smaller batch size or "
            f"image size, or mixed precision ({error})"
        ) from error
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    versions = {"deeptransfer": __version__, "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "numpy": np.__version__}
    made = {"seed": config.seed, "versions": versions, "device": default_device().type}
    made |= {"processes": place()[1], "threads": torch.get_num_threads()}
    made |= {"seconds": round(time.perf_counter() - began, 1)}
    return {"config": asdict(config), "fingerprint": mark} | made | numbers


def train(config: RunConfig, workers: int = 0, checkpoint: Path | None = None) -> dict[str, Any]:
    """Curve, selections, accuracy per class, and which test images were wrong at the end."""
    method, norm = catalogue.get(config.objective), catalogue.get(config.norm)
    device, (rank, world_size) = default_device(), place()
    seed_everything(config.seed)
    splits = ("all", "all") if config.transductive else ("train", "test")
    source, source_test = (load_domain(config.source, split, size=config.size) for split in splits)
    target, target_test = (load_domain(config.target, split, size=config.size) for split in splits)
    few = few_labelled(target, config.labelled, config.seed) if config.labelled else None
    pair = DomainPair(
        source,
        target,
        config.batch_size,
        config.seed,
        labelled_target=few,
        views=2 if catalogue.VIEWS in method.needs else 1,
        augment=random_crop_and_flip if config.augment else None,
        rank=rank,
        world_size=world_size,
    )
    classes = len(pair.classes)
    network = build_network(config, classes, pair.shape).to(device, getattr(torch, config.dtype))
    if config.amp:
        network.autocast = torch.bfloat16
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    if config.start:
        fit(network, pair, SourceOnly(), config.start, config.lr, workers=workers)
    if world_size > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    norm.convert(network, **config.norm_settings, **({"sync": True} if norm.has_layer and world_size > 1 else {}))
    objective = method.factory(network, classes, config.seed, **config.settings)
    for loss in (part for part in objective.modules() if isinstance(part, SoftLabelLoss)):
        loss.update(*predict(network, source, "source")[1:])
    unlabelled = some_of(target, config.scored, config.seed)

    def scored(network: nn.Module) -> nn.Module:
        """The network as the method has it scored on the target."""
        if norm.before_evaluation is None:
            return network
        network = copy.deepcopy(network)
        parameter = next(network.parameters())
        images = torch.stack([unlabelled[i][0] for i in range(len(unlabelled))])
        norm.before_evaluation(network, images.to(parameter.device, parameter.dtype))
        return network

    probes = {
        "target": lambda network: evaluate(scored(network), target_test).accuracy,
        "source": lambda network: evaluate(network, source_test, "source").accuracy,
        # Scored where the choice may look: on the images that the run adapts to, without their labels.
        "information": lambda network: information_maximization(predict(scored(network), unlabelled)[1]),
    }
    trained = objective if world_size == 1 else Distributed(network, objective, device)
    groups = objective.parameter_groups(network)
    if config.backbone != "small_cnn":
        groups = finetuning_groups(groups, network, config.backbone_lr)
    optimizer, modules = sgd(groups, config.lr), {"network": network, "objective": objective}
    objective.to(device, getattr(torch, config.dtype))
    mark = fingerprint(config)
    step, curve = (0, []) if checkpoint is None else restore_checkpoint(checkpoint, mark, modules, optimizer)

    def after_step(history: History) -> None:
        done = step + len(history.steps)
        if checkpoint is not None and rank == 0 and done % config.every == 0:
            save_checkpoint(checkpoint, mark, done, modules, optimizer, curve + history.probes)

    history = fit(
        network,
        pair,
        trained,
        config.steps,
        optimizer=optimizer,
        probes=probes,
        every=config.every,
        start=step,
        workers=workers,
        after_step=after_step,
    )
    curve = curve + history.probes
    final = evaluate(scored(network), target_test)
    per_class = [None if value != value else value for value in final.per_class.tolist()]  # NaN is not JSON
    wrong = (~final.correct).nonzero().flatten().tolist()
    return {"curve": curve, "selections": select(curve), "per_class": per_class, "wrong": wrong}


def build_network(config: RunConfig, classes: int, shape: tuple[int, ...]) -> Network:
    """The recipe's network for images of ``shape`` (C, H, W), its weights not yet trained on the task."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config.network.items()}
    recipe: dict[str, Any] = given | {"classes": classes, "seed": config.seed}
    if config.backbone == "small_cnn":
        return small_cnn(**recipe, channels=shape[0], size=shape[-1])
    weights = config.weights
    if weights not in ("", "default"):
        weights = str(datasets_folder() / weights)
    if config.backbone == "mobilenet_025":
        return mobilenet_025(weights, **recipe)
    return torchvision_backbone(config.backbone, weights=weights or None, **recipe)


def few_labelled(target: Domain, per_class: int, seed: int) -> Domain:
    """Some labelled images of each class of the target.

    Raises
    ------
    ValueError
        If a class has fewer.
    """
    if target.labels.bincount(minlength=len(target.classes)).min() < per_class:
        counts = target.labels.bincount(minlength=len(target.classes))
        rare = f"{target.classes[int(counts.argmin())]!r} of {target.name!r} has {int(counts.min())} images"
        raise ValueError(f"class {rare}, fewer than labelled={per_class}")
    labels, generator = target.labels, torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == k][:per_class] for k in range(len(target.classes))]
    return target.subset(torch.cat(chosen))


def some_of(domain: Domain, most: int, seed: int) -> Domain:
    """The domain, or ``most`` of its images drawn at random if it has more."""
    if len(domain) <= most:
        return domain
    return domain.subset(torch.randperm(len(domain), generator=torch.Generator().manual_seed(seed))[:most])


def select(curve: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The three selections: the last point, the best by information maximisation, the best by target labels."""
    points = (curve[-1], max(curve, key=lambda p: p["information"]), max(curve, key=lambda p: p["target"]))
    return {name: {"step": p["step"], "accuracy": p["target"]} for name, p in zip(SELECTIONS, points, strict=True)}


def fingerprint(config: RunConfig) -> str:
    """Sixteen hexadecimal digits for the recipe and for the code that makes its numbers."""
    method, norm = catalogue.get(config.objective), catalogue.get(config.norm)
    loaders = [BUILDERS.get(name, real.load_real) for name in (config.source, config.target)]
    functions = [part for part in (method.builder, norm.before_evaluation, *loaders) if part is not None]
    roots = [f"{__name__}.train", "deeptransfer.catalogue.Method.factory", method.symbol]
    roots += [f"{function.__module__}.{function.__qualname__}" for function in functions]
    if norm.has_layer:
        roots += ["deeptransfer.catalogue.Method.convert", norm.symbol]
    others = ["mobilenet_025", "torchvision_backbone"]
    stop = [*NO_NUMBER]
    if config.backbone == "small_cnn":
        stop += [f"deeptransfer.backbones.{name}" for name in (*others, "finetuning_groups")]
    else:
        stop += [
            "deeptransfer.networks.small_cnn",
            *(f"deeptransfer.backbones.{n}" for n in others if n != config.backbone),
        ]
    if not config.augment:
        stop.append("deeptransfer.domains.pair.random_crop_and_flip")
    if not norm.has_layer:  # a network with plain BatchNorm holds no domain layer
        stop.append("deeptransfer.normalization.base.DomainNorm")
    if catalogue.LABELLED not in method.needs:
        stop.append("deeptransfer.adversarial.SoftLabelLoss")
    recipe = [asdict(config), dict(method.options), dict(norm.options), method.needs]
    text = json.dumps(recipe, sort_keys=True) + fingerprint_code(roots, stop)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_stale(result: Mapping[str, Any]) -> bool:
    """Whether the library of today would not make this result: the code, or what a recipe holds, has changed."""
    try:
        config = RunConfig(**result["config"])
    except (TypeError, ValueError):  # a key or a name that is no longer known
        return True
    return fingerprint(config) != result["fingerprint"]
