"""Backbones compute what torchvision, and a NumPy MobileNet, compute up to the features."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from deeptransfer import backbones
from deeptransfer.backbones import finetuning_groups, mobilenet_025, torchvision_backbone
from deeptransfer.normalization import TransNorm2d, convert_norm, forward_domains
from deeptransfer.objectives import SourceOnly

FAMILIES = (
    "resnet18",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "googlenet",
    "inception_v3",
)


def stored(model, path):
    """Weights for ``model`` that carry an image through to the features, with uneven statistics; stored as a file."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_that_torchvision_gives_its_own_head(name, tmp_path):
    """The same file, the same images: from [0, 1] here, normalised by hand there."""
    torch.manual_seed(0)
    model = models.get_model(name, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})).eval()
    path = stored(model, tmp_path / "weights.pt")
    if name in ("googlenet", "inception_v3"):
        model.transform_input = True  # as torchvision sets it with its pretrained weights
    x = torch.rand(2, 3, 96, 96) * torch.tensor([1.0, 0.2]).view(2, 1, 1, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    seen = []
    head = model.get_submodule("fc" if hasattr(model, "fc") else "classifier")
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network = torchvision_backbone(name, classes=5, weights=path, bottleneck=16).eval()
    with torch.no_grad():
        model((x - mean) / std)
        output = network(x, layers=("pool", "fc1"))
    scale = seen[0].abs().max().item()
    assert (seen[0][0] - seen[0][1]).abs().max() > 0.01 * scale  # the features tell the images apart
    torch.testing.assert_close(output.hidden["pool"], seen[0], rtol=1e-4, atol=1e-5 * scale)
    assert output.features.shape == output.hidden["fc1"].shape == (2, 16)
    assert output.logits.shape == (2, 5)


def test_head_is_linear_norm_relu_and_a_classifier():
    blocks = torchvision_backbone("resnet18", 5, bottleneck=16).blocks
    assert list(blocks)[-4:] == ["pool", "fc1", "relu1", "classifier"]
    assert [type(part) for part in blocks["fc1"]] == [nn.Linear, nn.BatchNorm1d]
    assert (blocks["fc1"][0].weight.shape, blocks["classifier"].weight.shape) == ((16, 512), (5, 16))


def test_drawn_weights_depend_on_the_seed_and_not_on_the_global_generator():
    one, same, other = (torchvision_backbone("resnet18", 5, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert all(not torch.equal(one[key], other[key]) for key in ("features.conv1.weight", "classifier.weight"))


def test_no_network_has_dropout():
    network = torchvision_backbone("mobilenet_v2", 5)
    assert not any(isinstance(module, nn.Dropout) for module in network.modules())


def test_normalisation_methods_find_every_norm():
    network = torchvision_backbone("resnet18", 5, bottleneck=16)
    norms = sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())
    convert_norm(network, TransNorm2d)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())
    assert norms == 21  # 20 of ResNet-18, one of the bottleneck
    ys, yt = forward_domains(network, torch.rand(3, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert (ys.logits.shape, yt.logits.shape) == ((3, 5), (2, 5))


@pytest.mark.parametrize("name", ["vgg11", "squeezenet1_1", "vit_b_32", "convnext_tiny"])
def test_networks_without_batch_norm_are_refused(name, monkeypatch):
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *_args, **_settings: tensor)  # takes a second
    with pytest.raises(ValueError, match=f"{name} has no BatchNorm"):
        torchvision_backbone(name, 5)


def test_network_that_is_no_chain_of_blocks_is_refused():
    with pytest.raises(ValueError, match="no chain of blocks"):
        torchvision_backbone("maxvit_t", 5)


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match="classes and bottleneck must be 1 or more, not 3 and 0"):
        torchvision_backbone("resnet18", 3, bottleneck=0)
    with pytest.raises(ValueError, match="unknown network 'resnet'"):
        torchvision_backbone("resnet", 5)


def test_pretrained_weights_come_from_torchvision(monkeypatch):
    whole, asked = models.get_model, []
    monkeypatch.setattr(models, "get_model", lambda name, weights: (asked.append(weights), whole(name))[1])
    monkeypatch.setattr(backbones, "initialize", lambda *_: None)
    torchvision_backbone("resnet18", 5, weights="default")
    assert asked == ["DEFAULT"]


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    def offline(*_args, **_settings):
        raise URLError("no route")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(ValueError, match=r"resnet18 could not be downloaded .*no route.*give that file as weights"):
        torchvision_backbone("resnet18", 5, weights="default")


def test_weights_file_of_another_head_fits_and_of_another_network_does_not(tmp_path):
    torch.save(models.resnet18(num_classes=3).state_dict(), tmp_path / "three.pt")
    torchvision_backbone("resnet18", 5, weights=tmp_path / "three.pt")
    for wrong in (models.resnet34(num_classes=3).state_dict(), models.mobilenet_v2().state_dict(), {}):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match=r"wrong\.pt does not hold the weights of this network"):
            torchvision_backbone("resnet18", 5, weights=tmp_path / "wrong.pt")


def test_weights_file_runs_no_code(tmp_path):
    """Loading is weights_only: a pickle that would call something is refused."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was here",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt does not hold"):
        torchvision_backbone("resnet18", 5, weights=tmp_path / "evil.pt")
    assert not (tmp_path / "was here").exists()


def test_missing_weights_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.pt does not hold"):
        torchvision_backbone("resnet18", 5, weights=tmp_path / "absent.pt")
    with pytest.raises(ValueError, match=r"absent\.npz does not hold"):
        mobilenet_025(tmp_path / "absent.npz", 5)


def test_finetuning_slows_the_pretrained_blocks_only():
    network = torchvision_backbone("resnet18", 5, bottleneck=16)
    names = {id(p): name for name, p in network.named_parameters()}
    own = nn.Parameter(torch.zeros(1))
    groups = [*SourceOnly().parameter_groups(network), {"params": [own], "weight_decay": 0.0, "lr_mult": 2.0}]
    split = finetuning_groups(groups, network)
    fast = {names.get(id(p), "own"): g for g in split if g.get("lr_mult", 1.0) >= 1 for p in g["params"]}
    slow = {names[id(p)]: g for g in split if g.get("lr_mult", 1.0) < 1 for p in g["params"]}
    assert set(fast) == {"features.fc1.0.weight", "features.fc1.1.weight", "features.fc1.1.bias", "own"} | {
        "classifier.weight",
        "classifier.bias",
    }
    assert set(slow) | set(fast) - {"own"} == set(names.values())
    assert all(group["lr_mult"] == 0.1 for group in slow.values())
    assert (fast["own"]["lr_mult"], fast["own"]["weight_decay"]) == (2.0, 0.0)
    assert sum(len(g["params"]) for g in split) == len(names) + 1


# MobileNet

CHANNELS = (8, 16, 32, 32, 64, 64, *(128,) * 6, 256, 256)
HALVED = (2, 4, 6, 12)


@pytest.fixture
def weights(tmp_path):
    """Random weights under the names of the real file."""
    rng = np.random.default_rng(0)
    arrays = {}

    def layer(name, out, into, side):
        arrays[f"{name}.weight"] = rng.normal(0, (2 / (into * side * side)) ** 0.5, (out, into, side, side))
        arrays[f"{name}_bn.weight"] = rng.uniform(0.5, 1.5, out)
        arrays[f"{name}_bn.bias"] = rng.normal(0.2, 0.5, out)
        arrays[f"{name}_bn.running_mean"] = rng.normal(0, 0.2, out)
        arrays[f"{name}_bn.running_var"] = rng.uniform(0, 0.01, out)  # small: the ε of 1e-3 is seen

    layer("conv1", CHANNELS[0], 3, 3)
    for i in range(1, 14):
        layer(f"conv_dw_{i}", CHANNELS[i - 1], 1, 3)
        layer(f"conv_pw_{i}", CHANNELS[i], CHANNELS[i - 1], 1)
    path = tmp_path / "mobilenet.npz"
    np.savez(path, **{name: value.astype(np.float32) for name, value in arrays.items()})
    return path


def same_convolution(x, weight, stride, depthwise=False):
    """TensorFlow's "SAME": as little padding as gives ⌈n / stride⌉ outputs, more of it right and below."""
    side = weight.shape[-1]
    out = [-(-n // stride) for n in x.shape[1:]]
    total = [max((o - 1) * stride + side - n, 0) for o, n in zip(out, x.shape[1:], strict=True)]
    x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total)])
    result = np.zeros((len(weight), *out))
    for i in range(out[0]):
        for j in range(out[1]):
            patch = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
            rows = (weight[:, 0] * patch) if depthwise else np.einsum("oikl,ikl->o", weight, patch)[:, None, None]
            result[:, i, j] = rows.sum((1, 2))
    return result


def mobilenet_by_numpy(path, image):
    """Pooled features of one image (3, H, W) in [0, 1]."""
    with np.load(path) as file:
        stored = {name: file[name].astype(np.float64) for name in file}

    def layer(x, name, stride=1, depthwise=False):
        x = same_convolution(x, stored[f"{name}.weight"], stride, depthwise)
        mean, var, weight, bias = (
            stored[f"{name}_bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return np.clip((x - mean) / np.sqrt(var + 1e-3) * weight + bias, 0, 6)

    x = layer(image * 255 / 127.5 - 1, "conv1", 2)
    for i in range(1, 14):
        x = layer(x, f"conv_dw_{i}", 2 if i in HALVED else 1, depthwise=True)
        x = layer(x, f"conv_pw_{i}")
    return x.mean((1, 2))


def test_mobilenet_computes_what_its_definition_says(weights):
    image = np.random.default_rng(1).uniform(0, 1, (3, 64, 64))
    network = mobilenet_025(weights, 5).double().eval()
    with torch.no_grad():
        output = network(torch.from_numpy(image)[None], layers=("pool", "block1", "block13"))
    expected = mobilenet_by_numpy(weights, image)
    np.testing.assert_allclose(output.hidden["pool"][0], expected, rtol=1e-9, atol=1e-12)
    assert ((expected > 0) & (expected < 6)).mean() > 0.5  # not all clipped: the comparison sees something
    assert output.hidden["block1"].shape == (1, 16, 32, 32)
    assert output.hidden["block13"].shape == (1, 256, 2, 2)


def test_mobilenet_has_its_blocks_and_the_common_head(weights):
    network = mobilenet_025(weights, classes=5, bottleneck=16)
    assert list(network.blocks) == ["conv1", *(f"block{i}" for i in range(1, 14)), "pool", "fc1", "relu1", "classifier"]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 27


def test_mobilenet_refuses_a_file_of_something_else(tmp_path):
    np.savez(tmp_path / "other.npz", conv1=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz does not hold the weights of MobileNet.*conv1\.weight"):
        mobilenet_025(tmp_path / "other.npz", 5)


@pytest.fixture
def real_weights():
    path = Path(os.environ.get("DEEPTRANSFER_DATA", "nowhere"), "weights", "mobilenet_v1_0.25_224_imagenet.npz")
    if not path.is_file():
        pytest.skip("no MobileNet weights in DEEPTRANSFER_DATA")
    return path


def test_real_mobilenet_computes_what_its_definition_says(real_weights):
    image = np.random.default_rng(1).uniform(0, 1, (3, 64, 64))
    network = mobilenet_025(real_weights, 5).double().eval()
    with torch.no_grad():
        features = network(torch.from_numpy(image)[None], layers=("pool",)).hidden["pool"]
    np.testing.assert_allclose(features[0], mobilenet_by_numpy(real_weights, image), rtol=1e-9, atol=1e-12)


def test_real_mobilenet_knows_photographs(real_weights):
    """Its own head names keyboards, mice and bicycles of a shop as ImageNet does: input range and order are right."""
    from deeptransfer.domains import load_domain

    try:
        amazon = load_domain("office-caltech10/amazon", "all", size=160)
    except ValueError:
        pytest.skip("no Office-Caltech10 in DEEPTRANSFER_DATA")
    network = mobilenet_025(real_weights, 10).eval()
    with np.load(real_weights) as file:
        head = [torch.from_numpy(file[f"conv_preds.{part}"]) for part in ("weight", "bias")]
    imagenet = {"bike": (444, 671, 870), "keyboard": (508, 878), "mouse": (673,), "laptop": (620, 681)}
    right = []
    for name, indices in imagenet.items():
        chosen = (amazon.labels == amazon.classes.index(name)).nonzero().flatten()[:12].tolist()
        images = torch.stack([amazon[i][0] for i in chosen])
        with torch.no_grad():
            pooled = network(images, layers=("pool",)).hidden["pool"]
        guess = (pooled @ head[0].flatten(1).T + head[1]).argmax(1)
        right += [int(g) in indices for g in guess]
    assert np.mean(right) > 0.5, np.mean(right)  # chance is 1 / 300
