"""A task small enough to train in milliseconds, for tests of the loop and of the objectives."""

from __future__ import annotations

import torch

from deeptransfer.domains import DomainPair, TensorDomain
from deeptransfer.networks import Network, small_cnn

CLASSES = ("left", "middle", "right")
WIDTH = 8  # of the features


def stripes(count: int, seed: int, brightness: float = 1.0, name: str = "stripes") -> TensorDomain:
    """Grey 8 × 8 images with a bright stripe on the left, in the middle or on the right, and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 3 * label : 3 * label + 2] += 0.6
    return TensorDomain(name, images * brightness, labels, CLASSES)


def tiny_network(seed: int = 0, dtype: torch.dtype = torch.float32) -> Network:
    return small_cnn(classes=3, size=8, widths=(4, 8), hidden=(WIDTH,), seed=seed).to(dtype)


def tiny_pair(batch_size: int = 6, seed: int = 0, **kwargs) -> DomainPair:
    source, target = stripes(24, 0, name="bright"), stripes(15, 1, 0.6, name="dim")
    if kwargs.pop("few", False):
        kwargs["labelled_target"] = stripes(6, 2, 0.6, name="few")
    return DomainPair(source, target, batch_size, seed, **kwargs)
