"""Who may import whom: the rooms of the library, as CONTRIBUTING shows them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import deeptransfer

PACKAGE = Path(deeptransfer.__file__).parent
RUNS = {"runs", "__main__"}
# Only inside a function, when it is called with a name: small_cnn(norm="transnorm").
LOOKED_UP = {("networks", "catalogue")}
ROOMS = {
    # room: the other rooms that its code may import
    "version": set(),
    "data_files": set(),
    # what methods run on
    "domains": {"data_files"},
    "networks": set(),
    "backbones": {"networks"},
    "training": {"domains", "normalization"},
    # mechanisms, which know nothing of each other
    "discrepancy": set(),
    "adversarial": set(),
    "normalization": set(),
    "transferability": {"networks"},
    # what stands on normalisation
    "attacks": {"normalization"},
    "adapters": {"normalization"},
    # the same statistics put to other uses
    "style": {"data_files", "normalization"},
    "weights": {"normalization"},
    "gan": {"networks", "weights"},
    "pruning": {"networks", "normalization"},
    "slimmable": {"normalization"},
    # methods
    "objectives": {"adversarial", "discrepancy", "domains", "networks", "normalization"},
    "catalogue": {"adversarial", "normalization", "objectives"},
    # how they are judged
    "diagnostics": set(),
    "selection": {"diagnostics"},
    # the book's side
    "live": set(),
    "pictures": set(),
    "figures": {"live", "pictures"},
    "exercises": set(),
    "claims": set(),
}


def rooms_imported(path):
    """The rooms that a file imports, wherever in it the import stands."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == "deeptransfer" and len(name) > 1)


def files_of(room):
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def test_every_module_has_its_room():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__"} == ROOMS.keys() | RUNS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_other_than_it_may(room):
    imported = {other for path in files_of(room) for other in rooms_imported(path)}
    assert {other for other in imported - {room, "__version__"} if (room, other) not in LOOKED_UP} <= ROOMS[room]


def test_nothing_imports_the_runs_but_the_command():
    """Runs tie all rooms together; what they tie must work without them."""
    for room in ROOMS:
        assert not {other for path in files_of(room) for other in rooms_imported(path)} & RUNS, room


def test_kinds_of_run_do_not_know_each_other():
    kinds = ("adaptation", "layerwise")
    for kind in kinds:
        text = (PACKAGE / "runs" / f"{kind}.py").read_text(encoding="utf-8")
        assert not any(f"runs.{other}" in text for other in kinds if other != kind)
    for shared in ("recipe", "grid", "result", "provenance", "checkpoint", "distributed", "restamp", "model"):
        text = (PACKAGE / "runs" / f"{shared}.py").read_text(encoding="utf-8")
        assert not any(f"import {kind}" in text or f"runs.{kind} import" in text for kind in kinds), shared


def test_the_rooms_make_no_circle():
    below = {room: set(others) for room, others in ROOMS.items()}
    while below:
        free = {room for room, others in below.items() if not others & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {room: others for room, others in below.items() if room not in free}
