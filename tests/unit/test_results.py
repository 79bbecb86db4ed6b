"""What is stored under data/results is what the library of today would give."""

from __future__ import annotations

import json
import tomllib

from deeptransfer import catalogue, experiments, grids, layerwise
from deeptransfer.domains import domain_names

LAYERWISE = {path.stem for path in (experiments.data_folder() / "layerwise").glob("*.toml")}
RESULTS = experiments.data_folder() / "results"


def made_by(folder):
    """What tells a stale run of a folder, and what reads its grid."""
    return (layerwise.is_stale, layerwise.load_grid) if folder in LAYERWISE else (experiments.is_stale, grids.load_grid)


def test_no_stored_result_is_stale():
    stale = [
        f"{path.parent.name}/{path.name}"
        for path in sorted(RESULTS.glob("*/*.json"))
        if made_by(path.parent.name)[0](json.loads(path.read_text(encoding="utf-8")))
    ]
    assert not stale, "the code or recipe behind these has changed: python -m deeptransfer grid NAME, or layerwise NAME"


def test_every_stored_result_belongs_to_its_grid():
    """A run that a changed grid no longer holds would still enter its table."""
    for folder in (path for path in RESULTS.glob("*") if path.is_dir()):
        stored = {path.stem for path in folder.glob("*.json")}
        assert stored <= {config.name for config in made_by(folder.name)[1](folder.name)}, folder.name


def test_published_numbers_name_known_methods_and_cited_papers():
    text = (experiments.data_folder() / "published.toml").read_text(encoding="utf-8")
    bibliography = (experiments.data_folder().parent / "book" / "references.bib").read_text(encoding="utf-8")
    for table in tomllib.loads(text)["table"]:
        assert f"{{{table['source']}," in bibliography
        for task in table["tasks"]:
            assert set(experiments.split_task(task)) <= set(domain_names())
        for row in table["rows"]:
            assert catalogue.get(row["objective"]).is_objective
            assert catalogue.get(row["norm"]).kind == "normalization"
            assert len(row["accuracy"]) == len(table["tasks"])
            if "mean" in row:  # as printed: the papers round as they like
                assert abs(sum(row["accuracy"]) / len(row["accuracy"]) - row["mean"]) < 0.1
