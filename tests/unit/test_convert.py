"""Putting domain layers into networks, and telling them which rows belong to which domain."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from deeptransfer import normalization as norm
from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainNorm,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    convert_norm,
    forward_domains,
    use_domain,
)

LAYERS = [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d, DomainWhitening2d]


def images(n, size=32, seed=0):
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(seed))


def settled(net):
    """Give every BatchNorm statistics, weight and bias that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.normal_(generator=generator).mul_(0.1)
                m.running_var.uniform_(0.8, 1.2, generator=generator)
                m.num_batches_tracked.fill_(5)
                m.weight.uniform_(0.8, 1.2, generator=generator)
    return net


# convert_norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DomainBatchNorm2d, AutoDIAL2d, ReciprocalNorm2d])
def test_a_converted_resnet50_evaluates_as_before(cls):
    net = settled(torchvision.models.resnet50(num_classes=10)).eval()
    x = images(2)
    with torch.inference_mode():
        want = net(x)
        assert convert_norm(net, cls) is net
        for domain in ("source", "target"):
            with use_domain(net, domain):
                assert_close(net(x), want, rtol=0, atol=0)


def test_uniform_transnorm_doubles_the_output_of_every_batchnorm_of_a_resnet50():
    net = settled(torchvision.models.resnet50(num_classes=10)).eval()
    doubled = copy.deepcopy(net)
    for m in doubled.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_hook(lambda module, args, out: 2 * out)
    convert_norm(net, TransNorm2d, probability="uniform")
    with torch.inference_mode():
        # Relative: 53 doublings make large numbers.
        want, got = doubled(images(2)), net(images(2))
    assert_close(got / want.abs().max(), want / want.abs().max())


def test_a_fresh_resnet_evaluates_as_before():
    """Its statistics, mean 0 and variance 1, count as updated."""
    net = torchvision.models.resnet18().eval()
    x = images(2)
    with torch.inference_mode():
        want = net(x)
        assert_close(convert_norm(net, DomainBatchNorm2d)(x), want, rtol=0, atol=0)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.mobilenet_v3_small])
def test_one_training_step(cls, build):
    net = convert_norm(build(num_classes=5), cls)
    norms = [m for m in net.modules() if isinstance(m, DomainNorm)]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    before = [p.detach().clone() for p in net.parameters()]
    ys, yt = forward_domains(net.train(), images(3), images(2, seed=1))
    assert ys.shape == (3, 5)
    assert yt.shape == (2, 5)
    (nn.functional.cross_entropy(ys, torch.tensor([0, 1, 2])) + yt.softmax(1).log().mean()).backward()
    optimiser.step()
    assert all(p.isfinite().all() for p in net.parameters())
    changed = sum(not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert changed > 0.9 * len(before) - 4 * len(norms)  # gates at their bound may stay
    assert all((m.num_batches_tracked == 2).all() for m in norms)  # conversion counts as the first
    assert net.eval()(images(2)).isfinite().all()


@pytest.mark.parametrize("cls", [norm.TransNorm1d, TransNorm2d, norm.TransNorm3d, norm.TransNorm])
def test_any_member_of_a_family_stands_for_its_twins(cls):
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2))
    convert_norm(net, cls, distance="mean")
    assert [type(m) for m in net] == [norm.TransNorm1d, TransNorm2d, norm.TransNorm3d, norm.TransNorm]
    assert all(m.distance == "mean" for m in net)
    assert [m.sync for m in net] == [False, False, False, True]


def test_a_subclass_of_a_member_stands_for_itself():
    class Mine(TransNorm2d):
        pass

    net = convert_norm(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2)), Mine)
    assert [type(m) for m in net] == [norm.TransNorm1d, Mine]
    assert type(convert_norm(nn.Sequential(nn.BatchNorm2d(2)), norm.TransNorm1d)[0]) is TransNorm2d


@pytest.mark.parametrize("cls", LAYERS)
def test_conversion_keeps_what_the_layer_was(cls):
    old = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3, dtype=torch.float64)
    old(torch.randn(5, 4, 3, 3, dtype=torch.float64))
    old.weight.requires_grad_(False)
    weight, bias, state = old.weight, old.bias, copy.deepcopy(old.state_dict())
    new = convert_norm(nn.Sequential(old.eval()), cls)[0]
    assert (new.eps, new.momentum, new.training) == (1e-3, 0.3, False)
    assert new.weight is weight  # an optimiser that holds it stays valid
    assert new.bias is bias
    assert not new.weight.requires_grad
    assert new.bias.requires_grad
    assert all(t.dtype == torch.float64 for name, t in new.state_dict().items() if name != "num_batches_tracked")
    for row in (0, 1):
        assert_close(new.running_mean[row], state["running_mean"])
        assert_close(new.running_var[row], state["running_var"])
    assert new.num_batches_tracked.tolist() == [1, 1]


def test_unshared_affine_starts_equal_in_both_domains():
    old = nn.BatchNorm2d(4)
    nn.init.uniform_(old.weight)
    old.bias.requires_grad_(False)
    new = convert_norm(nn.Sequential(old), DomainBatchNorm2d, shared_affine=False)[0]
    assert_close(new.weight, old.weight.expand(2, 4))
    assert new.weight.requires_grad
    assert not new.bias.requires_grad


def test_a_shared_module_is_converted_once():
    shared = nn.BatchNorm2d(4)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.BatchNorm2d(4)})
    net["again"] = net["b"]
    convert_norm(net, AutoDIAL2d)
    assert net["a"] is net["b"][0]
    assert net["a"] is net["again"][0]
    assert net["a"] is not net["c"]


def test_a_batchnorm_itself_is_returned_converted():
    assert type(convert_norm(nn.BatchNorm1d(4), DomainBatchNorm2d)) is DomainBatchNorm1d


def test_batchnorm_without_affine_becomes_frozen_ones_and_zeros():
    old = nn.BatchNorm2d(4, affine=False)
    x = torch.randn(5, 4, 3, 3)
    old(x)
    new = convert_norm(nn.Sequential(old), TransNorm2d, probability="uniform")[0]
    assert not new.weight.requires_grad
    assert not new.bias.requires_grad
    assert_close(new.eval()(x), 2 * old.eval()(x))


def test_what_a_batchnorm_lacks_is_no_parameter_and_no_state_afterwards():
    """So an optimiser, Tent and the old checkpoint meet nothing new."""
    without_bias = nn.BatchNorm2d(4)
    without_bias.bias = None
    for old in (nn.BatchNorm2d(4, affine=False), without_bias):
        keys = old.state_dict().keys()
        for shared in (True, False):
            new = convert_norm(nn.Sequential(copy.deepcopy(old)), DomainBatchNorm2d, shared_affine=shared)[0]
            assert new.state_dict().keys() == keys
            assert len(list(new.parameters())) == (old.weight is not None)
            new.load_state_dict(old.state_dict(), strict=True)
            assert new.bias.shape == ((4,) if shared else (2, 4))
            assert (new.bias == 0).all()
            assert copy.deepcopy(new).double().bias.dtype == torch.float64


def test_what_two_layers_share_stays_shared():
    first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    second.weight = first.weight
    for shared in (True, False):
        a, b = convert_norm(copy.deepcopy(nn.Sequential(first, second)), DomainBatchNorm2d, shared_affine=shared)
        assert a.weight is b.weight
        assert a.weight.shape == ((4,) if shared else (2, 4))
        assert a.bias is not b.bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_evaluates_as_before(dtype):
    net = settled(torchvision.models.resnet18(num_classes=4)).to(dtype).eval()
    x = images(2).to(dtype)
    with torch.inference_mode():
        want = net(x)
        convert_norm(net, DomainBatchNorm2d)
        assert_close(net(x), want, rtol=0, atol=0)
    assert all(t.dtype == dtype for name, t in net.state_dict().items() if "tracked" not in name)


def test_each_part_of_a_layer_keeps_its_dtype():
    """Half-precision training often keeps the statistics, or the parameters, in float32."""
    for shared in (True, False):
        old = nn.BatchNorm2d(4)
        old.running_mean, old.running_var = old.running_mean.double(), old.running_var.double()
        new = convert_norm(nn.Sequential(old), DomainBatchNorm2d, shared_affine=shared)[0]
        assert (new.weight.dtype, new.running_var.dtype) == (torch.float32, torch.float64)


def test_gates_that_layers_share_are_listed_once():
    net = convert_norm(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)), AutoDIAL2d)
    assert len(norm.gate_parameters(net)) == 2
    net[1].alpha = net[0].alpha
    assert len(norm.gate_parameters(net)) == 1


def test_a_cumulative_average_goes_on():
    """momentum=None: statistics of a fresh layer must not count as a batch."""
    plain = nn.BatchNorm2d(4, momentum=None)
    new = convert_norm(nn.Sequential(copy.deepcopy(plain)), DomainBatchNorm2d)[0]
    for seed in range(3):
        x = images(4, 5, seed)[:, [0, 1, 2, 0]]
        plain(x)
        forward_domains(new, x, x)
    assert_close(new.running_var[0], plain.running_var)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "no BatchNorm to convert in Sequential"),
        (nn.Sequential(DomainBatchNorm2d(2)), "converted already"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "track_running_stats=False"),
        (nn.Sequential(nn.LazyBatchNorm2d()), "pass one batch"),
    ],
)
def test_what_cannot_be_converted_is_an_error(net, message):
    with pytest.raises(ValueError, match=message):
        convert_norm(net, TransNorm2d)


# forward_domains and use_domain ------------------------------------------------------------------------------------


class Named(NamedTuple):
    features: Any
    logits: Any


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    name: str


class Shaped(nn.Module):
    """Returns its input in the shape that a function gives it."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, x, **kwargs):
        return self.shape(x, **kwargs)


def test_nested_outputs_are_split():
    def nest(x):
        return Named([x, (x + 1, None)], OrderedDict(a=Frozen(x * 2, "kept"), b=defaultdict(list, c=x)))

    xs, xt = images(3, 4), images(2, 4, seed=1)
    s, t = forward_domains(Shaped(nest), xs, xt)
    for part, x in ((s, xs), (t, xt)):
        assert type(part) is Named
        assert_close(part.features[0], x)
        assert_close(part.features[1][0], x + 1)
        assert part.features[1][1] is None
        assert isinstance(part.logits, OrderedDict)
        assert_close(part.logits["a"].logits, x * 2)
        assert part.logits["a"].name == "kept"
        assert isinstance(part.logits["b"], defaultdict)
        assert_close(part.logits["b"]["c"], x)


def test_arguments_reach_the_model():
    ys, _ = forward_domains(Shaped(lambda x, factor: x * factor), images(2, 4), images(2, 4), factor=3)
    assert_close(ys, 3 * images(2, 4))


def test_without_domain_layers_it_is_one_joint_pass():
    """A plain BatchNorm sees the pooled batch."""
    net, twin = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    xs, xt = images(3, 4), images(2, 4, seed=1)
    ys, yt = forward_domains(net, xs, xt)
    assert_close(torch.cat([ys, yt]), twin(torch.cat([xs, xt])), rtol=0, atol=0)
    assert_close(net.running_var, twin.running_var)


@pytest.mark.parametrize(
    ("shape", "xs", "xt", "message"),
    [
        (lambda x: x.sum(), images(2, 4), images(2, 4), r"shape \(\) has no row for each of the 4 input rows"),
        (lambda x: x[:3], images(2, 4), images(2, 4), r"shape \(3, 3, 4, 4\)"),
        (lambda x: x, images(0, 4), images(2, 4), "0 source and 2 target rows"),
        (lambda x: x, images(2, 4), images(0, 4), "2 source and 0 target rows"),
        (lambda x: x, images(2, 4), images(2, 5), r"\(3, 4, 4\).*\(3, 5, 5\) differ"),
    ],
)
def test_parts_that_do_not_fit_are_an_error(shape, xs, xt, message):
    with pytest.raises(ValueError, match=message):
        forward_domains(Shaped(shape), xs, xt)


def test_a_domain_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="must be 'source' or 'target', got 'sauce'"), use_domain(nn.ReLU(), "sauce"):
        pass


def test_the_domain_is_forgotten_after_the_block_even_after_an_error():
    layer = DomainBatchNorm2d(3)
    with use_domain(layer, "source"):
        with use_domain(layer, "target"):
            assert layer.membership.split() == 1
        assert layer.membership.split() == 0
        forward_domains(layer, images(2, 4), images(3, 4))  # both domains, although one is named outside
    assert layer.num_batches_tracked.tolist() == [1, 1]
    with pytest.raises(ValueError, match="expected 3 channels"):
        forward_domains(layer, torch.zeros(2, 4, 2, 2), torch.zeros(3, 4, 2, 2))
    assert layer.membership.split() is None


def test_two_networks_do_not_share_the_domain():
    student, teacher = DomainBatchNorm2d(3), DomainBatchNorm2d(3)
    with use_domain(student, "source"), use_domain(teacher, "target"):
        student(images(3, 4))
        teacher(images(3, 4))
    assert student.num_batches_tracked.tolist() == [1, 0]
    assert teacher.num_batches_tracked.tolist() == [0, 1]
