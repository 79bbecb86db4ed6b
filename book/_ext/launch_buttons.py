"""Buttons that open a chapter on Colab and on Binder, once ``repository: url`` in ``_config.yml`` says where the book lies."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def add_buttons(_: Sphinx, config: Config) -> None:
    """Colab opens notebooks of GitHub only."""
    options = config.html_theme_options
    if str(options.get("repository_url", "")).startswith("https://github.com/"):
        options["launch_buttons"] = {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        }


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", add_buttons, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
