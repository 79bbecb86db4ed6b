"""A trained network on disk: all that is needed to use it on other images, on another machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import rgb_to_grayscale

from deeptransfer import __version__
from deeptransfer.domains.dataset import Domain, Harmonised
from deeptransfer.domains.folders import FolderDomain
from deeptransfer.domains.layout import images_below
from deeptransfer.networks import Network
from deeptransfer.runs.recipe import Recipe, kind_of, recipe_class
from deeptransfer.runs.result import replacing
from deeptransfer.training import predict


@dataclass(frozen=True)
class Model:
    """A trained network with its recipe.

    Attributes
    ----------
    network : Network
        As its method has it scored: under AdaBN, with the statistics of the target.
    classes : tuple of str
        What each output stands for.
    shape : tuple of int
        ``(C, H, W)`` of the images that it was trained on.
    recipe : dict
        The fields of the run's :class:`~deeptransfer.runs.adaptation.RunConfig`.
    """

    network: Network
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    recipe: dict[str, Any]

    def images(self, path: str | Path) -> Domain:
        """An image, or those of a folder at every depth, as the network was shown images in training.

        They are resampled as the recipe says, and turned into grey where the network sees grey. Their labels are not
        known: all are 0, and mean nothing.

        Raises
        ------
        ValueError
            If there is no image.
        """
        path = Path(path).expanduser()
        grey = rgb_to_grayscale if self.shape[0] == 1 else None
        domain = FolderDomain(str(path), [(file, 0) for file in _files(path)], self.classes, self.recipe["size"], grey)
        return Harmonised(domain, self.shape)

    def probabilities(self, domain: Domain, statistics: str = "target", batch_size: int | None = None) -> Tensor:
        """Of each class for each image, ``(n, classes)``, on the CPU.

        Parameters
        ----------
        domain : Domain
            Of images of the model's ``shape``.
        statistics : {"target", "source"}
            Whose running statistics normalise: the domain that the images are of.
        batch_size : int, optional
            As :func:`~deeptransfer.training.predict`'s.
        """
        return predict(self.network, domain, statistics, batch_size)[1].softmax(1)

    def predict(self, path: str | Path, statistics: str = "target", batch_size: int | None = None) -> pd.DataFrame:
        """For each of the :meth:`images`: its file, relative to the folder, the likeliest class and its probability."""
        path = Path(path).expanduser()
        probability, label = self.probabilities(self.images(path), statistics, batch_size).max(1)
        above = path if path.is_dir() else path.parent
        files = [Path(file).relative_to(above).as_posix() for file in _files(path)]
        names = [self.classes[k] for k in label.tolist()]
        return pd.DataFrame({"file": files, "class": names, "probability": probability.double().numpy()})


def _files(path: Path) -> list[str]:
    if not path.exists():
        raise ValueError(f"there is no {path}: give an image or a folder of images")
    files = images_below(path) if path.is_dir() else [str(path)]
    if not files:
        raise ValueError(f"no image in {path}, nor in the folders below it")
    return files


def save_model(path: Path, recipe: Recipe, network: nn.Module, classes: Sequence[str], shape: Sequence[int]) -> None:
    """Write a trained network, whole or not at all; :func:`load_model` reads it."""
    state = {
        "kind": kind_of(recipe),
        "recipe": json.dumps(asdict(recipe)),
        "classes": list(classes),
        "shape": list(shape),
        "weights": network.state_dict(),
        "deeptransfer": __version__,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_model(path: str | Path) -> Model:
    """The network that ``python -m deeptransfer run --save`` has kept, in eval mode, on the default device.

    Neither the domains nor the weights that it began with need be on this machine. Nothing in the file is executed.

    ``load_model("model.pt").predict("photographs")`` names the class of each image of a folder.

    Raises
    ------
    ValueError
        If the file is not there, damaged, or holds no such model.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"there is no model {path}: 'python -m deeptransfer run … --save {path.name}' makes one")
    try:
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        recipe, classes, shape = json.loads(state["recipe"]), tuple(state["classes"]), tuple(state["shape"])
        network = recipe_class(state["kind"]).untrained(recipe, len(classes), shape)
        network.load_state_dict(state["weights"])
    except Exception as error:  # a cut-off file alone raises half a dozen types
        raise ValueError(f"{path} is no model that 'run --save' has kept ({type(error).__name__}: {error})") from error
    return Model(network.eval(), classes, shape, recipe)
