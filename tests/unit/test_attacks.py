"""Projected gradient ascent and AdvProp's loss against plain loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeptransfer.attacks import ADVERSARIAL, CLEAN, auxiliary_loss, projected_gradient
from deeptransfer.networks import small_cnn
from deeptransfer.normalization import DomainBatchNorm2d, convert_norm, forward_domains, use_domain


def data(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 3


def model(domains=None):
    network = small_cnn(size=8, widths=(4,), hidden=(8,), classes=3)
    return convert_norm(network, DomainBatchNorm2d, domains=domains, shared_affine=False) if domains else network.eval()


def test_each_step_follows_the_sign_of_the_gradient_and_stays_within_both_bounds():
    network, (x, y) = model(), data()
    by_hand = x.clone()
    for _ in range(4):
        by_hand.requires_grad_()
        loss = sum(F.cross_entropy(network(image[None]).logits, y[i : i + 1]) for i, image in enumerate(by_hand))
        (g,) = torch.autograd.grad(loss, by_hand)
        by_hand = (by_hand + 0.05 * g.sign()).detach()
        for place in range(by_hand.numel()):
            low, high = max(0, x.view(-1)[place] - 0.1), min(1, x.view(-1)[place] + 0.1)
            by_hand.view(-1)[place] = by_hand.view(-1)[place].clamp(low, high)
    adversarial = projected_gradient(network, x, y, epsilon=0.1, steps=4, step=0.05)
    torch.testing.assert_close(adversarial, by_hand)
    assert (adversarial - x).abs().max() <= 0.1 + 1e-6
    assert F.cross_entropy(network(adversarial).logits, y) > F.cross_entropy(network(x).logits, y) + 0.01
    assert not adversarial.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_nothing_within_reach_and_a_random_start():
    network, (x, y) = model(), data()
    assert torch.equal(projected_gradient(network, x, y, epsilon=0.0), x)
    starts = [projected_gradient(network, x, y, 0.1, 1, 0.0, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    moved = (starts[0] - x).abs()
    assert 0.02 < moved.mean() < 0.06
    assert moved.max() <= 0.1 + 1e-6
    with torch.no_grad():
        assert not torch.equal(projected_gradient(network, x, y), x)


def test_wrong_attacks_are_refused():
    network, (x, y) = model(), data()
    for wrong in ({"epsilon": -0.1}, {"epsilon": math.nan}, {"steps": 0}):
        with pytest.raises(ValueError, match="epsilon must be at least 0 and steps at least 1"):
            projected_gradient(network, x, y, **wrong)
    for bad in (x * 255, x * math.nan):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
            projected_gradient(network, bad, y)


def test_the_loss_is_the_mean_of_two_branches_and_the_attack_meets_the_adversarial_one_in_evaluation():
    network, (x, y) = model((CLEAN, ADVERSARIAL)), data()
    forward_domains(network, *data()[:1], data(seed=1)[0] / 2)  # rows that differ
    twin, met = copy.deepcopy(network), []

    def attack(attacked, images, labels):
        met.append((attacked.training, attacked(images).logits))
        return (images + 0.1).clamp(0, 1)

    loss = auxiliary_loss(network.train(), x, y, attack)
    assert network.training
    assert met[0][0] is False
    with use_domain(copy.deepcopy(twin).eval(), ADVERSARIAL) as evaluated:
        torch.testing.assert_close(met[0][1], evaluated(x).logits)
    clean, adversarial = forward_domains(twin.train(), x, (x + 0.1).clamp(0, 1))
    want = (F.cross_entropy(clean.logits, y) + F.cross_entropy(adversarial.logits, y)) / 2
    torch.testing.assert_close(loss, want)
    loss.backward()
    scale = network.features.block1[1].weight
    assert (scale.grad.abs().sum(1) > 0).all()  # both branches learn


def test_without_an_attack_both_rows_are_equal():
    network, (x, y) = model((CLEAN, ADVERSARIAL)), data()
    auxiliary_loss(network, x, y, lambda model, x, y: x)
    for layer in (network.features.block1[1], network.features.fc1[2]):
        assert torch.equal(layer.running_mean[0], layer.running_mean[1])
        assert torch.equal(layer.running_var[0], layer.running_var[1])


def test_other_domains_and_an_attack_that_raises():
    x, y = data()
    with pytest.raises(ValueError, match="'source' or 'target', got 'adversarial'"):
        auxiliary_loss(model(2), x, y)
    network = model((CLEAN, ADVERSARIAL)).train()

    def attack(model, x, y):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        auxiliary_loss(network, x, y, attack)
    assert all(module.training for module in network.modules())
    assert isinstance(network, nn.Module)
