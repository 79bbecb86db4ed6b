"""Results after a change that makes no number: marked as today's only if runs that are begun again agree."""

from __future__ import annotations

import json

import pytest

from deeptransfer import data_files
from deeptransfer.runs import adaptation, result
from deeptransfer.runs.grid import complete, load_grid
from deeptransfer.runs.recipe import is_stale
from deeptransfer.runs.restamp import begin, restamp

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
        ValueError, match=rf"seed0\.json: the result, curve\[0\], {entry} was .* before and is {value} now"
    ):
        restamp("some")
    assert all(is_stale(read(p)) for p in stored)


def test_a_result_that_is_not_of_the_grid_stops_it(stored):
    config = read(stored[0])["config"]
    changed(stored[0], config=config | {"steps": 5})
    with pytest.raises(ValueError, match="no run of the grid 'some' as it stands today"):
        restamp("some")


def test_numbers_of_another_machine_are_compared_through_the_code_before(stored):
    """In float32 the stored ones cannot be met; what the older code gives here can."""
    before = begin("some")
    assert len(before) == 4
    for path in stored:
        curve = read(path)["curve"]
        changed(path, curve=[{**point, "target": point["target"] + 0.01} for point in curve])
    with pytest.raises(ValueError, match="target was"):
        restamp("some")
    (name, beginning), *_ = before.items()
    wrong = {"curve": [{**beginning["curve"][0], "information": 3.0}]}
    with pytest.raises(ValueError, match=r"information was 3\.0 before"):
        restamp("some", before | {name: wrong})
    with pytest.raises(ValueError, match=f"no beginning of {name}"):
        restamp("some", {other: value for other, value in before.items() if other != name})
    assert all(is_stale(read(path)) for path in stored)
    written, sample = restamp("some", before)
    assert len(written) == len(stored)
    assert sorted(sample) == sorted(before)
