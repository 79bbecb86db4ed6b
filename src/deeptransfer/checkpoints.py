"""A run's state on disk, to go on where it was stopped as if it had not been.

Batches and schedules are functions of the step, so the state is small: weights, the optimiser's moments, the state of
torch's generators, and the curve so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deeptransfer.results import replacing


def save_checkpoint(
    path: Path, mark: str, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, curve: list
) -> None:
    """Write the state after ``step`` updates; what is at ``path`` is always whole.

    Parameters
    ----------
    path : Path
    mark : str
        The recipe's fingerprint: a checkpoint of another recipe, or of other code, is not gone on with.
    step : int
        Number of updates done.
    modules : mapping of str to Module
        Network and objective.
    optimizer : Optimizer
    curve : list of dict
        The probes so far.
    """
    state = {
        "mark": mark,
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "generators": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
        "curve": curve,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def restore_checkpoint(
    path: Path, mark: str, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Put network, objective, optimiser and generators into the stored state, in place.

    Returns
    -------
    step, curve
        Number of updates done and the probes so far: ``(0, [])`` if there is no checkpoint, or it is one of another
        recipe.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    if not path.is_file():
        return 0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["mark"] != mark:
            return 0, []
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        optimizer.load_state_dict(state["optimizer"])
        cpu, *cuda = state["generators"]
        torch.set_rng_state(cpu)
        if len(cuda) == torch.cuda.device_count():  # else: saved on another kind of machine
            torch.cuda.set_rng_state_all(cuda)
    except Exception as error:  # a cut-off file raises half a dozen types
        raise ValueError(f"{path} is no sound checkpoint ({type(error).__name__}: {error}): remove it") from error
    return state["step"], state["curve"]
