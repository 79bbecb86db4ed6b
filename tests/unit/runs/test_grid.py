"""Grids: from a file to runs, and runs that several processes share."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from deeptransfer import data_files
from deeptransfer.runs import grid, result
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.recipe import fingerprint

TINY = RunConfig(source="print", target="pen", objective="da-nn", steps=4)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")


@pytest.fixture
def pretended(monkeypatch):
    """Runs that take no time; the list of those that were done."""
    done = []

    def run(config, means):
        done.append(config.name)
        return {"config": asdict(config), "fingerprint": fingerprint(config)}

    monkeypatch.setattr(grid, "run", run)
    return done


def test_a_grid_does_what_is_missing_or_stale_and_nothing_else(tmp_path, pretended):
    configs = [replace(TINY, seed=seed) for seed in range(3)]
    assert len(grid.complete(configs, tmp_path)) == 3
    pretended.clear()
    assert grid.complete(configs, tmp_path) == []
    old = tmp_path / f"{configs[1].name}.json"
    old.write_text(json.dumps({**json.loads(old.read_text()), "fingerprint": "0" * 16}))
    (tmp_path / f"{configs[2].name}.json").write_text('{"config": {"sour')  # broken
    grid.complete(configs, tmp_path)
    assert pretended == [configs[1].name, configs[2].name]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{config.name}.json" for config in configs)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, pretended, monkeypatch):
    good = grid.run

    def run(config, means):
        if config.seed == 0:
            raise FloatingPointError("loss 'mmd' is nan at step 3")
        return good(config, means)

    monkeypatch.setattr(grid, "run", run)
    with pytest.raises(RuntimeError, match=r"seed0: FloatingPointError: loss 'mmd' is nan at step 3"):
        grid.complete([replace(TINY, seed=seed) for seed in range(3)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_two_recipes_never_share_a_file(tmp_path):
    with pytest.raises(ValueError, match="two grids"):
        grid.complete([TINY, replace(TINY, steps=6)], tmp_path)
    assert TINY.name != replace(TINY, settings={"weight": 2.0}).name


def test_a_run_that_another_holds_is_left_to_it(tmp_path, pretended):
    with grid._locked(tmp_path / f"{TINY.name}.lock") as mine:
        assert mine
        assert grid.complete([TINY], tmp_path) == []
    assert pretended == []
    assert len(grid.complete([TINY], tmp_path)) == 1


def test_a_run_that_another_finished_between_our_look_and_our_lock_is_not_repeated(tmp_path, pretended, monkeypatch):
    @contextmanager
    def slow(path):
        result.write_json({"fingerprint": fingerprint(TINY)}, path.with_suffix(".json"))
        yield True

    monkeypatch.setattr(grid, "_locked", slow)
    assert grid.complete([TINY], tmp_path) == []
    assert pretended == []


WORKER = """
import sys, time, pathlib
from deeptransfer.runs import adaptation, grid, recipe
folder, log, ready, others = map(pathlib.Path, sys.argv[1:])
def run(config, means):
    with open(log, "a") as file:
        file.write(config.name + "\\n")
    time.sleep(0.2)
    return {"fingerprint": recipe.fingerprint(config)}
grid.run = run
configs = [adaptation.RunConfig(source="print", target="pen", seed=seed) for seed in range(6)]
ready.touch()
while not others.exists():
    time.sleep(0.01)
grid.complete(configs, folder)
"""


def test_two_processes_share_a_grid_and_do_no_run_twice(tmp_path):
    a, b, log, folder = (tmp_path / name for name in ("a", "b", "log", "grid"))
    arguments = [map(str, (folder, log, mine, other)) for mine, other in ((a, b), (b, a))]
    processes = [subprocess.Popen([sys.executable, "-c", WORKER, *paths]) for paths in arguments]
    assert [process.wait(120) for process in processes] == [0, 0]
    names = log.read_text().split()
    assert len(names) == len(set(names)) == 6
    assert len(list(folder.iterdir())) == 6


HOLDER = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path, pretended):
    lock, done = (tmp_path / f"{TINY.name}.{suffix}" for suffix in ("lock", "json"))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            assert grid.complete([TINY], tmp_path) == []
        finally:
            process.kill()
    assert lock.exists()  # left behind
    assert grid.complete([TINY], tmp_path) == [done]
    assert list(tmp_path.iterdir()) == [done]


def test_a_grid_file_holds_every_combination_and_the_oracles(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    file = tmp_path / "grids" / "some.toml"
    text = 'objectives = ["joint", "dann"]\ntasks = ["print:pen", "print:scene"]\nnorms = ["bn", "rn"]\noracle = true\n'
    file.write_text(text + "seeds = [0, 1]\n[recipe]\nsteps = 7\n")
    configs = grid.load_grid("some")
    assert len({config.name for config in configs}) == len(configs) == 2 * (2 * 2 * 2 + 2)
    assert all(config.steps == 7 for config in configs)
    assert sum(config.source == config.target == "scene" for config in configs) == 2
    with pytest.raises(ValueError, match=r"unknown grid 'other': known ones are some"):
        grid.load_grid("other")
    file.write_text(text + "seeds = [0]\n[recipe]\nsteppes = 7\n")
    with pytest.raises(ValueError, match=r"some\.toml: .*RunConfig"):
        grid.load_grid("some")


def test_a_grid_crosses_its_settings_and_leaves_the_oracle_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "some.toml").write_text(
        'objectives = ["jan"]\ntasks = ["print:pen"]\nsettings = [{ weight = 1.0 }, { weight = 3.0 }]\noracle = true\n'
        "seeds = [0]\n[recipe]\nsteps = 7\n"
    )
    configs = grid.load_grid("some")
    assert [(config.objective, config.settings) for config in configs] == [
        ("jan", {"weight": 1.0}),
        ("jan", {"weight": 3.0}),
        ("source-only", {}),
    ]


def test_the_grids_of_the_book_are_sound():
    for path in (data_files.data_folder() / "grids").glob("*.toml"):
        assert grid.load_grid(path.stem)


def test_a_grid_crosses_the_settings_of_its_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "some.toml").write_text(
        'objectives = ["dann"]\ntasks = ["print:pen"]\nnorms = ["rn"]\noracle = true\n'
        "norm_settings = [{ temperature = 0.1 }, { temperature = 10.0 }]\nseeds = [0]\n"
        "[recipe]\nnorm_settings = { unbiased = true }\n"
    )
    *configs, oracle = grid.load_grid("some")
    assert [config.norm_settings for config in configs] == [
        {"unbiased": True, "temperature": 0.1},
        {"unbiased": True, "temperature": 10.0},
    ]
    assert len({config.name for config in configs}) == 2
    assert oracle.norm == "bn"


def test_a_checkpoint_that_older_code_left_is_not_in_the_way_of_a_grid(tmp_path, pretended):
    (tmp_path / f"{TINY.name}.checkpoint").write_bytes(b"cut off")
    assert len(grid.complete([TINY], tmp_path)) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_an_unknown_kind_of_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "some.toml").write_text('kind = "grid"\nseeds = [0]\n')
    with pytest.raises(
        ValueError,
        match=r"some\.toml: unknown kind of run 'grid': known ones are adaptation, .*frozen, .*layerwise, .*search",
    ):
        grid.load_grid("some")
