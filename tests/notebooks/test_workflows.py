"""What the workflows run exists: nobody would notice a weekly job that fails at its first line."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from notebooks import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


def commands(path: Path) -> list[str]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_there_are_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"check", "weekly", "gpu", "publish"}


def test_new_versions_are_tried_without_the_constraints_of_the_pins() -> None:
    """uv reads them from pyproject.toml for every command; with them the newest torch cannot be installed."""
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()]
    resolving = [job for job in jobs if any("uv pip compile" in step.get("run", "") for step in job["steps"])]
    assert resolving
    assert all(job["env"]["UV_NO_CONFIG"] == "1" for job in resolving)


def test_once_a_week_each_notebook_runs_forwards_and_backwards() -> None:
    """Outside of that job these tests are left out."""
    assert [
        command for path in WORKFLOWS if path.stem == "weekly" for command in commands(path) if "-m again" in command
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_targets_and_files_of_a_workflow_exist(path: Path) -> None:
    for command in commands(path):
        for target in re.findall(r"\bmake ([a-z]+)", command):
            assert target in TARGETS, f"no target {target} in the Makefile"
        for word in shlex.split(command.replace("\n", " ")):
            if re.match(r"(\.ci|scripts|tests|src|book)(/|$)", word):
                assert (ROOT / word).exists(), f"{word} does not exist"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_a_time_limit_and_no_more_rights_than_it_needs(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    assert workflow["permissions"]["contents"] == ("write" if path.stem == "publish" else "read")


def make_shows(folder: Path, echo: str, *words: str, **environment: str) -> str:
    """What a recipe of the Makefile sees, if make is called with these words."""
    more = folder / "show.mk"
    more.write_text(f"show:\n\t@echo {echo}\n", encoding="utf-8")
    # As typed into a shell, even where these tests run below make.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-f", "Makefile", "-f", str(more), *words, "show"]
    done = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_users_settings_of_pip_do_not_lead_out_of_the_environment(tmp_path: Path) -> None:
    user = {"PIP_USER": "1", "PIP_TARGET": "/elsewhere", "PIP_INDEX_URL": "https://mirror.example"}
    said = make_shows(tmp_path, "user=$$PIP_USER target=$$PIP_TARGET mirror=$$PIP_INDEX_URL", **user)
    assert said == "user=0 target= mirror=https://mirror.example\n"


@pytest.mark.parametrize("words", [["SOLUTIONS=no"], []])
def test_the_whole_book_is_tested_whatever_a_class_gets(words: list[str], tmp_path: Path) -> None:
    echo = "solutions=$$SOLUTIONS site=$(SITE) below=$(MAKEOVERRIDES)"
    assert "without-solutions" in make_shows(tmp_path, echo, *words, SOLUTIONS="no")
    not_run = ["-o", "test", "test"]
    tested = make_shows(tmp_path, echo, "VENV=.venv", *words, *not_run, SOLUTIONS="no")
    assert "solutions= site=_build/html below=VENV=.venv\n" in tested


def test_a_class_gets_readers_notebooks_without_solutions_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """Else the one set would be written over the other."""
    echo = "$(CONVERT) --into $(READERS)"
    assert make_shows(tmp_path, echo).endswith("scripts/reader.py --into notebooks\n")
    without = make_shows(tmp_path, echo, "SOLUTIONS=no")
    assert without.endswith("scripts/reader.py --without-solutions --into notebooks-without-solutions\n")
