"""Which BatchNorm is understood: the networks of torchvision and timm are, and everything else is refused by name."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
import torchvision
from support_statistics import images, network, randomize
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from deeptransfer.normalization import (
    DomainBatchNorm2d,
    DomainNorm,
    DomainWhitening2d,
    Tent,
    TransNorm2d,
    adapt_statistics,
    convert_norm,
    forward_domains,
    prediction_time,
    to_batchnorm,
    use_domain,
)
from deeptransfer.normalization.plain import norm_layers

models = torchvision.models
USERS: dict[str, Callable[[nn.Module], Any]] = {
    "convert_norm": lambda model: convert_norm(model, DomainBatchNorm2d),
    "prediction_time": lambda model: prediction_time(model).__enter__(),
    "Tent": Tent,
    "adapt_statistics": lambda model: adapt_statistics(model, torch.randn(4, 3, 8, 8)),
}


def block(norm: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3), norm, nn.ReLU())


def around(norm: nn.Module) -> nn.ModuleDict:
    """A network with a good layer first, so that a half-done conversion would show."""
    net = nn.ModuleDict({"stem": block(nn.BatchNorm2d(4)), "body": block(norm)})
    net.forward = lambda x: net["stem"](x).sum() + net["body"](x)
    return net


# The networks of other libraries --------------------------------------------------------------------------------------


class Detector(nn.Module):
    """FCOS on frozen BatchNorm, up to the maps from which it picks boxes."""

    def __init__(self):
        super().__init__()
        self.fcos = FCOS(resnet_fpn_backbone(backbone_name="resnet18", weights=None), num_classes=3)

    def forward(self, x):
        return self.fcos.head(list(self.fcos.backbone(x).values()))


TORCHVISION = {
    "resnet": lambda: models.resnet18(num_classes=4),
    "resnext": lambda: models.ResNet(
        models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4, groups=4, width_per_group=8
    ),
    "densenet": lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=4),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=4, width_mult=0.25),
    "mobilenet_v3": lambda: models.mobilenet_v3_small(num_classes=4),
    "efficientnet": lambda: models.efficientnet_b0(num_classes=4),
    "efficientnet_v2": lambda: models.efficientnet_v2_s(num_classes=4),
    "mnasnet": lambda: models.mnasnet0_5(num_classes=4),
    "shufflenet": lambda: models.shufflenet_v2_x0_5(num_classes=4),
    "googlenet": lambda: models.googlenet(num_classes=4, init_weights=False),
    "inception_v3": lambda: models.inception_v3(num_classes=4, init_weights=False),
    "regnet": lambda: models.regnet_y_400mf(num_classes=4),
    "vgg_bn": lambda: models.vgg.make_layers([16, "M", 16, "M", 32], batch_norm=True),
    "maxvit": lambda: models.MaxVit(
        (32, 32),
        8,
        4,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=4,
    ),
    "fcos": lambda: Detector(),
    "segmentation": lambda: models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3),
    "video": lambda: models.video.r3d_18(num_classes=4),
}
TIMM = [
    "test_efficientnet",  # BatchNormAct2d
    "efficientnet_b0",
    "resnetv2_50",  # before its convolutions
    "test_byobnet",
    "mobilenetv3_small_050",
    "tinynet_e",
    "skresnet18",
    "fastvit_t8",
    "test_resnet",  # plain
]


def results(out: Any) -> list[Tensor]:
    """The tensors of whatever a network returns."""
    if isinstance(out, Tensor):
        return [out.clone()]
    return [t for item in (out.values() if isinstance(out, dict) else out) if item is not None for t in results(item)]


def trained(net: nn.Module) -> nn.Module:
    """Statistics, scale and shift near those that keep the signal alive, in every BatchNorm, subclasses and frozen."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if hasattr(module, "running_var"):
            for name, low in (("weight", 0.8), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.8)):
                getattr(module, name).detach().uniform_(low, low + 0.4, generator=generator)
    return net.eval()


def check_conversion_there_and_back(build: Callable[[], nn.Module], x: Tensor) -> None:
    torch.manual_seed(0)
    net = trained(build())
    original = copy.deepcopy(net)
    before = copy.deepcopy(net.state_dict())
    data = x.unsqueeze(0)
    frozen = any(type(module).__name__.startswith("Frozen") for module in net.modules())
    same = {"rtol": 1e-4, "atol": 1e-4} if frozen else {"rtol": 0, "atol": 0}  # scale and shift in another order
    with torch.inference_mode():
        want = results(net(data))
        with prediction_time(net, prior=math.inf):
            torch.testing.assert_close(results(net(data)), want)
        assert convert_norm(net, DomainBatchNorm2d) is net
        assert not any(hasattr(m, "running_var") and not isinstance(m, DomainNorm) for m in net.modules())
        with use_domain(net, "source"):
            torch.testing.assert_close(results(net(data)), want, **same)
        net.load_state_dict(before, strict=True)  # the old checkpoint fits the converted network
        plain = to_batchnorm(net)
        torch.testing.assert_close(results(plain(data)), want, **same)
        with prediction_time(plain, prior=math.inf):
            torch.testing.assert_close(results(plain(data)), want, rtol=1e-4, atol=1e-4)
        for value in original.state_dict().values():
            value.fill_(0.0)
        original.load_state_dict(plain.state_dict(), strict=True)
        torch.testing.assert_close(results(original(data)), want, rtol=0, atol=0)
    counters = {name for name in plain.state_dict() if name.endswith("num_batches_tracked")}
    assert plain.state_dict().keys() - (counters if frozen else set()) == before.keys()


@pytest.mark.parametrize("family", TORCHVISION)
def test_the_families_of_torchvision_keep_their_outputs(family):
    shape = {"inception_v3": (3, 75, 75), "video": (3, 4, 16, 16), "fcos": (3, 64, 64)}.get(family, (3, 32, 32))
    check_conversion_there_and_back(TORCHVISION[family], torch.rand(shape))


@pytest.mark.parametrize("name", TIMM)
def test_the_networks_of_timm_keep_their_outputs(name):
    import timm

    check_conversion_there_and_back(partial(timm.create_model, name, num_classes=4), torch.rand(3, 64, 64))


def test_the_activation_inside_a_layer_of_timm_is_kept_in_training_and_under_adaptation():
    """By hand: the layer is a BatchNorm, a dropout and an activation, one after the other."""
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    whole = randomize(BatchNormAct2d(4, act_layer=nn.PReLU, drop_layer=nn.Dropout)).double()
    parts = nn.Sequential(nn.BatchNorm2d(4).double(), copy.deepcopy(whole.drop), copy.deepcopy(whole.act))
    parts[0].load_state_dict(whole.state_dict(), strict=False)
    x, xt = torch.randn(6, 4, 3, 3).double(), torch.randn(4, 4, 3, 3).double()

    def outputs(layer, norm):
        layer.eval()
        with prediction_time(layer, prior=2):
            y = [layer(x)]
        y.append(adapt_statistics(layer, x)(x))
        y += norm.running_mean, norm.running_var
        tent = Tent(nn.Sequential(layer, nn.Flatten()), lr=0.1)
        return [*y, tent(x), norm.weight.clone(), norm.bias.clone()]

    twins = copy.deepcopy(whole), copy.deepcopy(parts)
    for a, b in zip(outputs(twins[0], twins[0]), outputs(twins[1], twins[1][0]), strict=True):
        torch.testing.assert_close(a, b)
    whole, parts = (convert_norm(model, TransNorm2d) for model in (whole, parts))
    assert whole.state_dict().keys() == randomize(BatchNormAct2d(4, act_layer=nn.PReLU)).state_dict().keys()
    pair = []
    for layer in (whole, parts):
        torch.manual_seed(1)  # for the dropout
        pair.append(forward_domains(layer.train(), x, xt))
    torch.testing.assert_close(*pair)
    assert (pair[0][0] == 0).any()  # the dropout is at work


def test_frozen_layers_keep_scale_and_shift_and_adapt_their_statistics():
    frozen = randomize(torchvision.ops.FrozenBatchNorm2d(3, eps=1e-3))
    plain = nn.BatchNorm2d(3, eps=1e-3)
    for layer in (frozen, plain):
        for i, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            getattr(layer, name).data.copy_(torch.tensor([1.0, 2.0, 3.0]) + i)
    x = torch.randn(5, 3, 4, 4)
    nets = [nn.Sequential(layer, nn.Conv2d(3, 2, 4), nn.BatchNorm2d(2), nn.Flatten()) for layer in (frozen, plain)]
    nets[1][1:].load_state_dict(nets[0][1:].state_dict())
    for net in nets:
        with prediction_time(net, prior=3):
            net.seen = net(x)
    torch.testing.assert_close(nets[0].seen, nets[1].seen)
    tent = Tent(nets[0], lr=0.1)
    tent(x)
    assert len(tent.adapted) == 2  # those of the layer that is not frozen
    assert frozen.weight.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="momentum"):
        adapt_statistics(frozen, x, method="ema")
    adapt_statistics(nets[0], x)
    torch.testing.assert_close(frozen.running_mean, x.mean((0, 2, 3)))
    new = convert_norm(frozen, DomainBatchNorm2d, shared_affine=False)
    assert new.eps == 1e-3
    assert not list(new.parameters())
    assert new.weight.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert to_batchnorm(new).eps == 1e-3
    assert not to_batchnorm(new).weight.requires_grad


# What goes along, what does not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("acts", [False, True])
def test_hooks_go_along_and_their_handles_still_remove_them(acts):
    from timm.layers import BatchNormAct2d

    layer = BatchNormAct2d(4) if acts else nn.BatchNorm2d(4)
    net, seen = block(layer), []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.append(("pre", m, args[0]))),
        layer.register_forward_hook(lambda m, args, kwargs, y: seen.append(("post", m, y.clone())), with_kwargs=True),
        layer.register_full_backward_hook(lambda m, gx, gy: seen.append(("back", m, gy[0]))),
        layer.register_full_backward_pre_hook(lambda m, gy: seen.append(("back pre", m, gy[0]))),
    ]
    convert_norm(net, DomainBatchNorm2d)
    x = torch.rand(2, 3, 6, 6)
    with use_domain(net, "target"):
        net(x).sum().backward()
    assert sorted(name for name, *_ in seen) == ["back", "back pre", "post", "pre"]
    assert all(m is net[1] for _, m, _ in seen)
    torch.testing.assert_close(seen[0][2], net[0](x))
    assert (seen[1][2].min() >= 0) == acts  # other hooks see the activation
    plain = to_batchnorm(net)
    seen.clear()
    plain(x)
    assert [name for name, *_ in seen] == ["pre", "post"]
    for handle in handles:
        handle.remove()
    seen.clear()
    with use_domain(net, "target"):
        net(x).sum().backward()
    assert not seen


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_state_dict_post_hook(lambda *args: None),
        lambda m: m.register_state_dict_pre_hook(lambda *args: None),
        lambda m: m.register_load_state_dict_pre_hook(lambda *args: None),
        lambda m: m.register_load_state_dict_post_hook(lambda *args: None),
    ],
)
def test_a_hook_on_the_state_is_refused_since_the_state_changes_its_shape(register):
    net = around(nn.BatchNorm2d(4))
    convert_norm(net["stem"], DomainBatchNorm2d)
    for layer, act in ((net["stem"][1], to_batchnorm), (net["body"][1], USERS["convert_norm"])):
        handle = register(layer)
        with pytest.raises(ValueError, match=r"1 \((Domain)?BatchNorm2d\) has .*state_dict_(pre_|post_)?hooks"):
            act(net)
        handle.remove()


def test_a_module_may_be_held_in_many_ways():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self._norm = nn.BatchNorm2d(3)
            self.again = self._norm
            self.table = nn.ModuleDict({"a": nn.BatchNorm2d(3), "b": self._norm})
            self.mixed = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.BatchNorm2d(3)])
            self.missing = None
            self.register_module("none", None)

        @property
        def norm(self):
            return self._norm

        def forward(self, x):
            return self.mixed[1](self.table["a"](self.norm(self.again(self.table["b"](x)))))

    net, x = randomize(Held()).eval(), torch.randn(2, 3, 4, 4)
    expected = net(x)
    convert_norm(net, DomainBatchNorm2d)
    assert net.norm is net.again is net.table["b"]
    assert len([m for m in net.modules() if isinstance(m, DomainNorm)]) == 3
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    plain = to_batchnorm(net)
    assert plain.norm is plain.again is plain.table["b"]
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["traced with fx", "compiled", "a part compiled", "compiled in place", "DataParallel"])
def test_wrapped_and_traced_networks_are_as_the_network(how):
    """Also code that was compiled before the call."""

    def wrapped(net: nn.Module) -> nn.Module:
        if how == "traced with fx":
            return torch.fx.symbolic_trace(net)
        if how == "compiled in place":
            net.compile(backend="eager")
        if how == "DataParallel":
            return nn.DataParallel(net)
        compiled = partial(torch.compile, backend="eager")
        part = nn.Sequential(compiled(net[:4]), *net[4:]) if how == "a part compiled" else None
        return compiled(net) if how == "compiled" else part or net

    torch.compiler.reset()
    x = images(8)
    for user in (
        lambda model: prediction_time(model).__enter__()(x),
        lambda model: adapt_statistics(model, x)(x),
        lambda model: Tent(model, lr=0.1)(x),
        lambda model: convert_norm(model, TransNorm2d)(x),
    ):
        net = network().eval()
        other = wrapped(copy.deepcopy(net)).eval()
        torch.testing.assert_close(other(x), net(x))
        torch.testing.assert_close(user(other), user(net))
        torch.testing.assert_close(other(x), net(x))


# Refused --------------------------------------------------------------------------------------------------------------


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.BatchNorm2d):
    pass


class Other(nn.Module):
    """Keeps statistics, and is no BatchNorm of torch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        return (x - self.running_mean.view(-1, 1, 1)) / self.running_var.view(-1, 1, 1).sqrt()


def with_forward() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.forward = MethodType(lambda self, x: 2 * nn.BatchNorm2d.forward(self, x), layer)
    return layer


def with_child() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    layer.add_module("observer", nn.Identity())
    return layer


def parametrised() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return layer


def fused_for_quantisation() -> nn.Module:
    qconfig = torch.ao.quantization.QConfig(torch.nn.Identity, torch.nn.Identity)
    return torch.ao.nn.intrinsic.qat.ConvBn2d(4, 4, 1, qconfig=qconfig)


def split_batchnorm() -> nn.Module:
    from timm.layers.split_batchnorm import SplitBatchNorm2d

    return SplitBatchNorm2d(4)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (lambda: Scaled(4), r"body\.1 \(Scaled\) is a subclass of BatchNorm2d"),
    "subclass": (lambda: Renamed(4), r"body\.1 \(Renamed\) is a subclass of BatchNorm2d"),
    "timm's split": (split_batchnorm, r"body\.1 \(SplitBatchNorm2d\) is a subclass of BatchNorm2d"),
    "parametrised": (parametrised, r"body\.1 \(ParametrizedBatchNorm2d\) computes its weight"),
    "pruned": (lambda: prune.random_unstructured(nn.BatchNorm2d(4), "weight", 0.5), r"body\.1 .* computes its weight"),
    "bias pruned": (lambda: prune.random_unstructured(nn.BatchNorm2d(4), "bias", 0.5), r"body\.1 .* computes its bias"),
    "weight norm": (lambda: torch.nn.utils.weight_norm(nn.BatchNorm2d(4)), r"body\.1 .* computes its weight"),
    "lazy": (nn.LazyBatchNorm2d, r"body\.1 \(LazyBatchNorm2d\) has no channels yet: pass one batch"),
    "forward replaced": (with_forward, r"body\.1 \(BatchNorm2d\) has a forward of its own"),
    "observed": (with_child, r"body\.1 \(BatchNorm2d\) has, or lacks, the part 'observer'"),
    "quantisation": (fused_for_quantisation, r"body\.1 \(ConvBn2d\) folds the BatchNorm that it holds"),
    "quantised": (lambda: torch.ao.nn.quantized.BatchNorm2d(4), r"body\.1 \(BatchNorm2d\) is a subclass"),
    "scripted": (lambda: torch.jit.script(nn.BatchNorm2d(4)), r"body\.1 \(RecursiveScriptModule\) keeps running"),
    "traced": (
        lambda: torch.jit.trace(block(nn.BatchNorm2d(4)).eval(), torch.rand(2, 3, 8, 8)),
        r"body\.1\.1 \(TracedModule\) keeps running statistics",
    ),
    "exported": (
        lambda: torch.export.export(block(nn.BatchNorm2d(4)).eval(), (torch.rand(2, 3, 8, 8),)).module(),
        r"body\.1\.1 \(Module\) keeps running statistics",
    ),
    "another library's": (Other, r"body\.1 \(Other\) keeps running statistics"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*:UserWarning")
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_path_and_class_and_nothing_changes(name, user):
    build, message = REFUSED[name]
    net = around(build())
    before = list(net.named_modules()), [(k, v, v.requires_grad) for k, v in net.named_parameters()]
    with pytest.raises(ValueError, match=message):
        USERS[user](net)
    after = list(net.named_modules()), [(k, v, v.requires_grad) for k, v in net.named_parameters()]
    assert all(a is b for (_, a), (_, b) in zip(before[0], after[0], strict=True))
    assert [(k, flag) for k, _, flag in before[1]] == [(k, flag) for k, _, flag in after[1]]
    assert not any("forward" in vars(m) for m in net["stem"].modules())
    USERS[user](net["stem"])  # the parts without it can be passed


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    ("hold", "message"),
    [
        (lambda net, norm: setattr(net, "norms", [norm]), "norms holds BatchNorm2d, .*ModuleList"),
        (lambda net, norm: setattr(net, "by_size", {"a": (None, [norm])}), "by_size holds BatchNorm2d"),
        (lambda net, norm: vars(net).update(norm=norm), "norm holds BatchNorm2d"),
        (lambda net, norm: setattr(net[0], "steps", [block(norm)]), r"0\.steps holds Sequential"),
        (lambda net, norm: setattr(net, "steps", [DomainBatchNorm2d(4)]), "steps holds DomainBatchNorm2d"),
        (lambda net, norm: setattr(net, "step", net[1].forward), "step calls a method of BatchNorm2d"),
    ],
)
def test_what_is_held_outside_the_children_is_refused(hold, message, user):
    net = block(nn.BatchNorm2d(4))
    hold(net, nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=message):
        USERS[user](net)
    assert type(net[1]) is nn.BatchNorm2d
    if "Domain" in message:
        with pytest.raises(ValueError, match=message):
            to_batchnorm(nn.Sequential(net, randomize(DomainBatchNorm2d(4))))


def test_a_second_reference_is_refused_only_where_a_layer_is_replaced():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = randomize(nn.BatchNorm2d(3))
            self.steps = [self.norm]
            self.steps.append(self.steps)  # a list may hold itself

        def forward(self, x):
            return self.steps[0](x)

    net, x = Listed(), torch.randn(4, 3, 2, 2)
    with pytest.raises(ValueError, match="steps holds BatchNorm2d a second time"):
        convert_norm(net, DomainBatchNorm2d)
    assert type(net.norm) is nn.BatchNorm2d
    with prediction_time(net), prediction_time(net.norm):
        torch.testing.assert_close(net(x), net.norm(x), rtol=0, atol=0)
        torch.testing.assert_close(net(x).mean((0, 2, 3)), net.norm.bias)


def test_a_reference_to_the_network_itself_is_none_to_a_layer():
    """Parents, and modules that watch a network by a hook."""
    net = block(nn.BatchNorm2d(4))
    vars(net[0])["parent"] = net
    watcher = nn.ModuleList([net])
    watcher.watch = MethodType(lambda self, m, args, y: None, watcher)
    net[1].register_forward_hook(watcher.watch)
    assert list(norm_layers(net)) == ["1"]
    assert list(norm_layers(net[0])) == []
    convert_norm(net, DomainBatchNorm2d)


def test_instance_norm_and_the_like_are_left_alone():
    others = [
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((4, 6, 6)),
        nn.LocalResponseNorm(2),
    ]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *others)
    before = [copy.deepcopy(m.state_dict()) for m in others]
    convert_norm(net, DomainBatchNorm2d)
    assert list(net[2:]) == others
    for user in ("prediction_time", "Tent", "adapt_statistics"):
        USERS[user](net)
    assert all(torch.equal(a[k], m.state_dict()[k]) for a, m in zip(before, others, strict=True) for k in a)


def test_a_network_wrapped_for_several_processes_is_refused():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = nn.ModuleDict({"inner": nn.parallel.DistributedDataParallel(block(nn.BatchNorm2d(4)))})
        with pytest.raises(ValueError, match="inner is wrapped as DistributedDataParallel"):
            convert_norm(net, DomainBatchNorm2d)
        assert type(net["inner"].module[1]) is nn.BatchNorm2d
    finally:
        dist.destroy_process_group()


def test_an_error_at_a_later_layer_leaves_the_network_as_it_was_and_names_the_layer():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(6)))
    layers = list(net.modules())
    for kwargs, cls, message in (
        ({"group_size": 4}, DomainWhitening2d, r"1\.0 \(BatchNorm2d\)"),
        ({}, DomainBatchNorm2d, r"1\.0 \(BatchNorm2d\) has track_running_stats=False"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_norm(net, cls, **kwargs)
        assert list(net.modules()) == layers
        net[1][0].track_running_stats = False  # set later, too: in training it would keep none
    with prediction_time(nn.Sequential(nn.BatchNorm2d(4))) as inside, pytest.raises(ValueError, match="with block"):
        convert_norm(inside, DomainBatchNorm2d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spectral = parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
    convert_norm(nn.Sequential(spectral, nn.BatchNorm2d(4)), DomainBatchNorm2d)  # only norms need be plain
