"""GANs on digits as runs: what they measure, what differs between the methods, their grid and their fingerprint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from deeptransfer.gan import frechet_distance
from deeptransfer.runs import gan
from deeptransfer.runs.gan import GanConfig
from deeptransfer.runs.recipe import is_stale, recipe_of, run

TINY = GanConfig(method="none", rate=1e-3, steps=4, every=2, batch=8, width=6)


def test_the_halves_are_the_digits_and_share_no_row():
    halves = gan.digit_halves()
    assert [tuple(half.shape) for half in halves] == [(898, 64)] * 2
    known = {tuple(row) for row in load_digits().data / 8 - 1}
    rows = [tuple(row) for half in halves for row in half.tolist()]
    assert set(rows) <= known
    assert len(set(rows)) == len(rows)
    assert torch.equal(halves[0], gan.digit_halves()[0])


def test_methods_start_from_the_same_weights_and_differ_in_the_discriminator():
    raw = {}
    for method in gan.METHODS:
        network = gan.normalised_discriminator(replace(TINY, method=method))
        raw[method] = [p.detach() for name, p in network.named_parameters() if name.endswith(("weight", "original"))]
        raw[method] = [p for p in raw[method] if p.dim() == 2]
        assert any(isinstance(part, nn.BatchNorm1d) for part in network) == (method == "bn")
    for method in gan.METHODS:
        torch.testing.assert_close(raw[method], raw["none"], rtol=0, atol=0)


@pytest.mark.parametrize("method", gan.METHODS)
def test_a_curve_holds_the_bounds_in_their_order_and_sn_and_oni_hold_theirs(method):
    found = gan.train_digits(replace(TINY, method=method))
    assert [point["step"] for point in found["curve"]] == [0, 2, 4]
    for point in found["curve"]:
        assert 0 < point["slope"] <= point["product"] * (1 + 1e-9)
        if method in ("sn", "oni"):
            assert point["product"] < 1.2
    assert found["floor"] == pytest.approx(frechet_distance(*gan.digit_halves()))


def test_a_folded_network_evaluates_alike():
    network = gan.normalised_discriminator(replace(TINY, method="bn"))
    images, _ = gan.digit_halves()
    network(images)  # other running statistics than those of the start
    chain = gan.folded(network)
    assert not any(isinstance(part, nn.BatchNorm1d) for part in chain)
    assert network.training
    torch.testing.assert_close(chain(images), network.eval()(images))


def test_the_steepest_slope_of_a_linear_map_is_its_norm():
    layer = nn.Linear(64, 1).double()
    real, held_out = gan.digit_halves()
    assert gan.steepest_slope(layer, real[:5], held_out[:5]) == pytest.approx(layer.weight.norm().item())


def test_images_survive_their_text():
    image = torch.linspace(-1, 1, 64, dtype=torch.float64)
    text = gan.as_text(image)
    assert len(text) == 64
    np.testing.assert_allclose(gan.as_image(text).ravel(), (image.numpy() + 1) / 2, atol=0.5 / 15 + 1e-9)


def test_a_run_is_seeded_its_beginning_is_its_first_points_and_the_result_reads_back():
    first = run(TINY)
    again = json.loads(json.dumps(first))
    assert recipe_of(again) == TINY
    assert not is_stale(again)
    assert asdict(TINY) == again["config"]
    longer = run(replace(TINY, steps=8))
    assert longer["curve"][:3] == first["curve"]
    begun = replace(TINY, steps=8).beginning()
    assert (begun["curve"], begun["floor"]) == (first["curve"], first["floor"])
    assert run(replace(TINY, seed=1))["curve"] != first["curve"]


def test_the_last_points_decide_and_the_floor_over_them_is_the_score():
    result = {"floor": 0.5, "curve": [{"distance": value} for value in (90, 1, 2, 3, 4, 5)]}
    assert gan.final_distance(result) == 3
    assert GanConfig.scores(result) == {"nearness": pytest.approx(0.5 / 3)}


def test_training_comes_nearer():
    curve = gan.train_digits(replace(TINY, steps=60, every=60, width=32, rate=2e-3))["curve"]
    assert curve[1]["distance"] < curve[0]["distance"]
    assert math.isfinite(curve[1]["product"])


def test_a_grid_has_each_method_at_its_rates():
    grid = {"rates": {"none": [1e-3, 1e-2], "sn": [1e-3]}, "seeds": [0, 1], "steps": 4, "every": 2}
    recipes = GanConfig.from_grid(grid)
    assert [recipe.name for recipe in recipes] == [
        "none_rate0.001_seed0",
        "none_rate0.001_seed1",
        "none_rate0.01_seed0",
        "none_rate0.01_seed1",
        "sn_rate0.001_seed0",
        "sn_rate0.001_seed1",
    ]
    assert {recipe.steps for recipe in recipes} == {4}
    for wrong in ({"seeds": [0]}, grid | {"epochs": 3}):
        with pytest.raises(ValueError, match="a grid of the kind 'gan' holds rates, seeds"):
            GanConfig.from_grid(wrong)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="unknown method 'wgan': known ones are none, bn, sn, oni"):
        replace(TINY, method="wgan")
    with pytest.raises(ValueError, match="every=3 must divide steps=4"):
        replace(TINY, every=3)
