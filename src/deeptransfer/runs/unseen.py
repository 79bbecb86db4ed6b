"""A domain never seen: train on several labelled domains, score on one of which no image was there.

Every method meets the same batches: as many images of each source in every update, one network, one recipe. A method
is a change of the network's normalisation, and a way to predict an image of no known domain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import gaussian_blur

from deeptransfer import catalogue
from deeptransfer.backbones import finetuning_groups, mobilenet_025
from deeptransfer.domains import (
    Domain,
    DomainPair,
    TensorDomain,
    datasets_folder,
    domain_names,
    grey,
    is_domain,
    load_domain,
    random_crop_and_flip,
    real,
    some_of,
)
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.networks import Network, small_cnn
from deeptransfer.normalization import (
    DSON,
    DomainBatchNorm2d,
    InstanceWhitening2d,
    convert_norm,
    domain_branches,
    forward_domains,
    instance_correlation,
)
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import default_device, evaluate, fit, seed_everything

CONVERTED = ("ibn", "dson")  # their layer takes the place of every BatchNorm
PER_DOMAIN = ("dson", "domain-average", "bn-embeddings")  # a branch for each source
BEHIND = ("mixstyle", "crossnorm", "selfnorm")  # their layer stands behind two early blocks
METHODS = ("bn", *CONVERTED, *PER_DOMAIN[1:], *BEHIND, "isw", "dsmnet")
OWN_SETTINGS = {"dson": ("frozen", "mixture_lr"), "isw": ("weight", "begin", "selective")}  # not the layer's
EARLY = {"small_cnn": ("block1", "block2"), "mobilenet_025": ("block1", "block3")}  # the last of a resolution each
LOOKED_AT = 600  # images of each domain whose branches are compared
AT_ONCE = 200  # images


@dataclass(frozen=True, kw_only=True)
class UnseenConfig(Recipe):
    """The recipe of one run.

    Attributes
    ----------
    sources : tuple of str
        Domains to train on, all labelled, by name or path as :func:`~deeptransfer.domains.load_domain` takes them.
    unseen : str
        The domain to score on.
    method : str
        ``"bn"``, or a name of the catalogue's kind ``"generalization"``.
    settings : dict
        Of the method's layer. Beside them ``frozen`` (DSON's mixtures stay at ½) and ``mixture_lr`` (what multiplies
        their learning rate); ``weight`` of ISW's loss, 0.6, ``begin``, the share of the updates after which it acts,
        0.25, and ``selective``, whether a mask is chosen then: without it all pairs are whitened.
    augment : str
        What the sources' images are trained on as: ``"styles"``, :func:`photometric` variants; ``"crops"``,
        :func:`~deeptransfer.domains.random_crop_and_flip`; empty, themselves.
    seed : int
        Of the initial weights, the order of images and all other chance.
    steps, batch_size, lr, every
        Updates; images of each source in one of them; learning rate; updates between two points of the curve.
    backbone : str
        ``"small_cnn"``, which gets grey images, or ``"mobilenet_025"``.
    weights : str
        Of the backbone: empty, or a file, relative to :func:`~deeptransfer.domains.datasets_folder`.
    backbone_lr : float
        What ``lr`` is multiplied by in the layers that a backbone brings.
    size : int or None
        Height and width that images are resampled to.
    whole : bool
        Score on all images of the unseen domain, not on its test split: none of them was trained on.
    network : mapping
        Arguments of the function that builds the network.

    Raises
    ------
    ValueError
        If a domain, the method, the backbone or the augmentation is unknown, or no sources are given.
    """

    sources: tuple[str, ...]
    unseen: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    augment: str = ""
    seed: int = 0
    steps: int
    batch_size: int = 32
    lr: float = 0.05
    every: int
    backbone: str = "small_cnn"
    weights: str = ""
    backbone_lr: float = 0.1
    size: int | None = None
    whole: bool = False
    network: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))  # a list, when it comes from a file
        if not self.sources:
            raise ValueError("sources must name one domain or more")
        for name in (*self.sources, self.unseen):
            if not is_domain(name):
                raise ValueError(
                    f"unknown domain {name!r}: known ones are {', '.join(domain_names())}; nor is it the path of a "
                    "folder with a folder for each class, or of a list file"
                )
        for what, known in (("method", METHODS), ("backbone", tuple(EARLY)), ("augment", ("", *AUGMENTATIONS))):
            if getattr(self, what) not in known:
                names = ", ".join(filter(None, known))
                raise ValueError(f"unknown {what} {getattr(self, what)!r}: known ones are {names}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        words = [f"{key}-{json.dumps(value)}" for key, value in sorted(self.settings.items())]
        words = [self.method, *words, *([self.augment] if self.augment else [])]
        name = f"{'+'.join(self.sources)}-to-{self.unseen}_{'_'.join(words)}_seed{self.seed}"
        return re.sub(r"[/\\:]+", "-", name)

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy on the unseen domain and on the own ones: see :func:`train_unseen`."""
        return train_unseen(self)[1]

    def beginning(self) -> dict[str, Any]:
        """The first point of the curve."""
        return {"curve": train_unseen(self, stop=self.every)[1]["curve"]}

    def code(self) -> Code:
        """The training, what draws its images, and the method's layer."""
        names = (*self.sources, self.unseen)
        loaders = [BUILDERS.get(n, real.load_real if n in real.LOADERS else real.load_own) for n in names]
        roots = [f"{__name__}.train_unseen", *(f"{f.__module__}.{f.__qualname__}" for f in loaders)]
        stop = {
            "small_cnn": ["deeptransfer.backbones.mobilenet_025", "deeptransfer.backbones.finetuning_groups"],
            "mobilenet_025": ["deeptransfer.networks.small_cnn"],
        }
        return Code([*roots, catalogue.get(self.method).symbol], stop[self.backbone])

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy on the unseen domain, and the mean over the own ones."""
        own = list(result["own"].values())
        return {"unseen": result["curve"][-1]["unseen"], "own": sum(own) / len(own)}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every one of ``rows``, tables of ``method``, ``settings`` and ``augment``, with every one of ``seeds``.

        With ``leave_out``, a list of domains in place of ``sources`` and ``unseen``, each of them is left out once.
        """
        own, grid = {"method", "settings", "augment"}, dict(grid)
        left_out = grid.pop("leave_out", None)
        tasks: list[dict[str, Any]] = [{}]
        if left_out is not None:
            others = {unseen: [name for name in left_out if name != unseen] for unseen in left_out}
            tasks = [{"sources": sources, "unseen": unseen} for unseen, sources in others.items()]
        rest = cls.shared_by(grid, ["rows", "seeds"], [*own, "seed", *tasks[0]])
        for row in grid["rows"]:
            if set(row) - own:
                raise ValueError(f"a row may hold {', '.join(sorted(own))}, got {', '.join(row)}")
        runs = product(grid["seeds"], tasks, grid["rows"])
        return [cls(**rest, **task, **row, seed=seed) for seed, task, row in runs]


def photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another style of images ``(n, C, H, W)`` in [0, 1], which no affine map of the values undoes.

    Each channel of each image gets its own exponent (gamma) between ½ and 2, all of a batch one Gaussian blur of at
    most 1.2 pixels.
    """
    exponent = 2 ** (2 * torch.rand(*images.shape[:2], 1, 1, generator=generator) - 1)
    deviation = 0.2 + torch.rand((), generator=generator).item()
    return gaussian_blur(images.clamp(0, 1) ** exponent.to(images), [7, 7], [deviation, deviation])


AUGMENTATIONS = {"styles": photometric, "crops": random_crop_and_flip}


def load(config: UnseenConfig, name: str, split: str) -> Domain:
    """A domain as a recipe has it: of one size, and grey for the small network."""
    domain = load_domain(name, split, size=config.size)
    if config.backbone != "small_cnn":
        return domain
    if isinstance(domain, TensorDomain):
        return grey(domain)
    return load_domain(name, split, size=config.size, transform=lambda image: image.mean(0, keepdim=True))


@dataclass(frozen=True)
class LabelledBatch:
    """Images and labels of each source, ``(n, C, H, W)`` and ``(n,)``."""

    images: Sequence[Tensor]
    labels: Sequence[Tensor]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LabelledBatch:
        """The batch on ``device``, its images as ``dtype``."""
        return LabelledBatch([x.to(device, dtype) for x in self.images], [y.to(device) for y in self.labels])


class Sources:
    """Draw batches with as many images of each of several labelled domains; the batch of a step is always the same."""

    def __init__(self, domains: Sequence[Domain], batch_size: int, seed: int, augment: str = "") -> None:
        self.pairs = [DomainPair(d, d, batch_size, seed, augment=AUGMENTATIONS.get(augment)) for d in domains]

    def batch(self, step: int) -> LabelledBatch:
        """The batch of ``step`` = 0, 1, 2, …"""
        parts = [pair.batch(step) for pair in self.pairs]
        return LabelledBatch([part.xs for part in parts], [part.ys for part in parts])


def build(config: UnseenConfig, classes: int = 10) -> Network:
    """The network of a recipe, its weights not yet trained on the task."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.network.items()}
    if config.backbone == "small_cnn":
        network = small_cnn(classes, size=config.size or 28, seed=config.seed, **given)
    else:
        weights = datasets_folder() / config.weights if config.weights else None
        network = mobilenet_025(weights, classes, seed=config.seed, **given)
    put_method_in(network, config)
    network.to(default_device())
    return network.to(memory_format=torch.channels_last)


def put_method_in(network: Network, config: UnseenConfig) -> None:
    """Change the normalisation as the recipe's method does, in place."""
    own = OWN_SETTINGS.get(config.method, ())
    settings = {key: value for key, value in config.settings.items() if key not in own}
    layer: Any = catalogue.get(config.method).resolve()
    if config.method in CONVERTED:
        named = {"domains": config.sources} if config.method in PER_DOMAIN else {}
        convert_norm(network, layer, **named, **settings)
    elif config.method in PER_DOMAIN:
        unshared = {"shared_affine": False} if config.method == "domain-average" else {}
        convert_norm(network, DomainBatchNorm2d, domains=config.sources, **unshared)
    elif config.method in BEHIND:
        for name in EARLY[config.backbone]:
            block: Any = network.features.get_submodule(name)
            width = [part.out_channels for part in block if isinstance(part, nn.Conv2d)][-1]
            block.append(layer(width, **settings) if config.method == "selfnorm" else layer(**settings))
    elif config.method in ("isw", "dsmnet"):
        norms = [(block, i) for block, i in _parts(network) if isinstance(block[i], nn.BatchNorm2d)]
        for block, i in norms[: 1 if config.method == "isw" else None]:
            block[i] = layer(block[i].num_features, **settings)
    if config.settings.get("frozen"):
        for norm in dson_layers(network):
            norm.mix_mean.requires_grad_(False)
            norm.mix_var.requires_grad_(False)


def _parts(network: Network) -> Iterator[tuple[Any, int]]:
    """Every part of every block of convolutions, as the block and the part's place in it."""
    for block in network.features.children():
        if isinstance(block, nn.Sequential):
            yield from ((block, i) for i in range(len(block)))


def dson_layers(network: nn.Module) -> list[DSON]:
    """The layers of DSON that see images, in order: of vectors there is nothing to mix."""
    return [module for module in network.modules() if isinstance(module, DSON) and 4 in module.dims]


class SeveralSources(nn.Module):
    """The objective: mean cross-entropy over all sources and, under ISW, the whitening loss of its layer.

    Parameters
    ----------
    config : UnseenConfig
    network : Network
    images : Tensor
        Of the sources, for ISW's mask.
    """

    def __init__(self, config: UnseenConfig, network: Network, images: Tensor) -> None:
        super().__init__()
        self.config, self.per_domain, self.settings = config, config.method in PER_DOMAIN, config.settings
        self.images, self.generator = images, torch.Generator().manual_seed(config.seed)
        self.selected = not self.settings.get("selective", True)
        self.output = torch.empty(0)
        found = [module for module in network.modules() if isinstance(module, InstanceWhitening2d)]
        self.whitening = found[0] if found and self.settings.get("weight", 0.6) else None
        if self.whitening is not None:
            self.whitening.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.output = output

    def forward(self, network: Network, batch: LabelledBatch, progress: float) -> dict[str, Tensor]:
        """Named losses of one batch."""
        if self.per_domain:
            logits = torch.cat([output.logits for output in forward_domains(network, *batch.images)])
        else:
            logits = network(torch.cat(list(batch.images))).logits
        losses = {"classification": F.cross_entropy(logits, torch.cat(list(batch.labels)))}
        if self.whitening is not None and progress >= self.settings.get("begin", 0.25):
            if not self.selected:
                self.whitening.select(*correlations(network, self.images, self.generator))
                self.selected = True
            losses["whitening"] = self.settings.get("weight", 0.6) * self.whitening.loss(self.output)
        return losses

    def parameter_groups(self, network: Network) -> list[dict]:
        """The network, a pretrained backbone slower; DSON's mixtures with their own rate, and without decay."""
        mixtures = {id(p) for layer in dson_layers(network) for p in (layer.mix_mean, layer.mix_var)}
        trained = [p for p in network.parameters() if p.requires_grad]
        rest = [p for p in trained if id(p) not in mixtures]
        own = {"weight_decay": 0.0, "lr_mult": self.settings.get("mixture_lr", 1.0)}
        groups = [{"params": rest}]
        if self.config.backbone != "small_cnn":
            groups = finetuning_groups(groups, network, self.config.backbone_lr)
        groups += [{"params": [p for p in trained if id(p) in mixtures], **own}]
        return [group for group in groups if group["params"]]


@torch.no_grad()
def correlations(network: Network, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Correlations within images before the whitening layer, as the images are and in another style."""
    device = next(network.parameters()).device
    first: Any = network.features[0]
    place = [isinstance(part, InstanceWhitening2d) for part in first].index(True)
    views = (images, photometric(images, generator))
    a, b = (instance_correlation(first[:place](network.standardize(view.to(device)))) for view in views)
    return a, b


def train_unseen(config: UnseenConfig, stop: int | None = None) -> tuple[Network, dict[str, Any]]:
    """Train, and return the network with the numbers of the run.

    These are the ``curve`` of the accuracy on the unseen domain, and the accuracy on ``own`` domains, each in its own
    branch. DSON adds the ``shares`` of the instance by layer, moment (mean, variance) and source; methods with branches
    the accuracy of each ``branch`` on the unseen domain, and the mean ``weights`` that each domain's images would get
    by BatchNorm embeddings; ISW the number of ``pairs`` whitened.
    With ``stop`` only so many updates are done of those that the recipe schedules.
    """
    seed_everything(config.seed)
    train = [load(config, name, "train") for name in config.sources]
    tests = {name: load(config, name, "test") for name in config.sources}
    unseen = load(config, config.unseen, "all" if config.whole else "test")
    network = build(config, len(unseen.classes))
    samples = [some_of(domain, 128, config.seed) for domain in train]
    images = torch.cat([x for sample in samples for x, _ in in_batches(sample)])
    objective: Any = SeveralSources(config, network, images)
    pair: Any = Sources(train, config.batch_size, config.seed, config.augment)

    def accuracy(network: nn.Module) -> float:
        right = [predict_unseen(network, config, x) == y for x, y in in_batches(unseen)]
        return torch.cat(right).double().mean().item()

    history = fit(
        network,
        pair,
        objective,
        config.steps,
        config.lr,
        probes={"unseen": accuracy},
        every=config.every,
        stop=stop,
    )
    network.eval()
    branches = config.method in PER_DOMAIN
    own = {n: evaluate(network, tests[n], n if branches else "target").accuracy for n in config.sources}
    result: dict[str, Any] = {"curve": history.probes, "own": own}
    if branches:
        result |= look_at_branches(network, tests, unseen, config)
    if config.method == "dson":
        result["shares"] = [[w.tolist() for w in layer.shares()] for layer in dson_layers(network)]
    if objective.whitening is not None:
        result["pairs"] = int(objective.whitening.mask.sum())
    return network, result


def in_batches(domain: Domain) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of a whole domain in its order, some at a time."""
    if isinstance(domain, TensorDomain):
        yield from zip(*(tensor.split(AT_ONCE) for tensor in domain.tensors), strict=True)
    else:
        yield from DataLoader(domain, AT_ONCE, generator=torch.Generator())  # not the global one


@torch.no_grad()
def predict_unseen(network: nn.Module, config: UnseenConfig, images: Tensor) -> Tensor:
    """Classes of images of no known domain, ``(n,)``: of several branches, by their weighted average."""
    network.eval()
    x = images.to(next(network.parameters()).device)
    if config.method not in PER_DOMAIN:
        return network(x).logits.argmax(1).cpu()
    branches = domain_branches(network, x)
    weights = branches.weights() if config.method == "bn-embeddings" else None
    return branches.average(weights).argmax(1).cpu()


@torch.no_grad()
def look_at_branches(
    network: nn.Module, tests: Mapping[str, Domain], unseen: Domain, config: UnseenConfig
) -> dict[str, Any]:
    """Accuracy of each branch, and of their plain average, on the unseen domain; mean weights of each domain."""
    weights, right = {}, []
    device = next(network.parameters()).device
    for name, domain in {**tests, config.unseen: unseen}.items():
        parts = []
        for x, y in in_batches(some_of(domain, LOOKED_AT, config.seed)):
            branches = domain_branches(network, x.to(device))
            parts.append(branches.weights())
            if domain is unseen:
                each = [*branches.probabilities, branches.average()]
                right.append(torch.stack([p.argmax(1).cpu() == y for p in each]))
        weights[name] = torch.cat(parts).mean(0).tolist()
    accuracy = torch.cat(right, 1).double().mean(1).tolist()
    return {"branch": dict(zip([*config.sources, "average"], accuracy, strict=True)), "weights": weights}
