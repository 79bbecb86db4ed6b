"""A small generative adversarial network on 8 × 8 digits, whose discriminator is normalised in one of several ways.

The images are scikit-learn's digits: one half trains, the other half is what generated images are compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_linear_bn_eval
from torch.nn.utils.parametrizations import spectral_norm

from deeptransfer.gan import discriminator, frechet_distance, generator, lipschitz_product, train_gan
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import seed_everything
from deeptransfer.weights import NewtonOrthogonal

METHODS = ("none", "bn", "sn", "oni")
LEVELS = 16  # of grey; a pixel has 0 to 16, and is stored as 0 to 15
KEPT = 20  # generated images


@dataclass(frozen=True, kw_only=True)
class GanConfig(Recipe):
    """The recipe of one training.

    Attributes
    ----------
    method : {"none", "bn", "sn", "oni"}
        What is done to the discriminator: nothing, BatchNorm behind its hidden layers, torch's ``spectral_norm`` on
        every weight, or :class:`~deeptransfer.weights.NewtonOrthogonal` on every weight.
    rate : float
        Of Adam, for both networks.
    seed : int
        Of both networks' weights, and of the images and latent vectors of training.
    steps, every : int
        Updates of each network, and between two points of the curve.
    batch : int
        Images of each kind in an update.
    latent, width : int
        Of the latent vectors, and of the two hidden layers of each network.
    iterations : int
        Of the orthogonalisation, its T.

    Raises
    ------
    ValueError
        If the method is unknown, or ``every`` does not divide ``steps``.
    """

    method: str
    rate: float
    seed: int = 0
    steps: int = 1500
    every: int = 75
    batch: int = 64
    latent: int = 16
    width: int = 64
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: known ones are {', '.join(METHODS)}")
        if self.steps % self.every:
            raise ValueError(f"every={self.every} must divide steps={self.steps}")

    @property
    def name(self) -> str:
        """What tells this run from others of its grid, as a file name."""
        return f"{self.method}_rate{self.rate:g}_seed{self.seed}"

    def train(self, means: Means) -> dict[str, Any]:
        """The curve, some generated images, and the distance between the real halves: see :func:`train_digits`."""
        return train_digits(self)

    def beginning(self) -> dict[str, Any]:
        """The first three points of the curve, and the distance between the real halves."""
        begun = train_digits(self, steps=2 * self.every)
        return {"floor": begun["floor"], "curve": begun["curve"]}

    def code(self) -> Code:
        """The training, and what measures it."""
        return Code([f"{__name__}.train_digits"])

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """The distance between two halves of the real images, as a share of the generated images' distance."""
        return {"nearness": result["floor"] / final_distance(result)}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every method at each of its ``rates`` with each of ``seeds``."""
        rest = cls.shared_by(grid, ["rates", "seeds"], ["method", "rate", "seed"])
        pairs = [(method, rate) for method, rates in grid["rates"].items() for rate in rates]
        return [cls(method=m, rate=r, seed=s, **rest) for (m, r), s in product(pairs, grid["seeds"])]


def digit_halves() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in [−1, 1], dealt into two halves: training images and held-out ones, float64 (898, 64)."""
    images = torch.from_numpy(load_digits().data) * (2 / LEVELS) - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    half = len(images) // 2
    return images[order[:half]], images[order[half : 2 * half]]


def normalised_discriminator(config: GanConfig) -> nn.Sequential:
    """The discriminator of a recipe; all methods draw the same initial weights."""
    network = discriminator((64, config.width, config.width, 1), config.method == "bn", config.seed + 1).double()
    for layer in network:
        if isinstance(layer, nn.Linear) and config.method == "sn":
            spectral_norm(layer)
        elif isinstance(layer, nn.Linear) and config.method == "oni":
            # Rows of mean 0, as the paper has them, would hide the brightness of an image from the first layer.
            orthogonal = NewtonOrthogonal(config.iterations, center=False)
            parametrize.register_parametrization(layer, "weight", orthogonal)
    return network


def folded(network: nn.Sequential) -> nn.Sequential:
    """The network as it evaluates, each BatchNorm folded into the linear layer before it: a chain without norms."""
    layers = list(copy.deepcopy(network).eval())
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm1d):
            layers[i - 1] = fuse_linear_bn_eval(layers[i - 1], layer)  # type: ignore[type-var]
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.BatchNorm1d)))


def steepest_slope(network: nn.Module, real: Tensor, fake: Tensor) -> float:
    r"""The largest :math:`\lVert \nabla_x D(x) \rVert` at real images, generated ones, and midpoints of their pairs.

    A lower bound of the network's Lipschitz constant; the network's rows must not depend on each other.
    """
    x = torch.cat([real, fake, (real + fake) / 2]).requires_grad_()
    (slopes,) = torch.autograd.grad(network(x).sum(), x)
    return slopes.norm(dim=1).max().item()


def train_digits(config: GanConfig, steps: int | None = None) -> dict[str, Any]:
    """Train a GAN and measure it, before the first update and every so many updates.

    Parameters
    ----------
    config : GanConfig
    steps : int, optional
        Stop after so many updates, a multiple of ``config.every``.

    Returns
    -------
    dict
        ``floor``, the distance of the two halves of the real images; ``curve``, for each point ``step``,
        ``distance`` (Fréchet, of 898 generated images to the held-out half), ``training`` (the same to the training
        half), ``product`` of spectral norms and ``slope``, which bound the discriminator's Lipschitz constant from
        above and below; ``images``, for each of the last network's first images one hexadecimal digit a pixel.
    """
    seed_everything(config.seed)
    real, held_out = digit_halves()
    make = generator((config.latent, config.width, config.width, 64), seed=config.seed).double()
    judge = normalised_discriminator(config)
    draw = torch.Generator().manual_seed(99)
    latents = torch.randn(len(real), config.latent, generator=draw, dtype=torch.float64)
    curve = []

    def measure(step: int) -> None:
        if step % config.every:
            return
        with torch.no_grad():
            fake = make(latents)
        chain = folded(judge)
        curve.append(
            {
                "step": step,
                "distance": frechet_distance(fake, held_out),
                "training": frechet_distance(fake, real),
                "product": lipschitz_product(chain),
                "slope": steepest_slope(chain, held_out, fake),
            }
        )

    measure(0)
    train_gan(
        make, judge, real, config.latent, steps or config.steps, config.rate, batch=config.batch,
        seed=config.seed, watch=measure,
    )  # fmt: skip
    with torch.no_grad():
        images = make(latents[:KEPT])
    return {"floor": frechet_distance(real, held_out), "curve": curve, "images": [as_text(image) for image in images]}


def as_text(image: Tensor) -> str:
    """An image in [−1, 1] as one hexadecimal digit a pixel."""
    levels = ((image + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1)
    return "".join(f"{int(level):x}" for level in levels)


def as_image(text: str) -> np.ndarray:
    """What :func:`as_text` wrote, in [0, 1], ``(8, 8)``."""
    return np.array([int(digit, 16) for digit in text]).reshape(8, 8) / (LEVELS - 1)


def final_distance(result: Mapping[str, Any], key: str = "distance") -> float:
    """Mean of a number over the last five points of a result's curve; a GAN goes up and down."""
    return float(np.mean([point[key] for point in result["curve"][-5:]]))
