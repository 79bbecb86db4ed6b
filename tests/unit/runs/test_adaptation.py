"""Adaptation: the recipe, the run it makes, and what no target label may touch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from deeptransfer.domains import TensorDomain, few_labelled
from deeptransfer.runs import adaptation
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.recipe import is_stale, recipe_of, run

NETWORK = {"widths": [4, 4], "hidden": [8]}
TINY = RunConfig(
    source="print", target="pen", objective="da-nn", steps=4, every=2, batch_size=16, dtype="float64", network=NETWORK
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = adaptation.load_domain
    monkeypatch.setattr(
        adaptation, "load_domain", lambda name, split, size=None: whole(name, split, size=size).subset(range(200))
    )
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


def test_a_recipe_gives_the_same_numbers_twice_and_another_seed_gives_others():
    first = adaptation.train(TINY)
    assert adaptation.train(TINY) == first
    assert adaptation.train(replace(TINY, seed=1))["curve"] != first["curve"]


def test_a_run_that_ends_early_is_the_beginning_of_the_whole():
    """Every schedule is that of all its steps: λ of DANN, the learning rate."""
    config = replace(TINY, objective="dann", norm="transnorm", steps=12)
    whole = adaptation.train(config)["curve"]
    assert [point["step"] for point in whole] == [2, 4, 6, 8, 10, 12]
    assert (
        adaptation.train(config, stop=4)["curve"] == whole[:2] == adaptation.train(replace(config), stop=5)["curve"][:2]
    )
    assert config.beginning()["curve"] == whole[:1]
    assert adaptation.train(replace(config, steps=4))["curve"] != whole[:2]  # other schedules


def test_a_result_is_strict_json_that_rebuilds_its_recipe_and_reports_its_curve():
    result = json.loads(json.dumps(run(TINY), allow_nan=False))
    assert recipe_of(result) == TINY
    assert not is_stale(result)
    assert [point["step"] for point in result["curve"]] == [2, 4]
    assert result["selections"]["last"] == {"step": 4, "accuracy": result["curve"][-1]["target"]}
    assert result["curve"][-1]["target"] == pytest.approx(1 - len(result["wrong"]) / 200)
    assert len(result["per_class"]) == 10


def test_selections_take_the_last_the_most_informative_and_the_best_point():
    curve = [
        {"step": 1, "target": 0.5, "information": 2.0},
        {"step": 2, "target": 0.9, "information": 1.0},
        {"step": 3, "target": 0.7, "information": 2.0},
        {"step": 4, "target": 0.6, "information": 0.5},
    ]
    assert adaptation.select(curve, "information") == {
        "last": {"step": 4, "accuracy": 0.6},
        "label_free": {"step": 1, "accuracy": 0.5},
        "oracle": {"step": 2, "accuracy": 0.9},
    }


def test_no_target_label_enters_the_training_or_the_label_free_choice(monkeypatch):
    def permuted(name, split, size=None):
        domain = load(name, split, size=size)
        images, labels = domain.tensors
        return TensorDomain(name, images, (3 * labels + 1) % 10, domain.classes) if name == "pen" else domain

    honest = adaptation.train(TINY)
    load = adaptation.load_domain
    monkeypatch.setattr(adaptation, "load_domain", permuted)
    misled = adaptation.train(TINY)
    for key in ("step", "information", "source"):
        assert [p[key] for p in misled["curve"]] == [p[key] for p in honest["curve"]]
    assert misled["selections"]["label_free"]["step"] == honest["selections"]["label_free"]["step"]
    assert misled["wrong"] != honest["wrong"]


def test_adabn_is_bn_whose_target_scores_alone_differ():
    bn, adabn = (adaptation.train(replace(TINY, norm=norm)) for norm in ("bn", "adabn"))
    for key, same in (("source", True), ("information", False)):
        assert ([p[key] for p in bn["curve"]] == [p[key] for p in adabn["curve"]]) is same


def test_source_only_learns_nothing_from_the_target():
    one, other = (adaptation.train(replace(TINY, objective="source-only", target=t)) for t in ("pen", "print"))
    assert [p["source"] for p in one["curve"]] == [p["source"] for p in other["curve"]]


def test_few_labelled_images_are_so_many_of_each_class():
    pen = adaptation.load_domain("pen", "train")
    few = few_labelled(pen, 3, seed=0)
    assert few.tensors[1].bincount().tolist() == [3] * 10
    assert not torch.equal(few.tensors[0], few_labelled(pen, 3, seed=1).tensors[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": "dam"}, "unknown method 'dam'.*dan"),
        ({"target": "pencil"}, "unknown target 'pencil'.*pen"),
        ({"dtype": "half"}, "float32"),
        ({"objective": "rn"}, "not an objective"),
        ({"norm": "dan"}, "not an objective with a normalisation"),
        ({"objective": "source-only", "norm": "rn"}, "use 'bn' or 'adabn'"),
        ({"objective": "adda"}, "source-trained start: give start"),
        ({"objective": "confusion+soft", "start": 2}, "give labelled"),
    ],
)
def test_a_recipe_that_makes_no_sense_says_why(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


# ---------------------------------------------------------------------------------------------- one's own images, sizes


@pytest.fixture
def own(tmp_path):
    """Two folders of classes, and a list of the second's images."""
    for part, level in (("mine/source", 90), ("mine/target", 40)):
        for k in range(2):
            for i in range(8):
                path = tmp_path / part / str(k) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (18 + i, 20), (level * k + i, 40, 9)).save(path)
    lines = [f"target/{k}/{i}.png {k}" for k in range(2) for i in range(8)]
    (tmp_path / "mine" / "images.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("target", ["mine/target", "mine/images.txt"])
def test_folders_and_lists_of_ones_own_are_domains_of_a_run(own, target, monkeypatch):
    monkeypatch.undo()  # whole domains
    monkeypatch.chdir(own)
    recipe = {"size": 16, "steps": 2, "every": 2, "batch_size": 4, "network": NETWORK}
    config = RunConfig(source="mine/source", target=str(own / target), **recipe)
    result = json.loads(json.dumps(run(config), allow_nan=False))
    assert recipe_of(result) == config
    assert not is_stale(result)
    assert not set(config.name) & set("/\\: ")
    assert len(result["per_class"]) == 2


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("print:pen", ("print", "pen")),
        ("a/b:c/d", ("a/b", "c/d")),
        (r"C:\a:D:\b", (r"C:\a", r"D:\b")),
        ("C:/a:pen", ("C:/a", "pen")),
        (r"pen:C:\a", ("pen", r"C:\a")),
    ],
)
def test_a_task_is_divided_at_the_colon_between_its_domains(task, expected):
    assert adaptation.split_task(task) == expected


def test_a_colon_inside_a_path_is_told_from_the_one_between(tmp_path):
    for name in ("a:b", "c"):
        for k in "01":
            (tmp_path / name / k).mkdir(parents=True)
    task = f"{tmp_path / 'a:b'}:{tmp_path / 'c'}"
    assert adaptation.split_task(task) == (str(tmp_path / "a:b"), str(tmp_path / "c"))


@pytest.mark.parametrize("task", ["print", ":pen", "print:", "", r"C:\a", "print:pen:scene"])
def test_what_is_no_task_is_refused(task):
    with pytest.raises(ValueError, match="source:target"):
        adaptation.split_task(task)


def test_scoring_has_the_size_and_the_channels_of_training(monkeypatch):
    """Grey 20 px against colour 28 px: one shape for training, both test sets and the criterion without labels."""
    small = adaptation.load_domain
    sizes = {"print": 20, "scene": None}
    monkeypatch.setattr(adaptation, "load_domain", lambda name, split, size=None: small(name, split, size=sizes[name]))
    data = adaptation.load_data(replace(TINY, target="scene"))
    domains = (data.source_test, data.target_test, data.unlabelled)
    assert (
        {tuple(domain[0][0].shape) for domain in domains}
        == {tuple(data.pair.shape)}
        == {tuple(data.pair.batch(0).xs.shape[1:])}
    )
    assert len(adaptation.train(replace(TINY, target="scene", norm="adabn"))["curve"]) == 2


def test_criteria_are_measured_at_each_point_and_the_first_selects():
    both = adaptation.train(replace(TINY, criteria=["density", "information"]))
    one = adaptation.train(TINY)
    assert [list(point) for point in both["curve"]] == [["step", "target", "source", "density", "information"]] * 2
    assert [{k: v for k, v in point.items() if k != "density"} for point in both["curve"]] == one["curve"]
    best = max(both["curve"], key=lambda point: point["density"])
    assert both["selections"]["label_free"] == {"step": best["step"], "accuracy": best["target"]}
    with pytest.raises(ValueError, match=r"criteria must be some of information, density, entropy, not \['accuracy'\]"):
        replace(TINY, criteria=["accuracy"])


def test_a_randomised_source_changes_the_run():
    assert adaptation.train(replace(TINY, randomize=True))["curve"] != adaptation.train(TINY)["curve"]
