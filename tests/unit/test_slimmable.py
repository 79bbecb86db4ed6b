"""Slimmable networks: each width is a plain network, and what the widths can't share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from deeptransfer.normalization import DomainBatchNorm2d, SwitchableBatchNorm2d, adapt_statistics, use_domain
from deeptransfer.pruning import prune_channels
from deeptransfer.slimmable import (
    SlimmableBatchNorm2d,
    SlimmableConv2d,
    SlimmableLinear,
    narrow,
    sandwich,
    slimmable_loss,
    use_width,
)

WIDTHS = (0.25, 0.5, 1.0)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(norm=SwitchableBatchNorm2d):
    torch.manual_seed(0)

    def made(c):
        return norm(c, WIDTHS) if norm is SwitchableBatchNorm2d else norm(c)

    return nn.Sequential(
        SlimmableConv2d(2, 8, 3, slim_in=False, bias=False), made(8), nn.ReLU(),
        SlimmableConv2d(8, 6, 3), made(6), nn.ReLU(), nn.Flatten(), SlimmableLinear(6, 3, positions=4),
    ).double()  # fmt: skip


def images(n=5, seed=0):
    return draw(n, 2, 6, 6, seed=seed)


def shaken(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                n = module.num_features
                for value in (module.weight, module.bias, module.running_mean):
                    value.copy_(torch.randn(n, generator=generator))
                module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
    return model


# Layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.25, 0.5, 0.3, 1.0])
def test_layers_use_the_first_channels(width):
    c, out = max(1, int(8 * width)), max(1, int(6 * width))
    layer, x = SlimmableConv2d(8, 6, 3).double(), draw(2, c, 5, 5)
    linear = SlimmableLinear(8, 3, positions=4).double()
    norm = shaken(SlimmableBatchNorm2d(8)).double().eval()
    for part in (layer, linear):
        part.width = width
    assert_close(layer(x), F.conv2d(x, layer.weight[:out, :c], layer.bias[:out]))
    y = draw(2, 4 * c)
    assert_close(linear(y), F.linear(y, linear.weight[:, : 4 * c], linear.bias))
    want = F.batch_norm(x, norm.running_mean[:c], norm.running_var[:c], norm.weight[:c], norm.bias[:c])
    assert_close(norm(x), want)
    assert gradcheck(layer, x.clone().requires_grad_())


def test_switchable_batchnorm_is_dsbn_with_the_width_as_domain():
    """Own statistics, own γ and β; a width that has all channels, else on the channels that it has."""
    switchable = SwitchableBatchNorm2d(8, WIDTHS).double()
    domains = DomainBatchNorm2d(8, domains=[str(w) for w in WIDTHS], shared_affine=False).double()
    shaken(switchable)
    with torch.no_grad():
        for row, norm in enumerate(switchable.norms):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(domains, name)[row, : norm.num_features] = getattr(norm, name)
    for training in (True, False):
        for row, (width, c) in enumerate(zip(WIDTHS, (2, 4, 8), strict=True)):
            x = draw(3, 8, 4, 4, seed=row) * (row + 1)
            with use_width(switchable.train(training), width), use_domain(domains.train(training), str(width)):
                assert_close(switchable(x[:, :c]), domains(x)[:, :c])
            assert_close(switchable.norms[row].running_var, domains.running_var[row, :c])


def test_training_one_width_leaves_the_statistics_of_the_others():
    model = network()
    before = copy.deepcopy(model.state_dict())
    with use_width(model, 0.5):
        model(images())
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {
        f"{i}.norms.1.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_the_shared_norm_counts_and_averages_like_batchnorm():
    for momentum in (0.1, None):
        ours, plain = SlimmableBatchNorm2d(4, momentum=momentum), nn.BatchNorm2d(4, momentum=momentum)
        for seed in range(3):
            x = draw(3, 4, 2, 2, seed=seed).float()
            assert_close(ours(x), plain(x))
        for name, value in plain.state_dict().items():
            assert_close(ours.state_dict()[name], value)
        assert_close(ours.eval()(x), plain.eval()(x))
    without = SlimmableBatchNorm2d(4, track_running_stats=False).eval()
    assert_close(without(x[:, :2]), F.batch_norm(x[:, :2], None, None, training=True))


# The whole network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [SwitchableBatchNorm2d, SlimmableBatchNorm2d])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("training", [True, False])
def test_each_width_is_a_plain_network(norm, width, training):
    model = shaken(network(norm)).train(training)
    plain = narrow(model, width)
    assert {type(m) for m in plain.modules()} == {
        nn.Sequential,
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Flatten,
        nn.Linear,
    }
    assert all(m.training == training for m in plain.modules())
    x = images()
    with use_width(model, width):
        assert_close(model(x), plain(x))
    plain[0].weight.data.zero_()  # nothing is shared
    assert model[0].weight.abs().sum() > 0


def test_narrow_is_pruning_to_the_first_channels():
    model = shaken(network(SlimmableBatchNorm2d)).eval()
    keep = {"1": torch.arange(8) < 4, "4": torch.arange(6) < 3}
    assert_close(narrow(model, 0.5)(images()), prune_channels(narrow(model, 1.0), keep, fold=False)(images()))


def test_the_shared_statistics_fit_no_width_until_they_are_measured():
    """US-Nets' post-statistics: adapt_statistics on the plain network of the width, and nothing else."""
    model, x = network(SlimmableBatchNorm2d), images(64)
    for _ in range(60):
        for width in WIDTHS:
            with use_width(model, width):
                model(x)
    model.eval()
    for width in WIDTHS:
        plain = narrow(model, width)
        z = plain[3](plain[:3](x))
        off = (plain[4].running_var / z.var((0, 2, 3), correction=0) - 1).abs().max()
        assert off > 0.1
        adapt_statistics(plain, x)
        z = plain[3](plain[:3](x))
        assert_close(plain[4].running_mean, z.mean((0, 2, 3)))
        assert_close(plain[4].running_var, z.var((0, 2, 3), correction=0))


def test_adapt_statistics_reaches_the_width_that_runs():
    model, x = network(), images(64)
    before = copy.deepcopy(model.state_dict())
    with use_width(model, 0.25):
        adapt_statistics(model, x)
        assert_close(model[1].norm.running_mean, model[0](x).mean((0, 2, 3)))
    after = {name: value for name, value in model.state_dict().items() if "running" in name}
    assert {name.split(".")[2] for name, value in after.items() if not torch.equal(value, before[name])} == {"0"}
    with pytest.raises(ValueError, match="own forward"):
        adapt_statistics(network(SlimmableBatchNorm2d), x)


def test_a_step_sums_the_losses_and_distils_from_the_widest():
    model, x, y = network().eval(), images(), torch.tensor([0, 1, 2, 0, 1])
    logits = {}
    for width in WIDTHS:
        with use_width(model, width):
            logits[width] = model(x)
    want = sum(F.cross_entropy(z, y) for z in logits.values())
    assert_close(slimmable_loss(model, x, y, WIDTHS), want)
    teacher = logits[1.0].detach().softmax(1)
    want = F.cross_entropy(logits[1.0], y) + sum(F.cross_entropy(logits[w], teacher) for w in WIDTHS[:2])
    got = slimmable_loss(model, x, y, (0.5, 1.0, 0.25), distil=True)
    assert_close(got, want)
    ours, wanted = (torch.autograd.grad(loss, model[0].weight)[0] for loss in (got, want))  # the teacher is a constant
    assert_close(ours, wanted)
    assert ours[7].abs().sum() > 0


def test_the_sandwich_has_both_ends():
    generator = torch.Generator().manual_seed(0)
    widths = [sandwich(0.25, 1.0, 2, generator) for _ in range(20)]
    assert all(w[:2] == [1.0, 0.25] and len(w) == 4 for w in widths)
    assert all(min(w) >= 0.25 and max(w) <= 1 for w in widths)
    assert len({w[2] for w in widths}) > 10


def test_state_reloads_and_the_width_returns():
    model, again = shaken(network()).eval(), network().eval()
    again.load_state_dict(model.state_dict())
    with pytest.raises(KeyError), use_width(model, 0.25):
        raise KeyError
    assert model[1].width == model[0].width == 1.0
    assert_close(again(images()), model(images()))
    half = narrow(model.bfloat16(), 0.5)
    assert next(half.parameters()).dtype == torch.bfloat16
    last = images().contiguous(memory_format=torch.channels_last)
    assert_close(network().eval()(last), network().eval()(images()))


def test_a_share_that_is_a_whole_number_of_channels_is_not_rounded_down():
    """0.29 · 100 is a little less than 29 in binary."""
    assert [norm.num_features for norm in SwitchableBatchNorm2d(100, (0.29, 0.001, 1.0)).norms] == [29, 1, 100]


def test_errors_name_the_value():
    model = network()
    cases = [
        (lambda: use_width(model, 0.3).__enter__(), "no BatchNorm of width 0.3"),
        (lambda: use_width(network(SlimmableBatchNorm2d), 1.5).__enter__(), r"\(0, 1\], got 1.5"),
        (lambda: use_width(nn.ReLU(), 0.5).__enter__(), "no slimmable layer"),
        (lambda: model[3](draw(1, 3, 4, 4)), "reads 8 inputs at width 1.0"),
        (lambda: model[1](draw(1, 3, 4, 4)), r"expected \(N, 8, H, W\) at width 1.0"),
        (lambda: model[7](draw(1, 3)), "reads 24 inputs"),
        (lambda: SlimmableBatchNorm2d(2)(draw(1, 3, 2, 2)), "3 channels for a BatchNorm of 2"),
        (lambda: SlimmableConv2d(2, 2, 1, groups=2), "one group, got 2"),
        (lambda: SwitchableBatchNorm2d(4, ()), "different shares"),
        (lambda: SwitchableBatchNorm2d(4, (0.5, 0.5)), "different shares"),
        (lambda: SwitchableBatchNorm2d(4, (0.5, 2.0)), r"\(0, 1\], got 2.0"),
        (lambda: slimmable_loss(model, images(), torch.zeros(5, dtype=torch.long), ()), "at least one width"),
        (lambda: sandwich(0.5, 0.5, 1, torch.Generator()), "lowest < highest"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
