"""What a domain is here: a dataset of (image, label) with a name and a list of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from unicodedata import normalize

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

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The items that a loader or a pair stacks to a batch.

        Raises
        ------
        ValueError
            If their images differ in shape.
        """
        items = [self[i] for i in indices]
        first = items[0][0].shape
        for i, (image, _) in zip(indices, items, strict=True):
            if image.shape != first:
                raise ValueError(
                    f"images of {self.name!r} differ in shape: {tuple(first)} at {indices[0]}, {tuple(image.shape)} at "
                    f"{i}; give size= (--size), or a transform that brings them to one"
                )
        return items


def listing(names: Iterable[str], most: int = 5) -> str:
    """A few names in alphabetical order for a message, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(map(repr, ordered[:most])) + more


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names in the Unicode form NFC, in which "é" is one letter whatever system has written it.

    Raises
    ------
    ValueError
        If two classes have one name.
    """
    names = tuple(normalize("NFC", name) for name in classes)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"two classes are called {twice[0]!r}: give each a name of its own")
    return names


def check_labels(name: str, labels: Tensor, classes: Sequence[str]) -> Tensor:
    """The labels of domain ``name`` as int64.

    Raises
    ------
    ValueError
        If there is none, or one is no whole number in ``0 … len(classes) − 1``.
    """
    if len(labels) == 0:
        raise ValueError(f"{name!r} has no image: check the split, or the folder it was read from")
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):
        raise ValueError(f"labels of {name!r} must be whole numbers, not {labels[labels != labels.round()][0]}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise ValueError(f"labels of {name!r} run from {low} to {high}, but it has {len(classes)} classes")
    return labels.long()


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
        If the shapes disagree, there is no image, a label has no class, or two classes have one name.
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
        self.name = name
        self.classes = class_names(classes)
        self.transform = transform
        labels = check_labels(name, labels, self.classes)
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        self.tensors = (scaled, labels)

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


def grey(domain: TensorDomain) -> TensorDomain:
    """A domain with one channel, the mean of its colours; its transform is left behind."""
    images, labels = domain.tensors
    return TensorDomain(domain.name, images.mean(1, keepdim=True), labels, domain.classes)


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


class Harmonised(Domain):
    """A domain with every image brought to one shape ``(C, H, W)``, as :func:`harmonise` does it."""

    def __init__(self, domain: Domain, shape: tuple[int, int, int]) -> None:
        self.domain, self.shape = domain, shape
        self.name, self.classes = domain.name, domain.classes

    @property
    def labels(self) -> Tensor:
        """All labels, int64 ``(n,)``."""
        return self.domain.labels

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.domain[index]
        return harmonise(image.unsqueeze(0), self.shape[0], self.shape[1:])[0], label

    def subset(self, indices: Sequence[int] | Tensor) -> Harmonised:
        """The domain restricted to ``indices``, in their order."""
        return Harmonised(self.domain.subset(indices), self.shape)
