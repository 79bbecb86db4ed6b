"""What the workflows run exists: nobody would notice a weekly job that fails at its first line."""

from __future__ import annotations

import re
import shlex
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
