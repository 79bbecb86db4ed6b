"""Small networks with trained-looking statistics, for the tests of what reads or replaces them."""

from __future__ import annotations

import torch
from torch import nn

from deeptransfer.normalization import DomainNorm


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, scale and shift as after training: nothing is left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm | DomainNorm):
            continue
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name == "num_batches_tracked":
                tensor.fill_(5)
            elif name == "running_cov":
                root = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.copy_(root @ root.mT + torch.eye(tensor.shape[-1]))
            elif name in getattr(module, "gate_names", ()):
                tensor.data.fill_(0.75)
            else:
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def network(seed: int = 0) -> nn.Module:
    """Three BatchNorm layers, two of them 2-D, in float64; 6 × 6 images to 3 logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32, 4),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.Linear(4, 3),
        ).double()
    return randomize(model, seed)


def images(n: int, seed: int = 0) -> torch.Tensor:
    """Batches drift: the first rows are darker than the last, so that batch statistics differ from the set's."""
    x = torch.randn(n, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x + torch.linspace(-2, 2, n, dtype=torch.float64).view(n, 1, 1, 1)
