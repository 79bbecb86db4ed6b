"""What the formulas imply about each other: the layers' identities, which no release tests."""

from __future__ import annotations

import pytest
import torch
from support_normalization import few_and_many  # noqa: F401
from torch import nn
from torch.testing import assert_close

from deeptransfer.normalization import (
    AutoDIAL2d,
    DomainBatchNorm2d,
    DomainNorm,
    DomainWhitening2d,
    ReciprocalNorm2d,
    TransNorm2d,
    forward_domains,
    gate_parameters,
    use_domain,
)
from deeptransfer.normalization.reciprocal import compensate

LAYERS = [DomainBatchNorm2d, AutoDIAL2d, TransNorm2d, ReciprocalNorm2d, DomainWhitening2d]


def batch(n, seed, shift=0.0, c=6):
    return torch.randn((n, c, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5 + shift


def layer(cls, c=6, **kwargs):
    """A layer in float64 whose weight and bias differ per channel."""
    made = cls(c, dtype=torch.float64, **({"group_size": 3} if cls is DomainWhitening2d else {}), **kwargs)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, made.weight.numel()).view_as(made.weight))
        made.bias.copy_(torch.linspace(-1, 1, made.bias.numel()).view_as(made.bias))
    return made


def set_gates(module, value):
    with torch.no_grad():
        for gate in gate_parameters(module):
            gate.fill_(value)
    return module


def plain_like(made):
    plain = nn.BatchNorm2d(made.num_features, dtype=torch.float64)
    plain.load_state_dict({"weight": made.weight.detach(), "bias": made.bias.detach()}, strict=False)
    return plain


XS, XT = batch(5, 0, 1.0), batch(7, 1, -2.0)


def test_domain_batchnorm_is_one_batchnorm_per_domain():
    """Outputs, gradients and running rows."""
    made = layer(DomainBatchNorm2d)
    plain = [plain_like(made), plain_like(made)]
    inputs = [XS.clone().requires_grad_(), XT.clone().requires_grad_()]
    twins = [XS.clone().requires_grad_(), XT.clone().requires_grad_()]
    outputs = forward_domains(made, *inputs)
    for row in (0, 1):
        want = plain[row](twins[row])
        assert_close(outputs[row], want)
        weight = torch.linspace(-1, 1, want.numel(), dtype=torch.float64).view_as(want)
        (outputs[row] * weight).sum().backward(retain_graph=True)
        (want * weight).sum().backward()
        assert_close(inputs[row].grad, twins[row].grad)
        assert_close(made.running_mean[row], plain[row].running_mean)
        assert_close(made.running_var[row], plain[row].running_var)
    assert_close(made.weight.grad, plain[0].weight.grad + plain[1].weight.grad)
    assert_close(made.bias.grad, plain[0].bias.grad + plain[1].bias.grad)


def test_identical_halves_make_transnorm_twice_batchnorm():
    made = layer(TransNorm2d)
    ys, yt = forward_domains(made, XS, XS)
    want = 2 * plain_like(made)(XS)
    assert_close(ys, want)
    assert_close(yt, want)


def test_uniform_transnorm_is_twice_domain_batchnorm():
    uniform, plain = layer(TransNorm2d, probability="uniform"), layer(DomainBatchNorm2d)
    for got, want in zip(forward_domains(uniform, XS, XT), forward_domains(plain, XS, XT), strict=True):
        assert_close(got, 2 * want)
    assert_close(uniform.eval()(XT), 2 * plain.eval()(XT))


def test_uniform_transnorm_that_is_halved_is_domain_batchnorm():
    halved, plain = layer(TransNorm2d, probability="uniform", halved=True), layer(DomainBatchNorm2d)
    for got, want in zip(forward_domains(halved, XS, XT), forward_domains(plain, XS, XT), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("distance", ["standardized", "mean", "wasserstein"])
@pytest.mark.parametrize("probability", ["student_t", "gaussian", "softmax", "uniform"])
def test_alpha_sums_to_the_number_of_channels(distance, probability):
    made = layer(TransNorm2d, distance=distance, probability=probability)
    _, (source, target) = made.measure(torch.cat([XS, XT]), [5, 7])
    assert (made.gain(source, target) - 1).sum().item() == pytest.approx(6, rel=1e-12)


def test_transnorm_favours_the_channel_whose_domains_agree():
    xt = XT.clone()
    xt[:, 2] = XS[:, 2].repeat(2, 1, 1)[:7]
    made = TransNorm2d(6, dtype=torch.float64)
    _, (source, target) = made.measure(torch.cat([XS, xt]), [5, 7])
    gain = made.gain(source, target)
    assert gain.argmax() == 2
    assert gain[2] > 2 > gain.min()


def test_reciprocal_gates_at_one_are_domain_batchnorm():
    made, plain = layer(ReciprocalNorm2d), layer(DomainBatchNorm2d)
    for got, want in zip(forward_domains(made, XS, XT), forward_domains(plain, XS, XT), strict=True):
        assert_close(got, want)
    assert_close(made.running_mean, plain.running_mean)
    assert_close(made.running_var, plain.running_var)


def test_unbiased_reciprocal_gates_at_one_are_domain_batchnorm_up_to_n():
    """As released: the normaliser's variance is n/(n − 1) times BatchNorm's."""
    made, plain = (
        ReciprocalNorm2d(6, eps=0.0, unbiased=True, dtype=torch.float64),
        DomainBatchNorm2d(6, eps=0.0).double(),
    )
    n = XS.numel() // 6
    assert_close(forward_domains(made, XS, XT)[0], forward_domains(plain, XS, XT)[0] * ((n - 1) / n) ** 0.5)
    assert_close(made.running_var, plain.running_var)


@pytest.mark.parametrize("gate", [0.5, 0.6, 0.9])
def test_identical_halves_and_cold_attention_make_reciprocal_batchnorm(gate):
    """T → 0: a channel attends only to the one that equals it."""
    made = set_gates(layer(ReciprocalNorm2d, temperature=1e-13), gate)
    want = plain_like(made)(XS)
    for got in forward_domains(made, XS, XS):
        assert_close(got, want)


def test_the_attention_of_a_wide_layer_is_almost_uniform_without_a_temperature():
    """At C = 512: compensation returns almost the mean over channels; a temperature brings the channels back."""
    own, other = (torch.randn(1, 512, 1, generator=torch.Generator().manual_seed(s)) * 0.2 + 1 for s in (0, 1))
    own, other = torch.cat([own, other]), torch.cat([other, own])
    spread = [compensate(own, other, t)[0].std() / other[0].std() for t in (1.0, 1e-3)]
    assert spread[0] < 0.1
    assert spread[1] > 0.9


def test_half_alpha_makes_autodial_pooled_batchnorm():
    """Equal parts, in training and, through the running rows, in evaluation."""
    made = set_gates(layer(AutoDIAL2d), 0.5)
    plain = plain_like(made)
    xt = XT[:5]
    assert_close(torch.cat(forward_domains(made, XS, xt)), plain(torch.cat([XS, xt])))
    for row in (0, 1):
        assert_close(made.running_mean[row], plain.running_mean)
        assert_close(made.running_var[row], plain.running_var)
    assert_close(made.eval()(XT), plain.eval()(XT))


def test_alpha_one_makes_autodial_domain_batchnorm():
    made, plain = layer(AutoDIAL2d), layer(DomainBatchNorm2d)
    for got, want in zip(forward_domains(made, XS, XT), forward_domains(plain, XS, XT), strict=True):
        assert_close(got, want)
    assert_close(made.running_var, plain.running_var)


def test_autodial_variance_contains_the_distance_of_the_means():
    made = set_gates(AutoDIAL2d(6, dtype=torch.float64), 0.7)
    _, (source, target) = made.measure(torch.cat([XS, XT]), [5, 7])
    mixed, _ = made.mix(source, target)
    shift = (source.mean - target.mean).square()
    assert_close(mixed.var, 0.7 * source.var + 0.3 * target.var + 0.21 * shift)


def test_autodial_running_variance_is_unbiased():
    """Mean over many small batches of one distribution of variance 1."""
    made = set_gates(AutoDIAL2d(500, momentum=1.0), 0.7)
    total = torch.zeros(2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        x = torch.randn(5, 500, 1, 1, generator=generator)
        forward_domains(made, x[:2], x[2:])
        total += made.running_var.mean(1) / 40
    assert_close(total, torch.ones(2), rtol=0.02, atol=0)


@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
def test_whitened_covariance_is_the_identity(group_size):
    """(1 − ε)·Cov(z) + ε·L⁻¹L⁻ᵀ = I, exactly; group size 1 is BatchNorm with (1 − ε)v + ε."""
    e = 0.02
    made = DomainWhitening2d(6, group_size=group_size, shrinkage=e, dtype=torch.float64)
    x = torch.einsum("ij,njhw->nihw", batch(6, 3, c=6)[0, :, :3, :2].reshape(6, 6), XS)  # correlated channels
    z = forward_domains(made, x, XT)[0].transpose(0, 1).flatten(1)
    rows = x.transpose(0, 1).flatten(1)
    for start in range(0, 6, group_size):
        part = slice(start, start + group_size)
        eye = torch.eye(group_size, dtype=torch.float64)
        covariance = torch.cov(rows[part], correction=0).reshape(group_size, group_size)
        inverse = torch.linalg.inv(torch.linalg.cholesky((1 - e) * covariance + e * eye))
        covariance_z = torch.cov(z[part], correction=0).reshape(group_size, group_size)
        assert_close((1 - e) * covariance_z + e * inverse @ inverse.T, eye)
    if group_size == 1:
        mean, var = rows.mean(1, keepdim=True), rows.var(1, correction=0, keepdim=True)
        assert_close(z, (rows - mean) / ((1 - e) * var + e).sqrt())


@pytest.mark.parametrize("cls", LAYERS)
def test_swapping_the_domains_swaps_the_outputs(cls):
    """Reciprocal Normalization with its gates swapped."""
    made, swapped = layer(cls), layer(cls)
    with torch.no_grad():
        if cls is AutoDIAL2d:
            made.alpha.fill_(0.8)
            swapped.alpha.fill_(0.8)
        if cls is ReciprocalNorm2d:
            for kind in ("mean", "var"):
                for own, other, value in (("source", "target", 0.6), ("target", "source", 0.9)):
                    getattr(made, f"gate_{kind}_{own}").fill_(value)
                    getattr(swapped, f"gate_{kind}_{other}").fill_(value)
    ys, yt = forward_domains(made, XS, XT)
    yt_swapped, ys_swapped = forward_domains(swapped, XT, XS)
    assert_close(ys, ys_swapped)
    assert_close(yt, yt_swapped)
    assert_close(made.running_var, swapped.running_var.flip(0))


def test_swapping_the_domains_swaps_unshared_affines_too():
    made, swapped = (layer(DomainBatchNorm2d, shared_affine=False) for _ in range(2))
    with torch.no_grad():
        swapped.weight.copy_(made.weight.flip(0))
        swapped.bias.copy_(made.bias.flip(0))
    ys, yt = forward_domains(made, XS, XT)
    assert_close(forward_domains(swapped, XT, XS), (yt, ys))


@pytest.mark.parametrize("cls", LAYERS)
def test_a_domain_is_normalised_by_itself_where_statistics_are_separate(cls):
    """The other domain's rows matter to the mixing layers only."""
    made = layer(cls)
    if cls in (AutoDIAL2d, ReciprocalNorm2d):
        set_gates(made, 0.7)
    first = forward_domains(made, XS, XT)[0]
    second = forward_domains(made, XS, XT * 3 + 1)[0]
    separate = cls in (DomainBatchNorm2d, DomainWhitening2d)
    assert torch.allclose(first, second) == separate


@pytest.mark.parametrize("cls", LAYERS)
def test_rows_may_come_in_any_order_within_a_domain(cls):
    made = layer(cls)
    order = torch.tensor([3, 1, 4, 0, 2])
    ys, yt = forward_domains(made, XS, XT)
    shuffled, same = forward_domains(made, XS[order], XT)
    assert_close(shuffled, ys[order])
    assert_close(same, yt)


@pytest.mark.parametrize("cls", LAYERS)
def test_momentum_one_evaluates_as_the_last_batch_up_to_n(cls):
    """With the biased variance stored by hand, evaluation repeats training exactly."""
    made = layer(cls, momentum=1.0)
    if cls is TransNorm2d:
        made.probability = "uniform"  # its gain compares unbiased variances
    made.corrections = lambda source, target: (1.0, 1.0)
    ys, yt = forward_domains(made, XS, XT)
    made.eval()
    with use_domain(made, "source"):
        assert_close(made(XS), ys)
    assert_close(made(XT), yt)


def test_every_layer_of_the_package_is_covered_here():
    methods = {sub.__name__ for sub in DomainNorm.__subclasses__() if sub.__module__.startswith("deeptransfer.")}
    of_one_domain = {"ImageNorm", "RobustBatchNorm"}  # have tests of their own
    assert methods - of_one_domain == {cls.__name__[:-2] for cls in LAYERS}
