"""Several domains and one network: domains that nobody labelled, domains that come later, and six cameras.

Three studies share this kind of run. *latent*: print and pen are the labelled source, mixed, and scene is the target;
who tells which source image belongs to which domain? *added*: a network of print learns another domain, with as few
numbers of its own as a method needs. *cameras*: one domain through six cameras, one of which may have seen one class.
All images are grey, all networks float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from deeptransfer.adapters import CovNorm, ResidualAdapter
from deeptransfer.domains import TensorDomain, load_domain, some_of
from deeptransfer.domains import grey as without_colour
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.networks import Network, Output, initialize, small_cnn
from deeptransfer.normalization import (
    DomainBatchNorm2d,
    WeightedBatchNorm2d,
    adapt_statistics,
    assignment_loss,
    convert_norm,
    forward_domains,
)
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import annealed, evaluate, predict, progress_bar, seed_everything, sgd

STUDIES = {
    "latent": ("pooled", "true", "latent", "latent-unbalanced", "latent-free", "latent-free-balanced"),
    "added": (
        *("base", "moments", "probe", "probe-moments", "bn", "adapters", "adapters-series"),
        *("covnorm", "svd", "full", "scratch"),
    ),
    "cameras": ("pooled", "cameras", "pooled-skewed", "cameras-skewed"),
}
EVERY = 10  # updates between two entries of a result's lists
SHOWN = 60  # images of each domain whose assignments are kept
SHARES = (0.125, 0.25, 0.5)  # of the directions that CovNorm keeps
WIDTHS, HIDDEN = (8, 16, 32), (64,)
CAMERAS = 6
ONLY = 0  # the class that the skewed camera saw
TARGET_WEIGHT = 0.2  # of the target's entropy
ASSIGN_WEIGHT = 0.5  # of the assignments' loss


@dataclass(frozen=True, kw_only=True)
class ManyConfig(Recipe):
    """The recipe of one method, for one seed.

    Attributes
    ----------
    study, method : str
        A key of ``STUDIES``, and one of its methods.
    target : str
        The domain that is added; print and pen → scene for "latent"; for "cameras" what they photograph.
    seed : int
        Of initial weights and the order of images.
    base_steps, steps : int
        Updates of the base of "added", and of every training.
    tune_steps : int
        Updates of what CovNorm and the truncated adapter train further.
    batch_size : int
        Images of the source and of the target in "latent"; of each camera.
    lr : float
        Of all trainings.

    Raises
    ------
    ValueError
        If the study, its method or the domain is unknown.
    """

    study: str
    method: str
    target: str
    seed: int = 0
    base_steps: int = 150
    steps: int = 100
    tune_steps: int = 30
    batch_size: int = 32
    lr: float = 0.05

    def __post_init__(self) -> None:
        for name, value, known in (
            ("study", self.study, STUDIES),
            ("method", self.method, STUDIES.get(self.study, ())),
            ("target", self.target, BUILDERS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: known ones are {', '.join(known)}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        return f"{self.study}_{self.target}_{self.method}_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """All numbers of the study: see the module's functions."""
        return STUDY[self.study](self, None)

    def beginning(self) -> dict[str, Any]:
        """The first entries of the lists: what the first updates give."""
        begun = STUDY[self.study](self, EVERY)
        return {key: value for key, value in begun.items() if isinstance(value, list)}

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy on the target, or the mean over the cameras."""
        return {"accuracy": result["accuracy"]}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every one of ``methods`` on every one of ``targets`` with every one of ``seeds``."""
        rest = cls.shared_by(grid, ["methods", "targets", "seeds"], ["method", "target", "seed"])
        cases = product(grid["targets"], grid["methods"], grid["seeds"])
        return [cls(target=target, method=method, seed=seed, **rest) for target, method, seed in cases]

    def code(self) -> Code:
        """The study, and what draws its images."""
        names = {"latent": ("print", "pen", self.target), "added": ("print", self.target)}.get(
            self.study, (self.target,)
        )
        loaders = [BUILDERS[name] for name in names]
        roots = [f"{__name__}.train_{self.study}", *(f"{f.__module__}.{f.__qualname__}" for f in loaders)]
        return Code(roots, [f"{__name__}.ManyConfig"])


# What the studies share ----------------------------------------------------------------------------------------------


def grey(name: str, split: str = "train") -> TensorDomain:
    """A built-in domain with one channel."""
    return without_colour(load_domain(name, split))  # type: ignore[arg-type]


def orders(n: int, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """The images of each step, ``(steps, batch_size)``: all in random order, then all again in another one."""
    epochs = -(-steps * batch_size // n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)


def update(
    groups: list[dict[str, Any]], loss: Callable[[int], Tensor], steps: int, lr: float, stop: int | None = None
) -> list[float]:
    """Train an optimiser's groups, and return the loss of every tenth step; ``stop`` ends after the first steps.

    Raises
    ------
    FloatingPointError
        If a loss is not finite.
    """
    optimizer = sgd(groups, lr)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in progress_bar(range(min(steps, stop or steps)), "updates"):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * annealed(step / steps)
        value = loss(step)
        if not value.isfinite():
            raise FloatingPointError(f"the loss is {value.item()} at step {step}: lower lr={lr}")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        if step % EVERY == 0:
            losses.append(value.item())
    return losses


def train_on(
    network: Network, domain: TensorDomain, config: ManyConfig, steps: int, stop: int | None = None
) -> list[float]:
    """Train what is not frozen, on one domain; the losses."""
    images, labels = domain.tensors
    batches = orders(len(domain), config.batch_size, steps, torch.Generator().manual_seed(config.seed))
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.train()

    def loss(step: int) -> Tensor:
        return nn.functional.cross_entropy(network(images[batches[step]]).logits, labels[batches[step]])

    return update([{"params": learned}], loss, steps, config.lr, stop)


# Domains that nobody labelled ----------------------------------------------------------------------------------------


class Assigned(nn.Module):
    """A BatchNorm of K domains in a network, with the weights that :func:`forward_assigned` gives all of them."""

    weights: Tensor

    def __init__(self, channels: int, domains: int) -> None:
        super().__init__()
        self.norm = WeightedBatchNorm2d(channels, domains)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.dim() == 2
        y = self.norm(x[:, :, None, None] if flat else x, self.weights)
        return y[:, :, 0, 0] if flat else y


def forward_assigned(network: Network, x: Tensor, weights: Tensor) -> Output:
    """Pass images, each of which belongs to the domains by its weights ``(N, K)``."""
    for layer in network.modules():
        if isinstance(layer, Assigned):
            layer.weights = weights
    return network(x)


def assigned_network(domains: int, seed: int) -> Network:
    """A small network whose norms are those of K domains."""
    network = small_cnn(channels=1, widths=WIDTHS, hidden=HIDDEN, seed=seed)
    for block in network.features.children():
        if isinstance(block, nn.Sequential):
            for i, layer in enumerate(block):
                if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
                    block[i] = Assigned(layer.num_features, domains)
    return network


def assignment_branch(domains: int, seed: int, standardised: bool = True) -> nn.Sequential:
    """A small branch on the image: weights ``(N, K)`` that sum to one, from logits that a BatchNorm standardises."""
    branch = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, domains),
        nn.BatchNorm1d(domains, affine=False) if standardised else nn.Identity(),
        nn.Softmax(1),
    )
    initialize(branch, torch.Generator().manual_seed(seed + 100))
    return branch


class Latent(NamedTuple):
    """What the study of latent domains trains on: the mixed source, whose domain only ``truth`` tells."""

    images: Tensor
    labels: Tensor
    truth: Tensor
    held_out: Tensor  # images of both domains, SHOWN and more of each
    target: TensorDomain
    target_test: TensorDomain


def mixed_source(config: ManyConfig) -> Latent:
    """As many images of print as of pen, one after the other."""
    parts = [grey(name) for name in ("print", "pen")]
    n = min(map(len, parts))
    images, labels = (torch.cat([part.tensors[k][:n] for part in parts]) for k in (0, 1))
    held = [grey(name, "test").tensors[0][:300] for name in ("print", "pen")]
    truth = torch.arange(2).repeat_interleave(n)
    return Latent(images, labels, truth, torch.cat(held), grey(config.target), grey(config.target, "test"))


def purity(weights: Tensor, truth: Tensor) -> tuple[float, float]:
    """Share of images in a latent domain that is mostly theirs, and the share of the smaller latent domain."""
    found = weights.argmax(1)
    counts = torch.stack([(truth[found == d]).bincount(minlength=2) for d in range(2)])
    return counts.amax(1).sum().item() / len(truth), counts.sum(1).min().item() / len(truth)


def train_latent(config: ManyConfig, stop: int | None) -> dict[str, Any]:
    """Accuracy on the target, whose rows are a domain of their own in every layer; purity of what was found."""
    seed_everything(config.seed)
    data, generator = mixed_source(config), torch.Generator().manual_seed(config.seed)
    network = assigned_network(3, config.seed)
    branch = assignment_branch(2, config.seed, "free" not in config.method)
    balance = 1.0 if config.method in ("latent", "latent-free-balanced") else 0.0
    learns = config.method.startswith("latent")
    steps, size = config.steps, config.batch_size
    source = orders(len(data.images), size, steps, generator)
    target = orders(len(data.target), size, steps, generator)
    fixed = {"pooled": torch.zeros_like(data.truth), "true": data.truth}.get(config.method)
    as_target = nn.functional.one_hot(torch.full((size,), 2), 3).float()
    held_truth = torch.arange(2).repeat_interleave(len(data.held_out) // 2)
    curve: list[dict[str, Any]] = []

    def look(step: int) -> None:
        branch.eval()
        with torch.no_grad():
            w = branch(data.held_out)
        branch.train()
        pure, smaller = purity(w, held_truth)
        halves = [half[:SHOWN, 0].tolist() for half in w.split(len(w) // 2)]
        shown = [[round(value, 3) for value in half] for half in halves]
        curve.append({"step": step, "purity": pure, "smaller": smaller, "weights": shown})

    def loss(step: int) -> Tensor:
        if learns and step % (2 * EVERY) == 0:
            look(step)
        chosen = source[step]
        w = branch(data.images[chosen]) if fixed is None else nn.functional.one_hot(fixed[chosen], 2).float()
        weights = torch.cat([nn.functional.pad(w, (0, 1)), as_target])
        images = torch.cat([data.images[chosen], data.target.tensors[0][target[step]]])
        logits = forward_assigned(network, images, weights).logits
        log_p = logits[size:].log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        total = nn.functional.cross_entropy(logits[:size], data.labels[chosen]) + TARGET_WEIGHT * entropy
        if fixed is not None:
            return total
        return total + ASSIGN_WEIGHT * assignment_loss(w, balance)

    network.train()
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if learns:
        groups.append({"params": list(branch.parameters()), "lr_mult": 2.0})
    losses = update(groups, loss, steps, config.lr, stop)
    if stop is not None:
        return {"losses": losses, "curve": curve}
    if learns:
        look(steps)
    network.eval()
    images, labels = data.target_test.tensors
    with torch.no_grad():
        whole = nn.functional.one_hot(torch.full((len(images),), 2), 3).float()
        right = forward_assigned(network, images, whole).logits.argmax(1) == labels
    found = {key: curve[-1][key] for key in ("purity", "smaller")} if learns else {}
    return {"accuracy": right.double().mean().item(), **found, "losses": losses, "curve": curve}


# Domains that come later ---------------------------------------------------------------------------------------------


@cache
def train_base(seed: int, steps: int, batch_size: int, lr: float) -> Network:
    """A network of print. It is shared by the runs of a process: copy it before it is changed."""
    config = ManyConfig(study="added", method="base", target="print", seed=seed, batch_size=batch_size, lr=lr)
    network = small_cnn(channels=1, widths=WIDTHS, hidden=HIDDEN, seed=seed)
    train_on(network, grey("print"), config, steps)
    return network.eval()


def with_adapters(base: Network, mode: str) -> Network:
    """A copy of a network with an adapter, at 0, and a BatchNorm of its own in each convolutional block."""
    network = copy.deepcopy(base)
    for name, block in network.features.named_children():
        if not name.startswith("block"):
            continue
        conv, norm, *rest = block.children()
        adapter = ResidualAdapter(conv, domains=("target",), mode=mode)  # type: ignore[arg-type]
        state = norm.state_dict()
        adapter.norm.fill_from(state)
        adapter.norm.load_state_dict(state)
        network.features.set_submodule(name, nn.Sequential(adapter, *rest))
    return network


def freeze_shared(network: Network) -> Network:
    """Leave to the new domain its norms, its adapters and its classifier; the base's convolutions are shared."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | DomainBatchNorm2d):
            module.requires_grad_(True)
        elif isinstance(module, ResidualAdapter):
            module.adapters.requires_grad_(True)
    network.classifier.requires_grad_(True)
    return network


def adapters_of(network: Network) -> list[ResidualAdapter]:
    """Its adapters, block by block."""
    return [module for module in network.modules() if isinstance(module, ResidualAdapter)]


class LowRank(nn.Sequential):
    """The truncated singular value decomposition of a matrix, as two 1 × 1 convolutions."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        u, s, v = torch.linalg.svd(matrix.detach().flatten(1), full_matrices=False)
        d_out, d_in = matrix.shape[:2]
        super().__init__(nn.Conv2d(d_in, rank, 1, bias=False), nn.Conv2d(rank, d_out, 1, bias=False))
        with torch.no_grad():
            self[0].weight.copy_((s[:rank].sqrt()[:, None] * v[:rank])[:, :, None, None])  # type: ignore[operator]
            self[1].weight.copy_((u[:, :rank] * s[:rank].sqrt())[:, :, None, None])  # type: ignore[operator]


def size_of(d: int, k: int) -> int:
    """Numbers that CovNorm with k directions stores for a d × d adapter, without its d of the offset."""
    return 2 * k * d + k * k


def compressed(network: Network, images: Tensor, method: str, share: float) -> tuple[Network, int]:
    """A copy whose adapters in series are replaced, and the numbers that stand in their place."""
    smaller, inputs = copy.deepcopy(network), {}  # type: ignore[var-annotated]
    handles = [
        layer.adapters[0].register_forward_hook(lambda _, given, __, i=i: inputs.__setitem__(i, given[0]))
        for i, layer in enumerate(adapters_of(network))
    ]
    with torch.no_grad():
        network.eval()(images)
    for handle in handles:
        handle.remove()
    numbers = 0
    for i, layer in enumerate(adapters_of(smaller)):
        matrix = layer.adapters[0].weight
        d = matrix.shape[0]  # type: ignore[index]
        k = max(1, round(share * d))  # type: ignore[arg-type]
        if method == "covnorm":
            layer.adapters[0] = CovNorm(matrix, inputs[i], rank=k)  # type: ignore[arg-type]
            numbers += size_of(d, k) + d  # type: ignore[arg-type, assignment]
        else:  # as many numbers, or a few less
            rank = min(d, size_of(d, k) // (2 * d))  # type: ignore[arg-type]
            layer.adapters[0] = LowRank(matrix, rank)  # type: ignore[arg-type]
            numbers += 2 * d * rank  # type: ignore[assignment, operator]
    return smaller, numbers


def own_numbers(network: Network) -> dict[str, int]:
    """How many numbers a new domain adds: what it trains, and with it the statistics of its norms."""
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    kept = sum(b.numel() for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var")))
    return {"learned": learned, "numbers": learned + kept}


def train_added(config: ManyConfig, stop: int | None) -> dict[str, Any]:
    """Accuracy on the added domain, the numbers that it needs, and what print has afterwards in the same network."""
    seed_everything(config.seed)
    base = copy.deepcopy(train_base(config.seed, config.base_steps, config.batch_size, config.lr))
    train, test = grey(config.target), grey(config.target, "test")
    print_test = some_of(grey("print", "test"), 600, seed=0)
    network, losses, how = base, [], config.method
    numbers: dict[str, Any] = {"learned": 0, "numbers": 0}
    if how == "scratch":
        network = small_cnn(channels=1, widths=WIDTHS, hidden=HIDDEN, seed=config.seed + 1000)
    if how in ("moments", "probe-moments"):
        adapt_statistics(network, train.tensors[0])
    if how in ("probe", "probe-moments"):
        losses = train_probe(network, train, config, stop)
    elif how in ("adapters", "adapters-series", "covnorm", "svd"):
        network = freeze_shared(with_adapters(base, "parallel" if how == "adapters" else "series"))
        losses = train_on(network, train, config, config.steps, stop)
    elif how == "bn":
        losses = train_on(freeze_shared(network), train, config, config.steps, stop)
    elif how in ("full", "scratch"):
        losses = train_on(network.requires_grad_(True), train, config, config.steps, stop)
    if stop is not None:
        return {"losses": losses}
    if how in ("covnorm", "svd"):
        return {"losses": losses} | compress(network, train, test, config)
    if how in ("moments", "probe-moments"):
        numbers = own_numbers(network.requires_grad_(False))
    if how in ("probe", "probe-moments"):
        extra = sum(p.numel() for p in network.classifier.parameters())
        numbers = {"learned": extra, "numbers": numbers["numbers"] + extra}
    elif how not in ("base", "moments"):
        numbers = own_numbers(network)
    accuracy = evaluate(network, test).accuracy
    return {"accuracy": accuracy, "print": evaluate(network, print_test).accuracy, "losses": losses} | numbers


def train_probe(network: Network, train: TensorDomain, config: ManyConfig, stop: int | None) -> list[float]:
    """Train the classifier alone, on features that stay as they are."""
    features, _, labels = predict(network, train)
    batches = orders(len(train), config.batch_size, config.steps, torch.Generator().manual_seed(config.seed))

    def loss(step: int) -> Tensor:
        return nn.functional.cross_entropy(network.classifier(features[batches[step]]), labels[batches[step]])

    return update([{"params": list(network.classifier.parameters())}], loss, config.steps, config.lr, stop)


def compress(network: Network, train: TensorDomain, test: TensorDomain, config: ManyConfig) -> dict[str, Any]:
    """Accuracy with fewer directions, before and after training further, and with the whole adapter."""
    rest = own_numbers(network)
    adapters = sum(layer.adapters[0].weight.numel() for layer in adapters_of(network))  # type: ignore[misc, operator]
    whole = evaluate(network, test).accuracy
    found = []
    for share in SHARES:
        smaller, numbers = compressed(network, train.tensors[0][:500], config.method, share)
        before = evaluate(smaller, test).accuracy
        smaller.requires_grad_(False)
        for layer in adapters_of(smaller):
            layer.adapters.requires_grad_(True)
        train_on(smaller, train, config, config.tune_steps)
        counted = {"numbers": rest["numbers"] - adapters + numbers, "adapters": numbers}
        found.append({"share": share, "before": before, "after": evaluate(smaller, test).accuracy} | counted)
    middle = found[SHARES.index(0.25)]
    return {"accuracy": middle["after"], "numbers": middle["numbers"], "whole": whole, "shares": found}


# Cameras -------------------------------------------------------------------------------------------------------------


class Camera(NamedTuple):
    """What a camera does to an image: ``gain · blurred + offset + noise``, cut off to [0, 1]."""

    gain: float
    offset: float
    blur: float
    noise: float

    def shoot(self, images: Tensor, seed: int) -> Tensor:
        """The images as this camera has them."""
        draws = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=images.dtype)
        soft = gaussian_blur(images, [7, 7], [self.blur, self.blur])
        return (self.gain * soft + self.offset + self.noise * draws).clamp(0, 1)


def cameras() -> list[Camera]:
    """Six cameras, drawn once."""
    rng = np.random.default_rng(6)
    gains = rng.uniform(0.25, 0.8, CAMERAS)
    made = []
    for gain in gains:
        offset = rng.uniform(0.0, 1 - gain)
        made.append(Camera(float(gain), float(offset), float(rng.uniform(0.3, 1.5)), float(rng.uniform(0.02, 0.15))))
    return made


class Shots(NamedTuple):
    """The images of one camera."""

    images: Tensor
    labels: Tensor
    test: TensorDomain


def shoot_all(config: ManyConfig) -> list[Shots]:
    """Every camera has images of its own; a skewed last one has those of a single class, its test images are of all."""
    train, test = grey(config.target), grey(config.target, "test")
    shots = []
    for i, camera in enumerate(cameras()):
        images, labels = (t[i::CAMERAS] for t in train.tensors)
        if i == CAMERAS - 1 and config.method.endswith("skewed"):
            images, labels = (t[train.tensors[1] == ONLY] for t in train.tensors)
        seen = camera.shoot(test.tensors[0][i::CAMERAS], seed=100 + i)
        own = TensorDomain(f"camera {i + 1}", seen, test.tensors[1][i::CAMERAS], test.classes)
        shots.append(Shots(camera.shoot(images, seed=i), labels, own))
    return shots


def train_cameras(config: ManyConfig, stop: int | None) -> dict[str, Any]:
    """Accuracy on each camera's test images by stored rows, and by rows measured on them without labels."""
    seed_everything(config.seed)
    shots, generator = shoot_all(config), torch.Generator().manual_seed(config.seed)
    network = small_cnn(channels=1, widths=WIDTHS, hidden=HIDDEN, seed=config.seed)
    apart = config.method.startswith("cameras")
    if apart:
        convert_norm(network, DomainBatchNorm2d, domains=CAMERAS)
    batches = [orders(len(shot.images), config.batch_size, config.steps, generator) for shot in shots]

    def loss(step: int) -> Tensor:
        parts = [shot.images[batch[step]] for shot, batch in zip(shots, batches, strict=True)]
        labels = torch.cat([shot.labels[batch[step]] for shot, batch in zip(shots, batches, strict=True)])
        logits = torch.cat([output.logits for output in forward_domains(network, *parts)])
        return nn.functional.cross_entropy(logits, labels)

    network.train()
    losses = update([{"params": list(network.parameters())}], loss, config.steps, config.lr, stop)
    if stop is not None:
        return {"losses": losses}
    rows: Sequence[Any] = range(CAMERAS) if apart else ["target"] * CAMERAS
    stored = [evaluate(network, shot.test, row).accuracy for shot, row in zip(shots, rows, strict=True)]
    measured = []
    for shot, row in zip(shots, rows, strict=True):
        adapted = adapt_statistics(copy.deepcopy(network), shot.test.tensors[0], domain=row)
        measured.append(evaluate(adapted, shot.test, row).accuracy)
    return {"accuracy": sum(stored) / CAMERAS, "stored": stored, "measured": measured, "losses": losses}


STUDY: dict[str, Callable[[ManyConfig, int | None], dict[str, Any]]] = {
    "latent": train_latent,
    "added": train_added,
    "cameras": train_cameras,
}
