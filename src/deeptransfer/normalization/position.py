"""DSMNet's domain normalisation: remove an image's style, then the length of each position's feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .images import image_moments
from .passes import scale_and_shift_images, wide


class PositionNorm2d(nn.Module):
    r"""Normalise each channel of an image, then each position over the channels.

    .. math:: z = \mathrm{InstanceNorm}(x), \qquad
              y_c(p) = \gamma_c\,\frac{z_c(p)}{\max(\lVert z(p)\rVert_2,\, 10^{-12})} + \beta_c

    The same in training and evaluation; there are no running statistics. With γ = 1, β = 0 every position has length
    1, so a channel is about :math:`1/\sqrt C`: where BatchNorm stood in a trained network, it does not fit.

    Parameters
    ----------
    num_features
        Number of channels C.
    eps
        Added to the variance of InstanceNorm.
    l2
        Whether positions are scaled to length 1. Without it the layer is InstanceNorm with scale and shift.

    Shape
    -----
    ``(N, C, H, W)`` to the same shape.

    Raises
    ------
    ValueError
        When the input is no batch of such images.

    References
    ----------
    F. Zhang, X. Qi, R. Yang, V. Prisacariu, B. Wah, P. Torr. Domain-Invariant Stereo Matching Networks. ECCV 2020.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, l2: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.l2 = num_features, eps, l2
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"expected images (N, {self.num_features}, H, W), got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
            dtype = x.dtype
            x, mean, var = image_moments(wide(x))
            weight, bias = (wide(t).to(mean.dtype) for t in (self.weight, self.bias))
            scale = (var + self.eps).rsqrt()
            if not self.l2:
                return scale_and_shift_images(x, mean, scale * weight, bias.expand_as(mean)).to(dtype)
            z = scale_and_shift_images(x, mean, scale, torch.zeros_like(mean))
            length = z.square().sum(1, keepdim=True).clamp(min=1e-24).sqrt()
            return torch.addcmul(bias.view(-1, 1, 1), z / length, weight.view(-1, 1, 1)).to(dtype)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.num_features}, eps={self.eps}" + ("" if self.l2 else ", l2=False")
