"""Adaptation without a training phase: normalise by the batch at hand, and Tent on top of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adabn import Norm, batch_moments, evaluation_mode, norm_layers, stored_moments
from .base import SOURCE, TARGET, DomainNorm, Moments
from .passes import scale_and_shift


@contextmanager
def prediction_time(model: nn.Module, prior: float = 0.0) -> Iterator[nn.Module]:
    r"""Normalise each batch by its own statistics inside the ``with`` block, mixed with the source's as a prior.

    .. math:: \hat\mu = \frac{N}{N+n}\,\mu_s + \frac{n}{N+n}\,\mu_{batch}, \qquad
              \hat v = \frac{N}{N+n}\,v_s + \frac{n}{N+n}\,v_{batch}

    with n images in the batch and the weight of N = ``prior`` source images. N = 0 is prediction-time BatchNorm,
    N → ∞ the source's BatchNorm. The model evaluates otherwise (no dropout), and no running statistic moves.

    Parameters
    ----------
    model
        Holds plain BatchNorm layers, whose running statistics are the prior, or domain layers, whose source row is.
    prior
        N ≥ 0; ``math.inf`` is allowed.

    Yields
    ------
    nn.Module
        The model. Gradients reach the batch statistics.

    Raises
    ------
    ValueError
        When ``prior`` is negative, the model has no BatchNorm or domain layer, or (inside the block) a batch has a
        single value per channel and there is no prior.

    References
    ----------
    Z. Nado, S. Padhy, D. Sculley, A. D'Amour, B. Lakshminarayanan, J. Snoek. Evaluating Prediction-Time Batch
    Normalization for Robustness under Covariate Shift. 2020.
    S. Schneider, E. Rusak, L. Eck, O. Bringmann, W. Brendel, M. Bethge. Improving Robustness against Common Corruptions
    by Covariate Shift Adaptation. NeurIPS 2020.
    """
    if not prior >= 0:
        raise ValueError(f"prior counts source images, so it must be at least 0; got {prior}")
    layers = norm_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no BatchNorm or domain layer: its statistics are no batch's")
    before = [vars(layer).get("forward") for layer in layers]  # not None inside another such block
    with evaluation_mode(model):
        for layer in layers:
            layer.forward = partial(_normalise_by_batch, layer, prior)  # type: ignore[method-assign]
        try:
            yield model
        finally:
            for layer, forward in zip(layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward  # type: ignore[method-assign]


def _normalise_by_batch(layer: Norm, prior: float, x: Tensor) -> Tensor:
    layer._check_input(x) if isinstance(layer, DomainNorm) else layer._check_input_dim(x)
    if x.numel() == x.shape[1] and prior == 0:
        raise ValueError(
            f"a batch of shape {tuple(x.shape)} has one value per channel, whose variance is 0: "
            "give it more rows, or a prior such as prior=16"
        )
    if isinstance(layer, DomainNorm) and (prior or SOURCE in layer.rows_read(TARGET)):
        layer._require((SOURCE,))
    with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
        n = len(x)
        x, mixed = batch_moments(layer, x)
        if prior:
            source, share = stored_moments(layer, SOURCE), n / (prior + n)
            mixed = Moments(source.mean.lerp(mixed.mean, share), source.var.lerp(mixed.var, share), math.inf)
        if isinstance(layer, DomainNorm):
            gain = layer.gain(layer.stored(SOURCE), mixed)
            return layer.normalise(x, [n], [mixed], [layer._affine(TARGET, gain)])
        scale = (mixed.var + layer.eps).rsqrt()
        shift = torch.zeros_like(scale) if layer.bias is None else layer.bias
        scale = scale if layer.weight is None else scale * layer.weight
        return scale_and_shift(x, [n], mixed.mean[None], scale[None], shift[None])


class Tent(nn.Module):
    r"""Adapt scale and shift of the normalisation layers, batch after batch, by the entropy of the predictions.

    .. math:: L(\gamma, \beta) = \frac1n \sum_i H\big(\mathrm{softmax}(z_i)\big), \qquad H(p) = -\sum_c p_c \log p_c

    Each call normalises by the batch (:func:`prediction_time`), takes one Adam step on all :math:`\gamma, \beta`, and
    returns the logits computed *before* that step. With a learning rate of 0 it is prediction-time BatchNorm.

    Parameters
    ----------
    model
        Adapted in place: all other parameters are frozen. Returns logits ``(n, C)``, or an object with ``.logits``.
    lr
        Learning rate of Adam.

    Shape
    -----
    What the model takes → ``(n, C)``.

    Notes
    -----
    The released code keeps the whole model in training mode, dropout included; here dropout is off.

    References
    ----------
    D. Wang, E. Shelhamer, S. Liu, B. Olshausen, T. Darrell. Tent: Fully Test-Time Adaptation by Entropy Minimization.
    ICLR 2021.
    """

    def __init__(self, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        model.requires_grad_(False)
        self.adapted = [p for layer in norm_layers(model) for p in (layer.weight, layer.bias) if p is not None]
        if not self.adapted:
            raise ValueError(f"{type(model).__name__} has no BatchNorm or domain layer with scale and shift")
        for parameter in self.adapted:
            parameter.requires_grad_(True)
        self._start = [parameter.detach().clone() for parameter in self.adapted]
        self.reset()

    def reset(self) -> None:
        """Return to the scale and shift the model came with, and forget the optimiser's state."""
        with torch.no_grad():
            for parameter, value in zip(self.adapted, self._start, strict=True):
                parameter.copy_(value)
        self.optimizer = torch.optim.Adam(self.adapted, lr=self.lr)

    def forward(self, x: Tensor) -> Tensor:
        """Predict the batch, then learn from it; also where the caller has switched gradients off."""
        with prediction_time(self.model), torch.inference_mode(False), torch.enable_grad():
            out = self.model(x.clone() if x.is_inference() else x)
            logits = getattr(out, "logits", out)
            log_p = F.log_softmax(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, dim=1)
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            self.optimizer.zero_grad()
            entropy.backward()
            self.optimizer.step()
        return logits.detach()
