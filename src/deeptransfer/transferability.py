r"""How transferable is a layer? Copy, freeze or re-initialise the first n blocks of a network.

Yosinski et al. split the classes into two tasks A and B, train a base network on each, and build from them networks
that are then trained on B:

============ ============================================ =============================================
treatment    the first n blocks                           what accuracy on B against n shows
============ ============================================ =============================================
``"BnB"``    copied from base B, frozen                   the dip of layers that had adapted to each other
``"AnB"``    copied from base A, frozen                   that dip, and the specificity of A's features
``"BnB+"``   copied from base B, trained                  the control of the next
``"AnB+"``   copied from base A, trained                  what a good start still gives after fine-tuning
``"random"`` drawn at random, frozen                      the floor: an architecture without learned filters
============ ============================================ =============================================

All other blocks are drawn anew. With n = 0 every treatment is training from scratch.

References
----------
Yosinski et al., *How transferable are features in deep neural networks?*, NeurIPS 2014.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from deeptransfer.networks import initialize

__all__ = ["TREATMENTS", "copy_blocks", "freeze", "thaw", "treatment"]

TREATMENTS = ("BnB", "AnB", "BnB+", "AnB+", "random")


class Blocks(Protocol):
    """A module that names its blocks in order, the classifier last, such as :class:`~deeptransfer.networks.Network`."""

    @property
    def blocks(self) -> Mapping[str, nn.Module]: ...


def freeze(block: nn.Module) -> nn.Module:
    """Hold a block as it is: no parameter asks for a gradient, and it stays in eval mode.

    Without the second half, batch normalisation would go on normalising by the batch and moving its running statistics.
    The block's own ``train`` is overridden, so a later ``network.train()`` does not wake it either.

    Parameters
    ----------
    block
        Any module; frozen in place.

    Returns
    -------
    Module
        ``block``.
    """
    block.requires_grad_(False)
    block.eval()
    # A partial on the instance, not a wrapper: names in the state_dict stay, and the block can be copied and pickled.
    block.train = partial(_stay_in_eval, block)  # type: ignore[method-assign]
    return block


def _stay_in_eval(block: nn.Module, mode: bool = True) -> nn.Module:
    return block


def thaw(block: nn.Module) -> nn.Module:
    """Undo :func:`freeze`: every parameter asks for a gradient, and the block follows ``train`` again.

    Parameters
    ----------
    block
        Any module; changed in place.

    Returns
    -------
    Module
        ``block``, in training mode.
    """
    block.__dict__.pop("train", None)
    return block.requires_grad_(True).train()


def copy_blocks(target: Blocks, source: Blocks, n: int) -> None:
    """Copy parameters and buffers of the first ``n`` blocks from one network into another.

    Parameters
    ----------
    target
        The network that is changed.
    source
        The network that is read.
    n
        How many blocks, without the classifier: 0 … number of blocks − 1.

    Raises
    ------
    ValueError
        If ``n`` is out of range or the blocks do not fit each other.
    """
    _check_depth(target, n)
    for name, block in list(target.blocks.items())[:n]:
        try:
            block.load_state_dict(source.blocks[name].state_dict())
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"block {name!r} can't be copied, the two networks must be alike: {error}") from error


def treatment(name: str, n: int, base_a: Blocks, base_b: Blocks, generator: torch.Generator | None = None) -> Any:
    r"""Build the network of one treatment, ready to be trained on task B.

    Parameters
    ----------
    name
        One of ``"BnB"``, ``"AnB"``, ``"BnB+"``, ``"AnB+"``, ``"random"``; see the table above.
    n
        How many blocks are kept, counted from the image: 0 … :math:`L`, the number of blocks without the classifier.
        The classifier belongs to its task and is always drawn anew, with the classes of ``base_b``.
    base_a, base_b
        The trained networks of tasks A and B, of one architecture; neither is changed.
    generator
        CPU generator of the new weights.

    Returns
    -------
    Module
        A new network like ``base_b``, in training mode.

    Raises
    ------
    ValueError
        If the treatment is unknown, ``n`` is out of range, or the blocks of the two networks do not fit each other.

    References
    ----------
    Yosinski et al., *How transferable are features in deep neural networks?*, NeurIPS 2014.
    """
    if name not in TREATMENTS:
        raise ValueError(f"unknown treatment {name!r}: choose one of {', '.join(TREATMENTS)}")
    _check_depth(base_b, n)
    network: Any = copy.deepcopy(base_b)
    for block in network.blocks.values():
        initialize(thaw(block), generator)
    if name != "random":
        copy_blocks(network, base_a if name.startswith("A") else base_b, n)
    if not name.endswith("+"):
        for block in list(network.blocks.values())[:n]:
            freeze(block)
    return network.train()


def _check_depth(network: Blocks, n: int) -> None:
    depth = len(network.blocks) - 1
    if not 0 <= n <= depth:
        raise ValueError(f"n must lie in 0 … {depth}, the blocks before the classifier; got {n}")
