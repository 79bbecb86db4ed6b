"""Normalisation that knows several domains: one template, and each published layer as a short override of it."""

from .adabn import adapt_statistics
from .autodial import AutoDIAL, AutoDIAL1d, AutoDIAL2d, AutoDIAL3d
from .base import DomainNorm
from .batchnorm import DomainBatchNorm, DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d
from .conditional import ConditionalNorm2d
from .convert import convert_norm, gate_parameters, mixes_domains
from .dson import DSON, DSON1d, DSON2d, DSON3d
from .exchange import CrossNorm, MixStyle, SelfNorm2d
from .export import GroupedLinear, to_batchnorm
from .gated import GatedBatchNorm2d, gate_losses
from .gates import clip_gate
from .ibn import IBN, IBN1d, IBN2d, IBN3d
from .instance_aware import (
    InstanceAwareBatchNorm,
    InstanceAwareBatchNorm1d,
    InstanceAwareBatchNorm2d,
    InstanceAwareBatchNorm3d,
)
from .lame import LAME
from .latent import WeightedBatchNorm2d, assignment_loss
from .matching import gaussian_divergence, information_maximization, statistics_divergences
from .moments import Moments
from .position import PositionNorm2d
from .reciprocal import ReciprocalNorm, ReciprocalNorm1d, ReciprocalNorm2d, ReciprocalNorm3d
from .region import LearnedRegionNorm2d, RegionNorm2d
from .reliable import EATA, SAR
from .robust import RobustBatchNorm, RobustBatchNorm1d, RobustBatchNorm2d, RobustBatchNorm3d
from .selective import InstanceWhitening2d, instance_correlation, sensitive_pairs, whitening_loss
from .split import forward_domains, use_domain
from .switchable import SwitchableBatchNorm2d
from .teacher import CoTTA
from .test_time import Tent, entropies, prediction_time
from .transnorm import TransNorm, TransNorm1d, TransNorm2d, TransNorm3d
from .unseen import Branches, average_domains, domain_branches
from .whitening import (
    DomainWhitening,
    DomainWhitening1d,
    DomainWhitening2d,
    DomainWhitening3d,
    min_entropy_consensus,
)

__all__ = [
    "DSON",
    "EATA",
    "IBN",
    "LAME",
    "SAR",
    "AutoDIAL",
    "AutoDIAL1d",
    "AutoDIAL2d",
    "AutoDIAL3d",
    "Branches",
    "CoTTA",
    "ConditionalNorm2d",
    "CrossNorm",
    "DSON1d",
    "DSON2d",
    "DSON3d",
    "DomainBatchNorm",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
    "DomainNorm",
    "DomainWhitening",
    "DomainWhitening1d",
    "DomainWhitening2d",
    "DomainWhitening3d",
    "GatedBatchNorm2d",
    "GroupedLinear",
    "IBN1d",
    "IBN2d",
    "IBN3d",
    "InstanceAwareBatchNorm",
    "InstanceAwareBatchNorm1d",
    "InstanceAwareBatchNorm2d",
    "InstanceAwareBatchNorm3d",
    "InstanceWhitening2d",
    "LearnedRegionNorm2d",
    "MixStyle",
    "Moments",
    "PositionNorm2d",
    "ReciprocalNorm",
    "ReciprocalNorm1d",
    "ReciprocalNorm2d",
    "ReciprocalNorm3d",
    "RegionNorm2d",
    "RobustBatchNorm",
    "RobustBatchNorm1d",
    "RobustBatchNorm2d",
    "RobustBatchNorm3d",
    "SelfNorm2d",
    "SwitchableBatchNorm2d",
    "Tent",
    "TransNorm",
    "TransNorm1d",
    "TransNorm2d",
    "TransNorm3d",
    "WeightedBatchNorm2d",
    "adapt_statistics",
    "assignment_loss",
    "average_domains",
    "clip_gate",
    "convert_norm",
    "domain_branches",
    "entropies",
    "forward_domains",
    "gate_losses",
    "gate_parameters",
    "gaussian_divergence",
    "information_maximization",
    "instance_correlation",
    "min_entropy_consensus",
    "mixes_domains",
    "prediction_time",
    "sensitive_pairs",
    "statistics_divergences",
    "to_batchnorm",
    "use_domain",
    "whitening_loss",
]
