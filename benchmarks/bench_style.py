"""Style transfer against InstanceNorm, and a pruned network against the whole one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import device, seconds
from deeptransfer.networks import small_cnn
from deeptransfer.pruning import prune_channels, slimmest_channels
from deeptransfer.style import adaptive_instance_norm, whiten_color

BATCH, IMAGE = (16, 64, 64, 64), (1, 64, 128, 128)


def _backward(transfer: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(transfer(x), x, grad)


def rows() -> list[dict]:
    """Measured rows: what, ours, baseline, ratio, target."""
    generator, table = torch.Generator().manual_seed(0), []

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device())

    x, grad = draw(*BATCH), draw(*BATCH)
    for styles in (1, BATCH[0]):
        style = draw(styles, *BATCH[1:])
        with torch.no_grad():
            adain, plain = seconds([partial(adaptive_instance_norm, x, style), partial(F.instance_norm, x)], rounds=25)
        what = f"AdaIN {BATCH}, {styles} style{'s' * (styles > 1)}"
        # Measuring as many styles as contents is half of an instance normalisation more.
        table.append(_row(f"{what} / InstanceNorm2d", adain, plain, "≤ 1.3" if styles == 1 else "–"))
    leaf = x.clone().requires_grad_()
    style = draw(1, *BATCH[1:])
    steps = [lambda c: adaptive_instance_norm(c, style), F.instance_norm]
    adain, plain = seconds([partial(_backward, step, leaf, grad) for step in steps], rounds=25)
    table.append(_row(f"AdaIN {BATCH}, 1 style, forward + backward / InstanceNorm2d", adain, plain, "≤ 1.3"))

    content, style, grad = draw(*IMAGE), draw(*IMAGE), draw(*IMAGE)
    (wct,) = seconds([partial(whiten_color, content, style)], rounds=25)
    table.append(_row(f"WCT {IMAGE} / 20 ms", wct, 0.02, "≤ 1"))
    leaf = content.clone().requires_grad_()
    (wct,) = seconds([partial(_backward, lambda c: whiten_color(c, style), leaf, grad)], rounds=25)
    table.append(_row(f"WCT {IMAGE} forward + backward / 20 ms", wct, 0.02, "–"))

    network = small_cnn().to(device()).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                module.weight.copy_(torch.rand(module.num_features, generator=generator))
    small = prune_channels(network, slimmest_channels(network, 0.7))
    images = torch.rand(64, 1, 28, 28, generator=generator).to(device())
    with torch.no_grad():
        pruned, whole = seconds([partial(small, images), partial(network, images)], rounds=25)
    table.append(_row("small CNN without 70 % of its channels, 64 images / the whole", pruned, whole, "≤ 0.7"))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (small, network)]
    table.append(
        {
            "what": "parameters of the small CNN without 70 % of its channels / the whole",
            "ours": f"{sizes[0]:,}",
            "baseline": f"{sizes[1]:,}",
            "ratio": sizes[0] / sizes[1],
            "target": "≤ 0.2",
        }
    )
    return table


def _row(what: str, ours: float, baseline: float, target: str) -> dict:
    return {
        "what": what,
        "ours": f"{ours * 1e3:.2f} ms",
        "baseline": f"{baseline * 1e3:.2f} ms",
        "ratio": ours / baseline,
        "target": target,
    }
