"""The baseline on frozen features: what it fits, what it scores, and whose statistics standardise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from deeptransfer import data_files
from deeptransfer.backbones import mobilenet_025
from deeptransfer.domains import load_domain
from deeptransfer.runs import result
from deeptransfer.runs.frozen import FrozenConfig
from deeptransfer.runs.grid import load_grid
from deeptransfer.runs.recipe import Means, is_stale, recipe_of, run


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two classes by their colour; the target is darker and a little mixed up."""
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")
    generator = np.random.default_rng(0)
    for place, brightness, spread in (("a", 1.0, 25), ("b", 0.5, 60)):
        for kind, colour in (("cup", (200, 80, 90)), ("lamp", (90, 80, 200))):
            folder = tmp_path / place / kind
            folder.mkdir(parents=True)
            for i in range(12):
                pixels = generator.normal(np.array(colour) * brightness, spread, (40, 40, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return FrozenConfig(source=str(tmp_path / "a"), target=str(tmp_path / "b"), backbone="mobilenet_025", size=32)


def features(path):
    domain, network = load_domain(path, "all", size=32), mobilenet_025(None, 2).eval()
    images = torch.stack([domain[i][0] for i in range(len(domain))])
    with torch.no_grad():
        return network(images, layers=["pool"]).hidden["pool"].numpy().astype(float), domain.labels.numpy()


@pytest.mark.parametrize("scaler", ["source", "own"])
def test_it_is_a_logistic_regression_on_the_pooled_features(config, scaler):
    (xs, ys), (xt, yt) = features(config.source), features(config.target)
    of = xs if scaler == "source" else xt
    train, test = (
        (x - stats.mean(0)) / np.where(stats.std(0) > 1e-6, stats.std(0), 1) for x, stats in ((xs, xs), (xt, of))
    )  # a dead feature is a constant
    regression = LogisticRegression(C=0.01, max_iter=5000).fit(train, ys)
    found = replace(config, scaler=scaler).train(Means())
    correct = regression.predict(test) == yt
    assert found["target"] == pytest.approx(correct.mean())
    assert found["source"] == pytest.approx(regression.score(train, ys))
    assert found["wrong"] == np.flatnonzero(~correct).tolist()
    assert found["per_class"] == [correct[yt == k].mean() for k in (0, 1)]


def test_a_result_knows_its_recipe_and_enters_a_table(config, tmp_path):
    for scaler in ("source", "own"):
        recipe = replace(config, scaler=scaler)
        made = json.loads(json.dumps(run(recipe)))
        assert asdict(recipe_of(made)) == asdict(recipe)
        assert not is_stale(made)
        result.write_json(made, tmp_path / f"{scaler}.json")
    rows = result.to_json(result.table(tmp_path))
    assert [row["scaler"] for row in rows] == ["own", "source"]
    assert all(0 <= row["target"]["mean"] <= 100 for row in rows)


def test_a_grid_names_tasks_and_scalers(config, tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    text = f'kind = "frozen"\ntasks = ["{config.source}:{config.target}"]\nscalers = ["source", "own"]\n'
    (tmp_path / "grids" / "base.toml").write_text(text + 'backbone = "mobilenet_025"\nsize = 32\n')
    assert load_grid("base") == [config, replace(config, scaler="own")]
    (tmp_path / "grids" / "base.toml").write_text(text + "steps = 3\n")
    with pytest.raises(ValueError, match="a grid of the kind 'frozen' holds tasks, scalers"):
        load_grid("base")


@pytest.mark.parametrize(
    ("change", "message"), [({"scaler": "both"}, "unknown scaler"), ({"target": "nowhere"}, "unknown domain 'nowhere'")]
)
def test_what_makes_no_sense_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
