"""The library installed as people install one: a wheel, used from another folder than the book's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import deeptransfer
from deeptransfer.domains import cache_folder

CHECKOUT = Path(deeptransfer.__file__).parents[2]


def ran(arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the checkout; with the environment's own setuptools."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "LICENSE-TEXT"):
        shutil.copy(CHECKOUT / name, copy)
    shutil.copytree(CHECKOUT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(CHECKOUT / "data", copy / "data", ignore=shutil.ignore_patterns("cache", "results"))
    ran(["-m", "pip", "wheel", ".", "-q", "--no-deps", "--no-build-isolation", "-w", str(out)], copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A folder, and how to run a command there with the installed library alone."""
    site, folder, cache = (tmp_path_factory.mktemp(name) for name in ("site", "elsewhere", "cache"))
    ran(["-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], folder)
    (cache / "deeptransfer").symlink_to(cache_folder())  # the drawn digits: the test need not draw them again
    settings = {"PYTHONPATH": str(site), "XDG_CACHE_HOME": str(cache), "DEEPTRANSFER_PROGRESS": "0"}
    settings["DEEPTRANSFER_DEVICE"] = "cpu"
    where = ran(["-c", "import deeptransfer; print(deeptransfer.__file__)"], folder, **settings)
    assert Path(where.strip()).is_relative_to(site)
    return folder, lambda *arguments: ran(["-m", "deeptransfer", *arguments], folder, **settings)


def test_the_wheel_holds_recipes_grids_and_the_list_of_data_sets_and_no_result(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("deeptransfer/data/") for name in archive.namelist() if "/data/" in name}
    data = CHECKOUT / "data"
    shipped = ("presets/*", "grids/*", "weights/*.npz")
    kept = {file.relative_to(data).as_posix() for pattern in shipped for file in data.glob(pattern)}
    assert packed == kept | {"datasets.toml"}


def test_domains_are_listed_and_a_preset_trains_on_the_digits(elsewhere):
    folder, command = elsewhere
    assert "pen: 1,000 train, 797 test" in command("domains", "list")
    options = (
        "--preset cdan-digits --steps 2 --every 2 --scored 50 --network widths=[4,4] --network hidden=[8] --size 28"
    )
    out = command("run", "--task", "print:pen", *options.split(), "--save", "m.pt", "--out", "r.json")
    assert out.startswith("print to pen: cdan+e, bn, seed 0")
    assert sorted(file.name for file in folder.iterdir()) == ["m.pt", "r.json"]


def test_a_grid_is_found_and_a_missing_one_names_the_folders(elsewhere):
    folder, _ = elsewhere
    with pytest.raises(
        AssertionError, match=r"unknown grid 'absent': known ones are .*chapter3.*deeptransfer/data/grids"
    ):
        elsewhere[1]("grid", "absent")
    assert folder.is_dir()
