"""CoTTA against its formulas by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from support_statistics import images, network
from torch import nn

from deeptransfer.normalization import CoTTA, prediction_time


def same(x):
    return x


def mirrored(x):
    return x.flip(3)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Adam:
    """From its formula, in NumPy."""

    def __init__(self, shape, lr):
        self.m, self.v, self.t, self.lr = np.zeros(shape), np.zeros(shape), 0, lr

    def step(self, w, g):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        return w - self.lr * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


@pytest.mark.parametrize(("threshold", "views"), [(0.0, 3), (1.1, 3)], ids=["as it is", "averaged"])
def test_three_batches_of_a_linear_network_by_hand(threshold, views):
    """logits = x Wᵀ; the copies are x + 1, x + 2, …, so that their mean is known."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    w = model.weight.detach().numpy().copy()
    slow, adam, seen = w.copy(), Adam(w.shape, 0.01), []

    def augment(x):
        seen.append(x)
        return x + (len(seen) - 1) % views + 1

    adapting = CoTTA(model, augment, lr=0.01, momentum=0.7, restore=0.0, threshold=threshold, views=views)
    with torch.no_grad():
        model.weight.mul_(2)  # else student and teacher agree on the batch as it is, and no gradient is left
    w = 2 * w
    for _ in range(3):
        x = torch.randn(5, 4, dtype=torch.float64)
        rows = x.numpy()
        taught = rows @ slow.T
        if threshold:
            taught = np.mean([(rows + k + 1) @ slow.T for k in range(views)], axis=0)
        np.testing.assert_allclose(adapting(x).numpy(), taught, rtol=1e-12)
        gradient = (softmax(rows @ w.T) - softmax(taught)).T @ rows / len(rows)
        w = adam.step(w, gradient)
        slow = 0.7 * slow + 0.3 * w
        np.testing.assert_allclose(model.weight.detach().numpy(), w, rtol=1e-9)
        np.testing.assert_allclose(adapting.teacher.weight.numpy(), slow, rtol=1e-9)
    assert len(seen) == 3 * views * bool(threshold)


def test_one_switch_for_the_batch_is_the_anchors_mean_confidence():
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    x = torch.tensor([[4.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    confidence = np.mean([1 / (1 + math.exp(-4.0)), 1 / (1 + math.exp(-0.1))])
    for threshold, expected in ((confidence - 1e-6, 0), (confidence + 1e-6, 2)):
        calls = []
        adapting = CoTTA(
            copy.deepcopy(model), lambda x, calls=calls: calls.append(1) or x, threshold=threshold, views=2
        )
        adapting(x)
        assert len(calls) == expected
    # The student may have become sure: it is the anchor that is asked.
    with torch.no_grad():
        adapting.model.weight.mul_(100)
        adapting.teacher.weight.mul_(100)
    adapting(x)
    assert len(calls) == 2 * expected


def test_all_parameters_move_and_no_running_statistic():
    model, x = network(), images(12)
    before = copy.deepcopy(model.state_dict())
    CoTTA(model, mirrored, lr=0.01, restore=0.0, threshold=1.1, views=1)(x)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    # A bias in front of BatchNorm has no gradient but that of rounding; all others move.
    names = {name for name, _ in model.named_parameters()}
    assert names - {"0.bias", "3.bias", "8.bias"} <= moved <= names


def test_with_lr_0_it_is_prediction_time_and_stays_so():
    model, x = network(), images(12)
    with prediction_time(model):
        expected = model(x).detach()
    adapting = CoTTA(model, same, lr=0.0, threshold=0.0)
    for _ in range(2):
        torch.testing.assert_close(adapting(x), expected)


def test_where_the_anchor_is_sure_the_first_gradient_is_zero():
    """It is p − q, and teacher and student agree until augmented copies part them."""
    model = network()
    CoTTA(model, mirrored, lr=0.01, threshold=0.0)(images(12))
    assert all(p.grad.abs().max() < 1e-12 for p in model.parameters())
    CoTTA(model, mirrored, lr=0.01, threshold=1.1)(images(12))
    assert model[0].weight.grad.abs().max() > 1e-6


def test_everything_restored_is_the_start_and_a_share_of_it_a_share():
    model, x = network(), images(12)
    start = [p.detach().clone() for p in model.parameters()]
    CoTTA(model, mirrored, lr=0.1, restore=1.0, threshold=1.1, views=1)(x)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), start, strict=True))

    torch.manual_seed(0)
    wide = nn.Linear(300, 10).double()
    old = wide.weight.detach().clone()
    CoTTA(wide, lambda x: 2 * x, lr=0.1, restore=0.2, threshold=1.1, views=1)(torch.randn(8, 300, dtype=torch.float64))
    back = (wide.weight == old).double().mean().item()
    assert abs(back - 0.2) < 4 * math.sqrt(0.2 * 0.8 / wide.weight.numel())


def test_the_teacher_follows_the_student_from_before_the_restoration():
    model = network()
    adapting = CoTTA(model, mirrored, lr=0.1, momentum=0.0, restore=1.0, threshold=1.1, views=1)
    start = adapting.anchor[0].weight.clone()
    adapting(images(12))
    assert torch.equal(model[0].weight, start)
    assert not torch.equal(adapting.teacher[0].weight, start)


@pytest.mark.parametrize("spoilt", ["NaN", "no rows"])
def test_a_batch_that_can_not_teach_moves_nothing(spoilt):
    model, x = network(), images(12)
    adapting = CoTTA(model, mirrored, lr=0.01, threshold=1.1, views=1)
    adapting(x)
    before = copy.deepcopy(adapting.state_dict())
    bad = x[:0] if spoilt == "no rows" else x.clone()
    if spoilt == "NaN":
        bad[0, 0, 0, 0] = math.nan
    assert len(adapting(bad)) == len(bad)
    assert all(torch.equal(value, before[name]) for name, value in adapting.state_dict().items())


def test_reset_is_a_new_beginning():
    model, x = network(), images(12)
    adapting = CoTTA(model, mirrored, lr=0.01, restore=0.0, threshold=1.1, views=1)
    first = [adapting(x), adapting(x)]
    assert not torch.equal(*first)
    adapting.reset()
    torch.testing.assert_close([adapting(x), adapting(x)], first)


def test_half_precision_moves_copies_and_inference_mode_is_no_obstacle():
    model, x = network().to(torch.bfloat16), images(12).to(torch.bfloat16)
    adapting = CoTTA(model, mirrored, lr=1e-4, threshold=1.1, views=1)
    slow = [p.clone() for p in adapting._slow]
    with torch.inference_mode():
        for _ in range(3):
            assert adapting(x).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in adapting._slow + adapting._moved)
    assert any(not torch.equal(p, old) for p, old in zip(adapting._slow, slow, strict=True))


def test_a_batch_of_one_needs_a_network_without_batchnorm():
    with pytest.raises(ValueError, match="one value per channel"):
        CoTTA(network(), same)(images(1))
    assert CoTTA(nn.Linear(2, 2), same)(torch.ones(1, 2)).shape == (1, 2)


def test_wrong_options_are_refused():
    for name, wrong in (("momentum", 1.5), ("restore", -0.1), ("views", 0)):
        with pytest.raises(ValueError, match=f"{name} .*got {wrong}"):
            CoTTA(network(), same, **{name: wrong})
    with pytest.raises(ValueError, match="ReLU has no parameter"):
        CoTTA(nn.ReLU(), same)
