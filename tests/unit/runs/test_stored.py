"""What is stored under data/results is what the library of today would give."""

from __future__ import annotations

import json
import tomllib

from deeptransfer import catalogue
from deeptransfer.data_files import data_folder
from deeptransfer.domains import domain_names
from deeptransfer.runs.adaptation import split_task
from deeptransfer.runs.grid import load_grid
from deeptransfer.runs.recipe import is_stale

RESULTS = data_folder() / "results"


def test_no_stored_result_is_stale():
    paths = sorted(RESULTS.glob("*/*.json"))
    stale = [path for path in paths if is_stale(json.loads(path.read_text(encoding="utf-8")))]
    names = [f"{path.parent.name}/{path.name}" for path in stale]
    assert not names, "the code behind these has changed: python -m deeptransfer grid NAME, or restamp NAME"


def test_every_stored_result_belongs_to_its_grid():
    """A run that a changed grid no longer holds would still enter its table."""
    for folder in (path for path in RESULTS.glob("*") if path.is_dir()):
        stored = {path.stem for path in folder.glob("*.json")}
        assert stored <= {recipe.name for recipe in load_grid(folder.name)}, folder.name


def test_published_numbers_name_known_methods_and_cited_papers():
    text = (data_folder() / "published.toml").read_text(encoding="utf-8")
    bibliography = (data_folder().parent / "book" / "references.bib").read_text(encoding="utf-8")
    for table in tomllib.loads(text)["table"]:
        assert f"{{{table['source']}," in bibliography
        for task in table["tasks"]:
            assert set(split_task(task)) <= set(domain_names())
        for row in table["rows"]:
            assert catalogue.get(row["objective"]).is_objective
            assert catalogue.get(row["norm"]).kind == "normalization"
            assert len(row["accuracy"]) == len(table["tasks"])
            if "mean" in row:  # as printed: the papers round as they like
                assert abs(sum(row["accuracy"]) / len(row["accuracy"]) - row["mean"]) < 0.1
