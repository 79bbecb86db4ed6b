"""The small GAN: its distance against closed forms, its losses, and that it trains as its seed says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from deeptransfer.gan import (
    discriminator,
    frechet_distance,
    frechet_floor,
    generator,
    hinge_discriminator,
    hinge_generator,
    lipschitz_product,
    train_gan,
)
from deeptransfer.normalization import adapt_statistics


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def digits():
    return torch.from_numpy(load_digits().data / 8 - 1).float()


# Distance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(40, 30), (40, 3)])
def test_distance_follows_the_formula(rows):
    """Also with fewer rows than columns, where the covariance has no inverse."""
    mixing = draw(5, 5, seed=9)
    x, y = draw(rows[0], 5) @ mixing, draw(rows[1], 5, seed=1) + 1
    a, b = (np.cov(z.numpy().T) for z in (x, y))
    root = sqrtm(a).real
    want = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * sqrtm(root @ b @ root).real)
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(want, rel=1e-6)


def test_distance_in_closed_form():
    """A shift counts by its square; of independent columns the standard deviations are compared."""
    x = draw(50, 4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(25)
    scale = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    white = torch.linalg.qr(x - x.mean(0))[0] * 7
    want = ((scale - 1) ** 2).sum().item()
    assert frechet_distance(white, white * scale) == pytest.approx(want)
    rotation = torch.linalg.qr(draw(4, 4, seed=2))[0]
    assert frechet_distance(white @ rotation, white * scale @ rotation) == pytest.approx(want)
    assert frechet_distance(torch.ones(3, 2), torch.ones(5, 2)) == 0


def test_the_floor_is_not_zero_and_falls_with_the_sample():
    x = digits()
    floors = [frechet_floor(x[:n], splits=4) for n in (200, 1797)]
    assert floors[0] > 2 * floors[1] > 0
    assert frechet_floor(x, splits=4) == floors[1]
    assert frechet_floor(x, splits=4, seed=1) != floors[1]


# Losses and networks -----------------------------------------------------------------------------------------------


def test_hinge_losses_follow_the_formula():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25])
    assert hinge_discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.25) / 2)
    assert hinge_generator(fake).item() == pytest.approx(1.375)


def test_networks_have_the_widths_and_are_drawn_by_the_seed():
    g, d = generator(), discriminator()
    assert [tuple(m.weight.shape) for m in g if isinstance(m, nn.Linear)] == [(128, 16), (128, 128), (64, 128)]
    assert d(g(torch.zeros(3, 16))).shape == (3, 1)
    assert -1 <= g(torch.randn(100, 16)).min() < -0.5 < 0.5 < g(torch.randn(100, 16)).max() <= 1
    assert_close(generator(seed=3)[0].weight, generator(seed=3)[0].weight, rtol=0, atol=0)
    assert not torch.equal(generator(seed=3)[0].weight, generator(seed=4)[0].weight)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in discriminator(batchnorm=True)) == 2


def test_the_product_bounds_what_the_discriminator_does():
    d = discriminator().double()
    bound = lipschitz_product(d)
    x = draw(200, 64)
    step = draw(200, 64, seed=1) * 0.01
    slopes = (d(x + step) - d(x)).abs()[:, 0] / step.norm(dim=1)
    assert 0 < slopes.max() <= bound
    for layer in list(d):
        if isinstance(layer, nn.Linear):
            parametrizations.spectral_norm(layer)
    before = copy.deepcopy(d.state_dict())
    assert lipschitz_product(d) == pytest.approx(1, abs=0.1)
    for name, value in d.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)  # no power iteration by looking
    assert d.training


# Training ----------------------------------------------------------------------------------------------------------


def run(steps=150, seed=0, **options):
    g, d = generator((8, 64, 64)), discriminator((64, 64, 1))
    train_gan(g, d, digits(), 8, steps, rate=1e-3, seed=seed, **options)
    return g, d


def test_training_comes_nearer_to_the_digits():
    z, x = torch.randn(800, 8, generator=torch.Generator().manual_seed(5)), digits()
    before, after = (frechet_distance(g(z), x) for g in (generator((8, 64, 64)), run()[0]))
    assert after < 0.6 * before


def test_the_seed_decides_and_each_step_is_watched():
    seen = []
    one, again, other = (run(5, seed, watch=seen.append)[0] for seed in (0, 0, 1))
    assert seen == [1, 2, 3, 4, 5] * 3
    assert_close(one[0].weight, again[0].weight, rtol=0, atol=0)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_a_step_of_the_discriminator_is_one_power_iteration():
    """Its two passes share the weight; the generator's pass makes one more."""
    d = nn.Sequential(parametrizations.spectral_norm(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, 1))
    counted = []
    d[0].parametrizations.weight[0]._power_method = lambda *args: counted.append(1)
    train_gan(generator((8, 64)), d, digits(), 8, steps=1, discriminator_steps=2)
    assert len(counted) == 3


def test_batchnorm_of_a_generator_reads_latents():
    g = generator((8, 16, 4), batchnorm=True).double()
    z = draw(500, 8) * 2
    adapt_statistics(g, z)
    assert_close(g[1].running_mean, g[0](z).mean(0))


def test_errors_name_the_value():
    for call, message in [
        (lambda: generator((16,)), "at least two"),
        (lambda: frechet_distance(draw(3, 2), draw(3, 3)), "expected rows"),
        (lambda: frechet_distance(draw(1, 2), draw(3, 2)), "two at least"),
        (lambda: frechet_distance(draw(3, 2) / 0, draw(3, 2)), "NaN or infinity"),
        (lambda: frechet_floor(draw(3, 2)), "four rows"),
        (lambda: lipschitz_product(discriminator(batchnorm=True)), "BatchNorm1d"),
        (lambda: lipschitz_product(nn.ReLU()), "no linear layer"),
        (lambda: run(0), "1 or more, got 0"),
        (lambda: train_gan(generator((8, 64)), discriminator(), digits() / 0, 8, 1), "not finite at step 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
