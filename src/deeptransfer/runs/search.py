"""Search: the learning rate and the weight of an objective, by successive halving, without a label of the target.

Every candidate is trained for a first part of the recipe, the better ones for more of it, until one is left; what is
better is said by a criterion of :mod:`~deeptransfer.selection`, averaged over seeds. A candidate that goes on goes on
from where it was: schedules are those of the whole recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, Self

from deeptransfer import catalogue
from deeptransfer.runs.adaptation import RunConfig, train
from deeptransfer.runs.recipe import Code, Means, Recipe


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Recipe):
    """The recipe of one search.

    Attributes
    ----------
    source, target, objective, norm
        As :class:`~deeptransfer.runs.adaptation.RunConfig`'s.
    rates : sequence of float
        Learning rates.
    factors : sequence of float
        Weights, as multiples of the objective's default; one without a weight has learning rates alone.
    rounds : sequence of int
        Updates after which candidates are compared, each a multiple of the first.
    keep : sequence of int
        How many go on after each round but the last.
    seeds : sequence of int
        Over which a candidate's score is averaged.
    recipe : mapping
        Everything else of a ``RunConfig``; of its ``criteria`` the first one decides.

    Raises
    ------
    ValueError
        If the rounds and what they keep do not fit, or as by ``RunConfig``.
    """

    source: str
    target: str
    objective: str
    norm: str = "bn"
    rates: Sequence[float] = (0.01, 0.03, 0.1)
    factors: Sequence[float] = (1 / 3, 1.0, 3.0)
    rounds: Sequence[int] = (300, 900)
    keep: Sequence[int] = (3,)
    seeds: Sequence[int] = (0, 1)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rates", "factors", "rounds", "keep", "seeds"):  # tuples, when they come from Python
            object.__setattr__(self, name, list(getattr(self, name)))
        if len(self.keep) != len(self.rounds) - 1 or any(r % self.rounds[0] for r in self.rounds):
            raise ValueError(
                f"rounds must be multiples of the first, and keep one shorter: not {self.rounds} and {self.keep}"
            )
        self.candidates()  # an error here, not when the search is under way

    @property
    def name(self) -> str:
        """What tells this search from others of its grid, as a file name."""
        return f"{self.source}-to-{self.target}_{self.objective}_{self.norm}".replace("/", "-")

    def candidates(self) -> list[RunConfig]:
        """The recipes to choose from, with the first seed."""
        method = catalogue.get(self.objective)
        weight = inspect.signature(method.builder or method.resolve()).parameters.get("weight")
        base = RunConfig(
            source=self.source,
            target=self.target,
            objective=self.objective,
            norm=self.norm,
            seed=self.seeds[0],
            **{**self.recipe, "every": self.rounds[0]},
        )
        if method.kind == "baseline" or weight is None:
            return [replace(base, lr=lr) for lr in self.rates]
        weights = [round(factor * weight.default, 4) for factor in self.factors]
        return [replace(base, lr=lr, settings={**base.settings, "weight": w}) for lr, w in product(self.rates, weights)]

    def train(self, means: Means) -> dict[str, Any]:
        """Scores of all candidates in each round, and the chosen one: see :func:`search`."""
        return search(self, means)

    def beginning(self) -> dict[str, Any]:
        """The first candidate's first score, of the first seed."""
        point = score(self.candidates()[0], self.rounds[0], Means())
        return {"rounds": [{"updates": self.rounds[0], "candidates": [_entry(self.candidates()[0], [point])]}]}

    def code(self) -> Code:
        """The search, and the code of what it trains."""
        roots, stop, facts = self.candidates()[0].code()
        return Code([*roots, f"{__name__}.search"], stop, facts)

    @staticmethod
    def scores(result: Mapping[str, Any]) -> dict[str, float]:
        """Target accuracy of the chosen candidate after the last round."""
        chosen = next(e for e in result["rounds"][-1]["candidates"] if _settings(e) == result["chosen"])
        return {"target": mean(chosen["target"])}

    @classmethod
    def from_grid(cls, grid: Mapping[str, Any]) -> list[Self]:
        """Every one of ``tasks``, ``objectives`` and ``norms``."""
        grid = {"norms": ["bn"], **grid}
        rest = cls.shared_by(grid, ["tasks", "objectives", "norms"], ["source", "target", "objective", "norm"])
        axes = product(grid["tasks"], grid["objectives"], grid["norms"])
        tasks = [(*task.split(":"), objective, norm) for task, objective, norm in axes]
        return [cls(source=s, target=t, objective=o, norm=n, **rest) for s, t, o, n in tasks]


def search(config: SearchConfig, means: Means) -> dict[str, Any]:
    """Successive halving; a candidate whose loss is not finite is out."""
    candidates, rounds = config.candidates(), []
    with TemporaryDirectory() as folder:
        for updates, most in zip(config.rounds, [*config.keep, 1], strict=True):
            entries = []
            for candidate in candidates:
                runs = [replace(candidate, seed=seed) for seed in config.seeds]
                states = [Path(folder, f"{run.lr}_{run.settings.get('weight')}_{run.seed}") for run in runs]
                points = [
                    score(run, updates, replace(means, checkpoint=state))
                    for run, state in zip(runs, states, strict=True)
                ]
                entries.append(_entry(candidate, points))
            rounds.append({"updates": updates, "candidates": entries})
            order = sorted(range(len(candidates)), key=lambda k: -_mean(entries[k][candidates[k].criteria[0]]))
            candidates, entries = [candidates[k] for k in order[:most]], [entries[k] for k in order[:most]]
            if _mean(entries[0][candidates[0].criteria[0]]) == float("-inf"):
                raise FloatingPointError(f"{config.name}: every candidate's loss was infinite or NaN: lower the rates")
    return {"rounds": rounds, "chosen": _settings(entries[0])}


def score(run: RunConfig, updates: int, means: Means) -> dict[str, float] | None:
    """The point of the curve after so many updates; None where the loss was not finite before."""
    try:
        return train(run, means, stop=updates)["curve"][-1]
    except FloatingPointError:
        return None


def _entry(candidate: RunConfig, points: Sequence[Mapping[str, float] | None]) -> dict[str, Any]:
    """What a result keeps of a candidate: its settings, and each number for each seed."""
    numbers = ("target", "source", *candidate.criteria)
    return {
        "lr": candidate.lr,
        "weight": asdict(candidate)["settings"].get("weight"),
        **{name: [None if point is None else point[name] for point in points] for name in numbers},
    }


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"lr": entry["lr"], "weight": entry["weight"]}


def _mean(scores: Sequence[float | None]) -> float:
    there = [score for score in scores if score is not None]
    return mean(there) if len(there) == len(scores) else float("-inf")
