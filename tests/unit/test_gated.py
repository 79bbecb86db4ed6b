"""Gated batch normalisation against NumPy and its limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deeptransfer.normalization import DomainBatchNorm2d, GatedBatchNorm2d, forward_domains, gate_losses, use_domain

K = ("clean", "l1", "linf")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 + 1


def trained(gate=None, **options):
    layer = GatedBatchNorm2d(4, K, gate, dtype=torch.float64, **options)
    with torch.no_grad():
        for i, p in enumerate([layer.norm.weight, layer.norm.bias, *layer.gate.parameters()]):
            p.copy_(draw(*p.shape, seed=i))
    forward_domains(layer, draw(5, 4, 3, 2), draw(4, 4, 3, 2, seed=1) * 3, draw(3, 4, 3, 2, seed=2) - 2)
    return layer


class Fixed(nn.Module):
    """A gate of given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits.to(x).expand(len(x), -1)


@pytest.mark.parametrize("shared", [False, True])
def test_evaluation_mixes_the_branches_by_the_gate(shared):
    layer, x = trained(shared_affine=shared).eval(), draw(6, 4, 3, 2, seed=9)
    want = np.zeros(x.shape)
    weight, bias = (p.detach().expand(3, 4).numpy() for p in (layer.norm.weight, layer.norm.bias))
    linear = layer.gate[2]
    for i, image in enumerate(x.numpy()):
        logits = linear.weight.detach().numpy() @ image.mean((1, 2)) + linear.bias.detach().numpy()
        g = np.exp(logits - logits.max())
        for k, share in enumerate(g / g.sum()):
            for c in range(4):
                z = (image[c] - layer.norm.running_mean[k, c].item()) / np.sqrt(
                    layer.norm.running_var[k, c].item() + layer.norm.eps
                )
                want[i, c] += share * (weight[k, c] * z + bias[k, c])
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)
    assert torch.autograd.gradcheck(
        lambda x, *_: layer(x), (x[:2].clone().requires_grad_(), *(p for p in layer.parameters()))
    )


def test_a_certain_gate_is_one_branch_and_an_even_one_of_equal_branches_is_batch_norm():
    x = draw(6, 4, 3, 2, seed=9)
    for k, name in enumerate(K):
        layer = trained(Fixed(torch.eye(3)[k : k + 1] * 1000)).eval()
        with use_domain(layer.norm, name):
            assert_close(layer(x), layer.norm(x))
        assert_close(layer(x), GatedBatchNorm2d.forward(layer, x))
    layer = GatedBatchNorm2d(4, 3, dtype=torch.float64)
    plain = nn.BatchNorm2d(4, dtype=torch.float64)
    plain(x)
    layer.norm.load_state_dict(plain.state_dict())
    assert_close(layer.eval()(x), plain.eval()(x))


def test_training_and_named_domains_take_the_true_branch():
    layer, plain = trained(), DomainBatchNorm2d(4, domains=K, shared_affine=False, dtype=torch.float64)
    plain.load_state_dict(layer.norm.state_dict())
    batches = [draw(n, 4, 3, 2, seed=n) for n in (5, 4, 3)]
    assert_close(forward_domains(layer, *batches), forward_domains(plain, *batches))
    layer.eval()
    plain.eval()
    assert_close(forward_domains(layer, *batches), forward_domains(plain, *batches))
    with use_domain(layer, "l1"), use_domain(plain, "l1"):
        assert_close(layer(batches[0]), plain(batches[0]))


def test_the_gates_loss_is_the_cross_entropy_of_the_true_domain():
    layer = trained()
    index, x = torch.tensor([0, 2, 2, 0, 2]), draw(5, 4, 3, 2, seed=7)  # one is absent
    with gate_losses(layer) as losses:
        forward_domains(layer, x, domain=index)
    log_p = layer.gate(x).log_softmax(1)
    assert_close(losses[0], -log_p[torch.arange(5), index].mean())
    (gradient,) = torch.autograd.grad(losses[0], layer.gate[2].weight)
    assert gradient.abs().sum() > 0
    with gate_losses(layer) as losses, use_domain(layer, "l1"):
        layer(x)
    assert_close(losses[0], -log_p[:, 1].mean())
    assert not layer._forward_pre_hooks


def test_state_reloads_autocast_nan_and_one_image():
    layer = trained().float().eval()
    twin = GatedBatchNorm2d(4, K).eval()
    twin.load_state_dict(layer.state_dict())
    x = draw(5, 4, 3, 2, dtype=torch.float32)
    assert torch.equal(layer(x), twin(x))
    assert_close(layer(x[:1]), layer(x)[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer(x.bfloat16()).float(), layer(x), rtol=0.1, atol=0.3)
    x[2, 0] = torch.nan
    assert layer(x)[torch.arange(5) != 2].isfinite().all()


def test_wrong_use_is_refused():
    x = draw(5, 4, 3, 2, dtype=torch.float32)
    with pytest.raises(ValueError, match="clean were never updated"):
        GatedBatchNorm2d(4, K).eval()(x)
    layer = trained(Fixed(torch.zeros(1, 2))).eval()
    with pytest.raises(ValueError, match=r"gate must return logits \(5, 3\), got \(5, 2\)"):
        layer(x.double())
    with pytest.raises(ValueError, match="expected 4 channels"):
        layer(x[:, :3].double())
    with pytest.raises(ValueError, match="no GatedBatchNorm2d"), gate_losses(nn.Linear(2, 2)):
        pass
    assert isinstance(copy.deepcopy(layer), GatedBatchNorm2d)
