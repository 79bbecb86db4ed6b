"""AdaBN: after training on the source, replace the statistics of every normalisation by the target's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .moments import Moments
from .passes import measure, wide
from .plain import Norm, norm_layers
from .split import use_domain

METHODS = ("population", "ema", "batch")
CHUNK = 512  # rows of a tensor that go through the model at once


def adapt_statistics(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    method: str = "population",
    passes: int | None = None,
    domain: str | int = "target",
) -> nn.Module:
    r"""Give every normalisation layer the statistics of the target, in place; scale and shift stay.

    Three different things carry the name AdaBN:

    * ``"population"``: mean and variance over *all* values that the layer receives for this set,

      .. math:: \mu = \frac1N \sum_i x_i, \qquad v = \frac1N \sum_i (x_i - \mu)^2,

      merged over the batches by the formula of Chan et al., so that the batches do not matter. What a layer receives
      depends on the statistics of the layers before it. Exact means layer by layer, each one measured with all earlier
      layers final: as many (partial) passes over the data as there are layers.
    * ``"ema"``: the running average that training would keep, moved batch by batch by the layer's ``momentum`` from the
      statistics at hand; with ``momentum=None`` the average over the batches. A mean of batch variances is not the
      variance of the set, whatever the weights.
    * ``"batch"``: the statistics of a single batch, the last one; a tensor is one batch. Computed anew for every batch,
      this is :func:`~deeptransfer.normalization.prediction_time`.

    Parameters
    ----------
    model
        Holds plain BatchNorm layers, whose running statistics are replaced, or domain layers, whose target row is.
        Which classes count as plain, and which are refused by name, is said at
        :func:`~deeptransfer.normalization.convert_norm`; a frozen BatchNorm gets new statistics, too.
    data
        The target's inputs: a tensor ``(n, ...)``, or batches, each a tensor or a tuple that starts with one. They are
        read several times, so a generator will not do for the exact method.
    method
        ``"population"``, ``"ema"`` or ``"batch"``.
    passes
        For ``"population"``. None is exact. 1 is the cheap approximation: one pass, in which each batch is normalised
        by its own statistics, off by up to 20 % in the variance of a deep network; with the whole set as one batch,
        ``[x]``, it is exact. Each further pass measures under the statistics of the one before, and makes one more
        layer exact.
    domain
        Whose row of the domain layers is replaced, by name or number; the data are that domain's. A plain BatchNorm has
        one row, which is replaced whatever the name.

    Returns
    -------
    nn.Module
        The model, in the mode it came in. On an error its statistics are as before.

    Raises
    ------
    ValueError
        When there is no layer to adapt, none that runs, no data, an unknown method or domain, a generator where several
        passes are needed, one value per channel where a variance is needed, or, for the exact method, a layer that
        occurs twice in one forward pass.

    Notes
    -----
    NaN or infinity in the data reaches the statistics of its channels, and from there the outputs.

    After weights were averaged (SWA), ``torch.optim.swa_utils.update_bn`` looks for plain BatchNorm layers and leaves
    domain layers as they are, without an error. Call this function instead, once for each domain.

    References
    ----------
    Y. Li, N. Wang, J. Shi, X. Hou, J. Liu. Adaptive Batch Normalization for Practical Domain Adaptation. Pattern
    Recognition 2018.
    T. F. Chan, G. H. Golub, R. J. LeVeque. Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
    Stanford STAN-CS-79-773, 1979.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if passes is not None and (method != "population" or passes < 1):
        raise ValueError(f"passes must be None or at least 1, and belongs to 'population'; got {passes} for {method!r}")
    layers = [layer for layer in norm_layers(model).values() if layer.running_mean is not None]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer with running statistics: there is nothing to adapt")
    if method == "ema" and not all(hasattr(layer, "momentum") for layer in layers):
        raise ValueError("a frozen BatchNorm has no momentum, which 'ema' needs: use method='population'")
    if isinstance(data, Tensor):
        data = [data] if method == "batch" else _chunks(data)
    elif iter(data) is data and method == "population" and passes != 1:
        raise ValueError("a generator can be read only once: give a list or a DataLoader, or passes=1")

    with _eager(model), evaluation_mode(model), use_domain(model, domain), _unchanged_on_error(layers), torch.no_grad():
        for layer in layers:
            _count(layer, domain, 1)  # a row that was never updated may be read now
        if method == "population" and passes is None:
            for layer in _execution_order(model, layers, data):
                _Sweep([layer], method, domain, stop=True).run(model, data)
        else:
            _Sweep(layers, method, domain, own_batch=True).run(model, data)
            for _ in range((passes or 1) - 1):
                _Sweep(layers, method, domain).run(model, data)
    return model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluate inside the ``with`` block; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def batch_moments(layer: Norm, x: Tensor) -> tuple[Tensor, Moments]:
    """Return the batch, for the pass that normalises it, and its moments as the layer would take them."""
    if isinstance(layer, DomainNorm):
        x, moments = layer.measure(x, [len(x)])
        return x, moments[0]
    x, mean, var = measure(x, [len(x)])
    return x, Moments(mean[0], var[0], x.numel() // x.shape[1])


def stored_moments(layer: Norm, domain: str | int) -> Moments:
    """Return the running statistics, in float32 or better: a domain's row, or the only ones of a plain BatchNorm."""
    if isinstance(layer, DomainNorm):
        return layer.stored(layer.row(domain))
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        raise ValueError("a BatchNorm with track_running_stats=False has no statistics to use as a prior: use prior=0")
    return Moments(wide(mean), wide(var), math.inf)


class _Reached(Exception):
    """The layer in question has been measured: the rest of the network need not run."""


class _Sweep:
    """One pass over the data that measures some layers and then writes their statistics.

    With ``own_batch`` each layer normalises each batch by that batch's own statistics on the way; otherwise by those it
    has. With ``stop`` the forward pass ends at the (single) layer.
    """

    def __init__(
        self, layers: list[Norm], method: str, domain: str | int, own_batch: bool = False, stop: bool = False
    ) -> None:
        self.layers, self.method, self.domain, self.own_batch, self.stop = layers, method, domain, own_batch, stop
        self.total: dict[Norm, Moments] = {}
        self.count = dict.fromkeys(layers, 0)

    def run(self, model: nn.Module, data: Iterable[Any]) -> None:
        handles = [layer.register_forward_pre_hook(self._hook) for layer in self.layers]
        try:
            rows = 0
            for x in _inputs(data, self.layers[0]):
                rows += len(x)
                with suppress(_Reached):
                    model(x)
        finally:
            for handle in handles:
                handle.remove()
        _require_run(rows, self.total)
        for layer, moments in self.total.items():
            if moments.n == 1:
                raise ValueError("a set with one value per channel has no variance: give it more rows")
            _write(layer, self.domain, moments)
            _count(layer, self.domain, self.count[layer])

    def _hook(self, layer: Norm, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        self.count[layer] += 1
        with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
            _, batch = batch_moments(layer, x)
            self.total[layer] = self._merge(layer, batch)
        if self.own_batch:
            if batch.n == 1:
                raise ValueError(
                    "a batch with one value per channel has no variance to normalise it by: give it more rows"
                )
            _write(layer, self.domain, batch)
        if self.stop:
            raise _Reached

    def _merge(self, layer: Norm, batch: Moments) -> Moments:
        if self.method == "batch":
            return batch
        if self.method == "ema":
            if batch.n == 1:
                raise ValueError("a batch with one value per channel has no unbiased variance: give it more rows")
            # Before its first batch a layer still holds the statistics to start from.
            old, new = self.total.get(layer, stored_moments(layer, self.domain)), batch._replace(var=batch.unbiased)
            weight = 1 / self.count[layer] if layer.momentum is None else layer.momentum
            return Moments(old.mean.lerp(new.mean, weight), old.var.lerp(new.var, weight), batch.n)
        if layer not in self.total:
            return batch
        old = self.total[layer]
        n = old.n + batch.n
        share, shift = batch.n / n, batch.mean - old.mean
        spread = layer.spread(shift) if isinstance(layer, DomainNorm) else shift.square()
        return Moments(old.mean + share * shift, old.var.lerp(batch.var, share) + share * (1 - share) * spread, n)


def _inputs(data: Iterable[Any], layer: Norm) -> Iterator[Tensor]:
    """The inputs of each batch that has rows, on the model's device."""
    for batch in data:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor):
            raise ValueError(f"a batch must be a tensor or a tuple that starts with one, got {type(x).__name__}")
        if len(x):
            yield x.to(layer.running_mean.device)  # type: ignore[union-attr]


def _execution_order(model: nn.Module, layers: list[Norm], data: Iterable[Any]) -> list[Norm]:
    """The layers as one forward pass meets them; those it does not meet are left out."""
    order: list[Norm] = []
    handles = [layer.register_forward_pre_hook(lambda module, _: order.append(module)) for layer in layers]
    rows = 0
    try:
        for x in _inputs(data, layers[0]):
            rows = len(x)
            model(x[:1])
            break
    finally:
        for handle in handles:
            handle.remove()
    _require_run(rows, order)
    if len(set(order)) < len(order):
        raise ValueError(
            "a layer occurs twice in one forward pass, so its statistics depend on themselves: use passes=1"
        )
    return order


def _require_run(rows: int, met: Collection[Norm]) -> None:
    if rows == 0:
        raise ValueError("there is no data: the loader gave no rows (drop_last with a large batch?)")
    if not met:
        raise ValueError("no normalisation layer was called in the forward pass: does the model pass them by?")


def _write(layer: Norm, domain: str | int, moments: Moments) -> None:
    if isinstance(layer, DomainNorm):
        row = layer.row(domain)
        for name, buffer in layer.named_buffers(recurse=False):
            if name.startswith("running"):
                buffer[row].nan_to_num_(0.0, 0.0, 0.0)  # the row moves from where it was, and from NaN it never would
        layer.store(row, moments, 1.0)
    else:
        layer.running_mean.copy_(moments.mean)  # type: ignore[union-attr]
        layer.running_var.copy_(moments.var)  # type: ignore[union-attr]


def _count(layer: Norm, domain: str | int, batches: int) -> None:
    """Record how many batches the statistics stand for; a frozen BatchNorm does not count."""
    if isinstance(layer, DomainNorm):
        layer.num_batches_tracked[layer.row(domain)] = batches
        layer._look()
    elif getattr(layer, "num_batches_tracked", None) is not None:
        layer.num_batches_tracked.fill_(batches)  # type: ignore[union-attr]


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor into pieces of CHUNK rows; a single row left over, which may have no variance, joins the last."""
    cuts = list(range(CHUNK, len(x), CHUNK))
    return x.tensor_split(cuts[:-1] if len(x) % CHUNK == 1 else cuts)


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Run what was compiled, the whole model or a part of it, as plain Python: compiled code would call no hooks."""
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def _unchanged_on_error(layers: list[Norm]) -> Iterator[None]:
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    try:
        yield
    except BaseException:
        for layer, state in zip(layers, before, strict=True):
            layer.load_state_dict(state, strict=False)
        raise
