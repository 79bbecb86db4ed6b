"""Experiments: one run from one recipe, and grids of runs that several processes can share.

A run adapts on the target's unlabelled train split and is scored on its test split. Each result carries a fingerprint
of its recipe and of the code that made its numbers: a number that the library would no longer give is recognised.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deeptransfer import __version__, catalogue
from deeptransfer.adversarial import SoftLabelLoss
from deeptransfer.domains import Domain, DomainPair, TensorDomain, domain_names, load_domain, real
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.networks import small_cnn
from deeptransfer.objectives import SourceOnly
from deeptransfer.provenance import fingerprint_code
from deeptransfer.results import SELECTIONS, write_json
from deeptransfer.selection import information_maximization
from deeptransfer.training import default_device, evaluate, fit, predict, progress_bar, seed_everything

# What a run reaches and no number depends on; what draws a domain's images is named for each domain instead.
NO_NUMBER = ("deeptransfer.training.progress_bar", "deeptransfer.domains.load_domain")


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
        Of the training; the curve has a point every ``every`` updates.
    start : int
        Updates on the source alone that come first.
    labelled : int
        Labelled target images per class.
    settings, norm_settings, network : mapping
        Arguments of the objective, of the normalisation layer, and of :func:`~deeptransfer.networks.small_cnn`.

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
    settings: Mapping[str, Any] = field(default_factory=dict)
    norm_settings: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("source", domain_names()), ("target", domain_names()), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: known ones are {', '.join(known)}")
        method, norm = catalogue.get(self.objective), catalogue.get(self.norm)
        if not method.is_objective or norm.kind != "normalization":
            raise ValueError(f"{self.objective!r} with {self.norm!r} is not an objective with a normalisation")
        if self.objective == "source-only" and norm.has_layer:
            raise ValueError(f"source-only never passes a target batch, which {self.norm!r} needs: use 'bn' or 'adabn'")
        for name, need in (("start", catalogue.START), ("labelled", catalogue.LABELLED)):
            if need in method.needs and getattr(self, name) < 1:
                raise ValueError(f"{self.objective!r} needs {need}: give {name}, not {getattr(self, name)}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        extra = [f"{k}={v}" for k, v in sorted({**self.settings, **self.norm_settings}.items())]
        parts = [f"{self.source}-to-{self.target}", self.objective, self.norm, *extra, f"seed{self.seed}"]
        return "_".join(parts).replace("/", "-").replace(" ", "")


def run(config: RunConfig) -> dict[str, Any]:
    """Train and score one recipe: its numbers, and how they were made, ready for JSON."""
    began, mark = time.perf_counter(), fingerprint(config)  # of the code as it is when the run begins
    numbers = train(config)
    versions = {"deeptransfer": __version__, "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "numpy": np.__version__}
    made = {"seed": config.seed, "versions": versions, "device": default_device().type}
    made |= {"threads": torch.get_num_threads(), "seconds": round(time.perf_counter() - began, 1)}
    return {"config": asdict(config), "fingerprint": mark} | made | numbers


def train(config: RunConfig) -> dict[str, Any]:
    """Curve, selections, accuracy per class, and which test images were wrong at the end."""
    method, norm = catalogue.get(config.objective), catalogue.get(config.norm)
    seed_everything(config.seed)
    source, source_test = (load_domain(config.source, split) for split in ("train", "test"))
    target, target_test = (load_domain(config.target, split) for split in ("train", "test"))
    few = few_labelled(target, config.labelled, config.seed) if config.labelled else None
    views = 2 if catalogue.VIEWS in method.needs else 1
    pair = DomainPair(source, target, config.batch_size, config.seed, labelled_target=few, views=views)
    classes = len(pair.classes)
    recipe: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.network.items()
    }
    recipe |= {"classes": classes, "channels": pair.shape[0], "size": pair.shape[-1], "seed": config.seed}
    network = small_cnn(**recipe).to(default_device(), getattr(torch, config.dtype))
    if config.start:
        fit(network, pair, SourceOnly(), config.start, config.lr)
    norm.convert(network, **config.norm_settings)
    objective = method.factory(network, classes, config.seed, **config.settings)
    for loss in (part for part in objective.modules() if isinstance(part, SoftLabelLoss)):
        loss.update(*predict(network, source, "source")[1:])

    def scored(network: nn.Module) -> nn.Module:
        """The network as the method has it scored on the target."""
        if norm.before_evaluation is None:
            return network
        network = copy.deepcopy(network)
        parameter = next(network.parameters())
        images = torch.stack([target[i][0] for i in range(len(target))])
        norm.before_evaluation(network, images.to(parameter.device, parameter.dtype))
        return network

    probes = {
        "target": lambda network: evaluate(scored(network), target_test).accuracy,
        "source": lambda network: evaluate(network, source_test, "source").accuracy,
        # Scored where the choice may look: on the images that the run adapts to, without their labels.
        "information": lambda network: information_maximization(predict(scored(network), target)[1]),
    }
    curve = fit(network, pair, objective, config.steps, config.lr, probes=probes, every=config.every).probes
    final = evaluate(scored(network), target_test)
    per_class = [None if value != value else value for value in final.per_class.tolist()]  # NaN is not JSON
    wrong = (~final.correct).nonzero().flatten().tolist()
    return {"curve": curve, "selections": select(curve), "per_class": per_class, "wrong": wrong}


def few_labelled(target: Domain, per_class: int, seed: int) -> TensorDomain:
    """Some labelled images of each class of the target."""
    if not isinstance(target, TensorDomain):
        raise ValueError(f"{target.name!r} is not held in memory, so its labels are not at hand to choose by")
    labels, generator = target.tensors[1], torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == k][:per_class] for k in range(len(target.classes))]
    return target.subset(torch.cat(chosen))


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
    stop = [*NO_NUMBER]
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


# ------------------------------------------------------------------------------------------------------------ grids


def data_folder() -> Path:
    """``data`` in a checkout of the book, else in the current folder."""
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"


def load_grid(name: str) -> list[RunConfig]:
    """The runs of ``data/grids/<name>.toml``: every objective, norm, task, setting and seed, and each target's oracle.

    Raises
    ------
    ValueError
        If there is no such grid, or it holds an unknown key; the message lists the known ones.
    """
    folder = data_folder() / "grids"
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise ValueError(f"unknown grid {name!r}: known ones are {known}")
    grid: dict[str, Any] = {"norms": ["bn"], "settings": [{}], "oracle": False, "recipe": {}}
    grid |= tomllib.loads(path.read_text(encoding="utf-8"))
    keys = {"objectives", "tasks", "norms", "settings", "seeds", "oracle", "recipe"}
    if set(grid) != keys or set(grid["recipe"]) - {f.name for f in fields(RunConfig)}:
        raise ValueError(f"{path.name} must hold {', '.join(sorted(keys))}, with the recipe's keys those of RunConfig")
    tasks = [split_task(task) for task in grid["tasks"]]
    axes = product(tasks, grid["objectives"], grid["norms"], grid["settings"])
    chosen = [(*task, objective, norm, settings) for task, objective, norm, settings in axes]
    if grid["oracle"]:
        chosen += [(target, target, "source-only", "bn", {}) for target in dict.fromkeys(target for _, target in tasks)]
    recipe = {"settings": {}} | grid["recipe"]
    return [
        RunConfig(
            source=source,
            target=target,
            objective=objective,
            norm=norm,
            seed=seed,
            **recipe | {"settings": recipe["settings"] | settings},
        )
        for seed, (source, target, objective, norm, settings) in product(grid["seeds"], chosen)
    ]


def split_task(task: str) -> tuple[str, str]:
    """``"print:pen"`` as source and target."""
    source, colon, target = task.partition(":")
    if not (source and colon and target):
        raise ValueError(f"a task is written source:target, such as print:pen; got {task!r}")
    return source, target


def grid(configs: Sequence[RunConfig], folder: str | Path, workers: int = 1) -> list[Path]:
    """Do the runs that ``folder`` does not hold yet, or holds from older code; return the files written.

    Several processes, on any machines that see the folder, may work on one grid: a run is locked while it is done, and
    the lock ends with the process that holds it. A run that fails does not stop the others.

    Raises
    ------
    ValueError
        If two recipes would share a file.
    RuntimeError
        After all other runs, if some failed; the message says which and why.
    """
    folder = Path(folder)
    if len({config.name for config in configs}) < len(configs):
        raise ValueError("two recipes of the grid differ in nothing that their files' names tell: use two grids")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{config.name}.json" for config in configs]
    written, failed = [], []
    with _mapping(workers) as mapped:
        outcomes = mapped(_run_into, configs, paths)
        for i, outcome in zip(progress_bar(range(len(paths)), folder.name), outcomes, strict=True):
            if isinstance(outcome, str):
                failed.append(f"{configs[i].name}: {outcome}")
            elif outcome:
                written.append(paths[i])
    if failed:
        raise RuntimeError("these runs failed:\n" + "\n".join(failed))
    return written


@contextmanager
def _mapping(workers: int) -> Iterator[Any]:
    """``map``, here or in several processes that share the cores."""
    if workers == 1:
        yield map
        return
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield pool.map


def _run_into(config: RunConfig, path: Path) -> bool | str:
    """Whether the run was done here and now; the error's text if it failed."""
    if _is_done(config, path):
        return False
    with _locked(path.with_suffix(".lock")) as mine:
        if not mine or _is_done(config, path):  # done by another process since we looked
            return False
        try:
            write_json(run(config), path)
        except (ArithmeticError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
    return True


def _is_done(config: RunConfig, path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == fingerprint(config)
    except (OSError, ValueError, KeyError):  # absent, or not one of ours
        return False


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process got the lock; the system gives it back when a process dies."""
    import fcntl

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our opening and locking it.
            mine = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except OSError:
            mine = False
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)
