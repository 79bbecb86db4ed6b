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

from deeptransfer import __main__ as command_line
from deeptransfer import experiments
from deeptransfer.domains import load_domain
from deeptransfer.experiments import RunConfig
from deeptransfer.networks import small_cnn

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
    whole = experiments.load_domain

    def small(name, split, size=None):
        return whole(name, split, size=size).subset(range(200))

    monkeypatch.setattr(experiments, "load_domain", small)


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


def stopped(config, path, monkeypatch, after=4):
    """Begin a run that ends, as by Ctrl-C, right after its checkpoint at ``after`` updates."""
    save = experiments.save_checkpoint

    def interrupted(path, mark, step, *state):
        save(path, mark, step, *state)
        if step == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(experiments, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiments.run(config, checkpoint=path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_was_stopped_ends_with_the_same_numbers(name, tmp_path, monkeypatch):
    config, path = RECIPES[name], tmp_path / "state"
    stopped(config, path, monkeypatch)
    whole = experiments.train(config)
    steps = []
    fit = experiments.fit
    monkeypatch.setattr(experiments, "fit", lambda *a, **k: steps.append(k.get("start")) or fit(*a, **k))
    resumed = experiments.run(config, checkpoint=path)
    assert steps[-1] == 4  # it did go on, not begin anew
    assert {key: resumed[key] for key in whole} == whole
    assert not path.exists()


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "state"
    stopped(TINY, path, monkeypatch)
    other = replace(TINY, lr=0.01)
    assert experiments.run(other, checkpoint=path)["curve"] == experiments.train(other)["curve"]


@pytest.mark.usefixtures("quick")
def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    path = tmp_path / "state"
    stopped(TINY, path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state is no sound checkpoint.*remove it"):
        experiments.run(TINY, checkpoint=path)


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
    assert result["curve"] == experiments.train(RunConfig(**result["config"]))["curve"]


# --------------------------------------------------------------------------------------------------- several processes


@pytest.mark.usefixtures("quick")
def test_batches_that_other_processes_prepare_are_the_same():
    assert experiments.train(TINY, workers=2) == experiments.train(TINY)


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path):
    """``torchrun``, gloo, TransNorm with statistics of both processes' rows: in float64 only rounding differs."""
    out = tmp_path / "two.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "deeptransfer", "run", *OPTIONS, "--steps", "4", "--batch-size", "8", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    two = json.loads(out.read_text(encoding="utf-8"))
    assert two["processes"] == 2
    one = experiments.train(replace(RunConfig(**two["config"]), batch_size=16))
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
        experiments.train(c) for c in (config, replace(config, amp=True), replace(config, channels_last=True))
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
    result = json.loads(json.dumps(experiments.run(PHOTOGRAPHS), allow_nan=False))
    assert len(result["per_class"]) == 3
    assert not experiments.is_stale(result)


def test_a_backbone_s_own_layers_learn_slower(photographs, monkeypatch):
    seen = {}
    sgd = experiments.sgd

    def spied(groups, lr):
        seen["groups"] = list(groups)
        return sgd(seen["groups"], lr)

    monkeypatch.setattr(experiments, "sgd", spied)
    experiments.train(replace(PHOTOGRAPHS, backbone_lr=0.25, steps=1))
    assert {group.get("lr_mult", 1.0) for group in seen["groups"]} == {0.25, 1.0}


def test_few_labelled_photographs_are_chosen_without_decoding(photographs):
    few = experiments.few_labelled(load_domain("office31/webcam", "all", size=32), 2, seed=0)
    assert few.labels.bincount().tolist() == [2, 2, 2]


def test_a_class_with_too_few_images_to_label_is_named(photographs):
    with pytest.raises(ValueError, match=r"'bike' of 'office31/webcam' has 6 images, fewer than labelled=7"):
        experiments.few_labelled(load_domain("office31/webcam", "all", size=32), 7, seed=0)


def test_no_more_images_are_scored_without_labels_than_asked_for(photographs):
    domain = load_domain("office31/webcam", "all", size=32)
    assert experiments.some_of(domain, 18, seed=0) is domain
    assert len(experiments.some_of(domain, 5, seed=0)) == 5


def refused(*arguments):
    result = CliRunner().invoke(command_line.app, ["run", *arguments])
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
    monkeypatch.setattr(experiments, "run", lambda config, *_: seen.append(config) or {})
    options = ["--preset", "cdan-office31", "--steps", "7", "--network", "bottleneck=64"]
    result = CliRunner().invoke(command_line.app, ["run", "--task", "office31/amazon:office31/webcam", *options])
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.backbone, config.objective, config.steps) == ("resnet50", "cdan+e", 7)
    assert config.network == {"bottleneck": 64}


def test_the_presets_of_the_book_are_sound():
    paths = list((experiments.data_folder() / "presets").glob("*.toml"))
    assert paths
    for path in paths:
        RunConfig(source="print", target="pen", **experiments.preset(path.stem))


def test_a_preset_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "data_folder", lambda: tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "odd.toml").write_text("colour = 1\n")
    with pytest.raises(ValueError, match=r"odd.toml holds 'colour'"):
        experiments.preset("odd")


def test_out_of_memory_says_what_needs_less(monkeypatch):
    def train(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(experiments, "train", train)
    with pytest.raises(RuntimeError, match=r"16 \+ 16 images a step: give a smaller batch size"):
        experiments.run(TINY)
