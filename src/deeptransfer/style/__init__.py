"""Style as a domain of one image: its statistics, moved onto another image or made the target of an optimisation."""

from .features import StyleFeatures
from .gram import ContentLoss, StyleLoss, channel_moments, gram_matrix
from .images import mosaic, swirls
from .layers import AdaptiveResidualBlock, GroupwiseWhitenColor, dynamic_instance_norm, orthogonality, whitening_penalty
from .psd import matrix_power_psd
from .transfer import adaptive_instance_norm, whiten_color

__all__ = [
    "AdaptiveResidualBlock",
    "ContentLoss",
    "GroupwiseWhitenColor",
    "StyleFeatures",
    "StyleLoss",
    "adaptive_instance_norm",
    "channel_moments",
    "dynamic_instance_norm",
    "gram_matrix",
    "matrix_power_psd",
    "mosaic",
    "orthogonality",
    "swirls",
    "whiten_color",
    "whitening_penalty",
]
