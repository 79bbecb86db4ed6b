"""A generative adversarial network small enough for a laptop, and a distance that says how good its images are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from deeptransfer.networks import initialize
from deeptransfer.weights import reshaped_norm

__all__ = [
    "discriminator",
    "frechet_distance",
    "frechet_floor",
    "generator",
    "hinge_discriminator",
    "hinge_generator",
    "lipschitz_product",
    "train_gan",
]


def generator(widths: Sequence[int] = (16, 128, 128, 64), batchnorm: bool = False, seed: int = 0) -> nn.Sequential:
    """Map latent vectors ``(n, widths[0])`` to images ``(n, widths[-1])`` in [−1, 1]: linear layers, ReLU, tanh.

    Parameters
    ----------
    widths
        Of the latent vector, the hidden layers and the image, as a vector of pixels.
    batchnorm
        Whether a BatchNorm follows each hidden layer. Its running statistics are those of the latents of training:
        for others, :func:`~deeptransfer.normalization.adapt_statistics`.
    seed
        Of the weights, drawn on the CPU.

    Raises
    ------
    ValueError
        For fewer than two widths.
    """
    return nn.Sequential(*_layers(widths, batchnorm, nn.ReLU, seed), nn.Tanh())


def discriminator(widths: Sequence[int] = (64, 128, 128, 1), batchnorm: bool = False, seed: int = 1) -> nn.Sequential:
    """Map images ``(n, widths[0])`` to scores ``(n, 1)``, high for real ones: linear layers, leaky ReLU (0.1).

    Parameters
    ----------
    widths, batchnorm, seed
        As for :func:`generator`. For spectral normalisation, register it on each ``nn.Linear``.

    Raises
    ------
    ValueError
        For fewer than two widths.
    """
    return nn.Sequential(*_layers(widths, batchnorm, lambda: nn.LeakyReLU(0.1), seed))


def _layers(widths: Sequence[int], batchnorm: bool, activation: Callable[[], nn.Module], seed: int) -> list[nn.Module]:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must hold at least two positive numbers, got {tuple(widths)}")
    layers: list[nn.Module] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        if i:
            layers += [nn.BatchNorm1d(into)] * batchnorm + [activation()]
        layers.append(nn.Linear(into, out))
    initialize(nn.ModuleList(layers), torch.Generator().manual_seed(seed))
    return layers


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    r"""Hinge loss of the discriminator.

    .. math:: L_D = \tfrac1n \sum_i \max(0, 1 - D(x_i)) + \tfrac1m \sum_j \max(0, 1 + D(G(z_j)))

    Parameters
    ----------
    real, fake
        Scores of real and of generated images, any shapes.

    References
    ----------
    T. Miyato, T. Kataoka, M. Koyama, Y. Yoshida. Spectral Normalization for Generative Adversarial Networks. ICLR 2018.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    r"""Loss of the generator, :math:`L_G = -\tfrac1m \sum_j D(G(z_j))`."""
    return -fake.mean()


def train_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    images: Tensor,
    latent: int,
    steps: int,
    rate: float = 2e-4,
    betas: tuple[float, float] = (0.0, 0.9),
    batch: int = 64,
    discriminator_steps: int = 1,
    seed: int = 0,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Train both in turns with the hinge losses and Adam, in place.

    Parameters
    ----------
    generator, discriminator
        In training mode from here on.
    images
        The real ones, ``(n, ...)``, drawn with replacement; in [−1, 1], as :func:`generator` makes them.
    latent
        Size of the latent vectors, drawn from a normal distribution.
    steps
        Of the generator.
    rate, betas
        Of Adam, for both.
    batch
        Images of each kind in a step.
    discriminator_steps
        Steps of the discriminator before each one of the generator.
    seed
        Of images and latent vectors, on the CPU.
    watch
        Called as ``watch(step)`` after each step, 1 to ``steps``.

    Raises
    ------
    ValueError
        When a loss is not finite, with the step; for numbers below 1.

    Notes
    -----
    The two passes of a discriminator step share its computed weights (``torch.nn.utils.parametrize.cached``): spectral
    normalisation makes one power iteration a step, and real and generated images meet one discriminator.
    """
    if min(steps, batch, discriminator_steps, latent) < 1:
        raise ValueError(
            f"steps, batch, discriminator_steps and latent must be 1 or more, got {steps}, {batch}, "
            f"{discriminator_steps}, {latent}"
        )
    draw = torch.Generator().manual_seed(seed)
    optimizers = [torch.optim.Adam(part.parameters(), rate, betas) for part in (generator, discriminator)]
    generator.train()
    discriminator.train()

    def fake() -> Tensor:
        return generator(torch.randn(batch, latent, generator=draw).to(images))

    for step in range(1, steps + 1):
        for _ in range(discriminator_steps):
            real = images[torch.randint(len(images), (batch,), generator=draw)]
            with torch.no_grad():
                made = fake()
            with parametrize.cached():
                loss_d = hinge_discriminator(discriminator(real), discriminator(made))
                _update(optimizers[1], loss_d)
        loss_g = hinge_generator(discriminator(fake()))
        _update(optimizers[0], loss_g)
        if not torch.isfinite(loss_d + loss_g):
            raise ValueError(f"a loss is not finite at step {step}: {loss_d.item()}, {loss_g.item()}; lower the rate")
        if watch is not None:
            watch(step)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def lipschitz_product(network: nn.Module) -> float:
    r"""Product of the spectral norms of a network's linear layers: a bound on its Lipschitz constant.

    .. math:: \prod_\ell \lVert W_\ell \rVert_2

    It holds for a chain whose activations are 1-Lipschitz, such as :func:`discriminator` without BatchNorm, and is
    seldom reached.

    Raises
    ------
    ValueError
        If there is no linear layer, or one of another kind that amplifies: a convolution, a BatchNorm.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    others = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
    strange = [type(module).__name__ for module in network.modules() if isinstance(module, others)]
    if not layers or strange:
        raise ValueError(f"the bound needs linear layers and activations only, got {strange or 'no linear layer'}")
    training = network.training
    network.eval()  # reading a spectrally normalised weight in training is a power iteration
    try:
        return math.prod(reshaped_norm(layer.weight) for layer in layers)
    finally:
        network.train(training)


# ------------------------------------------------------------------------------------------------------------ distance


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Squared Fréchet distance of two samples, each taken for a Gaussian: on features of a network, the FID.

    .. math:: \lVert \mu_x - \mu_y \rVert^2 + \operatorname{tr}\left(\Sigma_x + \Sigma_y
              - 2\,(\Sigma_x^{1/2}\Sigma_y\Sigma_x^{1/2})^{1/2}\right)

    with covariances that divide by n − 1. The last trace is the sum of the singular values of
    :math:`\Sigma_x^{1/2}\Sigma_y^{1/2}`, which triangular factors of the centred samples give without any root: in
    float64, exact for samples of fewer rows than columns, too.

    Parameters
    ----------
    x, y
        Rows, ``(n, d)`` and ``(m, d)``, two at least. For images: their pixels, in the units of these; then the
        distance sees the first two moments of pixels, and nothing else.

    Returns
    -------
    float
        At least 0. Two samples of one distribution are not at 0: see :func:`frechet_floor`.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a value is not finite.

    References
    ----------
    D. C. Dowson, B. V. Landau. The Fréchet distance between multivariate normal distributions. Journal of Multivariate
    Analysis 1982.
    M. Heusel, H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter. GANs Trained by a Two Time-Scale Update Rule
    Converge to a Local Nash Equilibrium. NeurIPS 2017.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected rows (n, d) and (m, d), two at least, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.detach().double(), y.detach().double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("a sample holds NaN or infinity")
    means = [rows.mean(0) for rows in (x, y)]
    factors = [
        torch.linalg.qr((rows - mean) / math.sqrt(len(rows) - 1), mode="r").R
        for rows, mean in zip((x, y), means, strict=True)
    ]
    traces = sum(r.square().sum() for r in factors)
    cross = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return max(((means[0] - means[1]).square().sum() + traces - 2 * cross).item(), 0.0)


def frechet_floor(x: Tensor, splits: int = 10, seed: int = 0) -> float:
    """Mean :func:`frechet_distance` between two random halves of one sample: what a perfect generator would get.

    It falls with the number of rows, so compare it with distances between samples of that size: half of ``x`` each.

    Parameters
    ----------
    x
        Rows ``(n, d)``, four at least; of an odd number one is left out.
    splits
        How many times the rows are halved.
    seed
        Of the halves.

    Raises
    ------
    ValueError
        For fewer rows, or no split.
    """
    if x.dim() != 2 or len(x) < 4 or splits < 1:
        raise ValueError(f"expected at least four rows (n, d) and one split, got {tuple(x.shape)} and {splits}")
    draw, half = torch.Generator().manual_seed(seed), len(x) // 2
    orders = [torch.randperm(len(x), generator=draw) for _ in range(splits)]
    return sum(frechet_distance(x[order[:half]], x[order[half : 2 * half]]) for order in orders) / splits
