"""Runs, fingerprints, tables and the command line."""

from __future__ import annotations

import json
import re
import runpy
import statistics
import sys
from dataclasses import asdict, replace

import pytest
import torch
from typer.testing import CliRunner

from deeptransfer import __main__ as command_line
from deeptransfer import experiments, grids, provenance, results
from deeptransfer.domains import TensorDomain
from deeptransfer.experiments import RunConfig, fingerprint

NETWORK = {"widths": [4, 4], "hidden": [8]}
TINY = RunConfig(
    source="print", target="pen", objective="da-nn", steps=4, every=2, batch_size=16, dtype="float64", network=NETWORK
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = experiments.load_domain
    monkeypatch.setattr(
        experiments, "load_domain", lambda name, split, size=None: whole(name, split, size=size).subset(range(200))
    )
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


# -------------------------------------------------------------------------------------------------------------- runs


def test_a_recipe_gives_the_same_numbers_twice_and_another_seed_gives_others():
    first = experiments.train(TINY)
    assert experiments.train(TINY) == first
    assert experiments.train(replace(TINY, seed=1))["curve"] != first["curve"]


def test_a_result_is_strict_json_that_rebuilds_its_recipe_and_reports_its_curve():
    result = json.loads(json.dumps(experiments.run(TINY), allow_nan=False))
    assert RunConfig(**result["config"]) == TINY
    assert not experiments.is_stale(result)
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
    assert experiments.select(curve) == {
        "last": {"step": 4, "accuracy": 0.6},
        "label_free": {"step": 1, "accuracy": 0.5},
        "oracle": {"step": 2, "accuracy": 0.9},
    }


def test_no_target_label_enters_the_training_or_the_label_free_choice(monkeypatch):
    def permuted(name, split, size=None):
        domain = load(name, split, size=size)
        images, labels = domain.tensors
        return TensorDomain(name, images, (3 * labels + 1) % 10, domain.classes) if name == "pen" else domain

    honest = experiments.train(TINY)
    load = experiments.load_domain
    monkeypatch.setattr(experiments, "load_domain", permuted)
    misled = experiments.train(TINY)
    for key in ("step", "information", "source"):
        assert [p[key] for p in misled["curve"]] == [p[key] for p in honest["curve"]]
    assert misled["selections"]["label_free"]["step"] == honest["selections"]["label_free"]["step"]
    assert misled["wrong"] != honest["wrong"]


def test_adabn_is_bn_whose_target_scores_alone_differ():
    bn, adabn = (experiments.train(replace(TINY, norm=norm)) for norm in ("bn", "adabn"))
    for key, same in (("source", True), ("information", False)):
        assert ([p[key] for p in bn["curve"]] == [p[key] for p in adabn["curve"]]) is same


def test_source_only_learns_nothing_from_the_target():
    one, other = (experiments.train(replace(TINY, objective="source-only", target=t)) for t in ("pen", "print"))
    assert [p["source"] for p in one["curve"]] == [p["source"] for p in other["curve"]]


def test_few_labelled_images_are_so_many_of_each_class():
    pen = experiments.load_domain("pen", "train")
    few = experiments.few_labelled(pen, 3, seed=0)
    assert few.tensors[1].bincount().tolist() == [3] * 10
    assert not torch.equal(few.tensors[0], experiments.few_labelled(pen, 3, seed=1).tensors[0])


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


# ------------------------------------------------------------------------------------------------------ fingerprints


def edited(monkeypatch, module, old, new):
    """Let the fingerprint see a module as if it had been edited."""
    source = provenance._source

    def changed(name):
        text = source(name)
        if name == module:
            assert old in text
            text = text.replace(old, new)
        return text

    monkeypatch.setattr(provenance, "_source", changed)


EDITS = [
    # what is edited, and whether it makes a number of DaNN on plain BatchNorm
    (
        "deeptransfer.objectives",
        '"mmd": self.strength(progress) * mmd2',
        '"mmd": -self.strength(progress) * mmd2',
        True,
    ),
    ("deeptransfer.objectives", "F.cross_entropy(logits, labels)}", "F.cross_entropy(logits, labels) * 2}", True),
    ("deeptransfer.networks", "padding=2", "padding=1", True),
    ("deeptransfer.training", "(1 + 10 * progress)", "(1 + 9 * progress)", True),
    ("deeptransfer.domains.builtin", "PEN_TRAIN = 1000", "PEN_TRAIN = 999", True),
    ("deeptransfer.domains.builtin", "PEN_SIDE = 22", "PEN_SIDE = 20", True),
    ("deeptransfer.domains.builtin", "SCENE_TRAIN_DIGITS = 497", "SCENE_TRAIN_DIGITS = 496", False),  # another domain
    ("deeptransfer.domains.dataset", "images.float() / 255 if", "images.float() / 256 if", True),
    ("deeptransfer.domains.pair", "state >> 1", "state >> 2", True),
    ("deeptransfer.normalization.split", "torch.cat(batches)", "torch.cat(batches[::-1])", True),
    ("deeptransfer.selection", "_entropy(log_mean) -", "_entropy(log_mean) +", True),
    ("deeptransfer.experiments", "max(curve", "min(curve", True),
    ("deeptransfer.objectives", "Mean entropy of the target's predictions.", "Another docstring.", False),
    ("deeptransfer.objectives", "Domain adaptive neural network: MMD²", "Something else: MMD²", False),
    ("deeptransfer.training", "# one transfer for all terms", "# a comment", False),
    ("deeptransfer.training", "loss {name!r} is", "the loss {name!r} is", False),
    ("deeptransfer.training", "if steps < 1 or", "if steps < 2 or", False),  # a guard: it can only raise
    ("deeptransfer.training", "if optimizer is None:", "if optimizer is not None:", True),
    ("deeptransfer.training", "lr: float = 0.02", 'lr: "a rate" = 0.02', False),
    ("deeptransfer.objectives", "(confidence >= self.threshold)", "(confidence > self.threshold)", False),
    ("deeptransfer.discrepancy", "def linear_time_mmd2(", "def renamed(", False),
    (
        "deeptransfer.normalization.transnorm",
        "torch.full_like(source.mean, 2)",
        "torch.full_like(source.mean, 3)",
        False,
    ),
    ("deeptransfer.normalization.passes", "def measure(", "def measured(", False),
]


@pytest.mark.parametrize(("module", "old", "new", "matters"), EDITS)
def test_an_edit_changes_the_fingerprint_exactly_if_it_can_change_the_numbers(monkeypatch, module, old, new, matters):
    before = fingerprint(TINY)
    edited(monkeypatch, module, old, new)
    assert (fingerprint(TINY) != before) is matters


def test_an_edit_of_a_layer_concerns_those_who_use_it(monkeypatch):
    recipes = {norm: replace(TINY, norm=norm) for norm in ("bn", "dsbn", "transnorm", "transnorm-uniform")}
    before = {norm: fingerprint(config) for norm, config in recipes.items()}
    edited(
        monkeypatch, "deeptransfer.normalization.transnorm", "full_like(source.mean, 2)", "full_like(source.mean, 3)"
    )
    changed = {norm for norm, config in recipes.items() if fingerprint(config) != before[norm]}
    assert changed == {"transnorm", "transnorm-uniform"}


@pytest.mark.parametrize("change", [{"seed": 1}, {"settings": {"weight": 2.0}}, {"lr": 0.1}, {"network": {}}])
def test_the_recipe_enters_the_fingerprint(change):
    assert fingerprint(replace(TINY, **change)) != fingerprint(TINY)


def test_a_name_that_is_not_defined_is_an_error():
    with pytest.raises(ValueError, match="no 'absent'"):
        provenance.fingerprint_code(["deeptransfer.training.absent"])


def test_a_result_of_a_recipe_that_is_no_longer_known_is_stale():
    result = {"config": asdict(TINY), "fingerprint": fingerprint(TINY)}
    assert not experiments.is_stale(result)
    assert experiments.is_stale({**result, "config": {**result["config"], "colour": 1}})
    assert experiments.is_stale({**result, "config": {"source": "print"}})
    assert experiments.is_stale({**result, "fingerprint": "0" * 16})
    assert experiments.is_stale({**result, "config": {**result["config"], "objective": "renamed"}})


# ------------------------------------------------------------------------------------------------------------ tables


def test_a_result_is_visible_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    results.write_json({"old": 1}, path)
    seen = []

    def dump(result, file, **options):
        file.write('{"new"')
        file.flush()
        seen.append({other.name: other.read_text() for other in tmp_path.glob("*.json")})
        raise OSError("disk full")

    monkeypatch.setattr(results.json, "dump", dump)
    with pytest.raises(OSError, match="disk full"):
        results.write_json({"new": 2}, path)
    assert seen == [{"run.json": path.read_text()}]
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


ACCURACIES = {  # (source, target, objective, seed): last, label-free, oracle
    ("print", "pen", "source-only", 0): (0.60, 0.62, 0.66),
    ("print", "pen", "source-only", 1): (0.64, 0.64, 0.70),
    ("print", "pen", "source-only", 2): (0.68, 0.60, 0.68),
    ("print", "pen", "dan", 0): (0.80, 0.85, 0.86),
    ("print", "pen", "dan", 1): (0.90, 0.87, 0.92),
    ("print", "pen", "dan", 2): (0.85, 0.83, 0.89),
    ("pen", "pen", "source-only", 0): (0.98, 0.97, 0.99),
}


@pytest.fixture
def stored(tmp_path):
    for (source, target, objective, seed), accuracies in ACCURACIES.items():
        config = replace(TINY, source=source, target=target, objective=objective, seed=seed)
        chosen = {name: {"step": 1, "accuracy": a} for name, a in zip(results.SELECTIONS, accuracies, strict=True)}
        results.write_json({"config": asdict(config), "selections": chosen}, tmp_path / f"{config.name}.json")
    return tmp_path


def test_a_table_equals_the_numbers_worked_out_by_hand(stored):
    frame = results.table(stored)
    rows = {(row["task"], row["objective"]): row for row in results.to_json(frame)}
    for i, name in enumerate(results.SELECTIONS):
        of = {key: [100 * a[i] for k, a in ACCURACIES.items() if k[1:3] == key[1:] and k[0] == key[0]] for key in [
            ("print", "pen", "dan"), ("print", "pen", "source-only"), ("pen", "pen", "source-only")]}  # fmt: skip
        dan, low, high = (statistics.mean(values) for values in of.values())
        row = rows["print:pen", "dan"]
        assert row["runs"] == 3
        assert row[name]["mean"] == pytest.approx(dan)
        assert row[name]["sd"] == pytest.approx(statistics.stdev(of["print", "pen", "dan"]))
        assert row[name]["gap"] == pytest.approx(100 * (dan - low) / (high - low))
        assert rows["print:pen", "source-only"][name]["gap"] == 0
        assert rows["pen:pen", "source-only"][name] == {"mean": pytest.approx(high), "sd": None, "gap": None}
    assert rows["print:pen", "dan"]["last"]["gap"] == pytest.approx(61.7647, abs=1e-4)  # (85 − 64) / (98 − 64)


def test_a_table_in_markdown(stored):
    lines = results.to_markdown(results.table(stored)).splitlines()
    assert lines[0] == "| task | objective | norm | runs | last | label-free | oracle |"
    assert "| print:pen | dan | bn | 3 | 85.0 ± 5.0 (62) | 85.0 ± 2.0 (66) | 89.0 ± 3.0 (68) |" in lines
    assert "| pen:pen | source-only | bn | 1 | 98.0 | 97.0 | 99.0 |" in lines


def test_the_closed_gap_is_absent_without_its_ends_and_never_mixes_recipes(stored):
    for path in stored.glob("pen-to-pen*"):
        path.unlink()
    assert all(row["last"]["gap"] is None for row in results.to_json(results.table(stored)))
    other = replace(TINY, source="pen", objective="source-only", steps=9)  # an oracle, but trained for longer
    chosen = {name: {"step": 1, "accuracy": 0.99} for name in results.SELECTIONS}
    results.write_json({"config": asdict(other), "selections": chosen}, stored / "other.json")
    rows = results.to_json(results.table(stored))
    assert {row["steps"] for row in rows} == {4, 9}
    assert all(row["last"]["gap"] is None for row in rows)


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run the grid first"):
        results.table(tmp_path)


# ------------------------------------------------------------------------------------------------------ command line


def call(*arguments):
    result = CliRunner().invoke(command_line.app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--task", "print:pen", "--objective", "dam"], "unknown method 'dam': known ones are source-only"),
        (["run", "--task", "print:pencil"], "unknown target 'pencil': known ones are print, pen"),
        (["run", "--task", "print"], "source:target"),
        (["run", "--task", "print:pen", "--steps", "0"], "steps"),
        (["run", "--task", "print:pen", "--objective", "dan", "--setting", "wait=1"], "known ones are weight"),
        (["run", "--task", "print:pen", "--setting", "weight"], "name=value"),
        (["grid", "absent"], "unknown grid 'absent': known ones are"),
        (["table", "absent"], "holds no results"),
    ],
)
def test_a_wrong_value_ends_with_its_message_and_code_2(arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert re.match(r"Error: .*", err)
    assert message in err
    assert "Traceback" not in err


def test_run_prints_what_the_library_returns(tmp_path):
    options = "--objective da-nn --steps 4 --every 2 --batch-size 16 --dtype float64 --setting weight=0.5"
    network = ["--network", "widths=[4,4]", "--network", "hidden=[8]"]
    code, out, _ = call("run", "--task", "print:pen", *options.split(), *network)
    assert code == 0
    expected = replace(TINY, settings={"weight": 0.5})
    assert json.loads(out)["config"] == asdict(expected)
    assert json.loads(out)["curve"] == experiments.train(expected)["curve"]


def test_grid_and_table_work_on_the_folder_of_that_name(tmp_path, monkeypatch):
    for module in (experiments, grids):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "small.toml").write_text(
        'objectives = ["source-only"]\ntasks = ["print:pen"]\nseeds = [0]\n[recipe]\nsteps = 1\nbatch_size = 8\n'
        "network = { widths = [4], hidden = [8] }\n"
    )
    assert call("grid", "small")[:2] == (0, f"1 of 1 runs done now, in {tmp_path / 'results' / 'small'}\n")
    assert call("grid", "small")[1].startswith("0 of 1 runs done now")
    assert "| print:pen | source-only | bn | 1 |" in call("table", "small")[1]
    assert json.loads(call("table", "small", "--json")[1])[0]["task"] == "print:pen"


def test_domains_are_listed_with_their_sizes():
    assert "pen: 1,000 train, 797 test" in call("domains", "list")[1]


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deeptransfer", "--help"])
    monkeypatch.delitem(sys.modules, "deeptransfer.__main__")
    with pytest.raises(SystemExit) as end:
        runpy.run_module("deeptransfer", run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("run", "grid", "table", "domains"))
