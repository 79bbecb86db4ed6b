"""A run's state on disk, to go on where it was stopped as if it had not been.

Batches and schedules are functions of the step, so the state is small: weights, the optimiser's moments, the state of
torch's generators, and the curve so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deeptransfer.runs.recipe import Recipe, fingerprint
from deeptransfer.runs.result import replacing
from deeptransfer.training import History


class Checkpoint:
    """The state of one run at each point of its curve.

    If ``path`` holds one, network, objective, optimiser and generators are put into that state, in place.

    Parameters
    ----------
    path : Path or None
        Where the state is kept; what is there is always whole. None keeps nothing.
    recipe : Recipe
        A checkpoint of another recipe, or of other code, is not gone on with.
    modules : mapping of str to Module
        Network and objective.
    optimizer : Optimizer

    Attributes
    ----------
    step : int
        Number of updates done so far: 0 at the start.
    curve : list of dict
        The points so far.

    Raises
    ------
    ValueError
        If the file is damaged, or belongs to another recipe: the message says what differs.
    """

    def __init__(
        self,
        path: Path | None,
        recipe: Recipe,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.path, self.recipe, self.mark = path, recipe, fingerprint(recipe)
        self.modules, self.optimizer = modules, optimizer
        self.step = 0
        self.curve: list[dict[str, float]] = []
        if path is not None and path.exists():
            self._restore(path)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            theirs, mark = json.loads(state["recipe"]), state["mark"]
        except Exception as error:  # a cut-off file raises half a dozen types
            raise ValueError(f"{path} is no sound checkpoint ({type(error).__name__}: {error}): remove it") from error
        if mark != self.mark:
            raise ValueError(
                f"{path} {_difference(theirs, self.recipe)}: remove it to begin anew, or name another file"
            )
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        cpu, *cuda = state["generators"]
        torch.set_rng_state(cpu)
        if len(cuda) == torch.cuda.device_count():  # else: saved on another kind of machine
            torch.cuda.set_rng_state_all(cuda)
        self.step, self.curve = state["step"], state["curve"]

    def save(self, history: History) -> None:
        """Write the state after what ``history`` has done since :attr:`step`."""
        if self.path is None:
            return
        state = {
            "mark": self.mark,
            "recipe": _written(self.recipe),
            "step": self.step + len(history.steps),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "generators": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
            "curve": self.curve + history.probes,
        }
        with replacing(self.path) as temporary:
            torch.save(state, temporary)


def is_ours(path: Path, recipe: Recipe) -> bool:
    """Whether a checkpoint can be gone on with."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["mark"] == fingerprint(recipe)
    except Exception:  # a cut-off file raises half a dozen types
        return False


def _written(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), sort_keys=True)


def _difference(theirs: Mapping[str, Any], recipe: Recipe) -> str:
    ours = json.loads(_written(recipe))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if not differing:
        return "was made by other code than this library's"
    facts = ", ".join(f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differing)
    return f"is the checkpoint of another recipe ({facts})"
