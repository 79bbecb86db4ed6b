"""Gated batch normalisation: a gate guesses the domain of each image, and mixes the branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batchnorm import DomainBatchNorm, DomainBatchNorm2d
from .passes import scale_and_shift_images, wide


class GatedBatchNorm2d(nn.Module):
    r"""One BatchNorm for each of K domains; where the domain is not named, a gate weighs their outputs.

    .. math:: y_i = \sum_k g_k(x_i) \left(\gamma_k\,\frac{x_i - \mu_k}{\sqrt{v_k + \epsilon}} + \beta_k\right)

              g = \mathrm{softmax}(\text{gate}(x_i))

    In training, and wherever ``forward_domains`` or ``use_domain`` names the domain, an image takes the branch of its
    own; in evaluation without a name it takes the mixture of all running rows. The gate is trained by a loss of its own
    (:func:`gate_losses`).

    Parameters
    ----------
    num_features
        Number of channels C.
    domains
        K, or the names.
    gate
        Maps images ``(n, C, H, W)`` to logits ``(n, K)``. By default the mean over the positions, and a linear layer
        that starts at 0: at every branch alike.
    **options
        As :class:`DomainBatchNorm`, with ``shared_affine=False`` unless it is given.

    Shape
    -----
    ``(N, C, H, W)`` to the same shape.

    Notes
    -----
    The gate does not act in training, so the network meets at test time what it was not trained with; and an attacker
    who knows the gate attacks it, or chooses the branch. A claim of robustness needs the attack through the gate.
    ``prediction_time`` and ``Tent`` reach the branches, not the mixture.

    References
    ----------
    A. Liu, S. Tang, X. Liu, X. Chen, L. Huang, Z. Tu, D. Song, D. Tao. Towards Defending Multiple Adversarial
    Perturbations via Gated Batch Normalization. 2020.
    """

    def __init__(
        self,
        num_features: int,
        domains: int | Sequence[str] = 2,
        gate: nn.Module | None = None,
        *,
        shared_affine: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.norm: DomainBatchNorm = DomainBatchNorm2d(
            num_features, domains=domains, shared_affine=shared_affine, **options
        )
        if gate is None:
            linear = nn.Linear(num_features, len(self.norm.domains)).to(self.norm.weight)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the named branch, or by the mixture."""
        norm = self.norm
        if norm.training or norm.membership.split() is not None:
            return norm(x)
        norm._check_input(x)
        k = len(norm.domains)
        norm._require(tuple(range(k)))
        weights = wide(self.gate(x)).softmax(1)
        if weights.shape != (len(x), k):
            raise ValueError(f"the gate must return logits ({len(x)}, {k}), got {tuple(weights.shape)}")
        affine = [norm._affine(row, None) for row in range(k)]
        scale = torch.stack([weight for weight, _ in affine]) * (wide(norm.running_var) + norm.eps).rsqrt()
        shift = torch.stack([bias for _, bias in affine]) - scale * wide(norm.running_mean)
        with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
            scale, shift = weights @ scale, weights @ shift  # (n, C)
            return scale_and_shift_images(x, torch.zeros_like(scale), scale, shift)


@contextmanager
def gate_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    r"""Collect, inside the ``with`` block, how well each gate tells the domains apart.

    .. math:: \ell_l = -\frac1N \sum_i \log g^l_{d_i}(x_i)

    with the domain :math:`d_i` of each image, as ``forward_domains`` or ``use_domain`` names it.

    Parameters
    ----------
    model
        Holds :class:`GatedBatchNorm2d` layers.

    Yields
    ------
    list of Tensor
        Losses, shape ``()``, one for each pass of a layer; add their sum to the loss of the network.

    Raises
    ------
    ValueError
        When there is no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, GatedBatchNorm2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no GatedBatchNorm2d")
    collected: list[Tensor] = []

    def compare(layer: GatedBatchNorm2d, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        counts = torch.tensor(layer.norm._counts(x))
        domain = torch.arange(len(counts)).repeat_interleave(counts).to(x.device)
        collected.append(F.cross_entropy(wide(layer.gate(x)), domain))

    handles = [layer.register_forward_pre_hook(compare) for layer in layers]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
