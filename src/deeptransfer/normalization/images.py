"""What layers share in which the moments of each image take part: one pass measures them, and with them the batch."""

from __future__ import annotations

from torch import Tensor

from .base import DomainNorm
from .moments import Moments
from .passes import measure


def image_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Measure each image over its positions, by the pass that is written by hand.

    Parameters
    ----------
    x
        Batch ``(N, C, ...)``.

    Returns
    -------
    tuple of Tensor
        The batch, for the pass that normalises it and nothing else; means and biased variances ``(N, C)``, in float32
        or better.
    """
    n, c = x.shape[:2]
    rows, mean, var = measure(x.reshape(1, n * c, x.shape[2:].numel()), [1])  # an image's channels are channels
    return rows.view(x.shape), mean.view(n, c), var.view(n, c)


class _WithImages(Moments):
    """The moments of a domain, and those of its images."""

    images: tuple[Tensor, Tensor]


class ImageNorm(DomainNorm):
    r"""A :class:`DomainNorm` whose :meth:`blend` reads the moments of the images.

    They are measured once. Those of a domain are :math:`\mu = \frac1n \sum_i m_i` and
    :math:`v = \frac1n \sum_i \big(b_i + (m_i - \mu)^2\big)`, over its n images.
    """

    def measure(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, list[Moments]]:
        """Measure the images, and from them each part of the batch."""
        if not has_positions(x):
            return super().measure(x, sizes)
        x, means, variances = image_moments(x)
        parts: list[Moments] = []
        for mean, var in zip(means.split(sizes), variances.split(sizes), strict=True):
            centre = mean.mean(0)
            whole = _WithImages(centre, (var + (mean - centre).square()).mean(0), len(mean) * x[0, 0].numel())
            whole.images = mean, var
            parts.append(whole)
        return x, parts

    @staticmethod
    def of_images(x: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return means and biased variances ``(n, C)`` of the images of a domain, whose moments are given."""
        return moments.images if isinstance(moments, _WithImages) else image_moments(x)[1:]


def has_positions(x: Tensor) -> bool:
    """Whether an image of the batch has more than one value per channel."""
    return len(x) > 0 and x.shape[2:].numel() > 1
