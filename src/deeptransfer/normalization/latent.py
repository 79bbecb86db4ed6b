"""Latent domains: normalise by domains that nobody labelled, to which an image belongs by weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .passes import measure_weighted, scale_and_shift_images, wide
from .unseen import check_weights


class WeightedBatchNorm2d(nn.Module):
    r"""BatchNorm of K latent domains, to which each image belongs by weights (mDA layer).

    .. math:: y_i = \gamma \sum_d w_{id}\,\frac{x_i - \mu_d}{\sqrt{v_d + \epsilon}} + \beta

              \mu_d = \frac{\sum_i w_{id} \sum_p x_{ip}}{P \sum_i w_{id}}, \qquad
              v_d = \frac{\sum_i w_{id} \sum_p (x_{ip} - \mu_d)^2}{P \sum_i w_{id}}

    over P positions; in evaluation with the running rows. Equal weights, and K = 1, are BatchNorm; weights of 0 and 1
    are :class:`DomainBatchNorm2d`. Gradients reach the weights directly and through the statistics.

    Parameters
    ----------
    num_features
        Number of channels C.
    domains
        K, from 1 on.
    eps
        Added to the variance.
    momentum
        Weight of the newest batch in the running statistics.

    Shape
    -----
    Images ``(N, C, H, W)`` and weights ``(N, K)`` → ``(N, C, H, W)``. One and the same weights serve all layers of a
    network.

    Raises
    ------
    ValueError
        When the images or the weights are not such, a row of weights does not sum to one, or in training a batch has
        one value per channel.

    Notes
    -----
    State: ``running_mean``, ``running_var`` ``(K, C)``, ``num_batches_tracked`` ``(K,)``, one scale and shift ``(C,)``.
    The running variance is divided by :math:`1 - 1/n_d` with the effective number of values
    :math:`n_d = P (\sum_i w_{id})^2 / \sum_i w_{id}^2`; the released code takes the number of all values. A domain
    without weight in a batch adds nothing to the output, and keeps its rows.

    References
    ----------
    M. Mancini, L. Porzi, S. Rota Bulò, B. Caputo, E. Ricci. Boosting Domain Adaptation by Discovering Latent Domains.
    CVPR 2018.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, domains: int = 2, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if domains < 1:
            raise ValueError(f"domains must be 1 or more, got {domains}")
        self.num_features, self.domains, self.eps, self.momentum = num_features, domains, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(domains, num_features))
        self.register_buffer("running_var", torch.ones(domains, num_features))
        self.register_buffer("num_batches_tracked", torch.zeros(domains, dtype=torch.long))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Normalise a batch by its domains, each image by its weights."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ValueError(f"expected images (N, {self.num_features}, H, W), got shape {tuple(x.shape)}")
        check_weights(weights, len(x), self.domains)
        if self.training and x.numel() <= x.shape[1]:
            raise ValueError(f"training needs more than one value per channel, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):  # statistics never in half precision
            if self.training:
                mean, var, n = measure_weighted(x, weights)
                self._track(mean.detach(), var.detach(), n.detach())
                present = (n > 0).unsqueeze(1)
            else:
                mean, var = wide(self.running_mean), wide(self.running_var)
                present = torch.ones_like(mean[:, :1], dtype=torch.bool)
            weights = weights.to(mean.dtype)
            scale = torch.where(present, (var + self.eps).rsqrt(), 0)  # (K, C)
            slope = weights @ scale  # (N, C), above 0: some domain has weight
            centre = weights @ (scale * mean) / slope
            gamma, beta = (wide(t).to(mean.dtype) for t in (self.weight, self.bias))
            return scale_and_shift_images(x, centre, slope * gamma, beta.expand_as(slope))

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, n: Tensor) -> None:
        there = n > 1  # of one value there is no variance
        self.num_batches_tracked += there
        step = self.momentum * there.to(mean.dtype).unsqueeze(1)
        var = var / torch.where(there, 1 - 1 / n, 1).unsqueeze(1)
        self.running_mean += step * (mean - self.running_mean)
        self.running_var += step * (var - self.running_var)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.num_features}, domains={self.domains}, eps={self.eps}, momentum={self.momentum}"


def assignment_loss(weights: Tensor, balance: float = 1.0) -> Tensor:
    r"""Let each image belong to one latent domain, and all domains to some image.

    .. math:: L = \frac1N \sum_i H(w_i) - \lambda\,H\Big(\frac1N \sum_i w_i\Big), \qquad H(w) = -\sum_d w_d \log w_d

    Without the second term, everything in one domain is a minimum, and the layer is BatchNorm again. The paper has the
    first term; the balance is ours.

    Parameters
    ----------
    weights
        ``(N, K)``, at least 0; each row must sum to one.
    balance
        λ.

    Returns
    -------
    Tensor
        In nats, shape ``()``.

    Raises
    ------
    ValueError
        When the weights are not such.

    References
    ----------
    As :class:`WeightedBatchNorm2d`.
    """
    check_weights(weights, len(weights), weights.shape[-1])
    mean = weights.mean(0)
    return balance * _plogp(mean) - _plogp(weights) / len(weights)


def _plogp(w: Tensor) -> Tensor:
    return (w * w.clamp(min=torch.finfo(w.dtype).tiny).log()).sum()
