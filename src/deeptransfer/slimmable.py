r"""Slimmable networks: one set of weights that runs at several widths.

At width w a layer uses the first :math:`\max(1, \lfloor wC \rfloor)` of its C channels. What the widths can't share is
the normalisation: :class:`~deeptransfer.normalization.SwitchableBatchNorm2d` has a BatchNorm for each; with
:class:`SlimmableBatchNorm2d`, which has one for all, the statistics are right for no width until
:func:`~deeptransfer.normalization.adapt_statistics` measures them on :func:`narrow`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeptransfer.normalization.switchable import SwitchableBatchNorm2d, channels_at

__all__ = [
    "SlimmableBatchNorm2d",
    "SlimmableConv2d",
    "SlimmableLinear",
    "narrow",
    "sandwich",
    "slimmable_loss",
    "use_width",
]


class SlimmableConv2d(nn.Conv2d):
    r"""A convolution that uses the first channels of its input and output at the width that runs.

    .. math:: y = W_{:\lfloor wC_{out} \rfloor,\, :\lfloor wC \rfloor} * x

    Parameters
    ----------
    in_channels, out_channels, kernel_size, **options
        As for ``nn.Conv2d``, of the full width; one group.
    slim_in
        Whether the input is slim: not that of the first layer, which reads images.

    References
    ----------
    J. Yu, L. Yang, N. Xu, J. Yang, T. Huang. Slimmable Neural Networks. ICLR 2019.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, slim_in: bool = True, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        if self.groups != 1:
            raise ValueError(f"a slimmable convolution has one group, got {self.groups}")
        self.slim_in, self.width = slim_in, 1.0

    def at(self, width: float) -> tuple[Tensor, Tensor | None]:
        """Return the parts of weight and bias that a width uses."""
        inputs = channels_at(self.in_channels, width) if self.slim_in else self.in_channels
        out = channels_at(self.out_channels, width)
        return self.weight[:out, :inputs], None if self.bias is None else self.bias[:out]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, ⌊wC⌋, H, W)``.

        Raises
        ------
        ValueError
            If the batch has the channels of another width.
        """
        weight, bias = self.at(self.width)
        _check_inputs(self, x, weight)
        return self._conv_forward(x, weight, bias)


class SlimmableLinear(nn.Linear):
    """The last linear layer of a slimmable network: the first inputs, all outputs.

    Parameters
    ----------
    channels
        C of the full width.
    out_features
        Number of classes.
    positions
        Inputs for each channel: H · W behind a Flatten, 1 behind a global pooling.
    bias
        As for ``nn.Linear``.
    """

    def __init__(self, channels: int, out_features: int, positions: int = 1, bias: bool = True) -> None:
        super().__init__(channels * positions, out_features, bias)
        self.positions, self.width = positions, 1.0

    def at(self, width: float) -> tuple[Tensor, Tensor | None]:
        """Return the parts of weight and bias that a width uses."""
        return self.weight[:, : channels_at(self.in_features // self.positions, width) * self.positions], self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, ⌊wC⌋ · positions)`` to ``(N, out_features)``.

        Raises
        ------
        ValueError
            If the batch has the features of another width.
        """
        weight, bias = self.at(self.width)
        _check_inputs(self, x, weight)
        return F.linear(x, weight, bias)


class SlimmableBatchNorm2d(nn.BatchNorm2d):
    """One BatchNorm for all widths: the first entries of one γ, one β and one row of statistics.

    In training each batch has its own statistics, and all is well. The running row is an average over widths, whose
    moments differ: in evaluation it is wrong for each of them. The cure is that of universally slimmable networks,
    ``adapt_statistics(narrow(model, width), images)`` for each width after training.

    Parameters
    ----------
    num_features, **options
        As for ``nn.BatchNorm2d``, of the full width.

    References
    ----------
    J. Yu, T. Huang. Universally Slimmable Networks and Improved Training Techniques. ICCV 2019.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, c, H, W)`` for any c up to C.

        Raises
        ------
        ValueError
            If there are more channels than C.
        """
        self._check_input_dim(x)
        c = x.shape[1]
        if c > self.num_features:
            raise ValueError(f"got {c} channels for a BatchNorm of {self.num_features}")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is None:
            weight = 1 / max(int(self.num_batches_tracked), 1) if self.num_batches_tracked is not None else 0.0
        else:
            weight = self.momentum
        mean, var, gamma, beta = (
            None if value is None else value[:c]
            for value in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, var, gamma, beta, self.training or mean is None, weight, self.eps)


@contextmanager
def use_width(model: nn.Module, width: float) -> Iterator[nn.Module]:
    """Run a slimmable network at a width inside the ``with`` block; afterwards at the width before.

    Raises
    ------
    ValueError
        If no layer of the model is slimmable, the width is not in (0, 1], or a switchable BatchNorm does not know it.
    """
    kinds = SlimmableConv2d | SlimmableLinear | SwitchableBatchNorm2d
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no slimmable layer")
    channels_at(1, width)  # refuses what is no width
    for layer in layers:
        if isinstance(layer, SwitchableBatchNorm2d) and width not in layer.widths:
            raise ValueError(f"there is no BatchNorm of width {width}: the network has {layer.widths}")
    before = [layer.width for layer in layers]
    try:
        for layer in layers:
            layer.width = width
        yield model
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.width = old


def narrow(model: nn.Module, width: float) -> nn.Module:
    """Build the plain network that a slimmable one is at a width: ``nn.Conv2d``, ``nn.Linear``, ``nn.BatchNorm2d``.

    Parameters
    ----------
    model
        Not changed, and not shared with the result.
    width
        In (0, 1]. With a shared BatchNorm any; with a switchable one, one of its widths.

    Returns
    -------
    nn.Module
        In the mode of ``model``, for :func:`~deeptransfer.normalization.adapt_statistics`, to evaluate or to store.

    Raises
    ------
    ValueError
        As :func:`use_width`.
    """
    with use_width(model, width):
        model = copy.deepcopy(model)
    return _plain(model, width)


def _plain(module: nn.Module, width: float) -> nn.Module:
    made: nn.Module
    if isinstance(module, SwitchableBatchNorm2d):
        return module.norm
    if isinstance(module, SlimmableConv2d):
        weight, bias = module.at(width)
        out, inputs = weight.shape[:2]
        made = nn.Conv2d(inputs, out, module.kernel_size, module.stride, module.padding, module.dilation,  # type: ignore
                         bias=bias is not None, padding_mode=module.padding_mode)  # fmt: skip
        state = {"weight": weight, "bias": bias}
    elif isinstance(module, SlimmableLinear):
        weight, bias = module.at(width)
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        state = {"weight": weight, "bias": bias}
    elif isinstance(module, SlimmableBatchNorm2d):
        c = channels_at(module.num_features, width)
        made = nn.BatchNorm2d(c, module.eps, module.momentum, module.affine, module.track_running_stats)
        state = {name: value[:c] if value.dim() else value for name, value in module.state_dict().items()}
    else:
        for name, child in module.named_children():
            setattr(module, name, _plain(child, width))
        return module
    reference = next(iter(module.state_dict().values()))
    made.to(reference).load_state_dict({name: value for name, value in state.items() if value is not None})
    return made.train(module.training)


def slimmable_loss(model: nn.Module, x: Tensor, y: Tensor, widths: Sequence[float], distil: bool = False) -> Tensor:
    r"""Sum of the losses of all widths: one optimiser step for weights that they share.

    .. math:: L = \sum_w \mathrm{CE}\big(f_w(x), y\big), \qquad \text{or}\quad
              \mathrm{CE}\big(f_1(x), y\big) + \sum_{w < 1} \mathrm{CE}\big(f_w(x), p_1\big)

    Parameters
    ----------
    model
        Slimmable; it returns logits ``(n, classes)``, or something with ``.logits``.
    x, y
        Images and labels.
    widths
        Those of this step; the widest runs first.
    distil
        Whether the narrower ones learn from the prediction p of the widest, detached (in-place distillation).

    Raises
    ------
    ValueError
        If there is no width; as :func:`use_width`.
    """
    if not widths:
        raise ValueError("a step needs at least one width")
    losses, target = [], y
    for i, width in enumerate(sorted(widths, reverse=True)):
        with use_width(model, width):
            out = model(x)
        logits = getattr(out, "logits", out)
        losses.append(F.cross_entropy(logits, target))
        if i == 0 and distil:
            target = logits.detach().softmax(1)
    return torch.stack(losses).sum()


def sandwich(lowest: float, highest: float, between: int, generator: torch.Generator) -> list[float]:
    """Widths of one step by the sandwich rule: the highest, the lowest, and some at random between them.

    Parameters
    ----------
    lowest, highest
        0 < lowest < highest ≤ 1.
    between
        Number of random ones, evenly drawn.
    generator
        On the CPU.

    Raises
    ------
    ValueError
        If the range is none.

    References
    ----------
    J. Yu, T. Huang. Universally Slimmable Networks and Improved Training Techniques. ICCV 2019.
    """
    if not 0 < lowest < highest <= 1 or between < 0:
        raise ValueError(f"expected 0 < lowest < highest ≤ 1 and a number, got {lowest}, {highest} and {between}")
    drawn = lowest + (highest - lowest) * torch.rand(between, generator=generator)
    return [highest, lowest, *drawn.tolist()]


def _check_inputs(layer: SlimmableConv2d | SlimmableLinear, x: Tensor, weight: Tensor) -> None:
    if x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{type(layer).__name__} reads {weight.shape[1]} inputs at width {layer.width}, got {tuple(x.shape)}: "
            "set the width of the whole network with use_width(model, width)"
        )
