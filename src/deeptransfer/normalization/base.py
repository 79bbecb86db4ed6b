r"""The template that every domain normalisation in this book fills in.

A training batch is ``[source rows; target rows]``. Every layer of the family

1. measures mean and variance of each part,
2. mixes them into the statistics that normalise each part (:meth:`DomainNorm.mix`),
3. normalises in one affine pass, with one weight and bias and an optional channel gain (:meth:`DomainNorm.gain`),
4. keeps one row of running statistics per domain for evaluation.

A method overrides ``mix`` or ``gain``: plain formulas on vectors of one number per channel, differentiated by autograd.
The two passes over the data are written once, in :mod:`deeptransfer.normalization.passes`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .passes import measure, scale_and_shift

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
        return self.var if self.n is math.inf else self.var / (1 - 1 / self.n)


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

    def measure(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[Moments]]:
        """Measure consecutive parts of a batch; return the batch for :meth:`normalise`, and each part's moments."""
        per_row = x[0, 0].numel()
        x, mean, var = measure(x, sizes)
        return x, [Moments(mean[i], var[i], size * per_row) for i, size in enumerate(sizes)]

    def normalise(
        self, x: Tensor, sizes: list[int], moments: Sequence[Moments], affines: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Apply to each part its moments, then its weight and bias."""
        mean, var = torch.stack([m.mean for m in moments]), torch.stack([m.var for m in moments])
        weight, bias = torch.stack([w for w, _ in affines]), torch.stack([b for _, b in affines])
        return scale_and_shift(x, sizes, mean, weight * (var + self.eps).rsqrt(), bias)

    def evaluate(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply stored moments, then weight and bias."""
        return F.batch_norm(x, moments.mean, moments.var, weight, bias, False, 0.0, self.eps)

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

    def row(self, domain: str | int) -> int:
        """Return the number of a domain that is given by name or by number."""
        for i, name in enumerate(DOMAINS):
            if domain in (i, name) and domain is not True and domain is not False:
                return i
        raise ValueError(f"domain must be 'source' or 'target', got {domain!r}")

    # What all methods share --------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        # Statistics never in half precision; "meta" has no autocast to switch off.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return self._train_batch(x) if self.training else self._evaluate(x)

    def _train_batch(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            raise ValueError(f"nothing to measure in a batch of shape {tuple(x.shape)}")
        counts = self._counts(x)
        here = [d for d in (SOURCE, TARGET) if counts[d]]
        sizes = [counts[d] for d in here]
        ranks = self.sync and dist.is_initialized() and dist.get_world_size() > 1
        if not ranks and 1 in sizes and x[0, 0].numel() == 1:
            raise ValueError(
                f"a domain needs more than one value per channel in training, got {counts[SOURCE]} source and "
                f"{counts[TARGET]} target rows of shape {tuple(x.shape[1:])}: give it more rows, or call .eval()"
            )
        x, measured = self.measure(x, sizes)
        moments = [measured[here.index(d)] if d in here else self._frozen(d) for d in (SOURCE, TARGET)]
        present: list[bool] | Tensor = [d in here for d in (SOURCE, TARGET)]
        if ranks:
            moments, present = self._merge_ranks(moments)
        source, target = moments
        mixed = self.mix(source, target)
        with torch.no_grad():
            for d, factor in enumerate(self.corrections(source, target)):
                if present[d] is not False:
                    self.num_batches_tracked[d].add_(present[d])
                    weight = 1 / self.num_batches_tracked[d].clamp(min=1) if self.momentum is None else self.momentum
                    self.store(d, mixed[d]._replace(var=mixed[d].var * factor), weight * present[d])
        gain = self.gain(source, target)
        return self.normalise(x, sizes, [mixed[d] for d in here], [self._affine(d, gain) for d in here])

    def _evaluate(self, x: Tensor) -> Tensor:
        if self.rows is not None:
            parts = dict(enumerate(x.split(self._counts(x))))
        else:
            parts = {DOMAINS.index(self.domain or "target"): x}
        for row in parts:
            self._require(self.rows_read(row))
        stored = self.stored(SOURCE), self.stored(TARGET)
        gain = self.gain(*stored)
        out = [self.evaluate(part, stored[row], *self._affine(row, gain)) for row, part in parts.items()]
        return torch.cat(out) if len(out) == 2 else out[0]

    def _affine(self, row: int, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = (self.weight, self.bias) if self.shared_affine else (self.weight[row], self.bias[row])
        return (weight, bias) if gain is None else (weight * gain, bias * gain)

    def _frozen(self, row: int) -> Moments:
        # A copy: the running rows share one tensor, and storing the other domain's row would invalidate a backward.
        stored = self.stored(row)
        return stored._replace(mean=stored.mean.clone(), var=stored.var.clone())

    def _merge_ranks(self, moments: list[Moments]) -> tuple[list[Moments], Tensor]:
        """Merge the moments of all processes (Chan et al. 1979), every row counted once."""
        # A domain without rows here carries n = inf and its running row: it has no share.
        n = torch.tensor([0 if m.n == math.inf else m.n for m in moments]).to(moments[0].mean)
        total = _SumOverRanks.apply(n)
        present = total > 0
        shares = n / total.clamp(min=1)
        mean = _SumOverRanks.apply(torch.stack([m.mean * shares[d] for d, m in enumerate(moments)]))  # (2, C)
        var = _SumOverRanks.apply(
            torch.stack([(m.var + self.spread(m.mean - mean[d])) * shares[d] for d, m in enumerate(moments)])
        )
        merged = [
            Moments(
                torch.where(present[d], mean[d], m.mean),
                torch.where(present[d], var[d], m.var),
                torch.where(present[d], total[d], math.inf),
            )
            for d, m in enumerate(moments)
        ]
        return merged, present

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
        per_domain = ["running_mean", "running_var"] + ([] if self.shared_affine else ["weight", "bias"])
        for key in (prefix + name for name in per_domain):
            if key in state:
                state[key] = state[key].expand(2, -1).clone()
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
