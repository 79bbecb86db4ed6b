"""Real domains by name: digits through torchvision, photographs in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deeptransfer.domains.dataset import Domain, Transform

Loader = Callable[[str, str, Path, int | None, Transform | None], Domain]

LOADERS: dict[str, Loader] = {}


def load_real(name: str, split: str, folder: Path, size: int | None, transform: Transform | None) -> Domain:
    """The domain ``name`` of the data sets in ``folder``; see :func:`~deeptransfer.domains.load_domain`."""
    return LOADERS[name](name, split, folder, size, transform)
