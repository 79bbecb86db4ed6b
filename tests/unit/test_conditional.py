"""Conditional normalisation: one layer for conditional IN and BN, self-modulation and StyleGAN's AdaIN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from deeptransfer.normalization import (
    ConditionalNorm2d,
    DomainBatchNorm2d,
    adapt_statistics,
    convert_norm,
    forward_domains,
    use_domain,
)
from deeptransfer.style import adaptive_instance_norm

C = 3


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms():
    return [nn.BatchNorm2d(C, affine=False), nn.InstanceNorm2d(C), nn.GroupNorm(1, C, affine=False),
            DomainBatchNorm2d(C, domains=1)]  # fmt: skip


def network():
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 2 * C))


def trained(layer, seed=1):
    """γ and β as after training."""
    *_, last = layer.affine_from.modules()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer.double()


X, LABELS = draw(4, C, 3, 5) * 2 + 1, torch.tensor([1, 0, 1, 2])


@pytest.mark.parametrize("norm", norms(), ids=lambda norm: type(norm).__name__)
def test_it_starts_as_the_plain_norm_for_every_condition(norm):
    for affine_from, condition in ((nn.Embedding(3, 2 * C), LABELS), (network(), draw(4, 5))):
        layer = ConditionalNorm2d(norm, affine_from).double()
        assert_close(layer(X, condition), layer.norm(X))


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batchnorm_follows_the_formula(training):
    layer = trained(ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Embedding(3, 2 * C)))
    layer.norm.running_mean.copy_(torch.tensor([1.0, -1.0, 0.5]))
    layer.norm.running_var.copy_(torch.tensor([0.5, 2.0, 3.0]))
    mean, var = layer.norm.running_mean.numpy().copy(), layer.norm.running_var.numpy().copy()
    got = layer.train(training)(X, LABELS).detach().numpy()
    x, table = X.numpy(), layer.affine_from.weight.detach().numpy()
    for c in range(C):
        m, v = (x[:, c].mean(), x[:, c].var()) if training else (mean[c], var[c])
        for i in range(4):
            gamma, beta = table[LABELS[i], c], table[LABELS[i], C + c]
            np.testing.assert_allclose(
                got[i, c], gamma * (x[i, c] - m) / np.sqrt(v + 1e-5) + beta, rtol=1e-9, atol=1e-9
            )


def test_cbn_is_self_modulation_whose_network_is_a_table():
    """A linear map of the one-hot class, without bias, is the table."""
    table = trained(ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Embedding(3, 2 * C)))
    modulated = ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Linear(3, 2 * C)).double()
    with torch.no_grad():
        modulated.affine_from.weight.copy_(table.affine_from.weight.T)
        modulated.affine_from.bias.zero_()
    one_hot = F.one_hot(LABELS, 3).double()
    want = table(X, LABELS)
    assert_close(modulated(X, one_hot), want)
    assert_close(table.norm.running_var, modulated.norm.running_var)
    assert_close(table(X, one_hot), want)  # certain weights of the rows


def test_with_instance_norm_it_is_adain_of_stylegan_and_with_the_styles_moments_adain():
    """y_s = √(v_s + ε), y_b = μ_s; with BatchNorm it is not, unless the batch is one image."""
    style = draw(4, C, 6, 2, seed=5) * 3 - 1
    flat = style.flatten(2)
    affine = torch.cat([(flat.var(2, correction=0) + 1e-5).sqrt(), flat.mean(2)], 1)
    stylegan = ConditionalNorm2d(nn.InstanceNorm2d(C), nn.Linear(2 * C, 2 * C)).double()
    batch = ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Linear(2 * C, 2 * C)).double()
    for layer in (stylegan, batch):
        with torch.no_grad():
            layer.affine_from.weight.copy_(torch.eye(2 * C))
            layer.affine_from.bias.zero_()
    want = adaptive_instance_norm(X, style)
    assert_close(stylegan(X, affine), want)
    assert not torch.allclose(batch(X, affine), want)
    assert_close(batch(X[:1], affine[:1]), want[:1])


def test_one_style_is_affine_instance_norm_and_styles_blend():
    layer = trained(ConditionalNorm2d(nn.InstanceNorm2d(C), nn.Embedding(2, 2 * C)))
    rows = layer.affine_from.weight.detach()
    got = layer(X, torch.zeros(4, dtype=torch.long))
    assert_close(got, F.instance_norm(X, weight=rows[0, :C], bias=rows[0, C:]))
    weights = torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(4, 2)
    blend = 0.3 * got + 0.7 * layer(X, torch.ones(4, dtype=torch.long))
    assert_close(layer(X, weights), blend)


def test_own_statistics_and_own_affine_of_the_domain_are_dsbn():
    """The table statistics shared or own × affine shared or own; the condition is the domain."""
    dsbn = DomainBatchNorm2d(C, shared_affine=False).double()
    layer = trained(ConditionalNorm2d(DomainBatchNorm2d(C), nn.Embedding(2, 2 * C)))
    with torch.no_grad():
        dsbn.weight.copy_(layer.affine_from.weight[:, :C])
        dsbn.bias.copy_(layer.affine_from.weight[:, C:])
    domain = torch.tensor([0, 0, 1, 1])
    want = torch.cat(forward_domains(dsbn, X[:2], X[2:]))
    with use_domain(layer, "source"):
        assert_close(layer(X[:2], domain[:2]), want[:2])
    with use_domain(layer, "target"):
        assert_close(layer(X[2:], domain[2:]), want[2:])
    shared = trained(ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Embedding(2, 2 * C)))
    assert not torch.allclose(shared(X, domain), want)  # conditional BN pools the statistics


class Generator(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.layer = nn.Linear(5, C * 9, dtype=torch.float64), ConditionalNorm2d(norm, network()).double()

    def forward(self, z):
        return self.layer(self.first(z).view(-1, C, 3, 3), z)


def test_statistics_of_a_generator_are_those_of_the_latents_it_is_given():
    """Per domain: each domain's latents give its own row, and a BatchNorm has one for all."""
    generator, z = Generator(DomainBatchNorm2d(C)), [draw(400, 5), draw(400, 5, seed=1) * 3]
    for name, latents in zip(("source", "target"), z, strict=True):
        adapt_statistics(generator, latents, domain=name)
    for row, latents in enumerate(z):
        values = generator.first(latents).view(-1, C, 9)
        assert_close(generator.layer.norm.running_mean[row], values.mean((0, 2)))
        assert_close(generator.layer.norm.running_var[row], values.var((0, 2), correction=0))
    plain = Generator(nn.BatchNorm2d(C, affine=False))
    adapt_statistics(plain, z[0])
    assert_close(plain.layer.norm.running_var, plain.first(z[0]).view(-1, C, 9).var((0, 2), correction=0))
    assert isinstance(convert_norm(plain, DomainBatchNorm2d).layer.norm, DomainBatchNorm2d)


def test_gradients():
    for norm in (nn.BatchNorm2d(C, affine=False), nn.InstanceNorm2d(C)):
        layer = trained(ConditionalNorm2d(norm, network()))
        layer.norm.momentum = 0.0
        assert gradcheck(layer, (X[:2].clone().requires_grad_(), draw(2, 5).requires_grad_()), atol=1e-4)
        table = trained(ConditionalNorm2d(nn.InstanceNorm2d(C), nn.Embedding(3, 2 * C)))
        table(X, LABELS[[0, 0, 0, 3]]).square().sum().backward()
        assert (table.affine_from.weight.grad.abs().sum(1) > 0).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_memory_format(dtype):
    layer = trained(ConditionalNorm2d(nn.InstanceNorm2d(C), nn.Embedding(3, 2 * C))).float()
    got = layer(X.to(dtype), LABELS)
    assert got.dtype == dtype
    assert_close(got.float(), layer(X.float(), LABELS), rtol=0.05, atol=0.05)
    assert_close(layer(X.float().contiguous(memory_format=torch.channels_last), LABELS), layer(X.float(), LABELS))


def test_state_reloads():
    layer = trained(ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Embedding(3, 2 * C)))
    layer(X, LABELS)
    again = ConditionalNorm2d(nn.BatchNorm2d(C, affine=False), nn.Embedding(3, 2 * C)).double()
    again.load_state_dict(layer.state_dict())
    assert_close(again.eval()(X, LABELS), layer.eval()(X, LABELS))


def test_errors_name_the_value():
    layer = ConditionalNorm2d(nn.InstanceNorm2d(C), nn.Embedding(3, 2 * C)).double()
    plain = nn.BatchNorm2d(C, affine=False)
    cases = [
        (lambda: layer(X, LABELS + 1), "rows 0 to 2"),
        (lambda: layer(X, -LABELS), "numbers from -2"),
        (lambda: layer(X, LABELS[:2]), "4 images"),
        (lambda: layer(X, torch.tensor(1)), "give one for each"),
        (lambda: layer(X, draw(4, 2)), "weights of 3 rows"),
        (lambda: ConditionalNorm2d(nn.BatchNorm2d(C), nn.Embedding(3, 2 * C)), "affine=False"),
        (lambda: ConditionalNorm2d(plain, nn.Embedding(3, C)), "6 columns"),
        (lambda: ConditionalNorm2d(plain, nn.Linear(3, 2 * C, bias=False)), "with bias"),
        (lambda: ConditionalNorm2d(plain, nn.Sequential(nn.Linear(3, 2 * C), nn.ReLU())), "ends in ReLU"),
        (lambda: ConditionalNorm2d(nn.ReLU(), nn.Embedding(3, 2 * C)), "does not tell its channels"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
