"""Frozen features: a logistic regression on what a pretrained network computes, without training or adapting it.

The baseline that every result on photographs stands beside: what adaptation must beat before it is worth its cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from deeptransfer.domains import Domain, is_domain, load_domain
from deeptransfer.runs.adaptation import RunConfig, build_network
from deeptransfer.runs.recipe import Code, Means, Recipe
from deeptransfer.training import predict

SCALERS = ("source", "own")


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(Recipe):
    """The recipe of one baseline.

    Attributes
    ----------
    source, target : str
        Domains, as :func:`~deeptransfer.domains.load_domain` takes them; all images of each.
    scaler : {"source", "own"}
        Whose mean and standard deviation standardise the target's features: the source's, or its own. The second is
        AdaBN in one layer: it looks at unlabelled images of the target.
    backbone, weights, size
        As :class:`~deeptransfer.runs.adaptation.RunConfig`'s.
    c : float
        scikit-learn's ``C``: the smaller, the stronger the regularisation.

    Raises
    ------
    ValueError
        If a domain, the scaler or the backbone is unknown.
    """

    source: str
    target: str
    scaler: str = "source"
    backbone: str
    weights: str = ""
    size: int
    c: float = 0.01

    def __post_init__(self) -> None:
        if self.scaler not in SCALERS:
            raise ValueError(f"unknown scaler {self.scaler!r}: known ones are {', '.join(SCALERS)}")
        for name in (self.source, self.target):
            if not is_domain(name):
                raise ValueError(f"unknown domain {name!r}")
        self._network_recipe()  # an error here, if its parts make no sense

    @property
    def name(self) -> str:
        """What tells this baseline from others of its grid, as a file name."""
        return f"{self.source}-to-{self.target}_{self.scaler}".replace("/", "-")

    def train(self, means: Means) -> dict[str, Any]:
        """Accuracy on both domains, and of each class of the target: see :func:`classify`."""
        return classify(self, means)

    def beginning(self) -> dict[str, Any]:
        """All of it: it takes seconds."""
        return classify(self, Means())

    def code(self) -> Code:
        """The regression, and what computes and reads its features."""
        code = self._network_recipe().code()
        return Code([*code.roots, f"{__name__}.classify"], code.stop, code.facts)

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Accuracy on both domains."""
        return {"target": result["target"], "source": result["source"]}

    @staticmethod
    def per_class(result: Mapping[str, Any]) -> dict[str, float]:
        """Mean over the classes, then each of them."""
        return RunConfig.per_class(result)

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every one of ``tasks`` with every one of ``scalers``."""
        rest = cls.shared_by(grid, ["tasks", "scalers"], ["source", "target", "scaler"])
        pairs = [task.split(":") for task in grid["tasks"]]
        return [cls(source=s, target=t, scaler=k, **rest) for (s, t), k in product(pairs, grid["scalers"])]

    def _network_recipe(self) -> RunConfig:
        return RunConfig(
            source=self.source,
            target=self.target,
            backbone=self.backbone,
            weights=self.weights,
            size=self.size,
            transductive=True,
        )


def classify(config: FrozenConfig, means: Means) -> dict[str, Any]:
    """Fit on the source's labels, score on the target's."""
    source, target = (load_domain(name, "all", size=config.size) for name in (config.source, config.target))
    xs, xt = (pooled(config, domain, means.score_batch) for domain in (source, target))
    scaler = StandardScaler().fit(xs)
    other = scaler if config.scaler == "source" else StandardScaler().fit(xt)
    regression = LogisticRegression(C=config.c, max_iter=5000).fit(scaler.transform(xs), source.labels.numpy())
    predicted = torch.from_numpy(regression.predict(other.transform(xt)))
    correct = predicted == target.labels
    chosen = [correct[target.labels == k] for k in range(len(target.classes))]
    return {
        "target": correct.double().mean().item(),
        "source": float(regression.score(scaler.transform(xs), source.labels.numpy())),
        "per_class": [part.double().mean().item() if len(part) else None for part in chosen],
        "wrong": (~correct).nonzero().flatten().tolist(),
    }


def pooled(config: FrozenConfig, domain: Domain, batch_size: int | None) -> Any:
    """The pooled features of the pretrained blocks, ``(n, width)``: what the bottleneck would receive."""
    network = build_network(config._network_recipe(), len(domain.classes), (3, config.size, config.size))
    network.features = network.features[:-2]  # without fc1 and relu1
    network.classifier = nn.Identity()
    return predict(network, domain, "source", batch_size)[0].numpy()
