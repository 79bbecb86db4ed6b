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


def test_run_prints_what_the_library_returns():
    options = "--objective da-nn --steps 4 --every 2 --batch-size 16 --dtype float64 --setting weight=0.5"
    network = ["--network", "widths=[4,4]", "--network", "hidden=[8]"]
    code, out, _ = call("run", "--task", "print:pen", *options.split(), *network)
    assert code == 0
    expected = replace(TINY, settings={"weight": 0.5})
    assert json.loads(out)["config"] == asdict(expected)
    assert json.loads(out)["curve"] == adaptation.train(expected)["curve"]


def test_grid_and_table_work_on_the_folder_of_that_name(tmp_path, monkeypatch):
    for module in (data_files, result):
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
    monkeypatch.delitem(sys.modules, "deeptransfer.__main__", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("deeptransfer", run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("run", "grid", "table", "domains"))
