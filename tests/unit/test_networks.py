"""Networks as ordered blocks: what they return, what they are made of, and that their first weights are fixed."""

from __future__ import annotations

import copy
import hashlib
import pickle

import pytest
import torch
from torch import nn

from deeptransfer import catalogue
from deeptransfer.networks import Network, Output, Standardize, initialize, small_cnn
from deeptransfer.normalization import TransNorm

TINY = {"classes": 3, "size": 8, "widths": (4, 6), "hidden": (5,)}
WIDE = {"widths": (4, 8), "hidden": (8,)}  # whitening takes channels by fours


def tiny(**kwargs):
    return small_cnn(**{**TINY, **kwargs})


def x(n=4, channels=1, side=8, dtype=torch.float32):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=dtype)


# What comes out


def test_output_is_features_and_logits():
    network = tiny().eval()
    output = network(x())
    assert isinstance(output, Output)
    assert output._fields == ("features", "logits", "hidden")
    assert output.features.shape == (4, 5)
    assert output.logits.shape == (4, 3)
    assert output.hidden == {}
    torch.testing.assert_close(output.logits, network.classifier(output.features))
    torch.testing.assert_close(output.features, network.features(network.standardize(x())))


def test_hidden_holds_what_each_block_gives():
    network = tiny().eval()
    names = ("block1", "block2", "fc1", "relu1")
    output = network(x(), layers=(*names, "features", "logits"))
    value = network.standardize(x())
    for name in names:
        value = getattr(network.features, name)(value)
        torch.testing.assert_close(output.hidden[name], value)
    assert list(output.hidden) == [*names, "features", "logits"]
    assert output.hidden["features"] is output.features
    assert output.hidden["logits"] is output.logits
    assert list(network(x(), layers=["fc1"]).hidden) == ["fc1"]
    assert list(network(x(), layers=iter(["fc1"])).hidden) == ["fc1"]


def test_pre_activation_is_before_the_nonlinearity():
    """DaNN aligns it, so it must have both signs; the features do not."""
    output = tiny().train()(x(32), layers=("fc1",))
    assert output.hidden["fc1"].min() < 0
    assert output.features.min() == 0
    torch.testing.assert_close(output.features, output.hidden["fc1"].relu())


def test_unknown_layer_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown layer 'fc7': this network has block1, block2, fc1, relu1, features"):
        tiny()(x(), layers=("fc1", "fc7"))


def test_layers_get_their_gradient():
    network = tiny()
    network(x(), layers=("block1",)).hidden["block1"].square().sum().backward()
    assert network.features.block1[0].weight.grad.abs().sum() > 0
    assert network.features.block2[0].weight.grad is None


# What it is made of


def test_blocks_are_in_order_and_the_classifier_is_last():
    network = small_cnn(hidden=(20, 10))
    assert list(network.blocks) == ["block1", "block2", "block3", "fc1", "relu1", "fc2", "relu2", "classifier"]
    assert network.blocks["fc2"] is network.features.fc2
    assert network.blocks["classifier"] is network.classifier
    held = [p for block in network.blocks.values() for p in block.parameters()]
    assert {id(p) for p in held} == {id(p) for p in network.parameters()}


def test_network_has_norms_and_no_dropout():
    kinds = [type(m) for m in small_cnn().modules()]
    assert kinds.count(nn.BatchNorm2d) == 3
    assert kinds.count(nn.BatchNorm1d) == 1
    assert not any(issubclass(kind, nn.modules.dropout._DropoutNd) for kind in kinds)


@pytest.mark.parametrize("name", ["features", "logits", "classifier"])
def test_reserved_block_names_are_refused(name):
    with pytest.raises(ValueError, match=f"can't be called '{name}'"):
        Network({name: nn.Identity()}, nn.Linear(2, 2))


def test_network_of_vectors_needs_no_standardization():
    network = Network({"one": nn.Linear(2, 3)}, nn.Linear(3, 2))
    assert network(torch.rand(5, 2)).logits.shape == (5, 2)


@pytest.mark.parametrize(("size", "widths"), [(8, (4,)), (28, (4, 4)), (32, (4, 4, 4)), (15, (4, 4, 4))])
def test_sizes_fit(size, widths):
    output = small_cnn(size=size, widths=widths, hidden=(6,)).eval()(x(2, 1, size))
    assert output.logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 4, "widths": (4, 4, 4)}, "4 × 4 pixels can't be halved 3 times"),
        ({"classes": 0}, "classes, channels and widths must be 1 or more, not 0, 1"),
        ({"widths": (4, 0)}, "must be 1 or more"),
        ({"hidden": ()}, r"hidden must hold at least one width, such as \(128,\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_cnn(**arguments)


# Standardisation


def test_standardize_is_the_formula():
    images = x(2, 3)
    out = Standardize([0.1, 0.2, 0.3], [0.5, 1.0, 2.0])(images)
    for c, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(out[:, c], (images[:, c] - mean) / std)


def test_grey_is_repeated_to_the_networks_channels():
    network = tiny(channels=3).eval()
    torch.testing.assert_close(network(x()).logits, network(x().repeat(1, 3, 1, 1)).logits)


@pytest.mark.parametrize(("shape", "channels"), [((2, 3, 8, 8), 1), ((2, 2, 8, 8), 3), ((3, 8, 8), 3), ((5, 2), 1)])
def test_wrong_images_are_refused(shape, channels):
    with pytest.raises(ValueError, match=rf"images \(n, {channels}, H, W\).*not \({shape[0]}, {shape[1]}"):
        tiny(channels=channels)(torch.rand(shape))


def test_bytes_are_refused():
    """They would be read as numbers up to 255 where the network expects 1."""
    with pytest.raises(ValueError, match=r"images in \[0, 1\], not torch\.uint8: divide bytes by 255"):
        tiny()(torch.zeros(2, 1, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (float("nan"),)), ((), ())])
def test_standardize_needs_a_positive_std_for_each_channel(mean, std):
    with pytest.raises(ValueError, match="a mean and a positive std for each channel"):
        Standardize(mean, std)


def test_nan_stays_nan():
    images = x()
    images[1] = torch.nan
    logits = tiny().eval()(images).logits
    assert logits[1].isnan().all()
    assert logits[[0, 2, 3]].isfinite().all()


# First weights


def digest(network):
    values = [p.detach().numpy().tobytes() for p in network.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = digest(tiny(seed=3))
    torch.manual_seed(2)
    assert digest(tiny(seed=3)) == first
    assert digest(tiny(seed=4)) != first


def test_first_weights_are_hes_normal_in_every_dtype():
    network = small_cnn(seed=1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
            assert abs(module.weight.mean().item()) < 0.15 * (2 / fan_in) ** 0.5
            assert module.bias is None or not module.bias.any()
    single = initialize(nn.Linear(3, 2), torch.Generator().manual_seed(0)).weight
    double = initialize(nn.Linear(3, 2).double(), torch.Generator().manual_seed(0)).weight
    assert torch.equal(single, double.float())
    assert single.requires_grad


def test_initialize_draws_everything_anew():
    network = tiny()
    fresh = digest(network)
    network.train()(x(8))
    for p in network.parameters():
        p.data.add_(1.0)
    assert digest(initialize(network, torch.Generator().manual_seed(0))) == fresh


def test_float64_network_computes_in_float64():
    network = tiny().double().eval()
    output = network(x(dtype=torch.float64), layers=("block1",))
    assert output.logits.dtype == output.features.dtype == output.hidden["block1"].dtype == torch.float64
    torch.testing.assert_close(output.logits.float(), tiny().eval()(x(dtype=torch.float64).float()).logits)


def test_round_trips():
    network = tiny(seed=5)
    network.train()(x(8))
    network.eval()
    other = tiny(seed=6)
    other.load_state_dict(network.state_dict())
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), other.eval()):
        assert torch.equal(twin(x()).logits, network(x()).logits)


@pytest.mark.parametrize("method", catalogue.methods("normalization"), ids=lambda method: method.name)
def test_every_normalisation_of_the_catalogue_has_its_name(method):
    network, other = tiny(norm=method.name, **WIDE), method.convert(tiny(**WIDE))
    assert list(map(type, network.modules())) == list(map(type, other.modules()))
    assert digest(network) == digest(other)


def test_a_normalisation_by_its_name_is_that_of_the_catalogue():
    network, other = tiny(norm="transnorm-halved"), catalogue.get("transnorm-halved").convert(tiny())
    layers = [module for module in network.modules() if isinstance(module, TransNorm)]
    assert len(layers) == sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in tiny().modules())
    assert all(layer.halved for layer in layers)
    assert digest(network) == digest(other)
    with pytest.raises(ValueError, match=r"unknown method 'transform': known ones are .*did you mean 'transnorm'"):
        tiny(norm="transform")
    with pytest.raises(ValueError, match="'dann' is no normalisation"):
        tiny(norm="dann")
