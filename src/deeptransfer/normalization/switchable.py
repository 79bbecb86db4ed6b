"""One network at several widths, each with a BatchNorm of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class SwitchableBatchNorm2d(nn.Module):
    r"""Switchable BatchNorm: a complete BatchNorm for each width at which a slimmable network runs.

    .. math:: y_c = \gamma_{w,c}\,\frac{x_c - \mu_{w,c}}{\sqrt{v_{w,c} + \epsilon}} + \beta_{w,c}, \qquad
              c \le \lfloor wC \rfloor

    The pre-activations of another width are sums of another number of terms, so that their moments are others, though
    the weights are shared. It is :class:`DomainBatchNorm2d` with ``shared_affine=False`` and the width in the place of
    the domain, each row as long as its width has channels.

    Parameters
    ----------
    num_features
        C of the full width.
    widths
        Shares w of the channels, in (0, 1].
    eps, momentum
        As for ``nn.BatchNorm2d``.

    Attributes
    ----------
    width : float
        The width that runs; the last of ``widths`` at the start. Set by :func:`~deeptransfer.slimmable.use_width`.

    Notes
    -----
    The state of the BatchNorm of width number k is ``norms.k.*``. :func:`~deeptransfer.normalization.adapt_statistics`
    replaces the statistics of the width that runs, and of no other.

    References
    ----------
    J. Yu, L. Yang, N. Xu, J. Yang, T. Huang. Slimmable Neural Networks. ICLR 2019.
    """

    def __init__(
        self,
        num_features: int,
        widths: Sequence[float] = WIDTHS,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.num_features, self.widths = num_features, tuple(widths)
        if not self.widths or len(set(self.widths)) < len(self.widths):
            raise ValueError(f"widths must be different shares of the channels, got {self.widths}")
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_at(num_features, w), eps, momentum) for w in self.widths)
        self.width = self.widths[-1]

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The BatchNorm of the width that runs.

        Raises
        ------
        ValueError
            If there is none.
        """
        if self.width not in self.widths:
            raise ValueError(f"there is no BatchNorm of width {self.width}: this layer has {self.widths}")
        return self.norms[self.widths.index(self.width)]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, ⌊wC⌋, H, W)`` by the BatchNorm of the width that runs.

        Raises
        ------
        ValueError
            If the batch has the channels of another width.
        """
        norm = self.norm
        if x.dim() != 4 or x.shape[1] != norm.num_features:
            raise ValueError(
                f"expected (N, {norm.num_features}, H, W) at width {self.width} of {self.num_features} channels, got "
                f"{tuple(x.shape)}: set the width of the whole network with use_width(model, width)"
            )
        return norm(x)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.num_features}, widths={self.widths}"


def channels_at(channels: int, width: float) -> int:
    r"""Number of channels at a width: :math:`\max(1, \lfloor w C \rfloor)`.

    Raises
    ------
    ValueError
        If the width is not in (0, 1].
    """
    if not 0 < width <= 1:
        raise ValueError(f"a width is a share of the channels in (0, 1], got {width}")
    # 0.7 · 10 is 7 in decimals and a little less in binary.
    return max(1, math.floor(width * channels + 1e-9))
