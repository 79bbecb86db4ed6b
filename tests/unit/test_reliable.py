"""EATA and SAR against their formulas by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support_statistics import images, network, randomize
from torch import nn

from deeptransfer.normalization import EATA, SAR, DomainBatchNorm2d, Tent, convert_norm, entropies, prediction_time


def confident(scale=6.0) -> nn.Module:
    """The test network with larger logits, so that some rows are certain and some are not."""
    model = network()
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    return model


def grouped() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)
    ).double()
    with torch.no_grad():
        model[-1].weight.mul_(2.5)
    return model


def affine(model):
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    return [p for layer in layers for p in (layer.weight, layer.bias)]


def predict(model, x):
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return model.eval()(x)
    with prediction_time(model):
        return model(x)


def entropy_by_hand(logits):
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -(p * p.log()).sum(1), p


class Momentum:
    """SGD with momentum, from its formula."""

    def __init__(self, parameters, lr, momentum=0.9):
        self.parameters, self.lr, self.momentum, self.velocity = parameters, lr, momentum, None

    def step(self, gradients):
        old = self.velocity or [torch.zeros_like(p) for p in self.parameters]
        first = self.velocity is None
        self.velocity = [g if first else self.momentum * v + g for v, g in zip(old, gradients, strict=True)]
        with torch.no_grad():
            for p, v in zip(self.parameters, self.velocity, strict=True):
                p -= self.lr * v


def test_entropies_follow_the_formula():
    logits = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(entropies(logits), entropy_by_hand(logits)[0])
    assert torch.autograd.gradcheck(entropies, (logits.requires_grad_(),))
    ruled_out = torch.tensor([[1.0, 2.0, -math.inf]])
    torch.testing.assert_close(entropies(ruled_out), entropies(ruled_out[:, :2]))


@pytest.mark.parametrize("make", [confident, grouped])
def test_eata_selects_weighs_and_steps_as_its_formula_says(make):
    model = make()
    twin = copy.deepcopy(model).eval()
    threshold, d, lr = 0.9, 0.97, 0.01
    eata = EATA(model, lr=lr, threshold=threshold, similarity=d)
    parameters, mean, seen = affine(twin), None, []
    optimizer, margin = Momentum(parameters, lr), threshold * math.log(3)
    for x in images(30).split((12, 12, 6)):
        logits = predict(twin, x)
        h, p = entropy_by_hand(logits)
        chosen = [i for i in range(len(x)) if h[i] < margin]
        if mean is not None:
            chosen = [i for i in chosen if abs(torch.dot(mean, p[i]) / (mean.norm() * p[i].norm())) < d]
        seen.append((len(chosen), int((h < margin).sum()), len(x)))
        actual = eata(x)
        torch.testing.assert_close(actual, logits)
        if chosen:
            batch = sum(p[i] for i in chosen).detach() / len(chosen)
            mean = batch if mean is None else 0.9 * mean + 0.1 * batch
            loss = sum(math.exp(margin - h[i].item()) * h[i] for i in chosen) / len(chosen)
            optimizer.step(torch.autograd.grad(loss, parameters))
        torch.testing.assert_close(eata.mean_prediction, mean)
        for mine, wanted in zip(affine(model), parameters, strict=True):
            torch.testing.assert_close(mine, wanted)
    assert any(chosen < reliable for chosen, reliable, _ in seen)  # both filters were at work
    assert any(reliable < rows for _, reliable, rows in seen)


def test_eatas_importance_and_its_pull_to_the_start():
    model = confident()
    twin = copy.deepcopy(model)
    eata = EATA(model, lr=0.01, threshold=1.0, similarity=1.0, weight=50.0, momentum=0.0)
    batches, parameters = images(20, 3).split(10), affine(twin)
    eata.remember(batches)
    squares = [torch.zeros_like(p) for p in parameters]
    for x in batches:
        logits = predict(twin, x)
        loss = nn.functional.cross_entropy(logits, logits.argmax(1))
        for total, g in zip(squares, torch.autograd.grad(loss, parameters), strict=True):
            total += g**2 / 2
    for mine, wanted in zip(eata.importance, squares, strict=True):
        torch.testing.assert_close(mine, wanted)
    starts, x, margin = [p.detach().clone() for p in parameters], images(12), math.log(3)
    for _ in range(2):  # in the first step the pull is 0
        h = entropy_by_hand(predict(twin, x))[0]
        loss = ((margin - h.detach()).exp() * h).mean()
        loss = loss + 50 * sum((f * (p - s) ** 2).sum() for f, p, s in zip(squares, parameters, starts, strict=True))
        Momentum(parameters, 0.01, 0.0).step(torch.autograd.grad(loss, parameters))
        eata(x)
        for mine, wanted in zip(affine(model), parameters, strict=True):
            torch.testing.assert_close(mine, wanted)
    with pytest.raises(ValueError, match="no batch"):
        eata.remember([])
    with pytest.raises(ValueError, match="not finite"):
        eata.remember([x * math.nan])


@pytest.mark.parametrize("make", [confident, grouped])
def test_sar_climbs_filters_again_and_steps_as_its_formula_says(make):
    model = make()
    twin = copy.deepcopy(model).eval()
    threshold, rho, lr = 0.8, 0.5, 0.01
    sar = SAR(model, lr=lr, threshold=threshold, radius=rho, floor=0.0)
    parameters, margin, average, counts = affine(twin), threshold * math.log(3), None, []
    optimizer = Momentum(parameters, lr)
    for x in images(36).split(12):
        logits = predict(twin, x)
        h, _ = entropy_by_hand(logits)
        first = h < margin
        gradients = torch.autograd.grad(h[first].mean(), parameters)
        length = math.sqrt(sum((g**2).sum().item() for g in gradients))
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p += rho * g / length
        h, _ = entropy_by_hand(predict(twin, x))
        second = first & (h < margin)
        counts.append((int(second.sum()), int(first.sum()), len(x)))
        loss = h[second].mean()
        descent = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= rho * g / length
        average = loss.item() if average is None else 0.9 * average + 0.1 * loss.item()
        optimizer.step(descent)
        torch.testing.assert_close(sar(x), logits)
        assert sar.average == pytest.approx(average)
        for mine, wanted in zip(affine(model), parameters, strict=True):
            torch.testing.assert_close(mine, wanted)
    assert any(second < first for second, first, _ in counts)
    assert any(0 < first < rows for _, first, rows in counts)


def test_sar_returns_to_the_start_once_and_begins_anew():
    """The released code restores the old average, and would return on every batch that follows."""
    model = confident(30.0)
    start = copy.deepcopy(model.state_dict())
    sar = SAR(model, lr=0.01, floor=0.2)
    x = images(12)
    h = entropies(predict(model, x))
    certain = x[h < 0.05]
    assert len(certain) > 3
    sar(certain)
    assert sar.average is None
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    sar.floor = 0.0
    sar(certain)
    assert sar.average < 0.2
    assert not all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    sar.reset()
    assert sar.average is None


@pytest.mark.parametrize("method", [EATA, SAR])
@pytest.mark.parametrize("make", [network, grouped, lambda: convert_norm(network(), DomainBatchNorm2d)])
def test_with_lr_0_both_are_the_prediction_before(method, make):
    model, x = make(), images(10)
    expected = predict(model, x) if not isinstance(model[1], DomainBatchNorm2d) else Tent(make(), lr=0.0)(x)
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(method(model, lr=0.0)(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", [EATA, SAR])
@pytest.mark.parametrize("spoilt", ["NaN", "no rows", "nothing reliable"])
def test_a_batch_without_reliable_rows_takes_no_step(method, spoilt):
    """The released code of SAR takes the mean of an empty tensor, and momentum still moves the weights."""
    model, x = confident(), images(12)
    adapting = method(model, lr=0.01, threshold=1.0)
    adapting(x)
    before = copy.deepcopy(model.state_dict())
    bad = x[:0] if spoilt == "no rows" else x.clone()
    if spoilt == "NaN":
        bad[0, 0, 0, 0] = math.nan
    if spoilt == "nothing reliable":
        adapting.threshold = 1e-9
    assert len(adapting(bad)) == len(bad)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", [EATA, SAR])
def test_one_image_is_enough_where_no_batch_is_needed(method):
    adapting = method(grouped(), lr=0.01, threshold=1.0)
    before = [p.clone() for p in adapting.adapted]
    assert adapting(images(1)).shape == (1, 3)
    assert any(not torch.equal(p, old) for p, old in zip(adapting.adapted, before, strict=True))


@pytest.mark.parametrize("method", [EATA, SAR])
def test_half_precision_and_autocast(method):
    model = confident().to(torch.bfloat16)
    x = images(12).to(torch.bfloat16)
    adapting = method(model, lr=1e-4, threshold=1.0)
    before = [moved.clone() for moved in adapting._moved]
    with torch.inference_mode():
        assert adapting(x).dtype == torch.bfloat16
    assert all(moved.dtype == torch.float32 for moved in adapting._moved)
    assert any(not torch.equal(moved, old) for moved, old in zip(adapting._moved, before, strict=True))
    adapting = method(confident().float(), threshold=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adapting(images(12).float()).isfinite().all()


def test_a_model_that_raises_in_the_second_pass_keeps_its_parameters():
    model, x = confident(), images(12)
    sar = SAR(model, threshold=1.0)
    before, calls = [p.clone() for p in sar.adapted], []

    def once(module, args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    model.register_forward_pre_hook(once)
    with pytest.raises(RuntimeError):
        sar(x)
    assert all(torch.equal(p, old) for p, old in zip(sar.adapted, before, strict=True))


def test_wrong_options_are_refused():
    for wrong in ({"threshold": 0.0}, {"threshold": 1.5}, {"similarity": 0.0}, {"weight": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got"):
            EATA(network(), **wrong)
    with pytest.raises(ValueError, match=r"radius .*got -1"):
        SAR(network(), radius=-1.0)
    with pytest.raises(ValueError, match="no BatchNorm or GroupNorm or LayerNorm or domain layer"):
        SAR(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no BatchNorm or domain layer"):
        Tent(grouped())


def test_randomized_domain_networks_are_adapted_too():
    model = randomize(convert_norm(confident(), DomainBatchNorm2d), seed=1)
    sar = SAR(model, threshold=1.0, lr=0.01, floor=0.0)
    before = [p.clone() for p in sar.adapted]
    sar(images(12))
    assert any(not torch.equal(p, old) for p, old in zip(sar.adapted, before, strict=True))
