"""Leave the domain layers behind: fold one domain into plain modules, for export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .base import DomainNorm, Moments
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
        A copy in evaluation mode. There is nothing to train in it: its BatchNorm would overwrite the folded statistics.

    Raises
    ------
    ValueError
        When the domain is unknown, the model holds no domain layer, or a row that is needed was never updated.
    """
    rows_named(model, domain)
    model = copy.deepcopy(model).eval()
    done: dict[nn.Module, nn.Module] = {}

    def fold(module: nn.Module) -> nn.Module:
        if not isinstance(module, DomainNorm):
            return module
        if module not in done:
            done[module] = _folded(module, module.row(domain))
        return done[module]

    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = fold(child)
    model = fold(model)
    if not done:
        raise ValueError(f"no domain layer to fold in {type(model).__name__}: is it plain already?")
    return model


class GroupedLinear(nn.Conv1d):
    """A 1 × 1 convolution within groups of channels, for ``(N, C)`` and ``(N, C, ...)``: folded whitening."""

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of each group."""
        return super().forward(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)).reshape(x.shape)


@torch.no_grad()
def _folded(layer: DomainNorm, row: int) -> nn.Module:
    layer._require(layer.rows_read(row))
    weight, bias = layer._affine(row, layer.gain(*map(layer.stored, range(len(layer.domains)))))
    if isinstance(layer, DomainWhitening) and layer.group_size > 1:
        return _folded_whitening(layer, layer.stored(row), weight, bias)
    mean, var = layer.running_mean[row], layer.running_var[row]
    plain = _PLAIN[layer.dims](layer.num_features, layer.eps, layer.momentum, device=mean.device, dtype=mean.dtype)
    if isinstance(layer, DomainWhitening):
        var, plain.eps = (1 - layer.shrinkage) * var + layer.shrinkage, 0.0
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    plain.load_state_dict(state | {"num_batches_tracked": layer.num_batches_tracked[row]})
    return plain.eval()


def _folded_whitening(layer: DomainWhitening, moments: Moments, weight: Tensor, bias: Tensor) -> GroupedLinear:
    c, g = layer.num_features, layer.group_size
    # The layer maps the unit vectors to the columns of its matrix. In float64, since only the result is rounded then.
    unit = torch.eye(c, dtype=torch.float64, device=weight.device)
    centred = Moments(torch.zeros_like(unit[0]), moments.var.double(), moments.n)
    matrix = layer.evaluate(unit, centred, weight.double(), torch.zeros_like(unit[0])).T  # (C, C), block diagonal
    blocks = matrix.view(c // g, g, c // g, g).diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (G, g, g)
    plain = GroupedLinear(c, c, 1, groups=c // g, device=weight.device, dtype=weight.dtype)
    shift = bias.double() - matrix @ moments.mean.double()
    plain.load_state_dict({"weight": blocks.reshape(c, g, 1), "bias": shift})
    return plain.eval()
