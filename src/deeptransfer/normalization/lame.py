"""LAME: correct the predictions of a batch by the neighbourhood of its features, and move no parameter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .passes import wide

AFFINITIES = ("knn", "rbf")


class LAME(nn.Module):
    r"""Rows that are close in feature space are to be of one class.

    .. math:: Y \leftarrow \mathrm{softmax}(\log P + K Y) \quad\text{from}\quad Y = P

              E(Y) = \sum_{ic} y_{ic} \log\frac{y_{ic}}{p_{ic}} - \tfrac12 \sum_{ij} K_{ij}\, y_i^\top y_j

    until :math:`E` changes by less than 1e-8 of itself, or ``steps`` times. :math:`K` holds the affinities of the
    rows' features, each scaled to length 1. Where :math:`K` is symmetric without negative eigenvalues, :math:`E` never
    rises. With :math:`K = 0` the predictions stay as they are.

    Parameters
    ----------
    affinity
        ``"knn"``: 1 between a row and each of its ``neighbours`` nearest rows, made symmetric by
        :math:`\tfrac12(K + K^\top)`. ``"rbf"``: :math:`e^{-d^2 / (2\sigma^2)}`, with :math:`\sigma` the mean distance
        of a row to its ``neighbours``-th; a row is its own neighbour, too.
    neighbours
        From 1 on; a smaller batch takes what it has.
    steps
        Most updates of a batch.

    Shape
    -----
    Probabilities ``(n, C)`` and features ``(n, D)`` → probabilities ``(n, C)``, without gradient.

    Raises
    ------
    ValueError
        When an option is unknown or below 1, the two have not the same number of rows, or a row of probabilities
        is negative or does not sum to one.

    Notes
    -----
    A row of NaN, in either, is no neighbour of others and is handed back as it came. The released code leaves K of
    "knn" asymmetric, and counts the row itself as the first of its neighbours in the width of "rbf".

    References
    ----------
    M. Boudiaf, R. Mueller, I. Ben Ayed, L. Bertinetto. Parameter-free Online Test-time Adaptation. CVPR 2022.
    """

    def __init__(self, affinity: str = "knn", neighbours: int = 5, steps: int = 100) -> None:
        super().__init__()
        if affinity not in AFFINITIES:
            raise ValueError(f"affinity must be one of {', '.join(AFFINITIES)}, got {affinity!r}")
        if neighbours < 1 or steps < 1:
            raise ValueError(f"neighbours and steps must be 1 or more, got {neighbours} and {steps}")
        self.affinity, self.neighbours, self.steps = affinity, neighbours, steps

    @torch.no_grad()
    def forward(self, probabilities: Tensor, features: Tensor) -> Tensor:
        """Correct the predictions of one batch."""
        if probabilities.dim() != 2 or features.dim() != 2 or len(probabilities) != len(features):
            raise ValueError(
                "needs probabilities (n, C) and features (n, D) of the same rows, got shapes "
                f"{tuple(probabilities.shape)} and {tuple(features.shape)}"
            )
        p = wide(probabilities)
        sums = p.sum(1)
        if (p < 0).any() or ((sums - 1).abs() > 0.01).any():
            raise ValueError(
                f"each row of probabilities must be at least 0 and sum to 1, got {p.min():g} as the least and sums "
                f"from {sums.min():g} to {sums.max():g}: apply softmax to logits"
            )
        known = p.isfinite().all(1) & features.isfinite().all(1)
        out = probabilities.clone()
        if known.sum() > 1:
            out[known] = self._settle(p[known], self.affinities(features[known])).to(out.dtype)
        return out

    def affinities(self, features: Tensor) -> Tensor:
        """Return K, ``(n, n)``, of rows ``(n, D)``."""
        features = F.normalize(wide(features), dim=1)
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        others = distance.clone().fill_diagonal_(torch.inf)
        nearest = others.topk(min(self.neighbours, len(features) - 1), dim=1, largest=False)
        if self.affinity == "rbf":
            width = nearest.values[:, -1].mean()
            return torch.exp(-distance.square() / (2 * width.square()).clamp(min=torch.finfo(width.dtype).tiny))
        k = torch.zeros_like(distance).scatter_(1, nearest.indices, 1)
        return (k + k.T) / 2

    def _settle(self, p: Tensor, k: Tensor) -> Tensor:
        log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        y, energy = p, torch.inf
        for _ in range(self.steps):
            y = (log_p + k @ y).softmax(1)
            before, energy = energy, self.energy(y, p, k)
            if abs(energy - before) <= 1e-8 * abs(energy):
                break
        return y

    @staticmethod
    def energy(y: Tensor, p: Tensor, k: Tensor) -> float:
        """Return E of assignments ``y`` to predictions ``p``, both ``(n, C)``, under affinities ``k``."""
        log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        return float((torch.special.xlogy(y, y) - y * log_p - y * (k @ y) / 2).sum())

    def extra_repr(self) -> str:
        """Show the options."""
        return f"affinity={self.affinity!r}, neighbours={self.neighbours}, steps={self.steps}"
