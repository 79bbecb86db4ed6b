"""What a domain is here: a dataset of (image, label) with a name and a list of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

Transform = Callable[[Tensor], Tensor]


class Domain(Dataset[tuple[Tensor, int]]):
    """Images of one domain: item ``i`` is ``(image, label)``, a float32 image in [0, 1] and an int.

    Input normalisation belongs to the network, so that every domain keeps the same honest range.

    Attributes
    ----------
    name : str
        As given to :func:`~deeptransfer.domains.load_domain`.
    classes : tuple of str
        Class names; label ``k`` means ``classes[k]``.
    """

    name: str
    classes: tuple[str, ...]

    @property
    def labels(self) -> Tensor:
        """All labels, int64 ``(n,)``, without decoding an image."""
        raise TypeError(f"{type(self).__name__} must define labels")

    def subset(self, indices: Sequence[int] | Tensor) -> Domain:
        """The domain restricted to ``indices``, in their order (a few labelled target images, say)."""
        raise TypeError(f"{type(self).__name__} must define subset")

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must define __len__")


class TensorDomain(Domain):
    """A domain that is held in memory.

    Parameters
    ----------
    name, classes
        See :class:`Domain`.
    images : Tensor
        Shape ``(n, C, H, W)``: uint8 in 0…255 or floating point in [0, 1].
    labels : Tensor
        Shape ``(n,)``, whole numbers in ``0 … len(classes) − 1``.
    transform : callable, optional
        Applied to an image when it is indexed; ``tensors`` stay as they are.

    Attributes
    ----------
    tensors : tuple of Tensor
        All images, float32 ``(n, C, H, W)``, and all labels, int64 ``(n,)``.

    Raises
    ------
    ValueError
        If the shapes disagree, there is no image, or a label has no class.
    TypeError
        If the images are neither uint8 nor floating point.
    """

    def __init__(
        self, name: str, images: Tensor, labels: Tensor, classes: Sequence[str], transform: Transform | None = None
    ) -> None:
        if images.ndim != 4:
            raise ValueError(f"images of {name!r} must have shape (n, C, H, W), not {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(
                f"images of {name!r} must be uint8 (0…255) or floating point (in [0, 1]), not {images.dtype}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{name!r} has {len(images)} images but labels of shape {tuple(labels.shape)}")
        if len(images) == 0:
            raise ValueError(f"{name!r} has no image: check the split, or the folder it was read from")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            raise ValueError(f"labels of {name!r} run from {low} to {high}, but it has {len(classes)} classes")
        self.name = name
        self.classes = tuple(classes)
        self.transform = transform
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        self.tensors = (scaled, labels.long())

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def labels(self) -> Tensor:
        """All labels, int64 ``(n,)``."""
        return self.tensors[1]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.tensors[0][index], int(self.tensors[1][index])
        return (self.transform(image) if self.transform else image), label

    def subset(self, indices: Sequence[int] | Tensor) -> TensorDomain:
        """The domain restricted to ``indices``, in their order (a few labelled target images, say)."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        images, labels = self.tensors
        return TensorDomain(self.name, images[chosen], labels[chosen], self.classes, self.transform)


def harmonise(images: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """Bring a batch ``(n, C, H, W)`` to ``channels`` and ``size``: grey becomes RGB, other sizes are resampled.

    Raises
    ------
    ValueError
        If colour would have to become grey: that throws information away, so it is the caller's decision.
    """
    if images.shape[1] != channels:
        if images.shape[1] != 1:
            raise ValueError(f"cannot turn {images.shape[1]} channels into {channels}: only grey images are repeated")
        images = images.expand(-1, channels, -1, -1)
    if tuple(images.shape[-2:]) != size:
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return images
