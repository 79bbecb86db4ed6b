"""The layer-wise experiment of chapter 1: its tasks, its treatments, its grid, its fingerprint."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from deeptransfer import data_files
from deeptransfer.networks import small_cnn
from deeptransfer.runs import grid, layerwise
from deeptransfer.runs.layerwise import LayerwiseConfig, deal_tasks, depths, restrict
from deeptransfer.runs.provenance import reached
from deeptransfer.runs.recipe import NO_NUMBER, fingerprint, is_stale, recipe_of, run

TINY = LayerwiseConfig(
    source="print", target="pen", labelled=2, base_steps=2, steps=2, batch_size=8, widths=(2, 2), hidden=(4,)
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = layerwise.load_domain
    monkeypatch.setattr(layerwise, "load_domain", lambda name, split="train": whole(name, split).subset(range(150)))
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


def test_the_tasks_share_no_class_and_b_has_so_many_labelled_images_of_each():
    tasks = deal_tasks(TINY)
    assert sorted((*tasks.a.classes, *tasks.b.classes)) == list("0123456789")
    assert tasks.b.tensors[1].bincount().tolist() == [2] * 5
    assert tasks.b_test.classes == tasks.b.classes
    assert deal_tasks(replace(TINY, seed=1)).a.classes != tasks.a.classes


def test_restriction_keeps_each_image_with_its_own_class():
    whole = layerwise.load_domain("print")
    part = restrict(whole, [7, 2])
    images, labels = whole.tensors
    assert part.classes == ("7", "2")
    assert torch.equal(part.tensors[0][part.tensors[1] == 0], images[labels == 7])
    assert torch.equal(part.tensors[0][part.tensors[1] == 1], images[labels == 2])


def test_networks_are_cut_behind_layers_with_weights_only():
    """n counts what can be copied: a ReLU is no layer, and the classifier belongs to its task."""
    network = small_cnn(widths=(2, 2), hidden=(4, 4), size=8)
    assert [list(network.blocks)[cut - 1] for cut in depths(network)[1:]] == ["block1", "block2", "fc1", "fc2"]


def test_treatments_differ_in_nothing_but_what_is_kept(monkeypatch):
    """At n = 0 all are one network; above it, what is not kept starts from the same weights in all of them."""
    started = []
    monkeypatch.setattr(layerwise, "fit", lambda network, *_: started.append(network))
    tasks = deal_tasks(TINY)
    base_a, base_b = (layerwise.train_base(task, replace(TINY, seed=s), 2) for s, task in enumerate((tasks.a, tasks.b)))
    for name, n in (("BnB", 0), ("AnB+", 0), ("AnB", 2), ("random", 2)):
        layerwise.train_treatment(name, n, base_a, base_b, tasks.b, TINY)
    scratch, also_scratch, cut, random = (network.state_dict() for network in started[2:])
    assert all(torch.equal(scratch[name], also_scratch[name]) for name in scratch)
    kept = ("features.block1", "features.block2")
    assert all(torch.equal(scratch[name], random[name]) for name in scratch)
    weights = [name for name in scratch if name.endswith("0.weight") and name.startswith(kept)]
    assert weights
    assert not any(torch.equal(scratch[name], cut[name]) for name in weights)
    assert all(torch.equal(scratch[name], cut[name]) for name in scratch if not name.startswith(kept))


def test_a_result_is_strict_json_with_every_treatment_at_every_depth_and_repeats():
    result = json.loads(json.dumps(run(TINY), allow_nan=False))
    assert recipe_of(result) == TINY
    assert not is_stale(result)
    assert result["cuts"] == [0, 1, 2, 3]
    assert set(result["accuracy"]) == {"BnB", "AnB", "BnB+", "AnB+", "random"}
    curves = [*result["accuracy"].values(), *result["harmful"].values()]
    assert all(len(curve) == 4 and curve[0] == curves[0][0] for curve in curves)
    again = layerwise.train_layerwise(TINY)
    assert (again["accuracy"], again["harmful"]) == (result["accuracy"], result["harmful"])
    begun = json.loads(json.dumps(TINY.beginning()))
    assert begun == {key: result[key] for key in ("classes", "cuts", "base_b")} | {
        "accuracy": {name: curve[:1] for name, curve in result["accuracy"].items()}
    }


def test_shuffling_keeps_the_images_and_the_number_of_each_label():
    task = deal_tasks(TINY).a
    shuffled = layerwise.shuffle_labels(task, seed=0)
    assert torch.equal(shuffled.tensors[0], task.tensors[0])
    assert not torch.equal(shuffled.tensors[1], task.tensors[1])
    assert torch.equal(shuffled.tensors[1].bincount(), task.tensors[1].bincount())


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 3}, {"lr": 0.1}, {"labelled": 3}, {"widths": (2, 3)}])
def test_the_recipe_enters_the_fingerprint(change):
    assert fingerprint(replace(TINY, **change)) != fingerprint(TINY)


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("deeptransfer.transferability.freeze", True),
        ("deeptransfer.networks.initialize", True),
        ("deeptransfer.domains.builtin.draw_print", True),
        ("deeptransfer.runs.layerwise.shuffle_labels", True),
        ("deeptransfer.objectives.DaNN", False),
        ("deeptransfer.normalization.transnorm.TransNorm2d", False),
    ],
)
def test_the_fingerprint_reaches_the_code_that_makes_the_numbers_and_no_other(name, matters):
    code = TINY.code()
    assert (name in reached(code.roots, [*NO_NUMBER, *code.stop])) is matters


@pytest.mark.parametrize("config", [{}, {"source": "print"}, asdict(TINY) | {"source": "paint"}])
def test_a_result_of_a_recipe_that_is_no_longer_known_is_stale(config):
    assert is_stale({"kind": "layerwise", "config": config, "fingerprint": fingerprint(TINY)})


def test_a_grid_holds_one_recipe_for_each_seed_and_says_what_is_wrong_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    file = tmp_path / "grids" / "some.toml"
    text = 'kind = "layerwise"\nsource = "print"\ntarget = "pen"\nlabelled = 2\nwidths = [2, 2]\n'
    file.write_text("seeds = [0, 3]\n" + text, encoding="utf-8")
    expected = LayerwiseConfig(source="print", target="pen", labelled=2, widths=(2, 2))
    assert grid.load_grid("some") == [expected, replace(expected, seed=3)]
    for wrong in (text, 'seeds = [0]\nsauce = "print"\n' + text):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"some\.toml: a grid of the kind 'layerwise' holds seeds"):
            grid.load_grid("some")


@pytest.mark.parametrize("wrong", [{"source": "mnist"}, {"target": "paint"}])
def test_a_domain_that_is_not_built_in_is_an_error(wrong):
    with pytest.raises(ValueError, match="built-in ones are print"):
        replace(TINY, **wrong)
