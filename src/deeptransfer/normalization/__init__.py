"""Normalisation that knows several domains: one template, and each published layer as a short override of it."""

from .adabn import adapt_statistics
from .autodial import AutoDIAL, AutoDIAL1d, AutoDIAL2d, AutoDIAL3d
from .base import DomainNorm
from .batchnorm import DomainBatchNorm, DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d
from .conditional import ConditionalNorm2d
from .convert import convert_norm, gate_parameters, mixes_domains
from .export import GroupedLinear, to_batchnorm
from .gates import clip_gate
from .moments import Moments
from .reciprocal import ReciprocalNorm, ReciprocalNorm1d, ReciprocalNorm2d, ReciprocalNorm3d
from .region import LearnedRegionNorm2d, RegionNorm2d
from .split import forward_domains, use_domain
from .switchable import SwitchableBatchNorm2d
from .test_time import Tent, prediction_time
from .transnorm import TransNorm, TransNorm1d, TransNorm2d, TransNorm3d
from .whitening import (
    DomainWhitening,
    DomainWhitening1d,
    DomainWhitening2d,
    DomainWhitening3d,
    min_entropy_consensus,
)

__all__ = [
    "AutoDIAL",
    "AutoDIAL1d",
    "AutoDIAL2d",
    "AutoDIAL3d",
    "ConditionalNorm2d",
    "DomainBatchNorm",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
    "DomainNorm",
    "DomainWhitening",
    "DomainWhitening1d",
    "DomainWhitening2d",
    "DomainWhitening3d",
    "GroupedLinear",
    "LearnedRegionNorm2d",
    "Moments",
    "ReciprocalNorm",
    "ReciprocalNorm1d",
    "ReciprocalNorm2d",
    "ReciprocalNorm3d",
    "RegionNorm2d",
    "SwitchableBatchNorm2d",
    "Tent",
    "TransNorm",
    "TransNorm1d",
    "TransNorm2d",
    "TransNorm3d",
    "adapt_statistics",
    "clip_gate",
    "convert_norm",
    "forward_domains",
    "gate_parameters",
    "min_entropy_consensus",
    "mixes_domains",
    "prediction_time",
    "to_batchnorm",
    "use_domain",
]
