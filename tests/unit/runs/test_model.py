"""A trained network on disk: kept, loaded, and used on images of one's own."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deeptransfer.domains import load_domain
from deeptransfer.networks import Network
from deeptransfer.runs import adaptation, cli, load_model
from deeptransfer.runs.adaptation import RunConfig, build_network, normalise
from deeptransfer.runs.layerwise import LayerwiseConfig
from deeptransfer.runs.model import save_model
from deeptransfer.runs.recipe import Means, run

TINY = RunConfig(
    source="print", target="pen", objective="dann", steps=2, every=1, batch_size=16, scored=100,
    network={"widths": [4, 4], "hidden": [8]},
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    monkeypatch.setenv("DEEPTRANSFER_DEVICE", "cpu")


@pytest.fixture
def quick(monkeypatch):
    """Small splits, in memory."""
    whole = adaptation.load_domain
    monkeypatch.setattr(
        adaptation, "load_domain", lambda name, split, size=None: whole(name, split, size=size).subset(range(200))
    )


def call(*arguments):
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("norm", ["bn", "adabn", "dsbn", "whitening"])
def test_a_loaded_network_is_right_as_often_as_the_run_says(norm, tmp_path):
    """With the statistics that its method is scored with: those of the target, also where AdaBN takes them last."""
    objective = "source-only" if norm == "adabn" else "dann"
    result = run(replace(TINY, norm=norm, objective=objective), Means(save=tmp_path / "m.pt"))
    model = load_model(tmp_path / "m.pt")
    test = load_domain("pen", "test").subset(range(200))
    right = model.probabilities(test).argmax(1) == test.labels
    assert right.double().mean().item() == result["curve"][-1]["target"]
    assert (~right).nonzero().flatten().tolist() == result["wrong"]
    assert (model.classes, model.shape) == (test.classes, (1, 28, 28))
    assert model.recipe["objective"] == objective
    assert not model.network.training


def photographs(folder, sides, seed=0):
    generator = np.random.default_rng(seed)
    for kind in ("cup", "lamp"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i, side in enumerate(sides):
            colour = (200, 60, 60) if kind == "cup" else (60, 60, 200)
            pixels = np.clip(generator.normal(colour, 20, (side, side + 3, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{kind}{i}.png")
    return folder


def test_photographs_of_ones_own_from_the_first_command_to_the_last(tmp_path, monkeypatch):
    photographs(tmp_path / "shop", (20, 24, 31, 18, 26))
    photographs(tmp_path / "street", (40, 22, 19, 27, 33), seed=1)
    monkeypatch.chdir(tmp_path)
    options = "--size 16 --steps 30 --every 30 --batch-size 6 --network widths=[4,8] --network hidden=[8] --norm dsbn"
    code, out, err = call(
        "run", "--task", "shop:street", "--objective", "dann", *options.split(), "--save", "kept/m.pt", "--transductive"
    )
    assert (code, err) == (0, "")
    assert "predict kept/m.pt FOLDER" in out
    new = photographs(tmp_path / "new" / "deeper", (21, 35), seed=2).parent
    (new / "deeper" / ".hidden.png").write_bytes(b"no image")
    for name in ("shop", "street"):  # what it was trained on is not needed any more
        (tmp_path / name).rename(tmp_path / f"gone {name}")
    code, out, err = call("predict", "kept/m.pt", new)
    assert (code, err) == (0, "")
    frame = pd.read_csv(io.StringIO(out))
    assert list(frame.columns) == ["file", "class", "probability"]
    assert list(frame["file"]) == ["deeper/cup/cup0.png", "deeper/cup/cup1.png"] + [
        f"deeper/lamp/lamp{i}.png" for i in range(2)
    ]
    assert list(frame["class"]) == ["cup", "cup", "lamp", "lamp"]
    assert frame["probability"].between(0.5, 1).all()
    model = load_model("kept/m.pt")
    table = model.predict(new)
    expected = model.probabilities(model.images(new)).max(1).values
    assert torch.equal(torch.tensor(table["probability"]), expected.double())
    assert call("predict", "kept/m.pt", new, "--out", "p.csv")[:2] == (0, "")
    assert (tmp_path / "p.csv").read_text() == out
    one = pd.read_csv(io.StringIO(call("predict", "kept/m.pt", new / "deeper" / "cup" / "cup1.png")[1]))
    assert one.to_dict("records") == [frame.to_dict("records")[1] | {"file": "cup1.png"}]


def test_images_are_shown_as_in_training(tmp_path):
    """Resampled when they are read, as a folder is with a size; grey for a network that sees grey."""
    photographs(tmp_path / "shop", (20, 24))
    domain = load_domain(tmp_path / "shop", "all", size=16)
    config = replace(TINY, size=16)
    for channels in (3, 1):
        shape = (channels, 16, 16)
        save_model(tmp_path / "m.pt", config, build_network(config, 2, shape), ("cup", "lamp"), shape)
        images = load_model(tmp_path / "m.pt").images(tmp_path / "shop")
        shown, trained = (torch.stack([d[i][0] for i in range(len(d))]) for d in (images, domain))
        if channels == 1:
            trained = (trained * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        assert torch.allclose(shown, trained, atol=1e-3 if channels == 1 else 0)


@pytest.mark.parametrize(
    ("backbone", "weights"), [("resnet18", "default"), ("mobilenet_025", "gone/mobilenet.npz"), ("small_cnn", "")]
)
@pytest.mark.parametrize("norm", ["bn", "transnorm", "rn"])
def test_every_network_is_built_again_without_its_first_weights(backbone, weights, norm, tmp_path):
    small = {"bottleneck": 8} if weights else {"widths": (4, 4), "hidden": (8,)}
    config = RunConfig(source="print", target="pen", objective="dann", backbone=backbone, norm=norm, network=small)
    network = build_network(config, 3, (3, 32, 32))
    normalise(config, network)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    save_model(tmp_path / "m.pt", replace(config, weights=weights), network, "abc", (3, 32, 32))
    loaded = load_model(tmp_path / "m.pt").network
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.state_dict().items())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x).logits, network.eval()(x).logits)


def test_nothing_is_written_over_and_folders_are_made_before_training(tmp_path, monkeypatch):
    (tmp_path / "m.pt").write_bytes(b"hours of work")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cli, "run_recipe", lambda *_: pytest.fail("trained"))
    task = ["run", "--task", "print:pen", "--steps", "1"]
    code, out, err = call(*task, "--save", tmp_path / "m.pt")
    assert (code, out) == (2, "")
    assert "m.pt is there: name another file, or remove it" in err
    assert (tmp_path / "m.pt").read_bytes() == b"hours of work"
    for option in ("--save", "--out", "--checkpoint"):
        code, _, err = call(*task, option, tmp_path / "file" / "m.pt")
        assert code == 2
        assert "can't be written" in err


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_what_is_no_model_is_named(tmp_path, capsys):
    (tmp_path / "photographs").mkdir()
    wrong = {
        "absent.pt": "there is no model",
        "text.pt": "is no model",
        "evil.pt": "is no model",
        "half.pt": "is no model",
    }
    (tmp_path / "text.pt").write_text("weights")
    torch.save({"kind": Evil()}, tmp_path / "evil.pt")
    torch.save({"kind": "adaptation"}, tmp_path / "half.pt")
    for name, message in wrong.items():
        code, out, err = call("predict", tmp_path / name, tmp_path / "photographs")
        assert (code, out) == (2, ""), name
        assert name in err
        assert message in err
    assert "executed" not in capsys.readouterr().out


def test_what_is_no_image_is_named(tmp_path):
    config = replace(TINY, size=16)
    save_model(tmp_path / "m.pt", config, build_network(config, 2, (1, 16, 16)), ("cup", "lamp"), (1, 16, 16))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cut.png").write_bytes(b"cut off")
    for name, message in {"absent": "there is no", "empty": "no image in", "broken": "cut.png can't be read"}.items():
        code, out, err = call("predict", tmp_path / "m.pt", tmp_path / name)
        assert (code, out) == (2, "")
        assert message in err


def test_a_kind_of_run_that_saves_no_model_says_so():
    with pytest.raises(ValueError, match="runs of the kind 'layerwise' save no model"):
        LayerwiseConfig.untrained({}, 2, (1, 8, 8))


def test_out_of_memory_in_predict_is_told_without_a_traceback(tmp_path, monkeypatch):
    config = replace(TINY, size=16)
    save_model(tmp_path / "m.pt", config, build_network(config, 2, (3, 16, 16)), ("cup", "lamp"), (3, 16, 16))
    photographs(tmp_path / "new", (20,))

    def full(self, x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Network, "forward", full)
    code, out, err = call("predict", tmp_path / "m.pt", tmp_path / "new")
    assert (code, out) == (1, "")
    assert "--score-batch" in err
