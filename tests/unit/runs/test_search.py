"""Successive halving: who goes on, from where, and what decides."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from statistics import mean

import pytest

from deeptransfer import data_files
from deeptransfer.runs import adaptation, result, search
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.grid import complete, load_grid
from deeptransfer.runs.recipe import Means, is_stale, recipe_of, run
from deeptransfer.runs.search import SearchConfig

RECIPE = {"steps": 8, "batch_size": 16, "scored": 100, "network": {"widths": [4, 4], "hidden": [8]}}
TINY = SearchConfig(
    source="pen", target="print", objective="dann", rounds=(2, 4), keep=(2,), rates=(0.01, 0.1), recipe=RECIPE
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = adaptation.load_domain
    monkeypatch.setattr(
        adaptation, "load_domain", lambda name, split, size=None: whole(name, split, size=size).subset(range(150))
    )
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


def settings_of(entry):
    return (entry["lr"], entry["weight"])


def test_candidates_are_rates_times_multiples_of_the_default_weight():
    mec = replace(TINY, objective="mec", factors=(1, 3))
    assert [(c.lr, c.settings) for c in mec.candidates()] == [
        (lr, {"weight": weight}) for lr in (0.01, 0.1) for weight in (0.1, 0.3)
    ]
    assert [(c.lr, c.settings) for c in replace(TINY, objective="source-only").candidates()] == [(0.01, {}), (0.1, {})]


def test_the_better_ones_by_the_criterion_go_on_from_where_they_were():
    found = search.search(TINY, Means())
    first, second = found["rounds"]
    assert (first["updates"], second["updates"]) == (2, 4)
    assert len(first["candidates"]) == 6
    best = sorted(first["candidates"], key=lambda entry: -mean(entry["information"]))[:2]
    assert [settings_of(e) for e in second["candidates"]] == [settings_of(e) for e in best]
    winner = max(second["candidates"], key=lambda entry: mean(entry["information"]))
    assert found["chosen"] == {"lr": winner["lr"], "weight": winner["weight"]}
    for entry in second["candidates"]:  # as if it had not been interrupted
        whole = RunConfig(
            source="pen", target="print", objective="dann", lr=entry["lr"], settings={"weight": entry["weight"]},
            every=2, seed=1, **RECIPE,
        )  # fmt: skip
        assert adaptation.train(whole, stop=4)["curve"][-1]["information"] == entry["information"][1]


def test_labels_of_the_target_decide_nothing(monkeypatch):
    """The worst by its labels is taken where the criterion says so."""
    scores = {
        0.01: {"information": 2.0, "target": 0.1, "source": 1.0},
        0.1: {"information": 1.0, "target": 0.9, "source": 1.0},
    }
    monkeypatch.setattr(search, "score", lambda candidate, *_: scores[candidate.lr])
    found = search.search(TINY, Means())
    assert found["chosen"]["lr"] == 0.01
    assert SearchConfig.scores(found) == {"target": 0.1}


def test_a_diverging_candidate_is_out_and_all_of_them_are_an_error(monkeypatch):
    point = {"information": 1.0, "target": 0.5, "source": 1.0}
    monkeypatch.setattr(search, "score", lambda candidate, *_: None if candidate.lr == 0.1 else point)
    found = search.search(TINY, Means())
    assert found["chosen"]["lr"] == 0.01
    assert {e["lr"] for e in found["rounds"][0]["candidates"] if None in e["information"]} == {0.1}
    json.dumps(found, allow_nan=False)
    monkeypatch.setattr(search, "score", lambda *_: None)
    with pytest.raises(FloatingPointError, match="every candidate's loss"):
        search.search(TINY, Means())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": (2, 5)}, "multiples of the first"),
        ({"keep": ()}, "keep one shorter"),
        ({"objective": "dam"}, "unknown method 'dam'"),
        ({"recipe": {"steps": 0}}, "steps must be at least 1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_result_knows_its_recipe_and_its_beginning_is_that_of_the_search():
    made = json.loads(json.dumps(run(TINY)))
    assert made["kind"] == "search"
    assert asdict(recipe_of(made)) == asdict(TINY)
    assert not is_stale(made)
    begun = TINY.beginning()["rounds"][0]["candidates"][0]
    whole = made["rounds"][0]["candidates"][0]
    assert {k: v[:1] if isinstance(v, list) else v for k, v in whole.items()} == begun


def test_a_grid_takes_what_searches_have_chosen(tmp_path, monkeypatch):
    for module in (data_files, result):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "look.toml").write_text(
        'kind = "search"\ntasks = ["pen:print"]\nobjectives = ["mec", "source-only"]\nrates = [0.01]\nfactors = [3]\n'
        "rounds = [1]\nkeep = []\nseeds = [0]\n[recipe]\nsteps = 2\nbatch_size = 8\nscored = 50\n"
        "network = { widths = [4], hidden = [8] }\n"
    )
    (tmp_path / "grids" / "long.toml").write_text(
        'objectives = ["mec"]\ntasks = ["print:pen"]\nnorms = ["dsbn"]\nseeds = [0]\noracle = true\ntuned = "look"\n'
        "[recipe]\nsteps = 2\n"
    )
    complete(load_grid("look"), result.results_folder("look"))
    mec, oracle = load_grid("long")
    assert (mec.lr, mec.settings, mec.norm) == (0.01, {"weight": 0.3}, "dsbn")
    assert (oracle.lr, oracle.settings, oracle.objective) == (0.01, {}, "source-only")
    (tmp_path / "results" / "look" / "pen-to-print_mec_bn.json").unlink()
    with pytest.raises(ValueError, match="look holds no search for 'mec': run it first"):
        load_grid("long")


def test_a_search_with_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="a grid of the kind 'search' holds tasks, objectives"):
        SearchConfig.from_grid({"tasks": ["pen:print"], "objectives": ["dann"], "rate": [0.1]})
