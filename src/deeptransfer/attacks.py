"""Adversarial images, and training on them beside clean ones with a normalisation of their own (AdvProp)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeptransfer.normalization import forward_domains, use_domain

CLEAN, ADVERSARIAL = "clean", "adversarial"
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def projected_gradient(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    epsilon: float = 0.1,
    steps: int = 5,
    step: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Move each pixel by at most ε so that the loss grows: projected gradient ascent in the maximum norm.

    .. math:: x^{t+1} = \Pi\big(x^t + s\,\mathrm{sign}\,\nabla_x \ell(f(x^t), y)\big), \qquad
              \Pi: |x^t - x| \leq \epsilon,\; 0 \leq x^t \leq 1

    Parameters
    ----------
    model
        Returns logits ``(n, classes)`` or an object with ``.logits``. It is called in the mode, and under the domain,
        that the caller has set; no gradient reaches its parameters.
    x, labels
        Images ``(n, ...)`` in [0, 1]; classes ``(n,)``.
    epsilon
        ε, in the images' unit; 0 changes nothing.
    steps
        From 1 on.
    step
        s; :math:`2.5\,\epsilon / \text{steps}` by default.
    generator
        With one, the start is uniform within ε; without, it is the image.

    Returns
    -------
    Tensor
        Images of the same shape, without gradient.

    Raises
    ------
    ValueError
        When ε is negative, there is no step, or the images do not lie in [0, 1].

    References
    ----------
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu. Towards Deep Learning Models Resistant to Adversarial
    Attacks. ICLR 2018.
    """
    if not epsilon >= 0 or steps < 1:
        raise ValueError(f"epsilon must be at least 0 and steps at least 1, got {epsilon} and {steps}")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got {x.min():g} to {x.max():g}")
    step = 2.5 * epsilon / steps if step is None else step
    x = x.detach()
    low, high = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1)
    adversarial = x.clone()
    if generator is not None:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        adversarial = (x + epsilon * (2 * noise - 1)).clamp(low, high)
    for _ in range(steps):
        leaf = adversarial.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(_logits(model(leaf)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        adversarial = (leaf.detach() + step * gradient.sign()).clamp(low, high)
    return adversarial


def auxiliary_loss(model: nn.Module, x: Tensor, labels: Tensor, attack: Attack = projected_gradient) -> Tensor:
    r"""Classify clean and adversarial images together, each normalised by statistics of its own (AdvProp).

    .. math:: L = \tfrac12\,\ell\big(f_{clean}(x), y\big) + \tfrac12\,\ell\big(f_{adv}(x^{adv}), y\big)

    The attack meets the network in evaluation, through the adversarial branch; the network is evaluated by the clean
    one alone.

    Parameters
    ----------
    model
        Its domain layers have ``domains=("clean", "adversarial")``, as after ``convert_norm(model, DomainBatchNorm2d,
        domains=("clean", "adversarial"), shared_affine=False)``. All else is shared.
    x, labels
        Images ``(n, ...)`` in [0, 1]; classes ``(n,)``.
    attack
        ``attack(model, x, labels)`` returns the adversarial images.

    Returns
    -------
    Tensor
        The loss, shape ``()``.

    Raises
    ------
    ValueError
        When the layers have other domains.

    Notes
    -----
    The running rows of the adversarial branch are those of the first training batch on; before it they hold what the
    layer came with, so a fresh layer cannot be attacked: see :func:`~deeptransfer.normalization.convert_norm`, after
    which the rows of the BatchNorm are there.

    References
    ----------
    C. Xie, M. Tan, B. Gong, J. Wang, A. L. Yuille, Q. V. Le. Adversarial Examples Improve Image Recognition. CVPR 2020.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with use_domain(model, ADVERSARIAL):
            adversarial = attack(model, x, labels)
    finally:
        for module, mode in modes:
            module.training = mode
    outputs = forward_domains(model, x, adversarial)
    return sum((F.cross_entropy(_logits(out), labels) for out in outputs), x.new_zeros(())) / 2


def _logits(out: Any) -> Tensor:
    return getattr(out, "logits", out)
