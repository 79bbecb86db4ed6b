"""A formula and the sign behind it, or the bracket before it, stay in one line: a browser may break between the two."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

BEFORE = re.compile(r"[(\[„“‘]+$")
BEHIND = re.compile(r"^[-–.,;:!?)\]’”…]+")


class KeepTogether(SphinxPostTransform):
    """Formulas in a line of text."""

    default_priority = 300  # behind the links to the glossary, which look at the text

    def run(self, **_: Any) -> None:
        for formula in list(self.document.findall(nodes.math)):
            parent = formula.parent
            place = parent.index(formula)
            before, behind = _text(parent, place - 1, BEFORE), _text(parent, place + 1, BEHIND)
            if not before and not behind:
                continue
            kept = nodes.inline(
                "", "", nodes.Text(before), formula.deepcopy(), nodes.Text(behind), classes=["together"]
            )
            parent.replace(formula, kept)
            if behind:
                parent.replace(parent[place + 1], nodes.Text(parent[place + 1].astext().removeprefix(behind)))
            if before:
                parent.replace(parent[place - 1], nodes.Text(parent[place - 1].astext().removesuffix(before)))


def _text(parent: nodes.Element, place: int, signs: re.Pattern[str]) -> str:
    """The signs at one end of a neighbour, if it is text."""
    if not 0 <= place < len(parent) or not isinstance(parent[place], nodes.Text):
        return ""
    found = signs.search(parent[place].astext())
    return found[0] if found else ""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(KeepTogether)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
