"""A source and a target domain, and the batches drawn from both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeGuard

import torch
from torch import Tensor

from deeptransfer.domains.dataset import Domain, Harmonised, TensorDomain, harmonise, listing


@dataclass(frozen=True)
class Batch:
    """What an objective may see in one step. There is no label of the unlabelled target in it.

    Attributes
    ----------
    xs, ys : Tensor
        Source images ``(n_s, C, H, W)`` and labels ``(n_s,)``.
    xt : Tensor
        Target images ``(n_t, C, H, W)``.
    xt2 : Tensor, optional
        A second, independently augmented view of the same target images (``views=2``).
    xl, yl : Tensor, optional
        The few labelled target images of a semi-supervised task and their labels.
    """

    xs: Tensor
    ys: Tensor
    xt: Tensor
    xt2: Tensor | None = None
    xl: Tensor | None = None
    yl: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """The batch on ``device``, its images as ``dtype``; labels stay whole numbers."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: _move(v, device, dtype) for k, v in moved.items()})  # type: ignore[arg-type]


def _move(value: Tensor | None, device: torch.device | str, dtype: torch.dtype) -> Tensor | None:
    if value is None:
        return None
    return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)


def random_shift(images: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Move every image of ``(n, C, H, W)`` by up to ``pixels`` in each direction, zeros coming in at the border."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    offsets = torch.randint(2 * pixels + 1, (n, 2), generator=generator).tolist()
    return torch.stack([x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, offsets, strict=True)])


def random_crop_and_flip(images: Tensor, generator: torch.Generator, least: float = 0.6) -> Tensor:
    """Cut a random square of ``least`` to 1 times the side out of every image of ``(n, C, H, W)``, and mirror half.

    Squares are resampled to the image's size: the usual augmentation of photographs, drawn by a generator.
    """
    n = len(images)
    side = least + (1 - least) * torch.rand(n, generator=generator)
    shift = (1 - side)[:, None] * (2 * torch.rand(n, 2, generator=generator) - 1)
    mirrored = 1 - 2 * torch.randint(2, (n,), generator=generator)
    zero = torch.zeros(n)
    rows = [torch.stack([side * mirrored, zero, shift[:, 0]], 1), torch.stack([zero, side, shift[:, 1]], 1)]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


def randomize_strokes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Domain randomisation of digits ``(n, C, H, W)``, bright on dark: other strokes, another sharpness.

    * Elastic deformation: shifts drawn on a 4 × 4 lattice, standard deviation 4 % of the side, smooth in between.
    * Stroke thickness: one third is dilated and one third eroded by one pixel.
    * Sharpness: one half is averaged down to 8 × 8 pixels and back.

    References
    ----------
    Simard, Steinkraus, Platt, *Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis*,
    ICDAR 2003; Tobin et al., *Domain Randomization for Transferring Deep Neural Networks from Simulation to the Real
    World*, IROS 2017.
    """
    n, size = len(images), tuple(images.shape[-2:])
    lattice = 0.08 * torch.randn(n, 2, 4, 4, generator=generator)  # of a grid that runs from −1 to 1
    thickness = torch.randint(3, (n, 1, 1, 1), generator=generator)
    coarse = torch.randint(2, (n, 1, 1, 1), generator=generator)
    identity = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(images.shape), align_corners=False)
    shift = torch.nn.functional.interpolate(lattice, size=size, mode="bicubic", align_corners=True)
    grid = (identity + shift.permute(0, 2, 3, 1)).to(images)
    images = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    thick, thin = (sign * torch.nn.functional.max_pool2d(sign * images, 3, 1, 1) for sign in (1, -1))
    images = torch.where(thickness == 0, thick, torch.where(thickness == 1, thin, images))
    blurred = torch.nn.functional.adaptive_avg_pool2d(images, 8)
    blurred = torch.nn.functional.interpolate(blurred, size=size, mode="bilinear", align_corners=False)
    return torch.where(coarse == 0, images, blurred)


def check_classes(domain: Domain, other: Domain) -> None:
    """Refuse domains whose labels mean different classes.

    Raises
    ------
    ValueError
        That names the classes which one of them has alone, or says that their order differs.
    """
    if domain.classes == other.classes:
        return
    own = [[name for name in a.classes if name not in b.classes] for a, b in ((domain, other), (other, domain))]
    remedy = "give both domains one list of classes in one order"
    if not any(own):
        remedy = "their order does; " + remedy
    elif {name.casefold() for name in own[0]} == {name.casefold() for name in own[1]}:
        remedy = "upper and lower case does; " + remedy
    alone = [
        f"{d.name!r} has {listing(names) or 'none'} of its own" for d, names in zip((domain, other), own, strict=True)
    ]
    raise ValueError(f"classes differ: {', '.join(alone)}; {remedy}")


def _are_tensors(domain: Domain) -> TypeGuard[TensorDomain]:
    """Whether the items of a domain are just the rows of its ``tensors``."""
    return isinstance(domain, TensorDomain) and domain.transform is None


class DomainPair:
    """Draw batches with a source and a target part.

    A batch is a pure function of (seed, step, rank): nothing is remembered between calls, so a run can be resumed at
    any step, and ``world_size`` processes read disjoint parts of the batch that one process would read. Each domain
    is walked through in random order, without replacement; the order is drawn by a CPU generator and hence the same
    on every device; one with fewer images than the batch starts again within it. The domain with fewer channels is
    brought to the other's, the target to the source's size: training knows one ``shape``, and :meth:`harmonise` brings
    what is scored to it.

    Parameters
    ----------
    source, target : Domain
        Domains with the same classes in the same order.
    batch_size : int
        Images per domain and process; also of ``labelled_target``.
    seed : int
        Of the order of images, and of the augmentation.
    labelled_target : Domain, optional
        A few target images whose labels may be used (``batch.xl``, ``batch.yl``).
    views : int
        1, or 2 for a second augmented view of the target (``batch.xt2``); then both views are augmented.
    augment : callable, optional
        ``augment(images, generator)``, for all images. Without it only two views are augmented, by
        :func:`random_shift`.
    randomize : callable, optional
        ``randomize(images, generator)``, for the source's images alone and before ``augment``: other variants of them,
        so that the target looks like one more (:func:`randomize_strokes`).
    rank, world_size : int
        This process, and how many share every step.

    Raises
    ------
    ValueError
        If classes differ, there is only one, a domain is empty, in colours that can't be brought to the other's, or a
        number is out of range; from ``batch``, if a domain's images differ in shape.

    Attributes
    ----------
    shape : tuple of int
        ``(C, H, W)`` of every image in a batch.
    """

    def __init__(
        self,
        source: Domain,
        target: Domain,
        batch_size: int,
        seed: int,
        labelled_target: Domain | None = None,
        views: int = 1,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        randomize: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        domains = {"source": source, "target": target}
        if labelled_target is not None:
            domains["labelled_target"] = labelled_target
        for role, domain in domains.items():
            if len(domain) == 0:
                raise ValueError(f"the {role} domain {domain.name!r} has no image")
            check_classes(source, domain)
        if len(source.classes) < 2:
            raise ValueError(f"{source.name!r} has one class, {source.classes[0]!r}: nothing tells it from another")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if views not in (1, 2):
            raise ValueError(f"views must be 1 or 2, not {views}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 … world_size − 1, but rank is {rank} and world_size {world_size}")
        self.source, self.target, self.labelled_target = source, target, labelled_target
        self.classes = source.classes
        self.batch_size, self.seed, self.views = batch_size, seed, views
        self.augment, self.randomize = augment, randomize
        self.rank, self.world_size = rank, world_size
        images = [domain[0][0] for domain in domains.values()]
        self.shape = (max(len(image) for image in images), *images[0].shape[1:])
        for image in images:  # what can't be harmonised is an error here, not in the first batch
            harmonise(image.unsqueeze(0), self.shape[0], self.shape[1:])
        self._orders: dict[int, tuple[int, Tensor]] = {}  # the last permutation of each domain: a cache, not a state

    def __repr__(self) -> str:
        return (
            f"DomainPair({self.source.name} → {self.target.name}, batch_size={self.batch_size}, seed={self.seed}, "
            f"images={len(self.source)} + {len(self.target)})"
        )

    def harmonise(self, domain: Domain) -> Domain:
        """A domain whose images have the pair's ``shape``: what a network trained on the pair is scored on.

        Raises
        ------
        ValueError
            If its classes are not the pair's, or it is in colour and the pair in grey.
        """
        check_classes(self.source, domain)
        if _are_tensors(domain) and domain.tensors[0].shape[1:] == self.shape:
            return domain
        harmonised = Harmonised(domain, self.shape)
        harmonised[0]  # an error here, rather than when training is over
        return harmonised

    def batch(self, step: int) -> Batch:
        """The batch of ``step`` = 0, 1, 2, …"""
        if step < 0:
            raise ValueError(f"step must be 0 or more, not {step}")
        xs, ys = self._draw(self.source, 0, step)
        xt, _ = self._draw(self.target, 1, step)  # the label ends here
        xt2 = xl = yl = None
        if self.randomize is not None:
            xs = self.randomize(xs, self._generator(4, step * self.world_size + self.rank))
        generator = self._generator(3, step * self.world_size + self.rank)
        if self.views == 2:
            augment = self.augment or random_shift
            xt, xt2 = augment(xt, generator), augment(xt, generator)
        elif self.augment is not None:
            xt = self.augment(xt, generator)
        if self.labelled_target is not None:
            xl, yl = self._draw(self.labelled_target, 2, step)
        if self.augment is not None:
            xs = self.augment(xs, generator)
            xl = xl if xl is None else self.augment(xl, generator)
        return Batch(xs, ys, xt, xt2, xl, yl)

    def _generator(self, *key: int) -> torch.Generator:
        """A CPU generator that belongs to (seed, key): a sum of products would collide, a mixing hash does not."""
        state = self.seed & (2**64 - 1)
        for value in key:  # splitmix64 over the parts of the key
            state = (state + 0x9E3779B97F4A7C15 * (value + 1)) & (2**64 - 1)
            state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
            state ^= state >> 31
        return torch.Generator().manual_seed(state >> 1)

    def _order(self, role: int, n: int, epoch: int) -> Tensor:
        known = self._orders.get(role)
        if known is None or known[0] != epoch:
            known = (epoch, torch.randperm(n, generator=self._generator(role, epoch)))
            self._orders[role] = known
        return known[1]

    def _draw(self, domain: Domain, role: int, step: int) -> tuple[Tensor, Tensor]:
        n = len(domain)
        start = (step * self.world_size + self.rank) * self.batch_size
        positions = range(start, start + self.batch_size)
        chosen = torch.stack([self._order(role, n, p // n)[p % n] for p in positions])
        if _are_tensors(domain):
            images, labels = (tensor[chosen] for tensor in domain.tensors)
        else:
            items = domain.__getitems__(chosen.tolist())
            images = torch.stack([image for image, _ in items])
            labels = torch.tensor([label for _, label in items])
        return harmonise(images, self.shape[0], self.shape[1:]), labels
