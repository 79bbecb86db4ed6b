"""What `make book` has at hand: the extra `book` of pyproject.toml and all that it needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from typing import Any

from notebooks import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Modules that are None in sys.modules can't be imported.
BLOCK = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(',')))\n"


def reading_packages() -> set[str]:
    """The names of the packages, in their normal form."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(line) for line in project["optional-dependencies"]["book"]]
    found: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in {"", *wanted.extras}:
            if (key := (canonicalize_name(wanted.name), extra)) not in found:
                found.add(key)
                needs = map(Requirement, requires(wanted.name) or [])
                waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def other_modules() -> list[str]:
    """The modules of everything else that is installed here."""
    known = {*reading_packages(), "deeptransfer"}
    modules = packages_distributions().items()
    return sorted(module for module, names in modules if known.isdisjoint(map(canonicalize_name, names)))


def run_reading(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code where nothing but these packages can be imported."""
    command = [sys.executable, "-c", BLOCK + code, ",".join(other_modules()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)
