"""How a run stands, in a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deeptransfer.runs.adaptation import RunConfig

LINES = 12
CHOSEN = {
    "last": "the last point: no choice",
    "label_free": "chosen without labels",
    "oracle": "chosen by the target's labels: what no one can choose, an upper bound",
}


def summary(result: Mapping[str, Any]) -> str:
    """Recipe, curve and selections of an adaptation, accuracies in per cent; a long curve is thinned out."""
    config, curve = result["config"], result["curve"]
    criterion = config["criteria"][0]
    shown = sorted({round(k) for k in np.linspace(0, len(curve) - 1, min(LINES, len(curve)))})
    lines = [
        f"{config['source']} to {config['target']}: {config['objective']}, {config['norm']}, seed {config['seed']}",
        f"{config['steps']} updates in {result['seconds']:.0f} s on {result['device']}",
        "",
        f"updates   target   source   {criterion:>11}",
        *(
            f"{point['step']:7.0f}   {100 * point['target']:6.1f}   {100 * point['source']:6.1f}   "
            f"{point[criterion]:11.3f}"
            for point in (curve[k] for k in shown)
        ),
        "",
        "Accuracy on the target's test images, in per cent",
    ]
    for name, how in CHOSEN.items():
        chosen = result["selections"][name]
        title = name.replace("_", "-")
        lines.append(f"{title:<10}   {100 * chosen['accuracy']:6.1f}   after {chosen['step']:.0f} updates, {how}")
    mean = RunConfig.per_class(result)["mean"]
    lines.append(
        f"{'per class':<10}   {100 * mean:6.1f}   mean over the {len(result['per_class'])} classes, at the end"
    )
    return "\n".join(lines)
