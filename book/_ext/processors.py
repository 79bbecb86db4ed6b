"""Pages are read and written by as many processes as there are processors: Jupyter Book has no option for it."""

from __future__ import annotations

import os
from typing import Any

from sphinx.application import Sphinx

# They act before the first page is read or after the last, but do not say that they are safe.
UNDECLARED = ("sphinx_multitoc_numbering", "sphinx-mathjax-offline")


def setup(app: Sphinx) -> dict[str, Any]:
    app.parallel = max(app.parallel, os.cpu_count() or 1)
    for name in UNDECLARED:
        app.extensions[name].parallel_read_safe = True
    return {"parallel_read_safe": True, "parallel_write_safe": True}
