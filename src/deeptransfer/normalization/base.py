r"""The template that every domain normalisation in this book fills in.

A training batch is ``[source rows; target rows]``. Every layer of the family

1. measures mean and variance of each part,
2. mixes them into the statistics that normalise each part (:meth:`DomainNorm.mix`),
3. normalises in one affine pass, with one weight and bias and an optional channel gain (:meth:`DomainNorm.gain`),
4. keeps one row of running statistics per domain for evaluation.

A method overrides ``mix`` or ``gain``: plain formulas on vectors of one number per channel, differentiated by autograd.
The two passes over the data are written here, once.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

DOMAINS = ("source", "target")  # their rows in the running statistics
SOURCE, TARGET = 0, 1


class Moments(NamedTuple):
    """Mean and variance of one domain, one number per channel.

    ``var`` divides by the number of values per channel, ``n``. Statistics that were stored, not measured, carry
    ``n = inf``: they are taken as they are.
    """

    mean: Tensor  # (C,)
    var: Tensor  # (C,); for whitening the covariance (G, g, g)
    n: float | Tensor

    @property
    def unbiased(self) -> Tensor:
        """The variance that divides by ``n - 1``."""
        return self.var / (1 - 1 / self.n)


class _MeasureMoments(torch.autograd.Function):
    """Mean and biased variance per channel in float32 or better; the backward is one affine pass over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if x.device.type == "cpu":
            # The kernel behind BatchNorm: `torch.var_mean` over these axes takes several times as long on a CPU.
            mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        else:
            var, mean = torch.var_mean(wide, _reduced(x), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        return affine(x, mean, grad_var * (2 / n), grad_mean / n)


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes; so is the gradient, because every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class _Clip(torch.autograd.Function):
    """Clamp whose gradient is stopped only where a descent step would lead further outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((x >= ctx.high) & (grad < 0)) | ((x <= ctx.low) & (grad > 0))
        return grad.masked_fill(outward, 0), None, None


def clip_gate(gate: Tensor, low: float = 0.5, high: float = 1.0) -> Tensor:
    r"""Clamp a gate to ``[low, high]`` without locking it there.

    The gradient of ``torch.clamp`` is 0 from the bound on, so a gate that starts at 1, or that an optimiser pushed to
    1.2, would never move again. Here every gradient that leads back inside passes.

    Parameters
    ----------
    gate
        A parameter of any shape.
    low, high
        The closed interval.

    Returns
    -------
    Tensor
        The clamped gate, same shape.
    """
    return _Clip.apply(gate, low, high)


def _reduced(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def measure_moments(x: Tensor) -> Moments:
    r"""Mean and biased variance of every channel, in float32 or better.

    Parameters
    ----------
    x
        Values ``(n, C, ...)``.

    Returns
    -------
    Moments
        ``mean`` and ``var`` of shape ``(C,)`` and ``n``, the number of values per channel; differentiable.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the plain formula, and it knows its gradient
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        var, mean = torch.var_mean(wide, _reduced(x), correction=0)
    else:
        mean, var = _MeasureMoments.apply(x)
    return Moments(mean, var, x.numel() // x.shape[1])


def affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    r"""``(x - mean) * scale + bias`` per channel, in one pass; gradient reaches all four.

    ``F.batch_norm`` gives no gradient to its mean. So the value of the mean goes in as a constant, and its gradient
    through the bias, where the difference is exactly 0.
    """
    centre = mean.detach()
    bias = bias - scale * (mean - centre)
    return F.batch_norm(x, centre, torch.ones_like(centre), scale, bias, False, 0.0, 0.0)


class DomainNorm(nn.Module):
    r"""Normalise each domain by statistics of its own, with one scale and shift for both.

    .. math:: y = (1 + a)\left(\gamma\,\frac{x - \hat\mu_d}{\sqrt{\hat v_d + \epsilon}} + \beta\right),
              \qquad (\hat\mu_s, \hat v_s), (\hat\mu_t, \hat v_t) = \mathrm{mix}(\mu_s, v_s, \mu_t, v_t)

    In training the parts of the batch come from :func:`~deeptransfer.normalization.forward_domains` or
    :func:`~deeptransfer.normalization.use_domain`; called bare, an even batch is halved. A domain that is absent from
    the batch is represented by its running row, without gradient. In evaluation the domain is the one named by
    ``use_domain``, and the target otherwise; that is one call of ``F.batch_norm``.

    Parameters
    ----------
    num_features
        Number of channels C.
    eps
        Added to the variance.
    momentum
        Weight of the newest batch in the running statistics; None averages all batches alike.
    shared_affine
        One weight and bias ``(C,)`` for both domains; if False, one each: ``(2, C)``, row 0 source, row 1 target.
    sync
        Under ``torch.distributed``, measure over the rows of all processes, each row counted once.

    Shape
    -----
    ``(N, C, ...)`` to the same shape; a numbered class admits what ``torch.nn.BatchNorm`` of that number does.

    Notes
    -----
    State: ``running_mean`` and ``running_var`` of shape ``(2, C)``, ``num_batches_tracked`` ``(2,)``: row 0 source,
    row 1 target. A checkpoint of a plain BatchNorm loads, and fills both rows.

    A row that was never updated is an error in evaluation. Compiled code cannot read a counter, so there the answer is
    the one seen at the last ``.eval()`` or load.
    """

    dims: ClassVar[tuple[int, ...]] = ()  # admissible x.dim(); empty: any
    twins: ClassVar[dict[tuple[int, ...], type[DomainNorm]]] = {}  # a method's 1-D, 2-D and 3-D classes, by dims
    gate_names: ClassVar[tuple[str, ...]] = ()  # parameters that are proportions: kept in an interval, never decayed
    _warned: ClassVar[bool] = False

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.dims:
            cls.twins.setdefault(cls.dims, cls)
        else:
            cls.twins = {(): cls}  # a new method opens a family

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        shared_affine: bool = True,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.shared_affine, self.sync = shared_affine, sync
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = (num_features,) if shared_affine else (2, num_features)
        self.weight = nn.Parameter(torch.ones(shape, **factory))
        self.bias = nn.Parameter(torch.zeros(shape, **factory))
        self.register_buffer("running_mean", torch.zeros(2, num_features, **factory))
        self.register_buffer("running_var", torch.ones(2, num_features, **factory))
        self.register_buffer("num_batches_tracked", torch.zeros(2, dtype=torch.long, device=device))
        # The rows of the next batch, as the *shape* (n_s, n_t, 0) of an empty tensor: a compiled model treats a shape
        # as a variable, but would compile again for every value of a number kept here.
        self.rows: Tensor | None = None
        self.domain: str | None = None
        self._updated = [False, False]

    # What a method may change ------------------------------------------------------------------------------------

    def mix(self, source: Moments, target: Moments) -> tuple[Moments, Moments]:
        """Return the statistics that normalise the source rows and the target rows: here, their own."""
        return source, target

    def gain(self, source: Moments, target: Moments) -> Tensor | None:
        """Return a factor ``(C,)`` on the output of both domains, or None for 1."""
        return None

    def corrections(self, source: Moments, target: Moments) -> tuple[float | Tensor, float | Tensor]:
        """Return the factors that make the mixed variances unbiased before they are stored."""
        return 1 / (1 - 1 / source.n), 1 / (1 - 1 / target.n)

    def rows_read(self, row: int) -> tuple[int, ...]:
        """Return the running rows on which the evaluation of domain ``row`` depends."""
        return (row,)

    def measure(self, x: Tensor) -> Moments:
        """Measure one domain's rows."""
        return measure_moments(x)

    def stored(self, row: int) -> Moments:
        """Return a running row as constant moments."""
        return Moments(self.running_mean[row], self.running_var[row], math.inf)

    def store(self, row: int, moments: Moments, weight: float | Tensor) -> None:
        """Move a running row by ``weight`` towards the moments, whose variance is taken as it is."""
        for buffer, value in ((self.running_mean, moments.mean), (self.running_var, moments.var)):
            buffer[row].add_((value - buffer[row]) * weight)

    def spread(self, difference: Tensor) -> Tensor:
        """Return what a shift ``(C,)`` of the mean adds to the second moment."""
        return difference.square()

    def normalise(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the statistics of one domain to its rows."""
        if not self.training:
            return F.batch_norm(x, moments.mean, moments.var, weight, bias, False, 0.0, self.eps)
        return affine(x, moments.mean, weight * (moments.var + self.eps).rsqrt(), bias)

    # What all methods share --------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
            return self._train_batch(x) if self.training else self._evaluate(x)

    def _train_batch(self, x: Tensor) -> Tensor:
        counts = self._counts(x)
        present: list[bool] | Tensor
        parts = x.split(counts) if all(counts) else tuple(x[:0] if n == 0 else x for n in counts)
        if self.sync and dist.is_initialized() and dist.get_world_size() > 1:
            source, target, present = self._measure_ranks(parts)
        else:
            source, target = (self._measure_part(parts[d]) if counts[d] else self._frozen(d) for d in (SOURCE, TARGET))
            present = [n > 0 for n in counts]
        mixed = self.mix(source, target)
        with torch.no_grad():
            for row, factor in enumerate(self.corrections(source, target)):
                if present[row] is not False:
                    self.num_batches_tracked[row].add_(present[row])
                    weight = 1 / self.num_batches_tracked[row].clamp(min=1) if self.momentum is None else self.momentum
                    self.store(row, mixed[row]._replace(var=mixed[row].var * factor), weight * present[row])
        gain = self.gain(source, target)
        out = [self.normalise(parts[d], mixed[d], *self._affine(d, gain)) for d in (SOURCE, TARGET) if counts[d]]
        return torch.cat(out) if len(out) == 2 else out[0]

    def _evaluate(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            parts = dict(enumerate(x.split(self._counts(x))))
        else:
            parts = {DOMAINS.index(self.domain or "target"): x}
        for row in parts:
            self._require(self.rows_read(row))
        gain = self.gain(self.stored(SOURCE), self.stored(TARGET))
        out = [self.normalise(part, self.stored(row), *self._affine(row, gain)) for row, part in parts.items()]
        return torch.cat(out) if len(out) == 2 else out[0]

    def _affine(self, row: int, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = (self.weight, self.bias) if self.shared_affine else (self.weight[row], self.bias[row])
        return (weight, bias) if gain is None else (weight * gain, bias * gain)

    def _frozen(self, row: int) -> Moments:
        # A copy: the running rows share one tensor, and storing the other domain's row would invalidate a backward.
        stored = self.stored(row)
        return stored._replace(mean=stored.mean.clone(), var=stored.var.clone())

    def _measure_part(self, part: Tensor) -> Moments:
        if part.numel() == part.shape[1]:
            raise ValueError(
                f"a domain needs more than one value per channel in training, got {tuple(part.shape)}: "
                "give it more rows, or freeze the layer with .eval()"
            )
        return self.measure(part)

    def _measure_ranks(self, parts: tuple[Tensor, ...]) -> tuple[Moments, Moments, Tensor]:
        """Merge the moments of all processes (Chan et al. 1979), every row counted once."""
        stored = [self._frozen(d) for d in (SOURCE, TARGET)]
        local = [
            self.measure(part) if len(part) else Moments(torch.zeros_like(old.mean), torch.zeros_like(old.var), 0)
            for part, old in zip(parts, stored, strict=True)
        ]
        shares = torch.tensor([m.n for m in local], dtype=local[0].mean.dtype, device=local[0].mean.device)
        count = _SumOverRanks.apply(shares)
        present = count > 0
        shares = shares / count.clamp(min=1)
        mean = _SumOverRanks.apply(torch.stack([m.mean * shares[d] for d, m in enumerate(local)]))  # (2, C)
        var = _SumOverRanks.apply(
            torch.stack([(m.var + self.spread(m.mean - mean[d])) * shares[d] for d, m in enumerate(local)])
        )
        count = count.masked_fill(~present, math.inf)
        merged = [
            Moments(torch.where(present[d], mean[d], old.mean), torch.where(present[d], var[d], old.var), count[d])
            for d, old in enumerate(stored)
        ]
        return merged[0], merged[1], present

    def _counts(self, x: Tensor) -> list[int]:
        """Number of source rows and of target rows in this batch."""
        total = x.shape[0]
        if self.domain is not None:
            return [total, 0] if self.domain == "source" else [0, total]
        if self.rows is not None:
            n_s, n_t = self.rows.shape[:2]
            if n_s + n_t != total:
                raise ValueError(
                    f"forward_domains announced {n_s} source and {n_t} target rows, but this layer receives {total}: "
                    "the rows must reach every domain layer as they enter the model"
                )
            return [n_s, n_t]
        if total % 2:
            raise ValueError(
                f"a batch of {total} rows cannot be halved into source and target: "
                "call forward_domains(model, xs, xt), or name the domain with use_domain(model, 'source')"
            )
        if not torch.compiler.is_compiling() and not DomainNorm._warned:
            DomainNorm._warned = True
            warnings.warn(
                f"{type(self).__name__} takes the first half of the batch as source and the second as target; "
                "forward_domains(model, xs, xt) says so explicitly",
                stacklevel=2,
            )
        return [total // 2, total // 2]

    def _check_input(self, x: Tensor) -> None:
        if x.dim() < 2 or (self.dims and x.dim() not in self.dims):
            allowed = " or ".join(f"{d}-D" for d in self.dims) or "at least 2-D"
            raise ValueError(f"{type(self).__name__} expects {allowed} input (N, C, ...), got shape {tuple(x.shape)}")
        if x.shape[1] != self.num_features:
            raise ValueError(f"expected {self.num_features} channels in axis 1, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected a floating-point input, got {x.dtype}: convert it with .float()")

    # State -------------------------------------------------------------------------------------------------------

    def _require(self, rows: tuple[int, ...]) -> None:
        if all(self._updated[row] for row in rows):
            return
        if not torch.compiler.is_compiling():
            self._look()
        for row in rows:
            if not self._updated[row]:
                raise ValueError(
                    f"the running statistics of the {DOMAINS[row]} were never updated: train on that domain, load a "
                    "checkpoint, or evaluate under use_domain(model, ...) with the other one"
                )

    def _look(self) -> None:
        if not self.num_batches_tracked.is_meta:
            self._updated = [count > 0 for count in self.num_batches_tracked.tolist()]

    def train(self, mode: bool = True) -> DomainNorm:
        """Set training or evaluation, as in ``torch.nn``."""
        super().train(mode)
        if not mode:
            self._look()
        return self

    def reset_running_stats(self) -> None:
        """Forget both running rows."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        self._updated = [False, False]

    def fill_from(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Rewrite the state of a plain BatchNorm, in place, as this layer's: both domains alike."""
        count = state.get(prefix + "num_batches_tracked")
        count = torch.zeros((), dtype=torch.long) if count is None else count
        # Statistics that came from somewhere count as updated; a cumulative average must not weigh them as a batch.
        count = count if self.momentum is None else count.clamp(min=1)
        state[prefix + "num_batches_tracked"] = count.expand(2).clone()
        for name in (
            ("running_mean", "running_var")
            if self.shared_affine
            else (
                "running_mean",
                "running_var",
                "weight",
                "bias",
            )
        ):
            if prefix + name in state:
                state[prefix + name] = state[prefix + name].expand(2, -1).clone()
        for name in self.gate_names:
            state[prefix + name] = getattr(self, name).detach().clone()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        mean = state_dict.get(prefix + "running_mean")
        if mean is not None and mean.dim() == 1:
            self.fill_from(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._look()

    def extra_repr(self) -> str:
        """Show the sizes as ``torch.nn`` does."""
        flags = [name for name, on in (("shared_affine=False", not self.shared_affine), ("sync=True", self.sync)) if on]
        return ", ".join([f"{self.num_features}, eps={self.eps}, momentum={self.momentum}", *flags])
