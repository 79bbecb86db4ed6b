"""Exchange the statistics of images among themselves: MixStyle, CrossNorm; and SelfNorm, which reweighs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .images import image_moments
from .passes import scale_and_shift_images


def restyle(x: Tensor, mean: Tensor, deviation: Tensor, new_mean: Tensor, new_deviation: Tensor) -> Tensor:
    r"""Give each channel of each image another mean and deviation.

    .. math:: y = \sigma'\,\frac{x - m}{\sigma} + m'

    Parameters
    ----------
    x
        ``(N, C, ...)``.
    mean, deviation, new_mean, new_deviation
        ``(N, C)``.

    Returns
    -------
    Tensor
        As ``x``.
    """
    return scale_and_shift_images(x, mean, new_deviation / deviation, new_mean)


def style(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the batch for :func:`restyle`, and mean and :math:`\sqrt{v + \epsilon}` of each image, v unbiased."""
    x, mean, var = image_moments(x)
    return x, mean, (var / (1 - 1 / x.shape[2:].numel()) + eps).sqrt()


def _require_positions(x: Tensor) -> None:
    if x.dim() < 3 or x.shape[2:].numel() < 2:
        raise ValueError(f"the style of an image needs more than one position, got shape {tuple(x.shape)}")


class MixStyle(nn.Module):
    r"""Mix the styles of images with those of others, in training.

    .. math:: y_i = \tilde\sigma_i\,\frac{x_i - m_i}{\sigma_i} + \tilde m_i

              \tilde m_i = \lambda_i m_i + (1 - \lambda_i)\,m_{\pi(i)}, \qquad
              \tilde\sigma_i = \lambda_i \sigma_i + (1 - \lambda_i)\,\sigma_{\pi(i)}

    with a random permutation π of the batch, :math:`\lambda_i \sim \mathrm{Beta}(\alpha, \alpha)`, and mean and
    deviation of each image over its positions, :math:`\sigma^2 = v + \epsilon`, v unbiased. No gradient reaches
    :math:`m` and :math:`\sigma`. In evaluation the layer does nothing.

    Parameters
    ----------
    p
        Probability that a batch is mixed.
    alpha
        α > 0.
    eps
        ε.
    across
        The batch is two domains of one size, [a; b], and each image takes its partner from the other.

    Shape
    -----
    ``(N, C, ...)`` to the same shape.

    Raises
    ------
    ValueError
        When an option is out of range, an image has one position, or ``across`` gets an odd number of images.

    Notes
    -----
    All chance comes from PyTorch, so ``torch.manual_seed`` fixes it; the released code draws p by Python's ``random``.

    References
    ----------
    K. Zhou, Y. Yang, Y. Qiao, T. Xiang. Domain Generalization with MixStyle. ICLR 2021.
    """

    def __init__(self, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, across: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1 or not alpha > 0:
            raise ValueError(f"p must lie in [0, 1] and alpha be positive, got {p} and {alpha}")
        self.p, self.alpha, self.eps, self.across = p, alpha, eps, across

    def forward(self, x: Tensor) -> Tensor:
        """Mix the styles of a training batch."""
        if not self.training:
            return x
        if self.across and len(x) % 2:
            raise ValueError(f"across domains a batch must have two halves, got {len(x)} images: drop the last one")
        _require_positions(x)
        if torch.rand(()) >= self.p or len(x) < 2:
            return x
        mean, deviation = style(x.detach(), self.eps)[1:]
        if self.across:
            half = len(x) // 2
            order = torch.cat([half + torch.randperm(half), torch.randperm(half)])
        else:
            order = torch.randperm(len(x))
        order = order.to(x.device)
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x), 1)).to(mean)
        new = (mean[order].lerp(mean, share), deviation[order].lerp(deviation, share))
        return restyle(x, mean, deviation, *new)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"p={self.p}, alpha={self.alpha}" + (", across=True" if self.across else "")


class CrossNorm(nn.Module):
    r"""Exchange the styles of images, in training.

    .. math:: y_i = \sigma_{\pi(i)}\,\frac{x_i - m_i}{\sigma_i} + m_{\pi(i)}

    with a random permutation π of the batch, and mean and deviation of each image over its positions,
    :math:`\sigma^2 = v + \epsilon`, v unbiased. Gradients pass through them. In evaluation the layer does nothing.

    Parameters
    ----------
    p
        Probability that a batch is exchanged.
    eps
        ε.

    Shape
    -----
    ``(N, C, ...)`` to the same shape.

    Raises
    ------
    ValueError
        When p is out of range, or an image has one position.

    Notes
    -----
    A network has several of these layers; the released code lets a loop outside choose those that act on a batch, here
    each draws for itself. Its variant that exchanges the style of crops is left out.

    References
    ----------
    Z. Tang, Y. Gao, Y. Zhu, Z. Zhang, M. Li, D. Metaxas. CrossNorm and SelfNorm for Generalization under Distribution
    Shifts. ICCV 2021.
    """

    def __init__(self, p: float = 0.5, eps: float = 1e-5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p}")
        self.p, self.eps = p, eps

    def forward(self, x: Tensor) -> Tensor:
        """Exchange the styles of a training batch."""
        if not self.training:
            return x
        _require_positions(x)
        if torch.rand(()) >= self.p or len(x) < 2:
            return x
        x, mean, deviation = style(x, self.eps)
        order = torch.randperm(len(x)).to(x.device)
        return restyle(x, mean, deviation, mean[order], deviation[order])

    def extra_repr(self) -> str:
        """Show the options."""
        return f"p={self.p}"


class SelfNorm2d(nn.Module):
    r"""Let an image's own style decide how strongly it is kept.

    .. math:: y = g\,(x - m) + f\,m

              f = \mathrm{sigmoid}\big(\mathrm{BN}(w_f^\top [m; \sigma])\big), \quad
              g = \mathrm{sigmoid}\big(\mathrm{BN}(w_g^\top [m; \sigma])\big)

    for each channel of each image, with its mean m and deviation :math:`\sigma^2 = v + \epsilon` over its positions,
    v unbiased, and two weights for each channel and gate.

    Parameters
    ----------
    num_features
        Number of channels C.
    gates
        2 as in the paper; 1 as in the released code's default: g = f, so that y = g x.
    eps
        ε.

    Shape
    -----
    ``(N, C, H, W)`` to the same shape.

    Raises
    ------
    ValueError
        When there are not one or two gates, the input is no batch of such images, an image has one position, or a
        training batch has one image, whose gates have no variance.

    References
    ----------
    Z. Tang, Y. Gao, Y. Zhu, Z. Zhang, M. Li, D. Metaxas. CrossNorm and SelfNorm for Generalization under Distribution
    Shifts. ICCV 2021.
    """

    def __init__(self, num_features: int, gates: int = 2, eps: float = 1e-5) -> None:
        super().__init__()
        if gates not in (1, 2):
            raise ValueError(f"gates must be 1 or 2, got {gates}")
        self.num_features, self.gates, self.eps = num_features, gates, eps
        self.weight = nn.Parameter(torch.empty(gates, num_features, 2))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.norm = nn.BatchNorm1d(gates * num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Reweigh mean and deviation from the mean."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"expected images (N, {self.num_features}, H, W), got shape {tuple(x.shape)}")
        if self.training and len(x) < 2:
            raise ValueError(f"in training the gates need more than one image, got {len(x)}: call .eval()")
        _require_positions(x)
        with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
            x, mean, deviation = style(x, self.eps)
            styles = torch.stack([mean, deviation], 2).to(self.weight.dtype)  # (N, C, 2)
            logits = torch.einsum("ncs,gcs->ngc", styles, self.weight).flatten(1)
            gates = self.norm(logits).sigmoid().unflatten(1, (self.gates, -1)).to(mean.dtype)
            g, f = gates[:, -1], gates[:, 0]  # (N, C)
            return scale_and_shift_images(x, mean, g, f * mean)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.num_features}, gates={self.gates}"
