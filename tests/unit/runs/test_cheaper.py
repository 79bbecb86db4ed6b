"""Cheaper networks: what each study does, its grid, its fingerprint."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deeptransfer import data_files
from deeptransfer.normalization import adapt_statistics
from deeptransfer.pruning import mask_channels, prune_channels, slimmest_channels
from deeptransfer.runs import cheaper
from deeptransfer.runs.cheaper import CheaperConfig, base_network, noisy_digits, train_network
from deeptransfer.runs.grid import load_grid
from deeptransfer.runs.provenance import reached
from deeptransfer.runs.recipe import NO_NUMBER, fingerprint, is_stale, recipe_of, run

TINY = CheaperConfig(study="slimming", levels=(0.25, 0.5), steps=4, tuning=2, batch_size=16, channels=(4, 4, 8))
STUDIES = {
    "slimming": replace(TINY, strength=0.05, scale=0.5),
    "candidates": replace(TINY, study="candidates", levels=(0.2, 0.6), count=2),
    "noise": replace(TINY, study="noise", levels=(0.1, 0.3), count=2, few=(8,)),
    "widths": replace(TINY, study="widths", levels=(0.25, 0.5, 1.0)),
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_result_is_strict_json_and_repeats_and_its_beginning_is_its_first_level(study):
    recipe = STUDIES[study]
    result = json.loads(json.dumps(run(recipe), allow_nan=False))
    assert recipe_of(result) == recipe
    assert not is_stale(result)
    assert all(0 <= score <= 1 for score in recipe.scores(result).values())
    begun = json.loads(json.dumps(recipe.beginning()))
    for key, value in begun["accuracy"].items():
        assert len(value) == 1
        assert value == result["accuracy"][key][:1]
    whole = {key: value for key, value in begun.items() if key.startswith("full") or key == "scales"}
    assert whole == {key: result[key] for key in whole}


def test_the_digits_of_a_seed_fall_into_three_parts():
    train, held_out, test = noisy_digits(TINY)
    assert [len(part.x) for part in (train, held_out, test)] == [1000, 300, 497]
    assert_close(train.x.std().item(), (0.376**2 + 0.35**2) ** 0.5, rtol=0.02, atol=0)
    assert not torch.equal(noisy_digits(replace(TINY, seed=1)).train.y, train.y)
    clean = replace(TINY, noise=0.0)
    assert noisy_digits(clean).train.x.max() == 1


def test_batches_meet_every_image_once_before_any_comes_again():
    rows = torch.stack(list(cheaper._rows(10, 3, 6, seed=0)))
    for half in rows.split(3):
        assert len(set(half.flatten().tolist())) == 9


def test_the_penalty_lowers_the_scales():
    recipe = replace(STUDIES["slimming"], steps=20)
    digits = noisy_digits(recipe)
    with_penalty, without = (base_network(r, digits) for r in (recipe, replace(recipe, strength=0.0)))
    scales = [sum(m.weight.abs().sum() for m in n if isinstance(m, nn.BatchNorm2d)) for n in (with_penalty, without)]
    assert scales[0] < 0.9 * scales[1]


def test_folding_is_exact_in_this_network():
    """Convolutions that read channels do not pad."""
    digits = noisy_digits(TINY)
    network = base_network(TINY, digits)
    keep = slimmest_channels(network, 0.5)
    x = digits.test.x[:20]
    assert_close(prune_channels(network, keep)(x), mask_channels(network, keep, shift=False)(x))
    assert_close(prune_channels(network, keep, fold=False)(x), mask_channels(network, keep)(x))


def test_training_does_not_read_the_statistics_that_it_starts_with():
    digits = noisy_digits(TINY)
    network = base_network(TINY, digits)
    other = adapt_statistics(copy.deepcopy(network), digits.train.x)
    apart = network[1].running_mean - other[1].running_mean
    for each in (network, other):
        train_network(each, digits.train, TINY)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert_close(one, two, rtol=0, atol=0)
    assert_close(network[1].running_mean - other[1].running_mean, 0.9**TINY.steps * apart)


def test_a_grid_has_strengths_and_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    text = 'kind = "cheaper"\nstudy = "slimming"\nlevels = [0.5]\nseeds = [0, 1]\n'
    file = tmp_path / "grids" / "some.toml"
    file.write_text(text + "strengths = [0.0, 0.02]\n")
    names = [recipe.name for recipe in load_grid("some")]
    assert names == [f"slimming_strength{s}_seed{seed}" for s in ("0", "0.02") for seed in (0, 1)]
    file.write_text(text)
    assert [recipe.strength for recipe in load_grid("some")] == [0.0, 0.0]
    file.write_text(text + "epochs = 3\n")
    with pytest.raises(
        ValueError, match="a grid of the kind 'cheaper' holds strengths, seeds, and may hold batch_size"
    ):
        load_grid("some")
    file.write_text(text.replace("slimming", "paper"))
    with pytest.raises(ValueError, match="unknown study 'paper': known ones are slimming"):
        load_grid("some")


@pytest.mark.parametrize(
    ("study", "name", "matters"),
    [
        ("slimming", "deeptransfer.pruning.slimmest_channels", True),
        ("slimming", "deeptransfer.pruning.random_channels", False),
        ("slimming", "deeptransfer.weights.noisy_weights", False),
        ("slimming", "deeptransfer.normalization.adabn.adapt_statistics", True),
        ("candidates", "deeptransfer.pruning.random_channels", True),
        ("noise", "deeptransfer.weights.noisy_weights", True),
        ("widths", "deeptransfer.normalization.switchable.SwitchableBatchNorm2d", True),
        ("widths", "deeptransfer.normalization.transnorm.TransNorm2d", False),
    ],
)
def test_the_fingerprint_reaches_the_code_of_the_study_and_no_other(study, name, matters):
    code = STUDIES[study].code()
    assert (name in reached(code.roots, [*NO_NUMBER, *code.stop])) is matters


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 3}, {"strength": 0.1}, {"levels": (0.3,)}])
def test_the_recipe_enters_the_fingerprint(change):
    assert fingerprint(replace(TINY, **change)) != fingerprint(TINY)
