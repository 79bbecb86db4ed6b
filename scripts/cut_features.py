"""Cut the first layers of a trained MobileNet for the chapter on style, and fold each norm into its convolution.

    python scripts/cut_features.py mobilenet_v1_0.25_224_imagenet.npz

The file is the one that ``mobilenet_025`` reads: Google's weights of MobileNet v1, width 0.25, trained on ImageNet
(Apache-2.0), as Keras' applications publish them (``mobilenet_2_5_224_tf.h5``). What is cut goes to
``data/weights/style-features.npz``: ``<layer>.weight`` and ``<layer>.bias`` of eleven convolutions.
"""

from __future__ import annotations

import sys

import numpy as np
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeptransfer.backbones import mobilenet_025
from deeptransfer.data_files import data_folder
from deeptransfer.style.features import FILE, LAYERS


def main() -> None:
    """Write the file."""
    blocks = mobilenet_025(sys.argv[1], classes=1).eval().features
    convolutions = [part for part in blocks.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in blocks.modules() if isinstance(part, nn.BatchNorm2d)]
    values: dict[str, np.ndarray] = {}
    for name, convolution, norm in zip(LAYERS, convolutions, norms, strict=False):  # the later ones are left out
        folded = fuse_conv_bn_eval(convolution, norm)
        values |= {f"{name}.{key}": value.numpy() for key, value in folded.state_dict().items()}
    path = data_folder() / FILE
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **values)  # type: ignore[arg-type]  # the stubs take any name for allow_pickle
    print(f"{path}: {sum(value.size for value in values.values()):,} numbers, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
