"""Runs on adversarial images: what each way of training meets, and what is attacked where."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeptransfer.attacks import projected_gradient
from deeptransfer.domains import DomainPair
from deeptransfer.normalization import DomainBatchNorm2d, GatedBatchNorm2d, use_domain
from deeptransfer.runs import attacked
from deeptransfer.runs.attacked import METHODS, Attacked, AttackedConfig, build, routes, train_attacked
from deeptransfer.runs.recipe import recipe_of, run

TINY = AttackedConfig(
    method="clean",
    domain="print",
    other="pen",
    epsilon=0.05,
    attack_steps=2,
    steps=4,
    every=2,
    batch_size=8,
    network={"widths": [2, 3], "hidden": [4]},
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = attacked.load_domain
    monkeypatch.setattr(attacked, "load_domain", lambda *a: whole(*a).subset(range(40)))
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_scored_under_attacks_along_each_route(method):
    recipe = replace(TINY, method=method)
    result = run(recipe)
    names = {"auxiliary": ["clean", "adversarial"], "gated": ["gate", "clean", "adversarial"]}.get(method, ["network"])
    assert list(result["accuracy"]) == list(result["other"]) == names
    assert all(list(row) == ["none", *names] for row in result["accuracy"].values())
    assert ("apart" in result) == (method in ("auxiliary", "gated"))
    assert ("clean_share" in result) == (method == "gated")
    assert recipe.beginning()["curve"] == result["curve"][:1]
    assert recipe_of(result) == recipe
    own = result["accuracy"][names[0]]
    expected = {"clean": own["none"], "attacked": own[names[0]], "other": result["other"][names[0]]}
    assert recipe.scores(result) == expected
    assert result["curve"][-1]["clean"] == own["none"]


def test_what_each_way_of_training_meets():
    domain = attacked.load_domain("print")
    batch = DomainPair(domain, domain, 8, 0).batch(0)
    shared = build(replace(TINY, method="shared"), 1)
    network = build(TINY, 1)
    clean = Attacked(TINY)(network, batch, 0.0)
    assert clean["classification"].item() == pytest.approx(F.cross_entropy(network(batch.xs).logits, batch.ys).item())
    twin = copy.deepcopy(shared)
    moved = projected_gradient(twin.eval(), batch.xs, batch.ys, 0.05, 2)
    logits = twin.train()(torch.cat([batch.xs, moved])).logits
    expected = F.cross_entropy(logits, batch.ys.repeat(2)).item()
    objective = Attacked(replace(TINY, method="shared"))
    assert objective(shared, batch, 0.0)["classification"].item() == pytest.approx(expected, abs=1e-6)
    assert shared.training
    gated = build(replace(TINY, method="gated"), 1)
    losses = Attacked(replace(TINY, method="gated"))(gated, batch, 0.0)
    assert set(losses) == {"classification", "gates"}
    assert losses["gates"].item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item())  # two gates that start at ½


def test_gates_are_trained_on_images_attacked_through_the_adversarial_branch():
    recipe = replace(TINY, method="gated")
    network, objective, met = build(recipe, 1), Attacked(recipe), []

    def attack(network, x, y):
        domains = network.features.block1[1].norm.domains
        met.append((domains[network.features.block1[1].norm.membership.split()], network.training))
        return x

    objective.attack = attack
    domain = attacked.load_domain("print")
    objective(network, DomainPair(domain, domain, 8, 0).batch(0), 0.0)
    assert met == [("adversarial", False)]
    assert network.training


def test_the_gates_stand_behind_the_convolutions_and_start_between_the_branches():
    network = build(replace(TINY, method="gated"), 1).eval()
    assert sum(isinstance(module, GatedBatchNorm2d) for module in network.modules()) == 2
    assert isinstance(network.features.fc1[2], nn.BatchNorm1d)
    assert list(routes(network)) == ["gate", "clean", "adversarial"]
    x = torch.rand(3, 1, 28, 28)
    with use_domain(network, "clean"):
        one = network(x).logits
    torch.testing.assert_close(network(x).logits, one)  # all rows are those of the fresh BatchNorm


def test_an_attack_meets_the_branch_of_its_route():
    network, _ = train_attacked(replace(TINY, method="auxiliary", steps=20, every=20))
    domain = attacked.load_domain("print", "test")
    with use_domain(network, "adversarial"):
        expected = projected_gradient(network, *domain.tensors, 0.05, 2)
    recipe = replace(TINY, method="auxiliary")
    found = attacked.attack_along(recipe, network, routes(network)["adversarial"], *domain.tensors)
    torch.testing.assert_close(found, expected)
    other = attacked.attack_along(recipe, network, routes(network)["clean"], *domain.tensors)
    assert not torch.equal(found, other)


def test_moments_of_two_rows_are_compared_in_deviations_of_the_clean_one():
    layer = DomainBatchNorm2d(2, domains=("clean", "adversarial"))
    layer.running_mean.copy_(torch.tensor([[0.0, 0.0], [6.0, 0.0]]))
    layer.running_var.copy_(torch.tensor([[4.0, 1.0], [4.0, 4.0]]))
    assert attacked.rows_apart(layer) == pytest.approx(((9 + 1) / 2) ** 0.5)


def test_clean_shares_are_the_softmax_of_the_gates():
    network = build(replace(TINY, method="gated"), 1).eval()
    gate = network.features.block1[1].gate[-1]
    nn.init.constant_(gate.bias[:1], 2.0)
    shares = attacked.clean_shares(network, torch.rand(5, 1, 28, 28))
    assert shares == pytest.approx([torch.sigmoid(torch.tensor(2.0)).item(), 0.5])


def test_a_grid_is_every_method_with_every_seed():
    rest = {"domain": "print", "other": "pen", "epsilon": 0.1, "steps": 2, "every": 1}
    recipes = AttackedConfig.from_grid({**rest, "methods": ["clean", "gated"], "seeds": [0, 1]})
    assert [recipe.name for recipe in recipes] == [f"print_{m}_seed{s}" for m in ("clean", "gated") for s in (0, 1)]
    with pytest.raises(ValueError, match="a grid of the kind 'attacked' holds methods, seeds"):
        AttackedConfig.from_grid({**rest, "seeds": [0]})


@pytest.mark.parametrize(
    ("change", "message"), [({"method": "advprop"}, "unknown method"), ({"other": "mnist"}, "unknown domain")]
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
