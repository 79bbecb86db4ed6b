"""Runs that are stopped, shared by processes, in mixed precision, or on photographs with a pretrained network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deeptransfer import data_files
from deeptransfer.domains import few_labelled, load_domain, some_of
from deeptransfer.networks import Network, small_cnn
from deeptransfer.runs import adaptation, cli
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.recipe import Means, is_stale, run

TINY = RunConfig(
    source="print",
    target="pen",
    objective="dann",
    steps=6,
    every=2,
    batch_size=16,
    dtype="float64",
    network={"widths": [4, 4], "hidden": [8]},
)
OPTIONS = ["--task", "print:pen", "--objective", "dann", "--norm", "transnorm", "--every", "2", "--dtype", "float64"]
OPTIONS += ["--network", "widths=[4,4]", "--network", "hidden=[8]", "--scored", "100"]


@pytest.fixture
def quick(monkeypatch):
    """Small splits, in memory."""
    whole = adaptation.load_domain

    def small(name, split, size=None):
        return whole(name, split, size=size).subset(range(200))

    monkeypatch.setattr(adaptation, "load_domain", small)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


# ------------------------------------------------------------------------------------------------- checkpoint, resume

RECIPES = {
    "dann": TINY,
    "transnorm": replace(TINY, norm="transnorm"),
    "two views": replace(TINY, objective="mec", norm="whitening"),
    "after a start": replace(TINY, objective="adda", start=2),
    "labelled": replace(TINY, objective="confusion+soft", start=2, labelled=2),
    "maps of its own": replace(TINY, objective="jan-a"),
    "augmented": replace(TINY, augment=True),
}


def stopped(config, path, after=4):
    """Begin a run that ends right after its checkpoint at ``after`` updates."""
    adaptation.train(config, Means(checkpoint=path), stop=after)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_was_stopped_ends_with_the_same_numbers(name, tmp_path, monkeypatch):
    config, path = RECIPES[name], tmp_path / "state"
    stopped(config, path)
    whole = adaptation.train(config)
    steps = []
    fit = adaptation.fit
    monkeypatch.setattr(adaptation, "fit", lambda *a, **k: steps.append(k.get("start")) or fit(*a, **k))
    resumed = run(config, Means(checkpoint=path))
    assert steps[-1] == 4  # it did go on, not begin anew
    assert {key: resumed[key] for key in whole} == whole
    assert not path.exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("change", [{"lr": 0.01}, {"steps": 15}, {"settings": {"weight": 2.0}}])
def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs_and_kept(tmp_path, change):
    path = tmp_path / "state"
    stopped(TINY, path)
    before = path.read_bytes()
    ((key, value),) = change.items()
    message = rf"state is the checkpoint of another recipe \({key} is {getattr(TINY, key)!r} there and {value!r} here\)"
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        run(replace(TINY, **change), Means(checkpoint=path))
    assert path.read_bytes() == before


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_of_other_code_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "state"
    stopped(TINY, path)
    monkeypatch.setattr("deeptransfer.runs.checkpoint.fingerprint", lambda recipe: "0" * 16)
    with pytest.raises(ValueError, match="state was made by other code than this library's: remove it"):
        run(TINY, Means(checkpoint=path))


@pytest.mark.usefixtures("quick")
def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "state"
    stopped(TINY, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state is no sound checkpoint.*remove it"):
        run(TINY, Means(checkpoint=path))


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(tmp_path):
    state, out = tmp_path / "state", tmp_path / "out.json"
    command = [sys.executable, "-m", "deeptransfer", "run", *OPTIONS, "--steps", "40", "--batch-size", "8"]
    command += ["--checkpoint", str(state), "--out", str(out)]
    with subprocess.Popen(command) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert state.exists(), "the run ended before it could be killed"
    subprocess.run(command, check=True)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["curve"] == adaptation.train(RunConfig(**result["config"]))["curve"]


# --------------------------------------------------------------------------------------------------- several processes


@pytest.mark.usefixtures("quick")
def test_batches_that_other_processes_prepare_are_the_same():
    assert adaptation.train(TINY, Means(workers=2)) == adaptation.train(TINY)


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path):
    """``torchrun``, gloo, TransNorm with statistics of both processes' rows: in float64 only rounding differs."""
    out = tmp_path / "two.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "deeptransfer", "run", *OPTIONS, "--steps", "4", "--batch-size", "8", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = json.loads(out.read_text(encoding="utf-8"))
    assert two["processes"] == 2
    one = adaptation.train(replace(RunConfig(**two["config"]), batch_size=16))
    for ours, theirs in zip(two["curve"], one["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-7)  # rounding, grown by four updates


def test_a_process_that_fails_ends_the_others(tmp_path):
    """NaN on both, an error before the first step on one: neither hangs, and the message is the library's."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [*OPTIONS, "--steps", "4", "--batch-size", "8", "--lr", "1e300"]
    done = subprocess.run(
        [*launch, "-m", "deeptransfer", "run", *options], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert "at step" in done.stderr
    assert "lower lr" in done.stderr


# ------------------------------------------------------------------------------------------------------ mixed precision


def test_mixed_precision_changes_roundings_and_no_dtype():
    network = small_cnn(widths=(4, 4), hidden=(8,))
    images = torch.rand(32, 1, 28, 28)
    exact = network(images, layers=("block1", "fc1"))
    network.autocast = torch.bfloat16
    mixed = network(images, layers=("block1", "fc1"))
    for a, b in ((exact.features, mixed.features), (exact.logits, mixed.logits), *(
        (exact.hidden[name], mixed.hidden[name]) for name in exact.hidden
    )):  # fmt: skip
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert (a - b).abs().max() < 0.05 * a.abs().max()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("norm", ["bn", "dsbn", "autodial", "transnorm", "rn"])
def test_every_layer_trains_in_mixed_precision_and_channels_last(norm):
    config = replace(TINY, norm=norm, dtype="float32", steps=20, every=20)
    exact, mixed, last = (
        adaptation.train(c) for c in (config, replace(config, amp=True), replace(config, channels_last=True))
    )
    point = exact["curve"][-1]
    for other in (mixed, last):
        assert other["curve"][-1]["source"] == pytest.approx(point["source"], abs=0.15)


# ------------------------------------------------------------------------------------------- photographs and backbones


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Office-31 in small: two of its domains, three classes, coloured noise."""
    rng = np.random.default_rng(0)
    for part, brightness in (("amazon", 0.9), ("webcam", 0.5)):
        for k, name in enumerate(("bike", "mug", "pen")):
            folder = tmp_path / "office31" / part / "images" / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = brightness * rng.uniform(0, 255, (40 + i, 36, 3))
                pixels[..., k] = 255 * brightness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    monkeypatch.setenv("DEEPTRANSFER_DATA", str(tmp_path))
    return tmp_path


PHOTOGRAPHS = RunConfig(
    source="office31/amazon",
    target="office31/webcam",
    objective="cdan+e",
    norm="transnorm",
    backbone="shufflenet_v2_x0_5",
    network={"bottleneck": 8},
    size=32,
    steps=2,
    every=2,
    batch_size=6,
    transductive=True,
    augment=True,
)


def test_photographs_through_a_network_of_torchvision(photographs):
    result = json.loads(json.dumps(run(PHOTOGRAPHS), allow_nan=False))
    assert len(result["per_class"]) == 3
    assert not is_stale(result)


def test_a_backbone_s_own_layers_learn_slower(photographs, monkeypatch):
    seen = {}
    sgd = adaptation.sgd

    def spied(groups, lr):
        seen["groups"] = list(groups)
        return sgd(seen["groups"], lr)

    monkeypatch.setattr(adaptation, "sgd", spied)
    adaptation.train(replace(PHOTOGRAPHS, backbone_lr=0.25, steps=1))
    assert {group.get("lr_mult", 1.0) for group in seen["groups"]} == {0.25, 1.0}


def test_few_labelled_photographs_are_chosen_without_decoding(photographs):
    few = few_labelled(load_domain("office31/webcam", "all", size=32), 2, seed=0)
    assert few.labels.bincount().tolist() == [2, 2, 2]


def test_a_class_with_too_few_images_to_label_is_named(photographs):
    with pytest.raises(ValueError, match=r"'bike' of 'office31/webcam' has 6 images, fewer than labelled=7"):
        few_labelled(load_domain("office31/webcam", "all", size=32), 7, seed=0)


def test_no_more_images_are_scored_without_labels_than_asked_for(photographs):
    domain = load_domain("office31/webcam", "all", size=32)
    assert some_of(domain, 18, seed=0) is domain
    assert len(some_of(domain, 5, seed=0)) == 5


def refused(*arguments):
    result = CliRunner().invoke(cli.app, ["run", *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def test_what_is_wrong_with_a_folder_is_said_without_a_traceback(photographs):
    task = ["--task", "office31/amazon:office31/webcam", "--size", "32", "--backbone", "shufflenet_v2_x0_5"]
    task += ["--steps", "1", "--batch-size", "6", "--transductive"]
    broken = photographs / "office31" / "webcam" / "images" / "mug" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    code, message = refused(*task)
    assert code == 2
    assert "3.jpg can't be read" in message
    broken.unlink()
    for image in (photographs / "office31" / "webcam" / "images" / "mug").iterdir():
        image.unlink()
    (photographs / "office31" / "webcam" / "images" / "mug").rmdir()
    code, message = refused(*task)
    assert code == 2
    assert "classes differ" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet5"], "unknown backbone 'resnet5'"),
        (["--preset", "cdan"], "unknown preset 'cdan': known ones are"),
        (["--backbone", "mobilenet_025", "--weights", "absent.npz"], "absent.npz does not hold the weights"),
        (["--labelled", "-1"], "labelled"),
        (["--scored", "0"], "scored"),
    ],
)
def test_a_wrong_option_says_why(arguments, message):
    code, text = refused("--task", "print:pen", "--steps", "1", *arguments)
    assert code == 2
    assert message in text


# ------------------------------------------------------------------------------------------------------ presets, memory


def test_presets_are_recipes_that_options_change(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_recipe", lambda config, *_: seen.append(config) or {})
    options = ["--preset", "cdan-office31", "--steps", "7", "--network", "bottleneck=64"]
    result = CliRunner().invoke(cli.app, ["run", "--task", "office31/amazon:office31/webcam", "--json", *options])
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.backbone, config.objective, config.steps) == ("resnet50", "cdan+e", 7)
    assert config.network == {"bottleneck": 64}


def test_the_presets_of_the_book_are_sound():
    paths = list((data_files.data_folder() / "presets").glob("*.toml"))
    assert paths
    for path in paths:
        RunConfig(source="print", target="pen", **adaptation.preset(path.stem))


def test_a_preset_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "odd.toml").write_text("colour = 1\n")
    with pytest.raises(ValueError, match=r"odd.toml holds 'colour'"):
        adaptation.preset("odd")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("training", "message"),
    [(True, "in a training step: give a smaller batch size"), (False, "when scoring: .*--score-batch")],
)
def test_out_of_memory_says_what_needs_less(monkeypatch, training, message):
    def forward(network, x, layers=()):
        if network.training is training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return whole(network, x, layers)

    whole = Network.forward
    monkeypatch.setattr(Network, "forward", forward)
    with pytest.raises(RuntimeError, match=f"out of memory {message}"):
        run(TINY)


@pytest.mark.usefixtures("quick")
def test_the_scoring_batch_changes_no_number():
    assert adaptation.train(TINY, Means(score_batch=7))["curve"] == adaptation.train(TINY)["curve"]
