"""A domain never seen: train on several labelled domains, score on one of which no image was there.

Every method meets the same batches: as many images of each source in every update, one network, one recipe. A method
is a change of the network's normalisation, and a way to predict an image of no known domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import rgb_to_grayscale
from torchvision.transforms.v2.functional import gaussian_blur

from deeptransfer import catalogue
from deeptransfer.domains import DomainPair, TensorDomain, load_domain
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
BEHIND = ("mixstyle", "crossnorm", "selfnorm")  # their layer stands behind each of the first two blocks
METHODS = ("bn", *CONVERTED, *PER_DOMAIN[1:], *BEHIND, "isw", "dsmnet")
OWN_SETTINGS = {"dson": ("frozen", "mixture_lr"), "isw": ("weight", "begin", "selective")}  # not the layer's


@dataclass(frozen=True, kw_only=True)
class UnseenConfig(Recipe):
    """The recipe of one run.

    Attributes
    ----------
    sources : tuple of str
        Built-in domains to train on, all labelled.
    unseen : str
        The built-in domain to score on. All images are grey.
    method : str
        ``"bn"``, or a name of the catalogue's kind ``"generalization"``.
    settings : dict
        Of the method's layer. Beside them ``frozen`` (DSON's mixtures stay at ½) and ``mixture_lr`` (what multiplies
        their learning rate); ``weight`` of ISW's loss, 0.6, ``begin``, the share of the updates after which it acts,
        0.25, and ``selective``, whether a mask is chosen then: without it all pairs are whitened.
    augment : bool
        Train on :func:`photometric` variants.
    seed : int
        Of the initial weights, the order of images and all other chance.
    steps, batch_size, lr, every
        Updates; images of each source in one of them; learning rate; updates between two points of the curve.
    widths, hidden : tuple of int
        Of :func:`~deeptransfer.networks.small_cnn`.

    Raises
    ------
    ValueError
        If a domain is not built in, or no sources are given, or the method is unknown.
    """

    sources: tuple[str, ...]
    unseen: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    augment: bool = False
    seed: int = 0
    steps: int
    batch_size: int = 32
    lr: float = 0.05
    every: int
    widths: tuple[int, ...] = (8, 16, 32)
    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        for name in ("sources", "widths", "hidden"):  # lists, when they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.sources:
            raise ValueError("sources must name one domain or more")
        for name in (*self.sources, self.unseen):
            if name not in BUILDERS:
                raise ValueError(f"unknown domain {name!r}: built-in ones are {', '.join(BUILDERS)}")
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: known ones are {', '.join(METHODS)}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        words = [f"{key}-{json.dumps(value)}" for key, value in sorted(self.settings.items())]
        words = [self.method, *words, *(["augment"] if self.augment else [])]
        return f"{'+'.join(self.sources)}-to-{self.unseen}_{'_'.join(words)}_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy on the unseen domain and on the own ones: see :func:`train_unseen`."""
        return train_unseen(self)[1]

    def beginning(self) -> dict[str, Any]:
        """The first point of the curve."""
        return {"curve": train_unseen(self, stop=self.every)[1]["curve"]}

    def code(self) -> Code:
        """The training, what draws its images, and the method's layer."""
        loaders = [BUILDERS[name] for name in (*self.sources, self.unseen)]
        roots = [f"{__name__}.train_unseen", *(f"{f.__module__}.{f.__qualname__}" for f in loaders)]
        return Code([*roots, catalogue.get(self.method).symbol])

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy on the unseen domain, and the mean over the own ones."""
        own = list(result["own"].values())
        return {"unseen": result["curve"][-1]["unseen"], "own": sum(own) / len(own)}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every one of ``rows``, tables of ``method``, ``settings`` and ``augment``, with every one of ``seeds``."""
        own = {"method", "settings", "augment"}
        rest = cls.shared_by(grid, ["rows", "seeds"], [*own, "seed"])
        for row in grid["rows"]:
            if set(row) - own:
                raise ValueError(f"a row may hold {', '.join(sorted(own))}, got {', '.join(row)}")
        return [cls(**row, seed=seed, **rest) for row, seed in product(grid["rows"], grid["seeds"])]


def photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another style of grey images ``(n, 1, H, W)`` in [0, 1], which no affine map of the values undoes.

    Each image gets its own exponent (gamma) between ½ and 2, all of a batch one Gaussian blur of at most 1.2 pixels.
    """
    exponent = 2 ** (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
    deviation = 0.2 + torch.rand((), generator=generator).item()
    return gaussian_blur(images.clamp(0, 1) ** exponent.to(images), [7, 7], [deviation, deviation])


def grey(name: str, split: str) -> TensorDomain:
    """A built-in domain in grey."""
    domain = load_domain(name, split)
    images, labels = domain.tensors  # type: ignore[attr-defined]
    images = rgb_to_grayscale(images) if images.shape[1] == 3 else images
    return TensorDomain(name, images, labels, domain.classes)


@dataclass(frozen=True)
class LabelledBatch:
    """Images and labels of each source, ``(n, 1, H, W)`` and ``(n,)``."""

    images: Sequence[Tensor]
    labels: Sequence[Tensor]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LabelledBatch:
        """The batch on ``device``, its images as ``dtype``."""
        return LabelledBatch([x.to(device, dtype) for x in self.images], [y.to(device) for y in self.labels])


class Sources:
    """Draw batches with as many images of each of several labelled domains; the batch of a step is always the same."""

    def __init__(self, domains: Sequence[TensorDomain], batch_size: int, seed: int, augment: bool = False) -> None:
        kind = photometric if augment else None
        self.pairs = [DomainPair(d, d, batch_size, seed, augment=kind) for d in domains]

    def batch(self, step: int) -> LabelledBatch:
        """The batch of ``step`` = 0, 1, 2, …"""
        parts = [pair.batch(step) for pair in self.pairs]
        return LabelledBatch([part.xs for part in parts], [part.ys for part in parts])


def build(config: UnseenConfig) -> Network:
    """The network of a recipe, its weights drawn and not yet trained."""
    network = small_cnn(channels=1, widths=config.widths, hidden=config.hidden, seed=config.seed)
    own = OWN_SETTINGS.get(config.method, ())
    settings = {key: value for key, value in config.settings.items() if key not in own}
    blocks = [block for name, block in network.features.named_children() if name.startswith("block")]
    layer: Any = catalogue.get(config.method).resolve()
    if config.method in CONVERTED:
        named = {"domains": config.sources} if config.method in PER_DOMAIN else {}
        convert_norm(network, layer, **named, **settings)
    elif config.method in PER_DOMAIN:
        unshared = {"shared_affine": False} if config.method == "domain-average" else {}
        convert_norm(network, DomainBatchNorm2d, domains=config.sources, **unshared)
    elif config.method in BEHIND:
        for block, width in zip(blocks[:2], config.widths, strict=False):
            block.append(layer(width, **settings) if config.method == "selfnorm" else layer(**settings))  # type: ignore[operator]
    elif config.method == "isw":
        blocks[0][1] = layer(config.widths[0], **settings)  # type: ignore[operator]
    elif config.method == "dsmnet":
        for block, width in zip(blocks, config.widths, strict=True):
            block[1] = layer(width, **settings)  # type: ignore[operator]
    if config.settings.get("frozen"):
        for norm in dson_layers(network):
            norm.mix_mean.requires_grad_(False)
            norm.mix_var.requires_grad_(False)
    return network.to(default_device())


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
        self.per_domain, self.settings = config.method in PER_DOMAIN, config.settings
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
        """The network; DSON's mixtures with their own learning rate, and without decay."""
        mixtures = {id(p) for layer in dson_layers(network) for p in (layer.mix_mean, layer.mix_var)}
        trained = [p for p in network.parameters() if p.requires_grad]
        rest = [p for p in trained if id(p) not in mixtures]
        own = {"weight_decay": 0.0, "lr_mult": self.settings.get("mixture_lr", 1.0)}
        groups = [{"params": rest}, {"params": [p for p in trained if id(p) in mixtures], **own}]
        return [group for group in groups if group["params"]]


@torch.no_grad()
def correlations(network: Network, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Correlations within images behind the first convolution, as the images are and in another style."""
    device = next(network.parameters()).device
    first: Any = network.features[0]
    views = (images, photometric(images, generator))
    a, b = (instance_correlation(first[0](network.standardize(view.to(device)))) for view in views)
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
    train = [grey(name, "train") for name in config.sources]
    tests = {name: grey(name, "test") for name in (*config.sources, config.unseen)}
    network = build(config)
    images = torch.cat([domain.tensors[0][:128] for domain in train])
    objective: Any = SeveralSources(config, network, images)
    pair: Any = Sources(train, config.batch_size, config.seed, config.augment)
    unseen = tests[config.unseen]
    history = fit(
        network,
        pair,
        objective,
        config.steps,
        config.lr,
        probes={"unseen": lambda net: (predict_unseen(net, config, unseen) == unseen.labels).double().mean().item()},
        every=config.every,
        stop=stop,
    )
    network.eval()
    branches = config.method in PER_DOMAIN
    own = {n: evaluate(network, tests[n], n if branches else "target").accuracy for n in config.sources}
    result: dict[str, Any] = {"curve": history.probes, "own": own}
    if branches:
        result |= look_at_branches(network, tests, config.unseen)
    if config.method == "dson":
        result["shares"] = [[w.tolist() for w in layer.shares()] for layer in dson_layers(network)]
    if objective.whitening is not None:
        result["pairs"] = int(objective.whitening.mask.sum())
    return network, result


@torch.no_grad()
def predict_unseen(network: nn.Module, config: UnseenConfig, domain: TensorDomain) -> Tensor:
    """Classes of images of no known domain, ``(n,)``: of several branches, by their weighted average."""
    network.eval()
    x = domain.tensors[0].to(next(network.parameters()).device)
    if config.method not in PER_DOMAIN:
        return network(x).logits.argmax(1).cpu()
    branches = domain_branches(network, x)
    weights = branches.weights() if config.method == "bn-embeddings" else None
    return branches.average(weights).argmax(1).cpu()


def look_at_branches(network: nn.Module, tests: Mapping[str, TensorDomain], unseen: str) -> dict[str, Any]:
    """Accuracy of each branch, and of their plain average, on the unseen domain; mean weights of each domain."""
    weights, found = {}, {}
    device = next(network.parameters()).device
    for name, domain in tests.items():
        images, labels = (tensor[:600] for tensor in domain.tensors)
        branches = domain_branches(network, images.to(device))
        weights[name] = branches.weights().mean(0).tolist()
        if name == unseen:
            predicted = [*branches.probabilities, branches.average()]
            found = dict(zip([*list(tests)[:-1], "average"], predicted, strict=True))
    accuracy = {k: (p.argmax(1).cpu() == labels).double().mean().item() for k, p in found.items()}
    return {"branch": accuracy, "weights": weights}
