"""The yardstick: paired differences with an interval, corrected by Holm."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeptransfer.runs.comparison import (
    Comparison,
    compare_pairs,
    difference_text,
    differences_table,
    holm,
    methods_table,
    paired_differences,
    signed,
)

SCORES = pd.DataFrame(
    {"bn": [60.0, 64.0, 68.0, 61.0], "dsbn": [63.0, 66.0, 71.0, 62.0], "rn": [60.0, 65.0, 67.0, 61.0]}
)


def test_a_row_equals_student_by_hand():
    row = paired_differences(SCORES, "bn").loc["dsbn"]
    delta = np.array([3.0, 2.0, 3.0, 1.0])
    half = 3.182446305 * delta.std(ddof=1) / 2  # the quantile 0.975 of t with 3 degrees of freedom; sqrt(4) = 2
    assert row["difference"] == 2.25
    assert row["low"] == pytest.approx(2.25 - half, rel=1e-8)
    assert row["high"] == pytest.approx(2.25 + half, rel=1e-8)
    assert row["units"] == row["wins"] == 4


def test_the_interval_leaves_out_zero_just_where_p_is_small():
    frame = paired_differences(SCORES, "bn")
    assert ((frame["low"] > 0) | (frame["high"] < 0)).tolist() == (frame["p"] < 0.05).tolist() == [True, False]
    wider = paired_differences(SCORES, "bn", confidence=0.99)
    assert (wider["low"] < frame["low"]).all()
    assert (wider["high"] > frame["high"]).all()


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.9, none below the one before it
    assert holm(np.array([0.03, 0.9, 0.01, 0.02])) == pytest.approx([0.06, 0.9, 0.04, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_one_comparison_and_bonferroni_and_keeps_the_order(p):
    p = np.array(p)
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(len(p) * p, 1)).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_units_that_agree_entirely():
    frame = paired_differences(SCORES.assign(same=SCORES["bn"], more=SCORES["bn"] + 1), "bn")
    assert frame.loc["same", ["difference", "low", "high", "p"]].tolist() == [0, 0, 0, 1]
    assert frame.loc["more", ["difference", "low", "high", "p"]].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (SCORES.rename(columns={"bn": "BN"}), "baseline='bn'"),
        (SCORES[["bn"]], "two or more columns"),
        (SCORES.iloc[:1], "two units or more, got 1"),
        (SCORES.assign(rn=[60.0, np.nan, 67.0, 61.0]), "no number for 'rn' in 1"),
    ],
)
def test_what_can_not_be_compared_is_named(scores, message):
    with pytest.raises(ValueError, match=message):
        paired_differences(scores, "bn")


def test_pairs_are_the_rows_of_several_baselines_corrected_for_their_number():
    found = compare_pairs(SCORES, [("dsbn", "bn"), ("bn", "rn"), ("dsbn", "rn")])
    assert list(found.index) == ["dsbn − bn", "bn − rn", "dsbn − rn"]
    against_bn, against_rn = paired_differences(SCORES, "bn"), paired_differences(SCORES, "rn")
    same = ["difference", "low", "high", "units", "wins", "p"]
    assert found.loc["dsbn − bn", same].tolist() == against_bn.loc["dsbn", same].tolist()
    assert found.loc["dsbn − rn", same].tolist() == against_rn.loc["dsbn", same].tolist()
    assert found["holm"].to_numpy() == pytest.approx(holm(found["p"].to_numpy()))


@pytest.mark.parametrize("pairs", [[], [("dsbn", "in")]])
def test_a_pair_of_unknown_columns_and_no_pair_are_refused(pairs):
    with pytest.raises(ValueError, match=r"pairs must name columns \['bn', 'dsbn', 'rn'\]"):
        compare_pairs(SCORES, pairs)


def test_differences_are_written_with_a_minus_and_bold_where_holm_sees_them():
    text = differences_table(paired_differences(SCORES.assign(more=SCORES["bn"] + 1), "bn"), unit="task")
    assert list(text.columns) == ["points", "95 % interval", "tasks above", "Holm's p"]
    assert text.loc["more"].tolist() == ["**+1.0**", "+1.0 to +1.0", "4 of 4", "0.000"]
    assert text.loc["rn", "points"] == "+0.0"
    assert text.loc["rn", "95 % interval"] == "−1.3 to +1.3"
    assert signed(-0.25, 2) == "−0.25"
    alone = paired_differences(SCORES, "bn").assign(p=0.01, holm=0.06)
    assert "*" not in "".join(differences_table(alone)["points"])  # small alone, not after the correction
    row = compare_pairs(SCORES, [("rn", "bn")]).loc["rn − bn"]
    assert difference_text(row) == "+0.0 [−1.3, 1.3]"


def made_up_runs(**norms):
    """Accuracies of one host on one task, one for each seed."""
    return pd.DataFrame(
        [
            {"task": "a:b", "objective": "cdan+e", "norm": norm, "seed": seed, "last": value}
            for norm, values in norms.items()
            for seed, value in enumerate(values)
        ]
    )


def test_a_table_is_in_the_order_and_the_words_of_the_catalogue():
    runs = made_up_runs(rn=[3.0, 4.0], mine=[1.0, 1.5], bn=[2.0, 2.5])
    table = methods_table(pd.concat([runs, runs.assign(objective="dann")]))
    assert list(table.index) == ["BatchNorm", "RN", "mine"]
    assert list(table.columns) == ["DANN", "CDAN+E"]


def test_the_best_of_a_column_is_marked_and_what_its_interval_does_not_tell_apart():
    runs = made_up_runs(bn=[60.0, 62.0, 61.0], dsbn=[70.0, 72.0, 71.2], rn=[70.5, 71.9, 71.0])
    column = methods_table(runs)["CDAN+E"]
    assert column.to_dict() == {"BatchNorm": "61.0 ± 1.0", "shared DSBN": "71.1 ± 1.0 °", "RN": "**71.1** ± 0.7"}


def test_what_was_not_run_is_empty_and_one_run_has_neither_spread_nor_mark():
    runs = pd.concat([made_up_runs(bn=[60.0], rn=[70.0]), made_up_runs(bn=[50.0]).assign(objective="dann")])
    table = methods_table(runs)
    assert table["CDAN+E"].to_dict() == {"BatchNorm": "60.0", "RN": "**70.0**"}
    assert table["DANN"].to_dict() == {"BatchNorm": "50.0", "RN": ""}


def test_over_tasks_a_task_counts_once_and_the_spread_of_tasks_is_no_spread():
    """The tasks lie 30 points apart, the methods one or two."""
    easy, hard = made_up_runs(bn=[90.0, 92.0], rn=[91.0, 93.0]), made_up_runs(bn=[60.0], rn=[62.0])
    runs = pd.concat([easy, hard.assign(task="a:c")])
    assert methods_table(runs, unit="task")["CDAN+E"].to_dict() == {"BatchNorm": "75.5 °", "RN": "**77.0**"}
    with pytest.raises(ValueError, match="several tasks"):
        methods_table(runs)


def test_a_table_may_have_a_column_for_each_task():
    runs = pd.concat([made_up_runs(bn=[60.0, 62.0], rn=[70.0, 70.0]), made_up_runs(bn=[50.0, 50.0]).assign(task="a:c")])
    table = methods_table(runs, columns="task")
    assert table["a → b"].to_dict() == {"BatchNorm": "61.0 ± 1.4 °", "RN": "**70.0** ± 0.0"}
    assert table["a → c"].to_dict() == {"BatchNorm": "50.0 ± 0.0", "RN": ""}


def test_runs_that_differ_in_what_a_table_does_not_show_are_refused():
    runs = made_up_runs(bn=[60.0, 61.0])
    with pytest.raises(ValueError, match="two runs of one norm"):
        methods_table(pd.concat([runs.assign(steps=400), runs.assign(steps=4800)]))


# ------------------------------------------------------------------------------------------ stored runs of some methods


def stored(folder, rows):
    """A grid with one run for each (task, objective, norm, seed, accuracies along the training)."""
    folder.mkdir()
    for task, objective, norm, seed, points in rows:
        source, target = task.split(":")
        config = {"source": source, "target": target, "objective": objective, "norm": norm, "seed": seed}
        selections = {name: {"accuracy": points[-1]} for name in ("last", "label_free", "oracle")}
        curve = [{"step": 10 * (i + 1), "target": point, "source": 1.0} for i, point in enumerate(points)]
        run = {"kind": "adaptation", "config": config, "selections": selections, "curve": curve}
        (folder / f"{source}{target}{objective}{norm}{seed}.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


@pytest.fixture
def grid(tmp_path):
    def rows(task, start):
        for seed in (0, 1):
            yield task, "dann", "bn", seed, [start, start + 0.1 + 0.02 * seed]
            yield task, "dann", "rn", seed, [start, start + 0.2 + 0.01 * seed]
            yield task, "dan", "bn", seed, [start, start]

    return stored(tmp_path / "grid", [*rows("a:b", 0.5), *rows("b:a", 0.3), *rows("a:a", 0.9)])


def test_a_comparison_reads_its_methods_on_its_tasks_and_no_other(grid):
    found = Comparison(["dann", "dann · rn"], ["a:b", "b:a"], [grid])
    assert sorted(set(found.runs["method"])) == ["dann", "dann · rn"]
    assert found.scores("a:b").to_numpy() == pytest.approx(np.array([[60, 70], [62, 71]]))
    assert found.scores().to_numpy() == pytest.approx(np.array([[50, 60], [52, 61]]))
    assert list(found.scores()) == ["dann", "dann · rn"]


def test_differences_of_a_comparison_are_those_of_its_scores(grid):
    found = Comparison(["dan", "dann", "dann · rn"], ["a:b", "b:a"], [grid])
    pairs = [("dann · rn", "dann"), ("dann", "dan")]
    means = found.differences(pairs)
    assert list(means.index) == ["DANN · RN − DANN", "DANN − DAN"]
    assert means["difference"].tolist() == pytest.approx([9.5, 11])
    assert means["holm"].tolist() == compare_pairs(found.scores(), pairs)["holm"].tolist()
    on_each = found.differences(pairs[:1], ["b:a", "a:b"])
    assert list(on_each.index) == ["DANN · RN − DANN, b → a", "DANN · RN − DANN, a → b"]
    assert on_each["difference"].tolist() == pytest.approx([9.5, 9.5])
    one = found.difference("dann · rn", "dann", "a:b")
    assert one[["difference", "low", "high"]].tolist() == pytest.approx(
        on_each.iloc[1][["difference", "low", "high"]].tolist()
    )


def test_a_table_of_a_comparison_begins_with_the_mean_over_tasks(grid):
    table = Comparison(["dann", "dan"], ["b:a", "a:b"], [grid]).table()
    assert list(table) == ["mean", "b → a", "a → b"]
    assert table.loc["DANN"].tolist() == ["**51.0** ± 1.4", "**41.0** ± 1.4", "**61.0** ± 1.4"]
    assert list(Comparison(["dann", "dan"], ["a:b"], [grid]).table()) == ["a → b"]


def test_curves_of_a_comparison_have_a_row_for_each_seed(grid):
    found = Comparison(["dann · rn", "dan"], ["a:b", "b:a"], [grid])
    assert found.steps == [10, 20]
    drawn = found.curves("a:b")
    assert list(drawn) == ["DANN · RN", "DAN"]
    assert drawn["DANN · RN"] == pytest.approx(np.array([[50, 70], [50, 71]]))
    assert list(found.curves("a:b", ["dan"])) == ["DAN"]
    assert found.curves("a:b", ["dan"], "source")["DAN"].tolist() == [[100, 100], [100, 100]]


def test_a_method_that_was_not_run_alike_is_named(grid):
    with pytest.raises(ValueError, match=r"'dan · rn' on 'a:b' was run with the seeds \[\], where \[0, 1\]"):
        Comparison(["dann", "dan · rn"], ["a:b"], [grid])
    (grid / "aadannrn1.json").unlink()
    with pytest.raises(ValueError, match=r"'dann · rn' on 'a:a' was run with the seeds \[0\], where \[0, 1\]"):
        Comparison(["dann", "dann · rn"], ["a:a", "a:b"], [grid])
    with pytest.raises(ValueError, match=r"'jan' on 'a:b' was run with the seeds \[\]"):
        Comparison(["jan"], ["a:b"], [grid])


def test_two_runs_of_one_seed_are_no_comparison(grid):
    run = grid / "aadannrn1.json"
    (grid / "again.json").write_text(run.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"with the seeds \[0, 1, 1\]"):
        Comparison(["dann", "dann · rn"], ["a:a"], [grid])


def test_a_host_goes_without_saying(grid):
    found = Comparison(["dan", "dann", "dann · rn"], ["a:b", "b:a"], [grid], host="dann")
    plain = Comparison(["dan", "dann", "dann · rn"], ["a:b", "b:a"], [grid])
    assert [found.label(method) for method in found.methods] == ["DAN", "BatchNorm", "RN"]
    assert dict(zip(plain.table().index, found.table().index, strict=True)) == {
        "DAN": "DAN",
        "DANN": "BatchNorm",
        "DANN · RN": "RN",
    }
    assert found.table().to_numpy().tolist() == plain.table().to_numpy().tolist()
    pairs = [("dann · rn", "dann")]
    assert list(found.differences(pairs).index) == ["RN − BatchNorm"]
    assert list(found.differences(pairs, ["a:b"]).index) == ["RN − BatchNorm, a → b"]
    assert list(found.curves("a:b")) == ["DAN", "BatchNorm", "RN"]
