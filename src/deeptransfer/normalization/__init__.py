"""Normalisation that knows two domains: one template, and each published layer as a short override of it."""

from .base import DomainNorm, Moments, clip_gate
from .batchnorm import DomainBatchNorm, DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d
from .convert import convert_norm, forward_domains, gate_parameters, use_domain

__all__ = [
    "DomainBatchNorm",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
    "DomainNorm",
    "Moments",
    "clip_gate",
    "convert_norm",
    "forward_domains",
    "gate_parameters",
    "use_domain",
]
