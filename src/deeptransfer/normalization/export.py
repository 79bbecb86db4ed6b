"""Leave the domain layers behind: fold one domain into plain modules, for export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .base import DomainNorm
from .moments import Moments
from .plain import refuse, refuse_hidden, replace, replacing
from .split import rows_named
from .whitening import DomainWhitening

_PLAIN: dict[tuple[int, ...], type[nn.modules.batchnorm._BatchNorm]] = {
    (2, 3): nn.BatchNorm1d,
    (4,): nn.BatchNorm2d,
    (5,): nn.BatchNorm3d,
    (): nn.SyncBatchNorm,  # admits every shape
}


def to_batchnorm(model: nn.Module, domain: str | int = "target") -> nn.Module:
    r"""Fold one domain of every domain layer into a plain BatchNorm; exact in evaluation.

    In evaluation a domain layer is one affine map per channel, so its row of statistics, its weight and bias, and its
    gain are a BatchNorm's state:

    .. math:: (1 + a)\Big(\gamma\,\frac{x - \mu_d}{\sqrt{v_d + \epsilon}} + \beta\Big)
              = \gamma'\,\frac{x - \mu_d}{\sqrt{v_d + \epsilon}} + \beta', \qquad \gamma' = (1 + a)\gamma,\;
              \beta' = (1 + a)\beta

    Whitening mixes the channels of a group, which no BatchNorm can: it becomes a :class:`GroupedLinear`, a grouped
    1 × 1 convolution. With groups of one channel it becomes a BatchNorm, too.

    Parameters
    ----------
    model
        Any module; it is not changed.
    domain
        Name or number of the domain that the result is to evaluate.

    Returns
    -------
    nn.Module
        A copy in evaluation mode, with the hooks of the layers. There is nothing to train in it: its BatchNorm would
        overwrite the folded statistics. Its state loads strictly into the network that was converted: where that had no
        scale or shift there is none, unless a gain has to be kept there. Dropout and activation of a layer of timm
        stay in a forward hook.

    Raises
    ------
    ValueError
        When the domain is unknown, the model holds no domain layer, or one cannot be folded: a row that is needed was
        never updated, its class evaluates by a formula of its own, it is pruned or parametrised, has a hook on its
        state, or is held in a plain list. The message names the layer's path.
    """
    rows_named(model, domain)
    model = copy.deepcopy(model).eval()
    layers = {path: module for path, module in model.named_modules() if isinstance(module, DomainNorm)}
    if not layers:
        raise ValueError(f"no domain layer to fold in {type(model).__name__}: is it plain already?")
    refuse_hidden(model)
    new: dict[nn.Module, nn.Module] = {}
    for path, layer in layers.items():
        refuse(path, layer)
        with replacing(path, layer):
            new[layer] = _folded(layer, layer.row(domain))
    return replace(model, new)


class GroupedLinear(nn.Conv1d):
    """A 1 × 1 convolution within groups of channels, for ``(N, C)`` and ``(N, C, ...)``: folded whitening."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of each group."""
        return super().forward(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)).reshape(x.shape)


@torch.no_grad()
def _folded(layer: DomainNorm, row: int) -> nn.Module:
    whitens = isinstance(layer, DomainWhitening)
    formulas = (DomainNorm.forward, DomainNorm.blend, (DomainWhitening if whitens else DomainNorm).evaluate)
    if (type(layer).forward, type(layer).blend, type(layer).evaluate) != formulas:
        raise ValueError("evaluates by a formula of its own, which is not known to be a BatchNorm's")
    layer._require(layer.rows_read(row))
    weight, bias = layer._affine(row, layer.gain(*map(layer.stored, range(len(layer.domains)))))
    if isinstance(layer, DomainWhitening) and layer.group_size > 1:
        return _folded_whitening(layer, layer.stored(row), weight, bias)
    mean, var = layer.running_mean[row], layer.running_var[row]
    plain = _PLAIN[layer.dims](layer.num_features, layer.eps, layer.momentum, device=mean.device, dtype=mean.dtype)
    if isinstance(layer, DomainWhitening):
        var, plain.eps = (1 - layer.shrinkage) * var + layer.shrinkage, 0.0
    state = {"running_mean": mean, "running_var": var, "num_batches_tracked": layer.num_batches_tracked[row]}
    plain.load_state_dict(state, strict=False)
    kept = layer.state_dict()
    for name, value, neutral in (("weight", weight, 1), ("bias", bias, 0)):
        # What the BatchNorm before conversion lacked is lacking again, unless a gain has to be kept there.
        old = getattr(layer, name)
        part = nn.Parameter(value.to(old.dtype, copy=True), old.requires_grad)
        setattr(plain, name, part if name in kept or (value != neutral).any() else None)
    plain.affine = plain.weight is not None
    return plain.eval()


def _folded_whitening(layer: DomainWhitening, moments: Moments, weight: Tensor, bias: Tensor) -> GroupedLinear:
    c, g = layer.num_features, layer.group_size
    # The layer maps the unit vectors to the columns of its matrix. In float64, since only the result is rounded then.
    unit = torch.eye(c, dtype=torch.float64, device=weight.device)
    centred = Moments(torch.zeros_like(unit[0]), moments.var.double(), moments.n)
    matrix = layer.evaluate(unit, centred, weight.double(), torch.zeros_like(unit[0])).T  # (C, C), block diagonal
    blocks = matrix.view(c // g, g, c // g, g).diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (G, g, g)
    plain = GroupedLinear(c, c, 1, groups=c // g, device=weight.device, dtype=layer.weight.dtype)
    shift = bias.double() - matrix @ moments.mean.double()
    plain.load_state_dict({"weight": blocks.reshape(c, g, 1), "bias": shift})
    return plain.eval()
