"""The command line: it calls the library, and says what is wrong without a traceback."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from deeptransfer import data_files
from deeptransfer.runs import adaptation, cli, result
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.summary import summary

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


def call(*arguments):
    result = CliRunner().invoke(cli.app, list(arguments))
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


def test_run_prints_as_json_what_the_library_returns():
    options = "--objective da-nn --steps 4 --every 2 --batch-size 16 --dtype float64 --setting weight=0.5"
    network = ["--network", "widths=[4,4]", "--network", "hidden=[8]"]
    code, out, _ = call("run", "--task", "print:pen", *options.split(), *network, "--json")
    assert code == 0
    expected = replace(TINY, settings={"weight": 0.5})
    assert json.loads(out)["config"] == asdict(expected)
    assert json.loads(out)["curve"] == adaptation.train(expected)["curve"]


def test_run_prints_a_summary_and_stores_the_result(tmp_path):
    options = "--objective da-nn --steps 4 --every 2 --batch-size 16 --network widths=[4,4] --network hidden=[8]"
    code, out, err = call("run", "--task", "print:pen", *options.split(), "--out", str(tmp_path / "new" / "r.json"))
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "new" / "r.json").read_text())
    lines = out.splitlines()
    assert lines[0] == "print to pen: da-nn, bn, seed 0"
    assert lines[1].startswith("4 updates in ")
    rows = [line.split() for line in lines if re.match(r" +\d", line)]
    expected = [
        [
            str(point["step"]),
            *(f"{100 * point[name]:.1f}" for name in ("target", "source")),
            f"{point['information']:.3f}",
        ]
        for point in stored["curve"]
    ]
    assert rows == expected
    for name, chosen in stored["selections"].items():
        (line,) = (line for line in lines if line.startswith(name.replace("_", "-")))
        assert line.split()[1] == f"{100 * chosen['accuracy']:.1f}"
        assert f"after {chosen['step']} updates" in line
    there = [part for part in stored["per_class"] if part is not None]
    assert f"per class {100 * sum(there) / len(there):9.1f}" in out


def test_a_long_curve_is_thinned_out_and_keeps_both_ends():
    curve = [{"step": 10 * k, "target": k / 100, "source": 0.5, "information": 1.0} for k in range(1, 100)]
    chosen = {key: {"step": 990, "accuracy": 0.99} for key in adaptation.SELECTIONS}
    made = {"config": asdict(TINY), "seconds": 1.0, "device": "cpu", "per_class": [1.0, None, 0.5]}
    text = summary(made | {"curve": curve, "selections": chosen})
    steps = [int(line.split()[0]) for line in text.splitlines() if re.match(r" +\d", line)]
    assert (steps[0], steps[-1], len(steps)) == (10, 990, 12)
    assert "75.0   mean over the 3 classes" in text


def test_grid_and_table_work_on_the_folder_of_that_name(tmp_path, monkeypatch):
    for module in (data_files, result):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    (tmp_path / "datasets.toml").write_text("")
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "small.toml").write_text(
        'objectives = ["source-only"]\ntasks = ["print:pen"]\nseeds = [0]\n[recipe]\nsteps = 1\nbatch_size = 8\n'
        "network = { widths = [4], hidden = [8] }\n"
    )
    assert call("grid", "small")[:2] == (0, f"1 of 1 runs done now, in {tmp_path / 'results' / 'small'}\n")
    assert call("grid", "small")[1].startswith("0 of 1 runs done now")
    assert "| print:pen | source-only | bn | 1 |" in call("table", "small")[1]
    assert json.loads(call("table", "small", "--json")[1])[0]["task"] == "print:pen"
    heads = call("table", "small", "--per-class")[1].splitlines()[0].split(" | ")
    assert [head.strip("| ") for head in heads[-11:]] == ["mean", *"0123456789"]


def test_domains_are_listed_with_their_sizes():
    assert "pen: 1,000 train, 797 test" in call("domains", "list")[1]


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deeptransfer", "--help"])
    monkeypatch.delitem(sys.modules, "deeptransfer.__main__", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("deeptransfer", run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("run", "predict", "grid", "table", "domains"))
