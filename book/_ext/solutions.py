"""With ``SOLUTIONS=no`` in the environment: the book without the solutions of its exercises, and without their cells."""

from __future__ import annotations

import os
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx_exercise.nodes import solution_node


def is_hidden_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and "tag_hide-cell" in node["classes"]


def remove_solutions(app: Sphinx, document: nodes.document) -> None:
    """Remove each solution and the folded cells right behind it."""
    for solution in list(document.findall(solution_node)):
        parent, place = solution.parent, solution.parent.index(solution)
        while place + 1 < len(parent) and is_hidden_cell(parent[place + 1]):
            parent.pop(place + 1)
        parent.pop(place)


def setup(app: Sphinx) -> dict[str, Any]:
    if os.environ.get("SOLUTIONS") == "no":
        app.connect("doctree-read", remove_solutions, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
