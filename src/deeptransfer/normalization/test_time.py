"""Adaptation without a training phase: normalise by the batch at hand, and Tent on top of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adabn import batch_moments, evaluation_mode, stored_moments
from .base import DomainNorm
from .moments import Moments
from .passes import scale_and_shift, wide
from .plain import Norm, check_input, drop_and_act, kind, norm_layers


@contextmanager
def prediction_time(model: nn.Module, prior: float = 0.0, mixture: bool = False) -> Iterator[nn.Module]:
    r"""Normalise each batch by its own statistics inside the ``with`` block, mixed with the source's as a prior.

    .. math:: \hat\mu = \frac{N}{N+n}\,\mu_s + \frac{n}{N+n}\,\mu_{batch}, \qquad
              \hat v = \frac{N}{N+n}\,v_s + \frac{n}{N+n}\,v_{batch}

    with n images in the batch and the weight of N = ``prior`` source images. N = 0 is prediction-time BatchNorm,
    N → ∞ the source's BatchNorm. The model evaluates otherwise (no dropout), and no running statistic moves.

    A mean of variances is not the variance of the mixture of N source images and the batch: that one is larger by
    :math:`\frac{N n}{(N+n)^2}(\mu_s - \mu_{batch})^2`. The papers leave this out.

    Parameters
    ----------
    model
        Holds plain BatchNorm layers, whose running statistics are the prior, or domain layers, whose source row is.
        Which classes count as plain, and which are refused by name, is said at
        :func:`~deeptransfer.normalization.convert_norm`; a frozen BatchNorm is one of them.
    prior
        N ≥ 0; ``math.inf`` is allowed. The last batch of a stream may be short: its n is its own.
    mixture
        Take the variance of the mixture. Ours, not the papers'.

    Yields
    ------
    nn.Module
        The model. Gradients reach the batch statistics.

    Raises
    ------
    ValueError
        When ``prior`` is negative, the model has no BatchNorm or domain layer, or one that is refused, or (inside the
        block) a batch has a single value per channel and there is no prior.

    Notes
    -----
    NaN or infinity in one row reaches the statistics of its channels, and so all rows of the batch, unless ``prior`` is
    infinite. It is forgotten with the batch.

    References
    ----------
    Z. Nado, S. Padhy, D. Sculley, A. D'Amour, B. Lakshminarayanan, J. Snoek. Evaluating Prediction-Time Batch
    Normalization for Robustness under Covariate Shift. 2020.
    S. Schneider, E. Rusak, L. Eck, O. Bringmann, W. Brendel, M. Bethge. Improving Robustness against Common Corruptions
    by Covariate Shift Adaptation. NeurIPS 2020.
    """
    if not prior >= 0:
        raise ValueError(f"prior counts source images, so it must be at least 0; got {prior}")
    layers = list(norm_layers(model).values())
    if not layers:
        raise ValueError(f"{type(model).__name__} has no BatchNorm or domain layer: its statistics are no batch's")
    before = [vars(layer).get("forward") for layer in layers]  # not None inside another such block
    with evaluation_mode(model):
        for layer in layers:
            layer.forward = partial(_normalise_by_batch, layer, prior, mixture)  # type: ignore[method-assign]
        try:
            yield model
        finally:
            for layer, forward in zip(layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward  # type: ignore[method-assign]


def _normalise_by_batch(layer: Norm, prior: float, mixture: bool, x: Tensor) -> Tensor:
    layer._check_input(x) if isinstance(layer, DomainNorm) else check_input(layer, x)
    if x.numel() == x.shape[1] and prior == 0:
        raise ValueError(
            f"a batch of shape {tuple(x.shape)} has one value per channel, whose variance is 0: "
            "give it more rows, or a prior such as prior=16"
        )
    if isinstance(layer, DomainNorm):
        # The rows that are read; the target's own is not, the batch stands for it.
        read = set(layer.rows_read(layer.row("target"))) - {layer.row("target")}
        layer._require(tuple(sorted(read | {layer.row("source")} if prior else read)))
    with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
        y = _normalised(layer, prior, mixture, x) if x.numel() else x.clone()
    known = kind(layer)
    return drop_and_act(layer, (x,), y) if known and known.acts else y


def _normalised(layer: Norm, prior: float, mixture: bool, x: Tensor) -> Tensor:
    n, rows = len(x), x
    if prior == math.inf:
        mixed = stored_moments(layer, "source")
    else:
        x, mixed = batch_moments(layer, x)
        if prior:
            source, share = stored_moments(layer, "source"), n / (prior + n)
            var, shift = source.var.lerp(mixed.var, share), mixed.mean - source.mean
            if mixture:
                spread = layer.spread(shift) if isinstance(layer, DomainNorm) else shift.square()
                var = var + share * (1 - share) * spread
            mixed = Moments(source.mean.lerp(mixed.mean, share), var, math.inf)
    if isinstance(layer, DomainNorm):
        row = layer.row("target")
        moments = [mixed if d == row else stored_moments(layer, d) for d in range(len(layer.domains))]
        affine = layer._affine(row, layer.gain(*moments))
        return layer.normalise(x, [n], [layer.blend(rows, row, mixed)], [affine])
    scale = (mixed.var + layer.eps).rsqrt()
    shift = torch.zeros_like(scale) if layer.bias is None else layer.bias.to(scale.dtype)
    scale = scale if layer.weight is None else scale * layer.weight
    return scale_and_shift(x, [n], mixed.mean[None], scale[None], shift[None])


def entropies(logits: Tensor) -> Tensor:
    r"""Return the entropy of each row's prediction, in nats: :math:`H(p) = -\sum_c p_c \log p_c`.

    Parameters
    ----------
    logits
        ``(n, C)``; a class that is ruled out by −∞ adds nothing.

    Returns
    -------
    Tensor
        ``(n,)``, from 0 to log C, in float32 or better.
    """
    log_p = F.log_softmax(wide(logits), dim=1)
    log_p = log_p.masked_fill(log_p == -math.inf, 0)  # 0 log 0 is 0
    return -(log_p.exp() * log_p).sum(1)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return what a model predicts, be it logits or an object with ``.logits``."""
    out = model(x)
    return getattr(out, "logits", out)


class Tent(nn.Module):
    r"""Adapt scale and shift of the normalisation layers, batch after batch, by the entropy of the predictions.

    .. math:: L(\gamma, \beta) = \frac1n \sum_i H\big(\mathrm{softmax}(z_i)\big), \qquad H(p) = -\sum_c p_c \log p_c

    Each call normalises by the batch (:func:`prediction_time`), takes one Adam step on all :math:`\gamma, \beta`, and
    returns the logits computed *before* that step. With a learning rate of 0 it is prediction-time BatchNorm.

    Parameters
    ----------
    model
        Adapted in place: all other parameters are frozen. Returns logits ``(n, C)``, or an object with ``.logits``.
        The layers are those of :func:`prediction_time`. Scale and shift of a frozen BatchNorm are constants: its
        batches are normalised by their own statistics, but they do not move.
    lr
        Learning rate of Adam.

    Shape
    -----
    What the model takes → ``(n, C)``.

    Notes
    -----
    The released code keeps the whole model in training mode, dropout included; here dropout is off.

    A batch without rows, or one whose entropy or gradient is not finite (NaN or infinity in some row), gets its logits,
    but no step: parameters and Adam's moments stay as they are.

    Of parameters in half precision, in which a step of Adam is rounded away, the step moves a copy in float32.

    References
    ----------
    D. Wang, E. Shelhamer, S. Liu, B. Olshausen, T. Darrell. Tent: Fully Test-Time Adaptation by Entropy Minimization.
    ICLR 2021.
    """

    others: ClassVar[tuple[type[nn.Module], ...]] = ()  # further layers whose scale and shift are adapted

    def __init__(self, model: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self._by_batch = bool(norm_layers(model))
        self.adapted = self._chosen()
        model.requires_grad_(False)
        for parameter in self.adapted:
            parameter.requires_grad_(True)
        self._start = [parameter.detach().clone() for parameter in self.adapted]
        self.reset()

    def _chosen(self) -> list[nn.Parameter]:
        """What is adapted."""
        layers: list[nn.Module] = list(norm_layers(self.model).values())
        layers += [module for module in self.model.modules() if isinstance(module, self.others)]
        # A layer may lack them, a frozen one holds them as buffers, and two layers may share them.
        affine = [p for layer in layers for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter)]
        if not affine:
            names = " or ".join(["BatchNorm", *(other.__name__ for other in self.others), "domain layer"])
            raise ValueError(f"{type(self.model).__name__} has no {names} with scale and shift")
        return list(dict.fromkeys(affine))

    def reset(self) -> None:
        """Return to the scale and shift the model came with, and forget the optimiser's state."""
        with torch.inference_mode(False), torch.no_grad():
            for parameter, value in zip(self.adapted, self._start, strict=True):
                parameter.copy_(value)
                parameter.grad = None
            # What Adam moves: the parameter itself, or its copy in float32.
            self._moved = [p if (copy := wide(p.detach())).dtype == p.dtype else copy for p in self.adapted]
        self.optimizer = self._optimizer(self._moved)

    def forward(self, x: Tensor) -> Tensor:
        """Predict the batch, then learn from it; also where the caller has switched gradients off."""
        with self._statistics(), torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x
            logits = logits_of(self.model, x)
            self._learn(x, logits)
        return logits.detach()

    def _statistics(self) -> AbstractContextManager[object]:
        return prediction_time(self.model) if self._by_batch else evaluation_mode(self.model)

    def _optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)

    def _learn(self, x: Tensor, logits: Tensor) -> None:
        """What follows the prediction of a batch."""
        self._step(self._gradients(entropies(logits).mean()))

    def _gradients(self, loss: Tensor) -> list[Tensor | None] | None:
        """Differentiate the loss by what is adapted; None unless it and the squares, which Adam keeps, are finite."""
        for parameter in self.adapted:
            parameter.grad = None
        if not loss.isfinite():
            return None
        loss.backward()
        gradients = [None if p.grad is None else wide(p.grad) for p in self.adapted]
        return gradients if all(g is None or g.square().isfinite().all() for g in gradients) else None

    @torch.no_grad()
    def _step(self, gradients: list[Tensor | None] | None) -> None:
        if gradients is None:
            return
        for moved, gradient in zip(self._moved, gradients, strict=True):
            moved.grad = gradient
        self.optimizer.step()
        for parameter, moved in zip(self.adapted, self._moved, strict=True):
            parameter.copy_(moved)
