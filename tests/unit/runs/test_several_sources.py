"""Runs on several labelled sources that are scored on a domain never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deeptransfer.domains import load_domain
from deeptransfer.normalization import DSON2d, InstanceWhitening2d, MixStyle, average_domains, domain_branches
from deeptransfer.normalization.unseen import Branches
from deeptransfer.runs import unseen
from deeptransfer.runs.provenance import reached
from deeptransfer.runs.recipe import NO_NUMBER, recipe_of, run
from deeptransfer.runs.unseen import METHODS, SeveralSources, Sources, UnseenConfig, build, photometric, predict_unseen

TINY = UnseenConfig(
    sources=["print", "pen"],
    unseen="scene",
    method="dson",
    steps=2,
    every=1,
    batch_size=4,
    network={"widths": [2, 3], "hidden": [4]},
)


def loaded(name, split):
    return unseen.load(TINY, name, split)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits, no progress bars, on the CPU."""
    whole = unseen.load_domain
    monkeypatch.setattr(unseen, "load_domain", lambda *a, **k: whole(*a, **k).subset(range(40)))
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_its_beginning_is_that_of_the_run(method):
    recipe = replace(TINY, method=method)
    result = run(recipe)
    assert [point["step"] for point in result["curve"]] == [1, 2]
    assert list(result["own"]) == ["print", "pen"]
    assert recipe.beginning()["curve"] == result["curve"][:1]
    assert recipe_of(result) == recipe
    scores = recipe.scores(result)
    assert scores["unseen"] == result["curve"][-1]["unseen"]
    assert ("branch" in result) == (method in ("dson", "domain-average", "bn-embeddings"))


def test_a_batch_holds_as_many_labelled_images_of_each_source_and_is_always_the_same():
    domains = [loaded(name, "train") for name in ("print", "pen", "scene")]
    batch, again = (Sources(domains, 5, seed=1).batch(3) for _ in range(2))
    assert [tuple(x.shape) for x in batch.images] == [(5, 1, 28, 28)] * 3
    for domain, images, labels in zip(domains, batch.images, batch.labels, strict=True):
        for image, label in zip(images, labels, strict=True):
            same = (domain.tensors[0] == image).all((1, 2, 3))
            assert label in domain.tensors[1][same]
    assert all(torch.equal(a, b) for a, b in zip(batch.images, again.images, strict=True))


def test_frozen_shares_stay_at_half_and_faster_ones_move_further():
    moved = {}
    for name, settings in (("frozen", {"frozen": True}), ("plain", {}), ("fast", {"mixture_lr": 100.0})):
        shares = torch.tensor(run(replace(TINY, settings=settings))["shares"])
        assert shares.shape == (2, 2, 2)  # layers, moments, domains
        moved[name] = (shares - 0.5).abs().max().item()
    assert moved["frozen"] == 0 < 10 * moved["plain"] < moved["fast"]


def test_unseen_images_are_predicted_by_all_branches():
    images = loaded("scene", "test").tensors[0]
    for method, weighted in (("dson", False), ("domain-average", False), ("bn-embeddings", True)):
        recipe = replace(TINY, method=method)
        network = unseen.train_unseen(recipe)[0]
        branches = domain_branches(network, images)
        expected = branches.average(branches.weights()) if weighted else average_domains(network, images)
        assert torch.equal(predict_unseen(network, recipe, images), expected.argmax(1))


def test_embeddings_weigh_the_branches_and_an_average_does_not(monkeypatch):
    images = loaded("scene", "test").tensors[0]

    def first_alone(branches):
        return torch.eye(2)[torch.zeros(branches.probabilities.shape[1], dtype=torch.long)]

    monkeypatch.setattr(Branches, "weights", first_alone)
    for method, weighted in (("bn-embeddings", True), ("domain-average", False)):
        recipe = replace(TINY, method=method, steps=20, every=20)
        network = unseen.train_unseen(recipe)[0]
        with torch.no_grad():
            branches = domain_branches(network, images)
        first, average = branches.probabilities[0].argmax(1), branches.average().argmax(1)
        assert not torch.equal(first, average)
        assert torch.equal(predict_unseen(network, recipe, images), first if weighted else average)


def test_the_whitening_loss_begins_when_it_is_to_and_whitens_what_is_selected():
    recipe = replace(TINY, method="isw", settings={"begin": 0.5})
    network = build(recipe)
    images = loaded("print", "train").tensors[0][:16]
    objective = SeveralSources(recipe, network, images)
    batch = Sources([loaded(name, "train") for name in TINY.sources], 4, 0).batch(0)
    assert set(objective(network, batch, 0.49)) == {"classification"}
    losses = objective(network, batch, 0.5)
    assert losses["whitening"].item() == pytest.approx(0.6 * objective.whitening.loss(objective.output).item())
    without = replace(recipe, settings={"weight": 0.0})
    assert set(SeveralSources(without, build(without), images)(network, batch, 1.0)) == {"classification"}
    assert any(isinstance(module, InstanceWhitening2d) for module in build(without).modules())


def test_another_style_is_no_affine_map_and_stays_in_range():
    x = torch.linspace(0, 1, 28 * 28).view(1, 1, 28, 28).repeat(3, 1, 1, 1)
    y, again = (photometric(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(y, again)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert len({round(image.mean().item(), 4) for image in y}) == 3  # each its own exponent
    pairs = [torch.stack([a.flatten(), b.flatten()]) for a, b in zip(x, y, strict=True)]
    assert min(torch.corrcoef(pair)[0, 1] for pair in pairs) < 0.995


def test_a_result_depends_on_its_own_layer_alone():
    layers = {"dson": DSON2d, "mixstyle": MixStyle}
    paths = {name: f"{layer.__module__}.{layer.__name__}" for name, layer in layers.items()}
    for method, other in (("dson", "mixstyle"), ("mixstyle", "dson")):
        code = replace(TINY, method=method).code()
        found = reached(code.roots, [*NO_NUMBER, *code.stop])
        assert paths[method] in found
        assert paths[other] not in found


def test_a_grid_is_every_row_with_every_seed_under_names_of_their_own():
    rest = {"sources": ["print", "pen"], "unseen": "scene", "steps": 2, "every": 1, "seeds": [0, 1]}
    rows = [{"method": "bn"}, {"method": "bn", "augment": "styles"}, {"method": "ibn", "settings": {"ratio": 1.0}}]
    recipes = UnseenConfig.from_grid({**rest, "rows": rows})
    assert len({recipe.name for recipe in recipes}) == 6
    assert recipes[0].name == "print+pen-to-scene_bn_seed0"
    with pytest.raises(ValueError, match="a grid of the kind 'unseen' holds rows, seeds"):
        UnseenConfig.from_grid({**rest, "rows": rows, "norms": []})
    with pytest.raises(ValueError, match="a row may hold"):
        UnseenConfig.from_grid({**rest, "rows": [{"norm": "bn"}]})


def test_each_domain_can_be_left_out_once():
    rest = {"steps": 2, "every": 1, "seeds": [0], "rows": [{"method": "bn"}, {"method": "ibn"}]}
    recipes = UnseenConfig.from_grid({**rest, "leave_out": ["print", "pen", "scene"]})
    assert [(recipe.sources, recipe.unseen, recipe.method) for recipe in recipes] == [
        (("pen", "scene"), "print", "bn"),
        (("pen", "scene"), "print", "ibn"),
        (("print", "scene"), "pen", "bn"),
        (("print", "scene"), "pen", "ibn"),
        (("print", "pen"), "scene", "bn"),
        (("print", "pen"), "scene", "ibn"),
    ]
    with pytest.raises(ValueError, match=r"got .*unseen"):
        UnseenConfig.from_grid({**rest, "leave_out": ["print", "pen"], "unseen": "scene"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "one domain"),
        ({"unseen": "mnits"}, "unknown domain"),
        ({"method": "dsbn"}, "unknown method"),
        ({"backbone": "resnet50"}, "unknown backbone"),
        ({"augment": "colours"}, "unknown augment"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_another_style_is_a_gamma_between_a_half_and_two_and_a_blur():
    grey = torch.full((400, 1, 9, 9), 0.5)  # a constant image is not changed by a blur
    exponent = photometric(grey, torch.Generator().manual_seed(0))[:, 0, 4, 4].log2().neg()
    assert 0.5 <= exponent.min() < 0.52
    assert 1.9 < exponent.max() <= 2
    torch.testing.assert_close(exponent.log2().mean(), torch.tensor(0.0), atol=0.1, rtol=0)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1  # a power leaves 0 and 1 as they are
    spread = photometric(point, torch.Generator().manual_seed(1))
    assert spread.max() < 1
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Three folders with eleven images of each of two classes, and the recipe that is to be scored on the third."""
    monkeypatch.setattr(unseen, "load_domain", load_domain)
    generator = np.random.default_rng(0)
    for domain in "abc":
        for label, base in (("dark", 40), ("light", 160)):
            folder = tmp_path / domain / label
            folder.mkdir(parents=True)
            for k in range(11):
                pixels = base + generator.integers(0, 60, (9 + k, 12, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    places = [str(tmp_path / name) for name in "abc"]
    network = {"bottleneck": 8}
    return replace(TINY, sources=places[:2], unseen=places[2], backbone="mobilenet_025", size=32, network=network)


@pytest.mark.parametrize("method", METHODS)
def test_photographs_are_seen_in_colour_by_a_network_for_them(method, photographs):
    recipe = replace(photographs, method=method, settings={"begin": 0.0} if method == "isw" else {})
    result = run(recipe)
    assert set(result["own"]) == set(recipe.sources)
    assert "/" not in recipe.name
    network = build(recipe, classes=2)
    assert network.classifier.out_features == 2
    assert predict_unseen(network, recipe, torch.rand(2, 3, 32, 32)).shape == (2,)


def test_all_images_of_the_unseen_domain_can_be_scored(photographs, monkeypatch):
    scored = []
    whole = unseen.predict_unseen

    def counted(network, config, images):
        scored.append(len(images))
        return whole(network, config, images)

    monkeypatch.setattr(unseen, "predict_unseen", counted)
    for all_of_them, expected in ((True, 22), (False, 6)):
        scored.clear()
        run(replace(photographs, method="bn", steps=1, whole=all_of_them))
        assert sum(scored) == expected


def test_what_a_backbone_brings_learns_slower_and_the_mixtures_at_their_own_rate(photographs):
    recipe = replace(photographs, backbone_lr=0.25, settings={"mixture_lr": 7.0})
    network = build(recipe, classes=2)
    images = torch.rand(4, 3, 32, 32)
    groups = SeveralSources(recipe, network, images).parameter_groups(network)
    rates = {id(p): group.get("lr_mult", 1.0) for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    layer = network.features.conv1[2]
    assert isinstance(layer, DSON2d)
    expected = {layer.mix_mean: 7.0, layer.weight: 0.25, network.classifier.weight: 1.0}
    assert {id(p): rate for p, rate in expected.items()}.items() <= rates.items()


def test_a_layer_stands_behind_the_last_block_of_a_resolution(photographs):
    network = build(replace(photographs, method="mixstyle"), classes=2)
    behind = [
        name
        for name, block in network.features.named_children()
        if any(isinstance(part, MixStyle) for part in block.children())
    ]
    assert behind == ["block1", "block3"]
    sides = []
    for name in behind:
        network.features.get_submodule(name).register_forward_hook(lambda m, a, y: sides.append(y.shape[-1]))
    network(torch.rand(2, 3, 64, 64))
    assert sides == [32, 16]


def test_folders_are_grey_for_the_small_network(photographs):
    recipe = replace(photographs, backbone="small_cnn", size=28, network=TINY.network, augment="crops")
    domain = unseen.load(recipe, recipe.sources[0], "train")
    assert domain[0][0].shape == (1, 28, 28)
    assert run(recipe)["curve"][-1]["step"] == 2
