"""Folding domain layers into plain modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from support_statistics import images, network, randomize
from torch import nn
from torch.nn.utils import parametrizations

from deeptransfer.normalization import (
    AutoDIAL,
    AutoDIAL1d,
    AutoDIAL2d,
    AutoDIAL3d,
    DomainBatchNorm,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    DomainNorm,
    DomainWhitening,
    DomainWhitening1d,
    DomainWhitening2d,
    DomainWhitening3d,
    GroupedLinear,
    ReciprocalNorm,
    ReciprocalNorm1d,
    ReciprocalNorm2d,
    ReciprocalNorm3d,
    TransNorm,
    TransNorm1d,
    TransNorm2d,
    TransNorm3d,
    adapt_statistics,
    convert_norm,
    to_batchnorm,
    use_domain,
)

FAMILIES = [
    (DomainBatchNorm, DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d),
    (AutoDIAL, AutoDIAL1d, AutoDIAL2d, AutoDIAL3d),
    (TransNorm, TransNorm1d, TransNorm2d, TransNorm3d),
    (ReciprocalNorm, ReciprocalNorm1d, ReciprocalNorm2d, ReciprocalNorm3d),
    (DomainWhitening, DomainWhitening1d, DomainWhitening2d, DomainWhitening3d),
]
PLAIN = (nn.SyncBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SHAPES = ([(7, 8), (7, 8, 3), (7, 8, 3, 2)], [(7, 8), (7, 8, 3)], [(7, 8, 3, 2)], [(7, 8, 3, 2, 2)])
LAYERS = [case for family in FAMILIES[:4] for case in zip(family, PLAIN, SHAPES, strict=True)]


def batch(shape) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("shared_affine", [True, False])
@pytest.mark.parametrize(("cls", "plain", "shapes"), LAYERS)
def test_every_layer_is_one_batch_norm_exactly(cls, plain, shapes, shared_affine, domain):
    layer = randomize(cls(8, eps=1e-3, shared_affine=shared_affine).double()).eval()
    folded = to_batchnorm(layer, domain)
    assert type(folded) is plain
    for shape in shapes:
        with use_domain(layer, domain):
            torch.testing.assert_close(folded(batch(shape)), layer(batch(shape)), rtol=0, atol=0)


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("shared_affine", [True, False])
@pytest.mark.parametrize("group_size", [1, 2, 4, 8])
@pytest.mark.parametrize(("cls", "plain", "shapes"), list(zip(FAMILIES[4], PLAIN, SHAPES, strict=True)))
def test_whitening_is_a_grouped_convolution_or_with_groups_of_one_a_batch_norm(
    cls, plain, shapes, group_size, shared_affine, domain
):
    layer = randomize(cls(8, group_size=group_size, shared_affine=shared_affine).double()).eval()
    if group_size == 1:
        layer.running_var.copy_(layer.running_cov[..., 0, 0])
    folded = to_batchnorm(layer, domain)
    assert type(folded) is (plain if group_size == 1 else GroupedLinear)
    for shape in shapes:
        with use_domain(layer, domain):
            torch.testing.assert_close(folded(batch(shape)), layer(batch(shape)))


@pytest.mark.parametrize(
    "options",
    [{"distance": "mean"}, {"distance": "wasserstein", "probability": "gaussian"}, {"probability": "uniform"}],
)
def test_every_gain_of_transnorm_is_folded(options):
    layer = randomize(TransNorm2d(8, **options).double()).eval()
    x = batch((7, 8, 3, 3))
    torch.testing.assert_close(to_batchnorm(layer)(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_keeps_its_outputs_and_loses_its_domain_layers(family):
    model = randomize(convert_norm(network(), family[2]), seed=1).eval()
    x = images(9)
    folded = to_batchnorm(model, "target")
    assert not any(isinstance(m, DomainNorm) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x))


def test_a_large_network_in_float32():
    torch.manual_seed(0)
    model = convert_norm(torchvision.models.resnet18(num_classes=3), TransNorm2d)
    x = torch.rand(4, 3, 32, 32)
    adapt_statistics(model, x, method="batch")
    model.eval()
    torch.testing.assert_close(to_batchnorm(model)(x), model(x), rtol=0, atol=0)


def test_the_original_is_not_changed():
    model = randomize(convert_norm(network(), TransNorm2d), seed=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = to_batchnorm(model)
    assert model.training
    assert not folded.training
    assert not any(m.training for m in folded.modules())
    with torch.no_grad():
        for value in folded.state_dict().values():
            value.fill_(3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert isinstance(model[1], TransNorm2d)


def test_the_state_is_a_plain_batch_norms():
    """So a model that never heard of domains loads it strictly."""
    folded = to_batchnorm(randomize(convert_norm(network(), TransNorm2d), seed=1))
    plain = network().eval()
    plain.load_state_dict(folded.state_dict(), strict=True)
    torch.testing.assert_close(plain(images(5)), folded(images(5)), rtol=0, atol=0)


def without_bias() -> nn.Module:
    layer = nn.BatchNorm2d(3)
    layer.bias = None
    return layer


@pytest.mark.parametrize("shared_affine", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.BatchNorm2d(3),
        lambda: nn.BatchNorm2d(3, momentum=None, eps=1e-2),
        lambda: nn.BatchNorm2d(3, affine=False),
        without_bias,
        lambda: nn.SyncBatchNorm(3),
        lambda: torchvision.ops.FrozenBatchNorm2d(3),
    ],
)
def test_there_and_back_the_state_fits_the_original_strictly(build, family, shared_affine):
    original = nn.Sequential(build(), nn.Conv2d(3, 3, 1))
    for value in original[0].state_dict().values():
        value.copy_(torch.tensor([0.5, 1.5, 2.5]) if value.dim() else torch.tensor(4))
    keys = original.state_dict().keys()
    frozen = isinstance(original[0], torchvision.ops.FrozenBatchNorm2d)
    model = convert_norm(copy.deepcopy(original), family[2], shared_affine=shared_affine)
    folded = to_batchnorm(model)
    assert all(m.eps == original[0].eps for m in (model[0], folded[0]) if family[0] is not DomainWhitening)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(folded(x), model.eval()(x))
    if family[0] is DomainWhitening:  # another map: it has the keys of a convolution
        return
    if family[0] is TransNorm and original[0].weight is None:  # its gain needs a weight
        assert folded[0].weight.shape == (3,)
        return
    assert folded.state_dict().keys() - ({"0.num_batches_tracked"} if frozen else set()) == keys
    assert all(p.requires_grad != frozen for p in folded[0].parameters())
    original.load_state_dict(folded.state_dict(), strict=True)
    torch.testing.assert_close(original.eval()(x), folded(x))


def test_a_formula_of_ones_own_is_not_folded():
    """The fold knows the template's evaluation alone."""

    class Doubled(DomainBatchNorm2d):
        def evaluate(self, x, *args):
            return 2 * super().evaluate(x, *args)

    class Called(DomainWhitening2d):
        def forward(self, x):
            return -super().forward(x)

    class OwnMoments(DomainBatchNorm2d):
        def blend(self, x, row, moments):
            return moments._replace(mean=x.mean((0, 2, 3)))

    for cls in (Doubled, Called, OwnMoments):
        net = nn.Sequential(nn.Identity(), randomize(cls(4)))
        with pytest.raises(ValueError, match=rf"1 \({cls.__name__}\) evaluates by a formula of its own"):
            to_batchnorm(net)


def test_the_error_names_the_layer():
    net = nn.ModuleDict({"a": randomize(DomainBatchNorm2d(2)), "b": nn.Sequential(DomainBatchNorm2d(2))})
    with pytest.raises(ValueError, match=r"b\.0 \(DomainBatchNorm2d\) .*the running statistics of the target"):
        to_batchnorm(net)
    net["b"] = parametrizations.weight_norm(randomize(DomainBatchNorm2d(2)))
    with pytest.raises(ValueError, match=r"b \(Parametrized.*\) computes its weight"):
        to_batchnorm(net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    for family in FAMILIES:
        layer = randomize(family[2](4)).to(dtype).eval()
        x = torch.randn(3, 4, 2, 2).to(dtype)
        folded = to_batchnorm(layer)
        assert {t.dtype for name, t in folded.state_dict().items() if "tracked" not in name} == {dtype}
        # γ', β' and the result are rounded once each, and are of the size of a few units.
        bound = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(folded(x), layer(x), rtol=bound, atol=bound)


def test_a_shared_layer_stays_shared():
    layer = randomize(DomainBatchNorm2d(3))
    folded = to_batchnorm(nn.Sequential(layer, nn.ReLU(), layer))
    assert folded[0] is folded[2]


def test_float32_stays_float32_and_momentum_and_eps_stay():
    layer = randomize(DomainBatchNorm2d(3, eps=1e-2, momentum=None))
    folded = to_batchnorm(layer)
    assert (folded.eps, folded.momentum, folded.weight.dtype) == (1e-2, None, torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_folded_network_goes_through_torch_export():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), TransNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), DomainWhitening2d(8), nn.Flatten()
    ).double()
    randomize(model).eval()
    x = images(6)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(to_batchnorm(model), (x,), dynamic_shapes=({0: rows},))
    torch.testing.assert_close(program.module()(images(3)), model(images(3)))


def test_a_row_that_was_never_updated_cannot_be_folded():
    layer = DomainBatchNorm2d(2)
    with use_domain(layer, "source"):
        layer(torch.randn(4, 2, 3, 3))
    to_batchnorm(layer, "source")
    with pytest.raises(ValueError, match="target were never updated"):
        to_batchnorm(layer, "target")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="got 'both'"):
        to_batchnorm(network(), "both")
    with pytest.raises(ValueError, match=r"no domain layer.*plain already"):
        to_batchnorm(network())
