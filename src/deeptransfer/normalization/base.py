r"""The template that every domain normalisation in this book fills in.

A training batch holds the rows of each domain in turn, ``[source rows; target rows]``. Every layer of the family

1. measures mean and variance of each part,
2. mixes them into the statistics that normalise each part (:meth:`DomainNorm.mix`),
3. may let each image have its own (:meth:`DomainNorm.blend`),
4. normalises in one affine pass, with one weight and bias and an optional channel gain (:meth:`DomainNorm.gain`),
5. keeps one row of running statistics per domain for evaluation.

A method overrides ``mix``, ``blend`` or ``gain``: plain formulas on vectors of one number per channel, differentiated
by autograd. The two passes over the data are written once, in :mod:`deeptransfer.normalization.passes`.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .membership import Membership, Pass, in_backward
from .moments import Moments, merge_ranks
from .names import DOMAINS, domain_names, listed, rows_of_each
from .passes import few, measure, scale_and_shift, scale_and_shift_images, wide

SOURCE, TARGET = 0, 1  # the rows of the two domains, where there are these two


class DomainNorm(nn.Module):
    r"""Normalise each domain by statistics of its own, with one scale and shift for all.

    .. math:: y = (1 + a)\left(\gamma\,\frac{x - \hat\mu_d}{\sqrt{\hat v_d + \epsilon}} + \beta\right),
              \qquad (\hat\mu_1, \hat v_1), \dots, (\hat\mu_K, \hat v_K) = \mathrm{mix}(\mu_1, v_1, \dots, \mu_K, v_K)

    In training the parts of the batch come from :func:`~deeptransfer.normalization.forward_domains` or
    :func:`~deeptransfer.normalization.use_domain`; called bare, an even batch is halved where there are two domains. A
    domain that is absent from the batch is represented by its running row, without gradient. In evaluation the domain
    is the one named by ``use_domain``, and otherwise the one whose name is "target"; that is one call of
    ``F.batch_norm``.

    Parameters
    ----------
    num_features
        Number of channels C.
    eps
        Added to the variance.
    momentum
        Weight of the newest batch in the running statistics; None averages all batches alike.
    domains
        Number of domains K, or their names. 2 means ``("source", "target")``, another number ``("0", "1", …)``.
    shared_affine
        One weight and bias ``(C,)`` for all domains; if False, one each: ``(K, C)``.
    sync
        Under ``torch.distributed``, measure over the rows of all processes, each row counted once.

    Shape
    -----
    ``(N, C, ...)`` to the same shape; a numbered class admits what ``torch.nn.BatchNorm`` of that number does.

    Raises
    ------
    ValueError
        When there is no domain, a name is empty or occurs twice, or the method is made for two domains and gets others.

    Notes
    -----
    State: ``running_mean`` and ``running_var`` of shape ``(K, C)``, ``num_batches_tracked`` ``(K,)``, the rows in the
    order of ``domains``. A checkpoint of a plain BatchNorm loads, and fills all rows.

    A row that was never updated is an error in evaluation. Compiled code cannot read a counter, so there the answer is
    the one seen at the last ``.eval()`` or load.
    """

    dims: ClassVar[tuple[int, ...]] = ()  # admissible x.dim(); empty: any
    twins: ClassVar[dict[tuple[int, ...], type[DomainNorm]]] = {}  # a method's 1-D, 2-D and 3-D classes, by dims
    gate_names: ClassVar[tuple[str, ...]] = ()  # parameters that are proportions: kept in an interval, never decayed
    two_domains: ClassVar[bool] = False  # whether the method's formula is about a source and a target
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
        domains: int | Sequence[str] = 2,
        shared_affine: bool = True,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.domains = domain_names(domains)
        if self.two_domains and len(self.domains) != 2:
            raise ValueError(f"{type(self).__name__} is made for two domains, got domains={domains!r}")
        self.shared_affine, self.sync = shared_affine, sync
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        rows = len(self.domains)
        shape = (num_features,) if shared_affine else (rows, num_features)
        self.weight = nn.Parameter(torch.ones(shape, **factory))
        self.bias = nn.Parameter(torch.zeros(shape, **factory))
        self.register_buffer("running_mean", torch.zeros(rows, num_features, **factory))
        self.register_buffer("running_var", torch.ones(rows, num_features, **factory))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, dtype=torch.long, device=device))
        self.membership = Membership()
        self._updated = [False] * rows

    # What a method may change ------------------------------------------------------------------------------------

    def mix(self, *moments: Moments) -> Sequence[Moments]:
        """Return the statistics that normalise the rows of each domain, and that are stored: here, their own."""
        return moments

    def blend(self, x: Tensor, row: int, moments: Moments) -> Moments:
        """Return the moments that normalise the rows ``x`` of one domain, in training and in evaluation.

        Here, those of the domain: ``(C,)``. Moments ``(n, C)`` normalise each of the n images by its own.
        """
        return moments

    def gain(self, *moments: Moments) -> Tensor | None:
        """Return a factor ``(C,)`` on the output of all domains, or None for 1."""
        return None

    def corrections(self, *moments: Moments) -> Sequence[float | Tensor]:
        """Return the factors that make the mixed variances unbiased before they are stored."""
        return [1 / (1 - 1 / m.n) for m in moments]

    def rows_read(self, row: int) -> tuple[int, ...]:
        """Return the running rows on which the evaluation of domain ``row`` depends."""
        return (row,)

    def measure(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[Moments]]:
        """Measure consecutive parts of a batch; return the batch for :meth:`normalise`, and each part's moments."""
        per_row = x[0, 0].numel()
        x, mean, var = measure(x, sizes)
        return x, [Moments(m, v, n * per_row) for m, v, n in zip(mean.unbind(), var.unbind(), sizes, strict=True)]

    def normalise(
        self, x: Tensor, sizes: list[int], moments: Sequence[Moments], affines: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Apply to each part its moments, or those of each of its images, then its weight and bias."""
        means, variances = [m.mean for m in moments], [m.var for m in moments]
        weights, biases = [weight for weight, _ in affines], [bias for _, bias in affines]
        if any(mean.dim() == 2 for mean in means):  # one row of vectors per image
            mean, var, weight, bias = (
                torch.cat([v.expand(n, -1) for v, n in zip(vectors, sizes, strict=True)])
                for vectors in (means, variances, weights, biases)
            )
            return scale_and_shift_images(x, mean, weight * (var + self.eps).rsqrt(), bias)
        mean, var = torch.stack(means), torch.stack(variances)
        if all(weight is weights[0] for weight in weights):
            weight, bias = weights[0], biases[0].expand_as(mean)
        else:
            weight, bias = torch.stack(weights), torch.stack(biases)
        return scale_and_shift(x, sizes, mean, weight * (var + self.eps).rsqrt(), bias)

    def evaluate(self, x: Tensor, moments: Moments, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply stored moments, or those of each image, then weight and bias."""
        if moments.mean.dim() == 2:
            return self.normalise(x, [len(x)], [moments], [(weight, bias)])
        return F.batch_norm(x, moments.mean, moments.var, weight, bias, False, 0.0, self.eps)

    def stored(self, row: int) -> Moments:
        """Return a running row as constant moments."""
        return Moments(wide(self.running_mean[row]), wide(self.running_var[row]), math.inf)

    def store(self, row: int | slice, moments: Moments, weight: float | Tensor) -> None:
        """Move a running row by ``weight`` towards the moments, whose variance is taken as it is; or several rows."""
        for buffer, value in ((self.running_mean, moments.mean), (self.running_var, moments.var)):
            old = buffer[row]
            old.add_((value - old) * weight)

    def spread(self, difference: Tensor) -> Tensor:
        """Return what a shift ``(C,)`` of the mean adds to the second moment."""
        return difference.square()

    # What all methods share --------------------------------------------------------------------------------------

    def row(self, domain: str | int) -> int:
        """Return the row of a domain that is given by its name or its number."""
        if domain in self.domains:
            return self.domains.index(domain)
        if isinstance(domain, numbers.Integral) and not isinstance(domain, bool) and 0 <= domain < len(self.domains):
            return int(domain)
        raise ValueError(f"domain must be {listed(self.domains)}, got {domain!r}")

    @property
    def mixes(self) -> bool:
        """Whether the statistics of one domain act on another."""
        return (type(self).mix, type(self).gain) != (DomainNorm.mix, DomainNorm.gain)

    def track(self, moments: Sequence[Moments], present: Sequence[bool] | Tensor) -> None:
        """Count a batch of the domains that are present, and move their running rows to its unbiased moments."""
        with torch.no_grad():
            if self.momentum is not None and not isinstance(present, Tensor) and all(present):
                self.num_batches_tracked.add_(1)
                together = Moments(
                    torch.stack([m.mean for m in moments]), torch.stack([m.var for m in moments]), math.inf
                )
                self.store(slice(None), together, self.momentum)
                return
            for row, m in enumerate(moments):
                if present[row] is not False:
                    self.num_batches_tracked[row].add_(present[row])
                    weight = 1 / self.num_batches_tracked[row].clamp(min=1) if self.momentum is None else self.momentum
                    self.store(row, m, weight * present[row])

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if self.training and x.numel() == 0:
            raise ValueError(f"nothing to measure in a batch of shape {tuple(x.shape)}")
        # Statistics never in half precision; "meta" has no autocast to switch off.
        on = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if on else nullcontext():
            repeated = self.membership.repeated(self, x) if in_backward() else None
            counts = self._counts(x) if repeated is None else repeated.counts
            return self._train_batch(x, counts, repeated) if self.training else self._evaluate(x, counts)

    def _train_batch(self, x: Tensor, counts: list[int], repeated: Pass | None) -> Tensor:
        here = [row for row, count in enumerate(counts) if count]
        sizes = [counts[row] for row in here]
        ranks = self.sync and dist.is_initialized() and dist.get_world_size() > 1
        if not ranks and 1 in sizes and x[0, 0].numel() == 1:
            raise ValueError(
                f"a domain needs more than one value per channel in training, got {rows_of_each(self.domains, counts)} "
                f"of shape {tuple(x.shape[1:])}: give it more rows, or call .eval()"
            )
        absent = {row: self._frozen(row) for row, count in enumerate(counts) if not count}
        if repeated is None:
            self.membership.keep(True, x, counts, absent)
        else:
            absent = repeated.absent
        plain = few(x) and not ranks and self._is_plain() and self.eps > 0 and x.dtype == wide(self.weight).dtype
        batch, measured = self._batch_norm(x, sizes, here) if plain else self.measure(x, sizes)
        moments = [absent[row] if row in absent else measured[here.index(row)] for row in range(len(counts))]
        present: list[bool] | Tensor = [row in here for row in range(len(counts))]
        if ranks:
            moments, present = merge_ranks(moments, self.spread)
        mixed = self.mix(*moments)
        if repeated is None:  # a batch counts once
            with torch.no_grad():
                factors = self.corrections(*moments)
                self.track([m._replace(var=m.var * f) for m, f in zip(mixed, factors, strict=True)], present)
        gain = self.gain(*moments)
        if plain:
            return batch if gain is None else batch * gain.view(-1, *[1] * (x.dim() - 2))
        applied = [mixed[row] for row in here]
        if type(self).blend is not DomainNorm.blend:
            parts = x.split(sizes)
            applied = [self.blend(part, row, m) for part, row, m in zip(parts, here, applied, strict=True)]
        return self.normalise(batch, sizes, applied, [self._affine(row, gain) for row in here])

    def _batch_norm(self, x: Tensor, sizes: list[int], here: list[int]) -> tuple[Tensor, list[Moments]]:
        """Each part normalised by BatchNorm, and its moments: one operation for a part."""
        mean, var = x.new_zeros(2, len(here), self.num_features)  # what a running average with momentum 1 becomes
        parts = zip(x.split(sizes), mean, var, here, strict=True)
        out = [F.batch_norm(rows, m, v, *self._affine(row, None), True, 1.0, self.eps) for rows, m, v, row in parts]
        counts = [size * x[0, 0].numel() for size in sizes]
        moments = [Moments(m, v * (1 - 1 / n), n) for m, v, n in zip(mean, var, counts, strict=True)]
        return torch.cat(out) if len(out) > 1 else out[0], moments

    def _is_plain(self) -> bool:
        """Whether each part is normalised by its own moments, as by BatchNorm."""
        kind = type(self)
        return all(
            getattr(kind, name) is getattr(DomainNorm, name) for name in ("mix", "blend", "measure", "normalise")
        )

    def _evaluate(self, x: Tensor, counts: list[int]) -> Tensor:
        if not in_backward():
            self.membership.keep(False, x, counts, {})
        rows = [row for row, count in enumerate(counts) if count]
        parts = [x] if len(rows) == 1 else x.split([counts[row] for row in rows])
        for row in rows:
            self._require(self.rows_read(row))
        stored = [self.stored(row) for row in range(len(counts))]
        gain = self.gain(*stored)
        out = [
            self.evaluate(part, self.blend(part, row, stored[row]), *self._affine(row, gain))
            for row, part in zip(rows, parts, strict=True)
        ]
        return torch.cat(out) if len(out) > 1 else out[0]

    def _affine(self, row: int, gain: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = wide(self.weight), wide(self.bias)
        if not self.shared_affine:
            weight, bias = weight[row], bias[row]
        return (weight, bias) if gain is None else (weight * gain, bias * gain)

    def _frozen(self, row: int) -> Moments:
        # A copy: the running rows share one tensor, and storing the other domain's row would invalidate a backward.
        stored = self.stored(row)
        return stored._replace(mean=stored.mean.clone(), var=stored.var.clone())

    def _counts(self, x: Tensor) -> list[int]:
        """Number of rows of each domain in this batch."""
        total, split = x.shape[0], self.membership.split()
        if split is None:
            return self._bare_counts(total)
        if isinstance(split, int):
            return self._whole(total, split)
        counts = [part.shape[0] for part in split]
        if sum(counts) != total:
            raise ValueError(
                f"forward_domains announced {rows_of_each(self.domains, counts)}, but this layer receives {total}: "
                "the rows must reach every domain layer as they enter the model"
            )
        return counts

    def _bare_counts(self, total: int) -> list[int]:
        """The same where nobody has said it."""
        if len(self.domains) == 1:
            return [total]
        if not self.training:
            if "target" in self.domains:
                return self._whole(total, self.row("target"))
            raise ValueError(
                f"{type(self).__name__} has the domains {listed(self.domains)} and no 'target' to evaluate unasked: "
                f"name one with use_domain(model, {self.domains[0]!r})"
            )
        if len(self.domains) > 2:
            raise ValueError(
                f"nobody said which of the {total} rows belong to {listed(self.domains)}: call "
                "forward_domains(model, *batches) or forward_domains(model, x, domain=index), or name the domain with "
                f"use_domain(model, {self.domains[0]!r})"
            )
        first, second = self.domains
        if total % 2:
            raise ValueError(
                f"a batch of {total} rows cannot be halved into {first} and {second}: "
                f"call forward_domains(model, xs, xt), or name the domain with use_domain(model, {first!r})"
            )
        if not torch.compiler.is_compiling() and not DomainNorm._warned:
            DomainNorm._warned = True
            warnings.warn(
                f"{type(self).__name__} takes the first half of the batch as {first} and the second as {second}; "
                "forward_domains(model, xs, xt) says so explicitly",
                stacklevel=2,
            )
        return [total // 2, total // 2]

    def _whole(self, total: int, row: int) -> list[int]:
        return [total if row == other else 0 for other in range(len(self.domains))]

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
                    f"the running statistics of the {self.domains[row]} were never updated: train on that domain, load "
                    "a checkpoint, or evaluate under use_domain(model, ...) with another one"
                )

    def _look(self) -> None:
        if not self.num_batches_tracked.is_meta:
            self._updated = [count > 0 for count in self.num_batches_tracked.tolist()]

    def _replicate_for_data_parallel(self) -> DomainNorm:
        replica = super()._replicate_for_data_parallel()
        replica.membership = Membership(self.membership.split())  # it will run in another thread
        return replica

    def train(self, mode: bool = True) -> DomainNorm:
        """Set training or evaluation, as in ``torch.nn``."""
        super().train(mode)
        if not mode:
            self._look()
        return self

    def reset_running_stats(self) -> None:
        """Forget all running rows."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        self._updated = [False] * len(self.domains)

    def fill_from(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Rewrite the state of a plain BatchNorm, in place, as this layer's: all domains alike."""
        rows = len(self.domains)
        count = state.get(prefix + "num_batches_tracked")
        count = torch.zeros((), dtype=torch.long) if count is None else count
        # Statistics that came from somewhere count as updated; a cumulative average must not weigh them as a batch.
        count = count if self.momentum is None else count.clamp(min=1)
        state[prefix + "num_batches_tracked"] = count.expand(rows).clone()
        per_domain = ["running_mean", "running_var"] + ([] if self.shared_affine else ["weight", "bias"])
        for key in (prefix + name for name in per_domain):
            if key in state:
                state[key] = state[key].expand(rows, -1).clone()
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
        flags = [f"domains={self.domains}"] if self.domains != DOMAINS else []
        flags += [
            name for name, on in (("shared_affine=False", not self.shared_affine), ("sync=True", self.sync)) if on
        ]
        return ", ".join([f"{self.num_features}, eps={self.eps}, momentum={self.momentum}", *flags])
