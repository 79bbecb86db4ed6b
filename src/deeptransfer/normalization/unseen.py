"""Predict images of a domain that was never seen: by every domain that was, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .images import has_positions, image_moments
from .passes import wide
from .split import domain_layers, use_domain


class Branches(NamedTuple):
    """What the domains of a network say of the same images.

    Attributes
    ----------
    probabilities : Tensor
        Of each domain, ``(K, n, classes)``.
    distances : Tensor
        Squared distance of each image from each domain, ``(n, K)``; 0 where no layer has positions to measure.
    """

    probabilities: Tensor
    distances: Tensor

    def average(self, weights: Tensor | None = None) -> Tensor:
        r"""Average the predictions: :math:`p_i = \sum_d w_{id}\,p_{id}`, ``(n, classes)``.

        Parameters
        ----------
        weights
            ``(n, K)``, at least 0; each row must sum to one. None: :math:`1/K` each.

        Raises
        ------
        ValueError
            When the weights are not such.
        """
        k, n, _ = self.probabilities.shape
        if weights is None:
            return self.probabilities.mean(0)
        check_weights(weights, n, k)
        return torch.einsum("nk,knc->nc", weights.to(self.probabilities.dtype), self.probabilities)

    def weights(self) -> Tensor:
        r"""Weigh the domains by nearness: :math:`w_{id} = D_{id}^{-1} / \sum_k D_{ik}^{-1}`, ``(n, K)``.

        A domain at distance 0 has all the weight; where several are there, they share it.
        """
        at = (self.distances == 0).to(self.distances.dtype)
        near = torch.where(at.sum(1, keepdim=True) > 0, at, 1 / (self.distances + at))
        return near / near.sum(1, keepdim=True)


def check_weights(weights: Tensor, n: int, k: int) -> None:
    """Raise a ValueError unless these are n rows of K weights, at least 0, each row with the sum of one."""
    if weights.shape != (n, k) or not weights.is_floating_point():
        raise ValueError(f"weights must be floating point ({n}, {k}), got {weights.dtype} {tuple(weights.shape)}")
    sums = wide(weights.detach()).sum(1)
    if n and not ((weights >= 0).all() and ((sums - 1).abs() <= 0.01).all()):
        raise ValueError(
            f"each row of weights must be at least 0 and sum to 1, got {weights.min():g} as the least and sums from "
            f"{sums.min():g} to {sums.max():g}: use softmax, or divide by the sum"
        )


@torch.no_grad()
def domain_branches(model: nn.Module, x: Tensor, relative: bool = False) -> Branches:
    r"""Pass images through a network once for each of its domains, and measure how far they are from each.

    .. math:: D_{id} = \sum_l \lVert m_i^l - \mu_d^l \rVert^2
                       + \lVert \sqrt{b_i^l} - \sqrt{v_d^l} \rVert^2

    over the layers l: the squared 2-Wasserstein distance of diagonal Gaussians with the moments :math:`m, b` of the
    image over its positions, as the layer meets it in the domain's own pass, and those of the running row. The running
    rows are the embedding of a domain. A layer of vectors, whose images have no moments, is left out.

    Parameters
    ----------
    model
        Holds domain layers, such as :class:`DomainBatchNorm2d`, trained on the same K domains; returns logits
        ``(n, classes)`` or an object with ``.logits``.
    x
        Images ``(n, ...)`` of any domain.
    relative
        Divide each channel's two terms by :math:`v_d`, so that layers with large activations do not decide alone.
        Ours, not the paper's.

    Returns
    -------
    Branches
        Call its ``average()``; its ``average(branches.weights())`` is the prediction by BatchNorm embeddings.

    Raises
    ------
    ValueError
        When the model has no domain layer, its layers differ in their domains, or is training.

    Notes
    -----
    The positions of an image are alike, and between images there is more variance than within one: so :math:`b_i` is
    smaller than :math:`v_d` for every domain, and the weights are flatter than one would think.

    References
    ----------
    M. Segù, A. Tonioni, F. Tombari. Batch Normalization Embeddings for Deep Domain Generalization. 2020.
    S. Seo, Y. Suh, D. Kim, G. Kim, J. Han, B. Han. Learning to Optimize Domain Specific Normalization for Domain
    Generalization. ECCV 2020. (The average.)
    """
    names = {layer.domains for layer in domain_layers(model)}
    if not names:
        raise ValueError(f"{type(model).__name__} has no domain layer: there is one branch only")
    if len(names) > 1:
        differing = " and ".join(map(str, sorted(names)))
        raise ValueError(f"the layers of {type(model).__name__} differ in their domains: {differing}")
    if any(layer.training for layer in domain_layers(model)):
        raise ValueError("the branches evaluate with their running rows: call model.eval() first")
    (domains,) = names
    probabilities, distances = [], []
    for domain in domains:
        with use_domain(model, domain), _measured(model, domain, relative) as terms:
            out = model(x)
        logits: Any = getattr(out, "logits", out)
        probabilities.append(wide(logits).softmax(1))
        distances.append(torch.stack(terms).sum(0) if terms else probabilities[-1].new_zeros(len(x)))
    return Branches(torch.stack(probabilities), torch.stack(distances, 1))


def average_domains(model: nn.Module, x: Tensor) -> Tensor:
    """Return the average of all domains' predictions, probabilities ``(n, classes)``: :func:`domain_branches`."""
    return domain_branches(model, x).average()


@contextmanager
def _measured(model: nn.Module, domain: str, relative: bool) -> Iterator[list[Tensor]]:
    """Collect each layer's term of the distance from a domain, ``(n,)``."""
    terms: list[Tensor] = []

    def compare(layer: DomainNorm, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        if not has_positions(x):
            return
        _, mean, var = image_moments(x)
        row = layer.row(domain)
        centre, spread = wide(layer.running_mean[row]), wide(layer.running_var[row])
        distance = (mean - centre).square() + (var.sqrt() - spread.sqrt()).square()
        terms.append((distance / (spread + layer.eps) if relative else distance).sum(1))

    handles = [layer.register_forward_pre_hook(compare) for layer in domain_layers(model)]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()
