"""The protocol: a kind of run is one module, and grids, results, tables and the command line serve it."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from deeptransfer import data_files, runs
from deeptransfer.runs import cli, grid, provenance, recipe, result
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.layerwise import LayerwiseConfig
from deeptransfer.runs.recipe import fingerprint, is_stale, kind_of, recipe_class, recipe_of

INVENTED = """
from dataclasses import dataclass

from deeptransfer.runs.recipe import Code, Recipe


@dataclass(frozen=True, kw_only=True)
class Invented(Recipe):
    length: int
    seed: int = 0

    @property
    def name(self):
        return f"invented{self.length}_seed{self.seed}"

    def train(self, means):
        return {"errors": [self.seed + i for i in range(self.length)], "accuracy": 0.5 + self.seed / 4}

    def beginning(self):
        return {"errors": [self.seed]}

    def code(self):
        return Code(["deeptransfer.training.annealed"])

    @classmethod
    def from_grid(cls, grid):
        return [cls(length=grid["length"], seed=seed) for seed in grid["seeds"]]

    @staticmethod
    def scores(result):
        return {"accuracy": result["accuracy"]}
"""


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """A kind of run that the library does not know, in a folder of its own, with a grid."""
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "invented.py").write_text(INVENTED, encoding="utf-8")
    monkeypatch.setattr(runs, "__path__", [*runs.__path__, str(tmp_path / "kinds")])
    (tmp_path / "grids").mkdir()
    text = 'kind = "invented"\nlength = 3\nseeds = [0, 1]\n'
    (tmp_path / "grids" / "short.toml").write_text(text, encoding="utf-8")
    for module in (data_files, result):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    yield tmp_path / "results" / "short"
    sys.modules.pop("deeptransfer.runs.invented", None)
    vars(runs).pop("invented", None)


def call(*arguments):
    outcome = CliRunner().invoke(cli.app, list(arguments))
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_a_new_kind_of_run_is_one_module(invented, monkeypatch):
    assert call("grid", "short").startswith("2 of 2 runs done now")
    assert call("grid", "short").startswith("0 of 2 runs done now")
    assert call("table", "short").splitlines()[-1] == "| invented | 2 | 62.5 ± 17.7 |"
    stored = result.load_results("short")
    assert [entry["errors"] for entry in stored] == [[0, 1, 2], [1, 2, 3]]
    assert [recipe_of(entry) for entry in stored] == grid.load_grid("short")
    assert not any(map(is_stale, stored))
    source = provenance._source
    edited = lambda module: source(module).replace("(1 + 10 * progress)", "(10 * progress + 1)")  # noqa: E731
    monkeypatch.setattr(provenance, "_source", edited)
    assert all(map(is_stale, stored))
    assert call("restamp", "short") == "short: 1 runs begun again and equal, 2 results marked\n"
    assert not any(map(is_stale, result.load_results("short")))


def test_every_kind_is_found_by_its_name_and_an_unknown_one_is_named():
    assert {kind: recipe_class(kind) for kind in ("adaptation", "layerwise")} == {
        "adaptation": RunConfig,
        "layerwise": LayerwiseConfig,
    }
    assert kind_of(RunConfig(source="print", target="pen")) == "adaptation"
    for wrong in ("invented", "cli", "recipe", ""):
        with pytest.raises(
            ValueError,
            match=rf"unknown kind of run '{wrong}': known ones are adaptation, .*frozen, .*layerwise, .*search",
        ):
            recipe_class(wrong)


def test_a_recipe_that_promises_too_little_cannot_be_made():
    class Half(recipe.Recipe):
        name = "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_the_envelope_of_a_result_says_how_it_was_made(invented):
    (first, _) = grid.load_grid("short")
    made = json.loads(json.dumps(recipe.run(first), allow_nan=False))
    assert made["kind"] == "invented"
    assert made["config"] == {"length": 3, "seed": 0}
    assert made["fingerprint"] == fingerprint(first)
    assert {"torch", "numpy", "python", "deeptransfer"} <= made["versions"].keys()
    assert {"device", "processes", "threads", "seconds"} <= made.keys()
