"""Results after a change that makes no number: marked as today's only if runs that are begun again agree."""

from __future__ import annotations

import json

import pytest

from deeptransfer import data_files
from deeptransfer.runs import adaptation, result
from deeptransfer.runs.grid import complete, load_grid
from deeptransfer.runs.recipe import is_stale
from deeptransfer.runs.restamp import restamp

GRID = """
objectives = ["joint", "dann"]
tasks = ["print:pen"]
norms = ["bn", "dsbn"]
seeds = [0, 1]
[recipe]
steps = 4
every = 2
batch_size = 8
dtype = "float64"
network = { widths = [2], hidden = [4] }
"""


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A grid that was run by older code."""
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")
    whole = adaptation.load_domain
    monkeypatch.setattr(
        adaptation, "load_domain", lambda name, split, size=None: whole(name, split, size=size).subset(range(100))
    )
    for module in (data_files, result):
        monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "some.toml").write_text(GRID, encoding="utf-8")
    paths = complete(load_grid("some"), tmp_path / "results" / "some")
    for path in paths:
        changed(path, fingerprint="0" * 16)
    return paths


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def changed(path, **entries):
    result.write_json(read(path) | entries, path)


def test_of_each_code_one_run_is_begun_again_and_all_are_marked(stored):
    before = [read(path) for path in stored]
    written, sample = restamp("some")
    assert sorted(written) == sorted(stored)
    assert len(sample) == 4  # two objectives with two layers; the seeds share their code
    assert not any(is_stale(read(path)) for path in stored)
    for path, old in zip(stored, before, strict=True):
        assert read(path) | {"fingerprint": old["fingerprint"]} == old
    assert restamp("some") == ([], [])


@pytest.mark.parametrize("entry", ["target", "source", "information"])
def test_one_number_that_differs_stops_all_of_it(stored, entry):
    path = next(p for p in stored if "dann_dsbn_seed0" in p.name)
    curve = read(path)["curve"]
    value, curve[0][entry] = curve[0][entry], curve[0][entry] + 1e-6
    changed(path, curve=curve)
    with pytest.raises(
        ValueError, match=rf"seed0\.json: the result, curve\[0\], {entry} is stored as .* and was {value}"
    ):
        restamp("some")
    assert all(is_stale(read(p)) for p in stored)


def test_a_result_that_is_not_of_the_grid_stops_it(stored):
    config = read(stored[0])["config"]
    changed(stored[0], config=config | {"steps": 5})
    with pytest.raises(ValueError, match="no run of the grid 'some' as it stands today"):
        restamp("some")
