"""A stream of corrupted images that nobody labels: corruption × batch size × order × method, from one trained network.

A network is trained on the source once. Then the source's test images arrive, under each corruption, in each order and
in batches of each size, and every method predicts them as they come. A result holds all these accuracies for one seed.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.transforms import v2

from deeptransfer.domains import DomainPair, TensorDomain, load_domain, some_of
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.domains.corruptions import CORRUPTIONS, corrupt
from deeptransfer.domains.streams import ORDERS, stream
from deeptransfer.networks import Network, Output, small_cnn
from deeptransfer.normalization import (
    EATA,
    LAME,
    SAR,
    CoTTA,
    InstanceAwareBatchNorm2d,
    RobustBatchNorm2d,
    Tent,
    adapt_statistics,
    convert_norm,
    information_maximization,
    prediction_time,
    statistics_divergences,
    use_domain,
)
from deeptransfer.objectives import SourceOnly
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import evaluate, fit, seed_everything, sgd

PRIOR = 16  # source images that the source's statistics count for
MEMORY = 64  # images that RobustBatchNorm is updated from, and images from one update to the next
FLOOR = 0.2 / math.log(1000)  # SAR's, which was set for 1000 classes, as a share of the largest entropy
LAYERS = ("bn", "note")
ENCODER = "block2"  # the last block that is trained when statistics are matched
MATCHING_STEPS, MATCHING_BATCH, MATCHING_LR = 200, 64, 0.01

#: Predicts one batch of the stream, and may learn from it.
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class StreamConfig(Recipe):
    """The recipe of one seed.

    Attributes
    ----------
    source : str
        Built-in domain of the images: trained on its first part, streamed from its test part.
    norm : str
        ``"bn"``, or ``"note"``: trained with NOTE's instance-aware layer.
    methods : dict of str to tuple of int
        Names of ``METHODS``, and for each the batch sizes.
    corruptions : tuple of str
        ``"clean"``, or a corruption and its strength, ``"fog 5"``.
    orders : tuple of str
        Of :func:`~deeptransfer.domains.streams.stream_order`.
    images : int
        Images of the stream.
    seed : int
        Of the initial weights, the order of training, the choice, order and corruption of the stream's images.
    steps, batch_size, lr
        Of the training on the source, in float64. The stream is predicted in float32.
    widths, hidden : tuple of int
        Of :func:`~deeptransfer.networks.small_cnn`.
    tent_lr, sar_lr
        Learning rates of Tent and CoTTA (Adam), and of SAR and EATA (SGD); ``"tent fast"`` takes ten times the first.

    Raises
    ------
    ValueError
        If a name is unknown, or a number is not positive.
    """

    source: str
    methods: dict[str, tuple[int, ...]]
    corruptions: tuple[str, ...]
    orders: tuple[str, ...] = ("random",)
    norm: str = "bn"
    images: int = 400
    seed: int = 0
    steps: int = 200
    batch_size: int = 64
    lr: float = 0.05
    widths: tuple[int, ...] = (8, 16, 32)
    hidden: tuple[int, ...] = (64,)
    tent_lr: float = 1e-3
    sar_lr: float = 2.5e-4

    def __post_init__(self) -> None:
        # Lists, when they come from a file.
        for name in ("corruptions", "orders", "widths", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "methods", {name: tuple(sizes) for name, sizes in self.methods.items()})
        for name, known in (("methods", METHODS), ("orders", ORDERS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise ValueError(f"unknown {unknown[0]!r} in {name}: known ones are {', '.join(known)}")
        if not self.methods:
            raise ValueError(f"methods is empty: name one or more of {', '.join(METHODS)}, each with its batch sizes")
        if self.source not in BUILDERS:
            raise ValueError(f"unknown source {self.source!r}: built-in ones are {', '.join(BUILDERS)}")
        if self.norm not in LAYERS:
            raise ValueError(f"norm must be one of {', '.join(LAYERS)}, got {self.norm!r}")
        if min(self.images, *(size for sizes in self.methods.values() for size in sizes)) < 1:
            raise ValueError(f"images and batch sizes must be 1 or more: {self.images}, {self.methods}")
        for level in self.corruptions:
            parse_level(level)

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        return f"{self.source}_{self.norm}_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy of every method: see :func:`run_streams`."""
        return run_streams(self)

    def beginning(self) -> dict[str, Any]:
        """The training, and every method's accuracy under the first corruption."""
        return run_streams(self, self.corruptions[:1])

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Mean accuracy over the corruptions, of every method, order and batch size that there is."""
        return {
            f"{method} {order} {size}": sum(values) / len(values)
            for method, by_order in result["accuracy"].items()
            for order, by_size in by_order.items()
            for size, values in by_size.items()
            if None not in values
        }

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """One recipe for each of ``seeds``."""
        rest = cls.shared_by(grid, ["seeds"], ["seed"])
        return [cls(**rest, seed=seed) for seed in grid["seeds"]]

    def code(self) -> Code:
        """The experiment, and what draws its images."""
        loader = BUILDERS[self.source]
        return Code([f"{__name__}.run_streams", f"{loader.__module__}.{loader.__qualname__}"])


def parse_level(level: str) -> tuple[str, int] | None:
    """Corruption and strength of ``"fog 5"``; None of ``"clean"``."""
    if level == "clean":
        return None
    name, _, strength = level.partition(" ")
    if name not in CORRUPTIONS or strength not in {str(s) for s in range(1, 6)}:
        raise ValueError(
            f"a corruption is 'clean', or a name and a strength from 1 to 5 such as 'fog 5', not {level!r}; names are "
            f"{', '.join(CORRUPTIONS)}"
        )
    return name, int(strength)


def run_streams(config: StreamConfig, levels: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, then play every stream under the given corruptions, by default all of the recipe.

    Returns
    -------
    dict
        ``curve``: updates and accuracy on the whole test part, four times along the training. ``levels``, and
        ``accuracy[method][order][size]``: a list of the accuracies under each; None where a batch has one value per
        channel and the method needs more.
    """
    levels = config.corruptions if levels is None else levels
    network, curve = train_source(config)
    streams = [streamed(config, level) for level in levels]
    return {
        "curve": curve,
        "levels": list(levels),
        "accuracy": {
            method: {
                order: {
                    str(size): [play(config, network, method, order, size, *part) for part in streams] for size in sizes
                }
                for order in (config.orders[:1] if method in ALONE else config.orders)
            }
            for method, sizes in config.methods.items()
        },
    }


def train_source(config: StreamConfig) -> tuple[Network, list[list[float]]]:
    """Train on the source; return the network in float32, in evaluation, and how its accuracy grew."""
    seed_everything(config.seed)
    train, test = load_domain(config.source), load_domain(config.source, "test")
    channels, size, _ = train[0][0].shape
    network = small_cnn(len(train.classes), channels, size, config.widths, config.hidden, config.seed).double()
    if config.norm == "note":
        convert_norm(network, InstanceAwareBatchNorm2d, domains=("source",))
    history = fit(
        network,
        DomainPair(train, train, config.batch_size, config.seed),
        SourceOnly(),
        config.steps,
        config.lr,
        probes={"accuracy": lambda trained: evaluate(trained, test, "source").accuracy},
        every=max(1, config.steps // 4),
    )
    curve = [[int(probe["step"]), probe["accuracy"]] for probe in history.probes]
    return network.cpu().float().eval(), curve


def streamed(config: StreamConfig, level: str) -> tuple[Tensor, Tensor]:
    """Images and labels of the stream, not yet in its order."""
    test = load_domain(config.source, "test")
    chosen: TensorDomain = some_of(test, config.images, config.seed)  # type: ignore[assignment]
    images, labels = chosen.tensors
    images = images.float()
    parsed = parse_level(level)
    return (images if parsed is None else corrupt(images, *parsed, config.seed)), labels


def play(
    config: StreamConfig, network: Network, method: str, order: str, size: int, images: Tensor, labels: Tensor
) -> float | None:
    """Accuracy of a method on a stream, predicted batch by batch as it comes; None where a batch is too small for it.

    The network stays as it is: the method gets a copy.
    """
    if size == 1 and method in NEEDS_BATCH:
        return None
    predict = METHODS[method](copy.deepcopy(network), config, images)
    batches = stream(labels, size, order, config.seed)
    right = sum(int((predict(images[places]).argmax(1) == labels[places]).sum()) for places in batches)
    return right / len(labels)


# ------------------------------------------------------------------------------------------------ methods of a stream


def _source(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return lambda x: _evaluated(network, x).logits


@torch.no_grad()
def _evaluated(network: Network, x: Tensor, prior: float = math.inf) -> Output:
    if prior == math.inf:
        with use_domain(network, "source"):
            return network(x)
    with prediction_time(network, prior):
        return network(x)


def _by_batch(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return lambda x: _evaluated(network, x, 0).logits


def _with_prior(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return lambda x: _evaluated(network, x, PRIOR).logits


def _tent(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return Tent(network, config.tent_lr)


def _tent_fast(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return Tent(network, 10 * config.tent_lr)


def _sar(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return SAR(network, config.sar_lr, floor=FLOOR * math.log(network.classifier.out_features))  # type: ignore[arg-type]


def _eta(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    """EATA without its term that holds to the source; d is larger than for ImageNet, since there are ten classes."""
    return EATA(network, config.sar_lr, similarity=0.4, weight=0.0)


def _cotta(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    """Copies as released for CIFAR-10-C, without hue, saturation and mirroring, which no grey digit bears."""
    margin = images.shape[-1] // 2
    copies = v2.Compose(
        [
            v2.ColorJitter(brightness=(0.6, 1.4), contrast=(0.7, 1.3)),
            v2.Pad(margin, padding_mode="edge"),
            v2.RandomAffine(
                15, translate=(1 / 16, 1 / 16), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.GaussianBlur(5, (0.001, 0.5)),
            v2.CenterCrop(images.shape[-1]),
        ]
    )
    cotta, draws = CoTTA(network, copies, config.tent_lr), torch.Generator().manual_seed(config.seed)

    def predict(x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=draws)))
            return cotta(x)

    return predict


def _lame(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _settled(network, math.inf)


def _lame_by_batch(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _settled(network, 0)


def _lame_with_prior(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _settled(network, PRIOR)


def _settled(network: Network, prior: float) -> Predict:
    lame = LAME()

    def predict(x: Tensor) -> Tensor:
        out = _evaluated(network, x, prior)
        return lame(out.logits.softmax(1), out.features)

    return predict


class Memory:
    """The images of a stream that are kept, with what they were taken for.

    Parameters
    ----------
    capacity
        Most images that are kept.
    balanced
        Whether the oldest image of the most frequent class makes room, and not the oldest of all.
    """

    def __init__(self, capacity: int, balanced: bool) -> None:
        self.capacity, self.balanced = capacity, balanced
        self.kept: list[tuple[Tensor, int]] = []

    def add(self, image: Tensor, predicted: int) -> None:
        """Keep an image, and let one go if there is no room."""
        self.kept.append((image, predicted))
        if len(self.kept) > self.capacity:
            classes = [c for _, c in self.kept]
            crowded = Counter(classes).most_common(1)[0][0] if self.balanced else classes[0]
            del self.kept[classes.index(crowded)]

    def images(self) -> Tensor:
        """All that is kept, ``(n, ...)``."""
        return torch.stack([image for image, _ in self.kept])


def _robust(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _averaged(network, balanced=True)


def _robust_recent(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _averaged(network, balanced=False)


def _averaged(network: Network, balanced: bool) -> Predict:
    """RoTTA's layer alone: predict by the average, and move it by the memory after every so many images."""
    robust, memory, since = convert_norm(network, RobustBatchNorm2d), Memory(MEMORY, balanced), 0

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        nonlocal since
        logits = robust.eval()(x).logits
        for image, predicted in zip(x, logits.argmax(1).tolist(), strict=True):
            memory.add(image, predicted)
            since += 1
            if since == MEMORY:
                robust.train()(memory.images())
                since = 0
        return logits

    return predict


def _adabn(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    """All images of the stream at once: what no stream offers."""
    return _source(adapt_statistics(network, images), config, images)  # type: ignore[arg-type]


def _matching(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _source(match_statistics(network, images, config.seed), config, images)


def _matching_informed(network: Network, config: StreamConfig, images: Tensor) -> Predict:
    return _source(match_statistics(network, images, config.seed, information=1.0), config, images)


def match_statistics(network: Network, images: Tensor, seed: int, information: float = 0.0) -> Network:
    """Train the first blocks on unlabelled images, until what enters the others has the moments that they store.

    Matching BatchNorm statistics: all behind ``ENCODER`` is frozen and evaluates. ``information`` weighs the paper's
    second term, information maximisation, which is to grow.
    """
    after = list(network.blocks).index(ENCODER) + 1
    encoder, rest = network.features[:after], network.features[after:]
    network.eval().requires_grad_(False)
    encoder.train().requires_grad_(True)
    optimizer = sgd([{"params": list(encoder.parameters())}], MATCHING_LR)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(MATCHING_STEPS):
        x = images[torch.randperm(len(images), generator=draws)[:MATCHING_BATCH]]
        with statistics_divergences(rest) as divergences:
            logits = network.classifier(rest(encoder(network.standardize(x))))
        optimizer.zero_grad()
        (torch.stack(divergences).sum() + information * information_maximization(logits)).backward()
        optimizer.step()
    return network.eval()


#: What makes a predictor of a network (which it may change), the recipe, and the stream's images.
METHODS: dict[str, Callable[[Network, StreamConfig, Tensor], Predict]] = {
    "source": _source,
    "prediction-time": _by_batch,
    "prior": _with_prior,
    "tent": _tent,
    "tent fast": _tent_fast,
    "sar": _sar,
    "eta": _eta,
    "cotta": _cotta,
    "lame": _lame,
    "lame prediction-time": _lame_by_batch,
    "lame prior": _lame_with_prior,
    "robust": _robust,
    "robust recent": _robust_recent,
    "adabn": _adabn,
    "matching": _matching,
    "matching informed": _matching_informed,
}
ALONE = ("source", "adabn", "matching", "matching informed")  # predict each image by itself: the order does not matter
NEEDS_BATCH = (
    "prediction-time",
    "tent",
    "tent fast",
    "sar",
    "eta",
    "cotta",
    "lame prediction-time",
)  # one row has no variance behind fc1
