"""What is stored under data/results is what the library of today would give."""

from __future__ import annotations

import json

from deeptransfer import experiments

RESULTS = experiments.data_folder() / "results"


def test_no_stored_result_is_stale():
    stale = [
        f"{path.parent.name}/{path.name}"
        for path in sorted(RESULTS.glob("*/*.json"))
        if experiments.is_stale(json.loads(path.read_text(encoding="utf-8")))
    ]
    assert not stale, "the code or recipe behind these has changed: python -m deeptransfer grid NAME"


def test_every_stored_result_belongs_to_its_grid():
    """A run that a changed grid no longer holds would still enter its table."""
    for folder in (path for path in RESULTS.glob("*") if path.is_dir()):
        stored = {path.stem for path in folder.glob("*.json")}
        assert stored <= {config.name for config in experiments.load_grid(folder.name)}, folder.name
