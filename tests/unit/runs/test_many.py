"""Many domains in one network: its studies, their grid, and what each method adds."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch

from deeptransfer import data_files
from deeptransfer.networks import small_cnn
from deeptransfer.normalization import DomainBatchNorm2d, convert_norm, forward_domains, use_domain
from deeptransfer.runs import grid, many
from deeptransfer.runs.many import CAMERAS, STUDIES, ManyConfig
from deeptransfer.runs.provenance import reached
from deeptransfer.runs.recipe import NO_NUMBER, fingerprint, is_stale, recipe_of, run

TINY = ManyConfig(
    study="added", method="bn", target="pen", base_steps=2, steps=many.EVERY + 1, tune_steps=1, batch_size=4
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small splits and networks, no progress bars, on the CPU."""
    whole = many.load_domain
    monkeypatch.setattr(many, "load_domain", lambda name, split="train": whole(name, split).subset(range(120)))
    monkeypatch.setattr(many, "WIDTHS", (2, 4))
    monkeypatch.setattr(many, "HIDDEN", (4,))
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")
    many.train_base.cache_clear()
    yield
    many.train_base.cache_clear()


@pytest.mark.parametrize(("study", "method"), [(s, m) for s, methods in STUDIES.items() for m in methods])
def test_a_result_is_strict_json_repeats_and_begins_as_it_went_on(study, method):
    config = replace(TINY, study=study, method=method, target="print" if study == "cameras" else "pen")
    result = json.loads(json.dumps(run(config), allow_nan=False))
    assert recipe_of(result) == config
    assert not is_stale(result)
    assert 0 <= ManyConfig.scores(result)["accuracy"] <= 1
    again = run(config)
    for key in set(result) - {"seconds", "versions"}:
        assert json.loads(json.dumps(again[key])) == result[key], key
    begun = json.loads(json.dumps(config.beginning()))
    assert begun["losses"] == result["losses"][: len(begun["losses"])]
    trained = study != "added" or method not in ("base", "moments")
    assert len(result["losses"]) == 2 * trained
    assert len(begun["losses"]) == trained


def test_all_images_come_before_any_comes_again():
    order = many.orders(5, 2, 5, torch.Generator().manual_seed(0)).flatten()
    assert sorted(order[:5].tolist()) == sorted(order[5:].tolist()) == [0, 1, 2, 3, 4]


def test_fixed_weights_make_the_norm_of_each_domain():
    """One-hot weights in every layer are per-domain BatchNorm, in training and in evaluation."""
    network, other = many.assigned_network(3, 0), small_cnn(channels=1, widths=many.WIDTHS, hidden=many.HIDDEN, seed=0)
    convert_norm(other, DomainBatchNorm2d, domains=3)
    parts = torch.rand(3, 4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    weights = torch.eye(3).repeat_interleave(4, 0)
    for training in (True, False):
        network.train(training)
        other.train(training)
        found = many.forward_assigned(network, parts.flatten(0, 1), weights).logits
        wanted = torch.cat([out.logits for out in forward_domains(other, *parts)])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_purity_counts_the_larger_part_of_each_latent_domain():
    truth = torch.tensor([0, 0, 0, 1, 1, 1])
    right, all_in_one = torch.eye(2)[truth], torch.eye(2)[torch.zeros(6, dtype=torch.long)]
    assert many.purity(right, truth) == (1, 0.5)
    assert many.purity(right.flip(1), truth) == (1, 0.5)
    assert many.purity(all_in_one, truth) == (0.5, 0)


@pytest.mark.parametrize("mode", ["parallel", "series"])
def test_adapters_begin_as_the_base_and_leave_its_convolutions_alone(mode):
    base = many.train_base(0, 2, 4, 0.05)
    network = many.with_adapters(base, mode).eval()
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for layer in many.adapters_of(network):
        if layer.inner is not None:  # it has seen nothing yet, and would refuse to evaluate
            layer.inner.load_state_dict(layer.norm.state_dict())
    network.eval()
    with use_domain(network, "target"):
        torch.testing.assert_close(network(x).logits, base(x).logits)
    many.train_on(many.freeze_shared(network), many.grey("pen"), TINY, 3)
    for layer, block in zip(many.adapters_of(network), ("block1", "block2"), strict=True):
        assert torch.equal(layer.conv.weight, base.features.get_submodule(block)[0].weight)
        assert layer.adapters[0].weight.abs().max() > 0
    assert torch.equal(network.features.fc1[1].weight, base.features.fc1[1].weight)


def test_numbers_of_a_domain_are_counted():
    """Widths 2 and 4, one hidden layer of 4: each number by hand."""
    statistics, affine, classifier = 2 * (2 + 4 + 4), 2 * (2 + 4 + 4), 4 * 10 + 10
    found = {}
    for method in STUDIES["added"]:
        if method not in ("covnorm", "svd"):
            found[method] = many.train_added(replace(TINY, method=method), None)["numbers"]
    assert (found["base"], found["moments"]) == (0, statistics)
    assert (found["probe"], found["probe-moments"]) == (classifier, classifier + statistics)
    assert found["bn"] == statistics + affine + classifier
    assert found["adapters"] == found["bn"] + 1 * 2 + 2 * 4
    assert found["adapters-series"] == found["bn"] + 2 * 2 + 4 * 4 + 4 * (2 + 4)
    assert (
        found["full"]
        == found["scratch"]
        == statistics + sum(p.numel() for p in many.train_base(0, 2, 4, 0.05).parameters())
    )


def test_compression_with_all_directions_is_the_adapter_and_sizes_are_equal():
    network = many.freeze_shared(many.with_adapters(many.train_base(0, 2, 4, 0.05), "series"))
    train = many.grey("pen")
    many.train_on(network, train, TINY, 5)
    x = train.tensors[0][:50]
    network.eval()
    for method in ("covnorm", "svd"):
        smaller, _ = many.compressed(network, x, method, 1.0)
        with use_domain(smaller, "target"), use_domain(network, "target"):
            torch.testing.assert_close(smaller(x).logits, network(x).logits, rtol=1e-3, atol=1e-4)
    halved = {method: many.compressed(network, x, method, 0.5) for method in ("covnorm", "svd")}
    widths = [layer.adapters[0].mean_out.numel() for layer in many.adapters_of(halved["covnorm"][0])]
    matrices = [
        numbers.numel()
        for layer in many.adapters_of(halved["covnorm"][0])
        for key, numbers in layer.adapters[0].state_dict().items()
        if key in ("mixing", "reduce", "expand")
    ]
    assert halved["covnorm"][1] == sum(matrices) + sum(widths)  # both means make one offset
    low = [
        numbers.numel() for layer in many.adapters_of(halved["svd"][0]) for numbers in layer.adapters[0].parameters()
    ]
    assert halved["svd"][1] == sum(low)
    # As many directions as fit: another one has 2 d numbers, and the offset is d.
    assert 0 <= halved["covnorm"][1] - halved["svd"][1] < sum(3 * d for d in widths)


def test_cameras_differ_and_a_skewed_one_saw_one_class_alone():
    config = replace(TINY, study="cameras", method="cameras", target="print")
    shots, skewed = many.shoot_all(config), many.shoot_all(replace(config, method="cameras-skewed"))
    assert len(set(many.cameras())) == len(shots) == CAMERAS
    assert all(shot.images.min() >= 0 and shot.images.max() <= 1 for shot in shots)
    assert len(shots[-1].labels.unique()) > 1
    assert skewed[-1].labels.unique().tolist() == [many.ONLY]
    assert torch.equal(skewed[-1].test.tensors[0], shots[-1].test.tensors[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 3}, {"lr": 0.1}, {"method": "full"}, {"target": "scene"}])
def test_the_recipe_enters_the_fingerprint(change):
    assert fingerprint(replace(TINY, **change)) != fingerprint(TINY)


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("deeptransfer.adapters.ResidualAdapter", True),
        ("deeptransfer.domains.builtin.draw_print", True),
        ("deeptransfer.runs.many.compress", True),
        ("deeptransfer.runs.many.train_latent", False),
        ("deeptransfer.objectives.DaNN", False),
    ],
)
def test_the_fingerprint_reaches_the_code_that_makes_the_numbers_and_no_other(name, matters):
    code = TINY.code()
    assert (name in reached(code.roots, [*NO_NUMBER, *code.stop])) is matters


def test_a_grid_holds_every_case_and_says_what_is_wrong_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "grids").mkdir()
    file = tmp_path / "grids" / "some.toml"
    text = 'kind = "many"\nstudy = "added"\nmethods = ["bn", "full"]\ntargets = ["pen"]\n'
    file.write_text("seeds = [0, 3]\n" + text, encoding="utf-8")
    cases = [(r.method, r.seed) for r in grid.load_grid("some")]
    assert cases == [("bn", 0), ("bn", 3), ("full", 0), ("full", 3)]
    for wrong in (text, 'seeds = [0]\nsauce = "print"\n' + text):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"some\.toml: a grid of the kind 'many' holds methods, targets, seeds"):
            grid.load_grid("some")


@pytest.mark.parametrize("wrong", [{"study": "latents"}, {"method": "latent"}, {"target": "paint"}])
def test_what_is_unknown_is_an_error(wrong):
    with pytest.raises(ValueError, match="known ones are"):
        replace(TINY, **wrong)


def test_a_loss_that_is_not_finite_is_an_error():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(FloatingPointError, match="at step 0"):
        many.update([{"params": [weight]}], lambda step: weight.sum() * float("nan"), 3, 0.1)


def test_a_copy_of_the_base_leaves_the_shared_one_alone():
    before = copy.deepcopy(many.train_base(0, 2, 4, 0.05).state_dict())
    many.train_added(replace(TINY, method="full"), None)
    many.train_added(replace(TINY, method="moments"), None)
    assert all(torch.equal(v, before[k]) for k, v in many.train_base(0, 2, 4, 0.05).state_dict().items())
    assert asdict(TINY)["steps"] == many.EVERY + 1
