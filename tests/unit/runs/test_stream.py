"""The streams of chapter 14: their methods, their memory, their grid, their fingerprint."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from deeptransfer import data_files
from deeptransfer.networks import small_cnn
from deeptransfer.normalization import Tent, statistics_divergences
from deeptransfer.runs import grid, stream
from deeptransfer.runs.provenance import reached
from deeptransfer.runs.recipe import NO_NUMBER, fingerprint, is_stale, recipe_of, run
from deeptransfer.runs.stream import METHODS, Memory, StreamConfig, parse_level, play, streamed, train_source
from deeptransfer.selection import information_maximization

TINY = StreamConfig(
    source="print",
    methods={"source": (8,), "prior": (1, 8), "tent": (1, 8), "lame": (8,), "robust": (8,)},
    corruptions=("clean", "fog 5"),
    orders=("random", "sorted"),
    images=40,
    steps=4,
    batch_size=8,
    widths=(2,),
    hidden=(4,),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = stream.load_domain
    monkeypatch.setattr(stream, "load_domain", lambda name, split="train": whole(name, split).subset(range(150)))
    monkeypatch.setattr(stream, "MATCHING_STEPS", 2)
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


@pytest.fixture
def network():
    return small_cnn(widths=(2, 3), hidden=(4,), seed=1).eval()


def test_a_result_is_strict_json_with_every_method_and_repeats():
    result = json.loads(json.dumps(run(TINY), allow_nan=False))
    assert recipe_of(result) == TINY
    assert not is_stale(result)
    accuracy = result["accuracy"]
    assert list(accuracy) == list(TINY.methods)
    assert list(accuracy["source"]) == ["random"]  # the order does not matter to it
    assert list(accuracy["prior"]) == ["random", "sorted"]
    assert accuracy["tent"]["sorted"]["1"] == [None, None]  # one value per channel in fc1
    assert all(0 <= value <= 1 for value in accuracy["tent"]["sorted"]["8"])
    assert [step for step, _ in result["curve"]] == [1, 2, 3, 4]
    begun = json.loads(json.dumps(TINY.beginning()))
    assert begun["levels"] == ["clean"]
    for method, orders in begun["accuracy"].items():
        for order, sizes in orders.items():
            assert sizes == {size: values[:1] for size, values in accuracy[method][order].items()}
    scores = TINY.scores(result)
    assert scores["lame random 8"] == sum(accuracy["lame"]["random"]["8"]) / 2
    assert "tent random 1" not in scores


@pytest.mark.parametrize("method", METHODS)
def test_every_method_predicts_and_leaves_the_network_as_it_is(method, network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, labels = streamed(TINY, "noise 5")
    scored = play(TINY, network, method, "random", 8, images, labels)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert 0 <= scored <= 1
    assert METHODS[method](network, TINY, images)(images[:8]).shape == (8, 10)


def test_tent_s_rates_are_the_recipe_s_and_ten_times_that(network):
    for method, lr in (("tent", 1e-3), ("tent fast", 1e-2)):
        predict = METHODS[method](network, TINY, torch.empty(0))
        assert isinstance(predict, Tent)
        assert predict.lr == pytest.approx(lr)


@pytest.mark.parametrize("method", ["robust", "robust recent"])
def test_the_memory_s_updates_do_not_depend_on_the_batch_size(method, network):
    config = replace(TINY, images=140)
    images, labels = streamed(config, "fog 5")
    assert play(config, network, method, "sorted", 1, images, labels) == play(
        config, network, method, "sorted", 64, images, labels
    )


def test_a_balanced_memory_lets_the_crowded_class_go_and_the_other_the_oldest():
    kept = {}
    for balanced in (True, False):
        memory = Memory(3, balanced)
        for place, predicted in enumerate((7, 1, 1, 1, 2)):
            memory.add(torch.tensor([float(place)]), predicted)
        kept[balanced] = memory.images().flatten().tolist()
    assert kept == {True: [0.0, 3.0, 4.0], False: [2.0, 3.0, 4.0]}


def test_a_stream_is_the_clean_images_or_their_corruption_with_labels_in_place():
    (clean, labels), (fog, same) = (streamed(TINY, level) for level in ("clean", "fog 5"))
    assert clean.shape == fog.shape == (40, 1, 28, 28)
    assert torch.equal(labels, same)
    assert fog.mean() != clean.mean()
    assert clean.dtype == torch.float32


def test_the_network_of_note_has_its_layers_and_predicts_each_image_by_itself():
    network, _ = train_source(replace(TINY, norm="note"))
    images, _ = streamed(TINY, "fog 5")
    predict = METHODS["source"](network, TINY, images)
    torch.testing.assert_close(predict(images[:1]), predict(images)[:1])
    assert type(network.features.block1[1]).__name__ == "InstanceAwareBatchNorm2d"


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 3}, {"tent_lr": 0.1}, {"images": 39}, {"norm": "note"}])
def test_the_recipe_enters_the_fingerprint(change):
    assert fingerprint(replace(TINY, **change)) != fingerprint(TINY)


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("deeptransfer.normalization.test_time.Tent", True),
        ("deeptransfer.normalization.lame.LAME", True),
        ("deeptransfer.domains.corruptions.CORRUPTIONS", True),
        ("deeptransfer.domains.builtin.draw_print", True),
        ("deeptransfer.objectives.DaNN", False),
    ],
)
def test_the_fingerprint_reaches_the_code_that_makes_the_numbers_and_no_other(name, matters):
    code = TINY.code()
    assert (name in reached(code.roots, [*NO_NUMBER, *code.stop])) is matters


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source": "mnist"}, "built-in ones are print"),
        ({"methods": {"tend": (8,)}}, "known ones are source, .*tent"),
        ({"methods": {"tent": (0,)}}, "batch sizes must be 1 or more"),
        ({"orders": ("backwards",)}, "known ones are random"),
        ({"corruptions": ("fog",)}, "such as 'fog 5'"),
        ({"corruptions": ("frost 3",)}, "names are contrast"),
        ({"norm": "in"}, "norm must be one of bn, note"),
    ],
)
def test_wrong_recipes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_levels():
    assert parse_level("clean") is None
    assert parse_level("fog 5") == ("fog", 5)


@pytest.mark.parametrize("config", [{}, {"source": "print"}, asdict(TINY) | {"source": "paint"}])
def test_a_result_of_a_recipe_that_is_no_longer_known_is_stale(config):
    assert is_stale({"kind": "stream", "config": config, "fingerprint": fingerprint(TINY)})


def test_a_grid_holds_one_recipe_for_each_seed_and_says_what_is_wrong_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    file = tmp_path / "grids" / "some.toml"
    text = 'kind = "stream"\nsource = "print"\ncorruptions = ["clean"]\n'
    methods = "\n[methods]\nsource = [8]\n"
    file.write_text("seeds = [0, 3]\n" + text + methods, encoding="utf-8")
    expected = StreamConfig(source="print", corruptions=("clean",), methods={"source": (8,)})
    assert grid.load_grid("some") == [expected, replace(expected, seed=3)]
    for wrong in (text + methods, 'seeds = [0]\nsauce = "print"\n' + text + methods):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"some\.toml: a grid of the kind 'stream' holds seeds"):
            grid.load_grid("some")


def test_matching_moves_the_first_blocks_until_the_others_meet_what_they_stored(monkeypatch):
    monkeypatch.setattr(stream, "MATCHING_STEPS", 200)
    network = small_cnn(widths=(2, 3, 4), hidden=(4,), seed=1)
    draws = torch.Generator().manual_seed(0)
    source, target = torch.rand(96, 1, 28, 28, generator=draws), 0.2 + 0.1 * torch.rand(96, 1, 28, 28, generator=draws)
    for _ in range(30):
        network(source)  # moves the running statistics
    before = copy.deepcopy(network.eval())
    matched = stream.match_statistics(copy.deepcopy(network), target, seed=0)
    informed = stream.match_statistics(copy.deepcopy(network), target, seed=0, information=5.0)

    def distance(one):
        rest = nn.Sequential(one.features.block3, one.features.fc1)
        x = one.features.block2(one.features.block1(one.standardize(target)))
        with torch.no_grad(), statistics_divergences(rest) as found:
            rest(x)
        return torch.stack(found).sum().item()

    assert distance(matched) < 0.2 * distance(before)
    for name, tensor in matched.state_dict().items():
        kept = torch.equal(tensor, before.state_dict()[name])
        assert kept == (not name.startswith(("features.block1", "features.block2"))), name
    with torch.no_grad():
        scores = [information_maximization(one(target).logits) for one in (matched, informed)]
    assert scores[1] > scores[0]
    assert not matched.training


@pytest.mark.parametrize("name", ["test-time", "test-time-long"])
def test_cotta_stands_beside_methods_that_saw_the_same_streams(name):
    """Chapter 14 prints both in one table."""
    length = name.removeprefix("test-time")
    others, cotta = grid.load_grid(name), grid.load_grid(f"test-time-cotta{length}")
    same = {"source": (1,)}
    assert [replace(r, methods=same) for r in others] == [replace(r, methods=same) for r in cotta]


def test_a_recipe_without_a_method_is_refused():
    with pytest.raises(ValueError, match="methods is empty: name one or more of source, "):
        StreamConfig(source="print", methods={}, corruptions=("clean",))
