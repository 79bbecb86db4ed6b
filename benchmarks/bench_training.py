"""One training step of DANN with TransNorm through the library, against the same step written out by hand."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import device, seconds
from deeptransfer.adversarial import DomainDiscriminator, gradient_reversal
from deeptransfer.domains import Batch
from deeptransfer.networks import Network, small_cnn
from deeptransfer.normalization import TransNorm2d, convert_norm, forward_domains
from deeptransfer.objectives import DANN

ROWS, PROGRESS, LAMBDA = 64, 0.5, 0.9866142982  # dann_lambda(0.5)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _library(network: Network, objective: DANN, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    losses = objective(network, batch, PROGRESS)
    _update(optimizer, torch.stack(list(losses.values())).sum())


def _bare(network: Network, discriminator: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    source, target = forward_domains(network, batch.xs, batch.xt)
    features = torch.cat([source.features, target.features])
    domain = discriminator(gradient_reversal(features, LAMBDA))
    is_source = torch.cat([torch.ones(ROWS, device=domain.device), torch.zeros(ROWS, device=domain.device)])
    classification = F.cross_entropy(source.logits, batch.ys)
    _update(optimizer, classification + F.binary_cross_entropy_with_logits(domain, is_source))


def rows() -> list[dict]:
    """Measured rows: what, ours, baseline, ratio, target."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, ROWS, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (ROWS,), generator=generator)
    batch = Batch(images[0], labels, images[1]).to(device(), torch.float32)
    networks = [convert_norm(small_cnn(), TransNorm2d).to(device()) for _ in range(2)]
    objective = DANN(128).to(device())
    discriminator = DomainDiscriminator(128, hidden=128).to(device())
    optimizers = [
        torch.optim.SGD(objective.parameter_groups(networks[0]), 0.01, 0.9),
        torch.optim.SGD([*networks[1].parameters(), *discriminator.parameters()], 0.01, 0.9),
    ]
    ours, bare = seconds(
        [
            partial(_library, networks[0], objective, optimizers[0], batch),
            partial(_bare, networks[1], discriminator, optimizers[1], batch),
        ],
        rounds=51,
    )
    return [
        {
            "what": f"training step, DANN + TransNorm, small CNN, {ROWS} + {ROWS} images / the same step written bare",
            "ours": f"{ours * 1e3:.2f} ms",
            "baseline": f"{bare * 1e3:.2f} ms",
            "ratio": ours / bare,
            "target": "≤ 1.1",
        }
    ]
