"""Some of a domain's images: a few with labels of each class, or so many of all."""

from __future__ import annotations

import torch

from deeptransfer.domains.dataset import Domain


def few_labelled(target: Domain, per_class: int, seed: int) -> Domain:
    """Some labelled images of each class of the target.

    Raises
    ------
    ValueError
        If a class has fewer.
    """
    if target.labels.bincount(minlength=len(target.classes)).min() < per_class:
        counts = target.labels.bincount(minlength=len(target.classes))
        rare = f"{target.classes[int(counts.argmin())]!r} of {target.name!r} has {int(counts.min())} images"
        raise ValueError(f"class {rare}, fewer than labelled={per_class}")
    labels, generator = target.labels, torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == k][:per_class] for k in range(len(target.classes))]
    return target.subset(torch.cat(chosen))


def some_of(domain: Domain, most: int, seed: int) -> Domain:
    """The domain, or ``most`` of its images drawn at random if it has more."""
    if len(domain) <= most:
        return domain
    return domain.subset(torch.randperm(len(domain), generator=torch.Generator().manual_seed(seed))[:most])
