"""Results: written whole or not at all, and the tables made from them."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, replace

import pytest

from deeptransfer.runs import result
from deeptransfer.runs.adaptation import SELECTIONS, RunConfig
from deeptransfer.runs.layerwise import LayerwiseConfig

NETWORK = {"widths": [4, 4], "hidden": [8]}
TINY = RunConfig(
    source="print", target="pen", objective="da-nn", steps=4, every=2, batch_size=16, dtype="float64", network=NETWORK
)


def test_a_result_is_visible_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    result.write_json({"old": 1}, path)
    seen = []

    def dump(result, file, **options):
        file.write('{"new"')
        file.flush()
        seen.append({other.name: other.read_text() for other in tmp_path.glob("*.json")})
        raise OSError("disk full")

    monkeypatch.setattr(result.json, "dump", dump)
    with pytest.raises(OSError, match="disk full"):
        result.write_json({"new": 2}, path)
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
        chosen = {name: {"step": 1, "accuracy": a} for name, a in zip(SELECTIONS, accuracies, strict=True)}
        result.write_json(
            {"kind": "adaptation", "config": asdict(config), "selections": chosen}, tmp_path / f"{config.name}.json"
        )
    return tmp_path


def test_a_table_equals_the_numbers_worked_out_by_hand(stored):
    frame = result.table(stored)
    rows = {(row["task"], row["objective"]): row for row in result.to_json(frame)}
    for i, name in enumerate(SELECTIONS):
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
    lines = result.to_markdown(result.table(stored)).splitlines()
    assert lines[0] == "| task | objective | norm | runs | last | label-free | oracle |"
    assert "| print:pen | dan | bn | 3 | 85.0 ± 5.0 (62) | 85.0 ± 2.0 (66) | 89.0 ± 3.0 (68) |" in lines
    assert "| pen:pen | source-only | bn | 1 | 98.0 | 97.0 | 99.0 |" in lines


def test_the_closed_gap_is_absent_without_its_ends_and_never_mixes_recipes(stored):
    for path in stored.glob("pen-to-pen*"):
        path.unlink()
    assert all(row["last"]["gap"] is None for row in result.to_json(result.table(stored)))
    other = replace(TINY, source="pen", objective="source-only", steps=9)  # an oracle, but trained for longer
    chosen = {name: {"step": 1, "accuracy": 0.99} for name in SELECTIONS}
    result.write_json({"kind": "adaptation", "config": asdict(other), "selections": chosen}, stored / "other.json")
    rows = result.to_json(result.table(stored))
    assert {row["steps"] for row in rows} == {4, 9}
    assert all(row["last"]["gap"] is None for row in rows)


@pytest.mark.parametrize("read", [result.table, result.accuracies, result.learning_curves])
def test_an_empty_folder_says_what_to_do(read, tmp_path):
    with pytest.raises(ValueError, match="run the grid first"):
        read(tmp_path)


def test_every_run_is_a_row_with_its_recipe_and_its_accuracies(stored):
    frame = result.accuracies(stored)
    assert len(frame) == len(ACCURACIES)
    means = frame[frame.task == "print:pen"].pivot_table("label_free", "objective", "norm")
    assert means.loc["dan", "bn"] == pytest.approx(85)
    assert set(frame["network"]) == {json.dumps(NETWORK)}


def test_every_point_of_every_curve_is_a_row(tmp_path):
    curve = [{"step": 2, "target": 0.5, "source": 0.9, "information": 1.5}, {"step": 4, "target": 0.25, "source": 0.8}]
    for seed in (0, 1):
        config = replace(TINY, seed=seed)
        stored = {"kind": "adaptation", "config": asdict(config), "curve": curve}
        result.write_json(stored, tmp_path / f"{config.name}.json")
    frame = result.learning_curves(tmp_path)
    assert frame[["seed", "step", "target", "source"]].values.tolist() == [
        [0, 2, 50, 90], [0, 4, 25, 80], [1, 2, 50, 90], [1, 4, 25, 80]]  # fmt: skip
    assert frame["information"].tolist()[0] == 1.5
    assert set(frame["task"]) == {"print:pen"}


def test_a_kind_of_run_without_a_curve_says_so(tmp_path):
    config = LayerwiseConfig(source="print", target="pen", labelled=3, seed=0)
    result.write_json({"kind": "layerwise", "config": asdict(config)}, tmp_path / "run.json")
    with pytest.raises(ValueError, match="'layerwise' has no curve"):
        result.learning_curves(tmp_path)


def test_a_table_of_another_kind_of_run_has_its_own_scores(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7)):
        config = LayerwiseConfig(source="print", target="pen", labelled=3, seed=seed)
        curves = {"AnB": [accuracy, 0.25], "AnB+": [accuracy, 0.75]}
        stored = {"kind": "layerwise", "config": asdict(config), "cuts": [0, 3], "accuracy": curves}
        result.write_json(stored, tmp_path / f"{config.name}.json")
    assert result.to_markdown(result.table(tmp_path)).splitlines() == [
        "| task | runs | AnB 0 | AnB 3 | AnB+ 0 | AnB+ 3 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| print:pen | 2 | 60.0 ± 14.1 | 25.0 ± 0.0 | 60.0 ± 14.1 | 75.0 ± 0.0 |",
    ]
    (row,) = result.to_json(result.table(tmp_path))
    assert row["task"] == "print:pen"
    assert row["AnB+ 3"]["mean"] == pytest.approx(75)


def test_classes_are_named_where_they_were_published_and_their_mean_leaves_out_empty_ones(tmp_path):
    for seed, accuracies in enumerate(([0.5, None, *[1.0] * 10], [1.0, 0.25, *[1.0] * 10])):
        config = asdict(TINY) | {"source": "visda2017/train", "target": "visda2017/validation", "seed": seed}
        result.write_json({"kind": "adaptation", "config": config, "per_class": accuracies}, tmp_path / f"{seed}.json")
    frame = result.table(tmp_path, per_class=True)
    heads = [name for name, what in frame.columns if what == "mean"]
    assert heads[:3] == ["mean", "aeroplane", "bicycle"]
    assert heads[-1] == "truck"
    (row,) = frame.to_dict("records")
    assert row["mean", "mean"] == pytest.approx(100 * (10.5 / 11 + 11.25 / 12) / 2)
    assert (row["aeroplane", "mean"], row["bicycle", "mean"]) == (75, 25)
    assert "(" not in result.to_markdown(frame)


def test_a_kind_without_accuracies_of_classes_says_so(tmp_path):
    result.write_json({"kind": "layerwise", "config": {}}, tmp_path / "one.json")
    with pytest.raises(ValueError, match="'layerwise' keep no accuracy of each class"):
        result.table(tmp_path, per_class=True)
