"""What a reader unfolds: code of figures, solutions, checks of exercises, answers to predictions. One style for all of them.

A fold is a ``details`` of HTML, which needs no script. Its line says in plain words what it holds:

- the code of a cell with the tag ``hide-input``, and a whole cell with the tag ``hide-cell``;
- a solution, and in the same fold the cells with the tag ``hide-cell`` right behind it;
- an admonition of the class ``dropdown``, under its title;
- the functions ``check_…`` of a cell that calls ``attempt``: a reader of an exercise needs the stub;
- a cell with the tag ``fold-answer``, which would give the answer to a prediction away: it comes into the fold of the answer
  if nothing but code cells lies between the two, and else into one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.writers.html5 import HTML5Translator
from sphinx_exercise.nodes import solution_node

from checks import split_check
from figure_numbers import pictures

ANSWER = "fold-answer"
NUMBERS = "The numbers, after you have bet"
TEXT = "fold-text"  # class of the folds that are opened for printing


class fold(nodes.General, nodes.Element):
    """A part of the page behind the line that is its first child."""


class fold_line(nodes.General, nodes.TextElement):
    """The line that unfolds it."""


def make_fold(
    line: str | list[nodes.Node], parts: list[nodes.Node], classes: Sequence[str] = (), **attributes: Any
) -> fold:
    """A fold with a line and what it holds; with the class ``fold-text`` if that is not code and its outputs alone."""
    words = [nodes.Text(line)] if isinstance(line, str) else line
    text = [TEXT] * any(not _is_code(part) for part in parts)
    return fold("", fold_line("", "", *words), *parts, classes=[*classes, *text], **attributes)


def _is_code(node: nodes.Node) -> bool:
    """A cell, or its code or an output."""
    return isinstance(node, nodes.container) and ("nb_element" in node or "cell_input" in node["classes"])


def is_cell(node: nodes.Node | None, tag: str = "") -> bool:
    """Whether a node is a code cell, with a tag if one is asked for."""
    return (
        isinstance(node, nodes.container)
        and node.get("nb_element") == "cell_code"
        and (not tag or f"tag_{tag}" in node["classes"])
    )


def is_answer(node: nodes.Node | None) -> bool:
    return isinstance(node, nodes.admonition) and "dropdown" in node["classes"]


def fold_parts(_: Sphinx, document: nodes.document) -> None:
    """Everything but the solutions, whose titles are known only when all pages are."""
    for solution in list(document.findall(solution_node)):
        for cell in list(_behind(solution)):
            cell.parent.remove(cell)
            solution += cell
            del cell["hide_mode"]  # one fold is enough
    for cell in [node for node in document.findall(nodes.container) if is_cell(node)]:
        _fold_code(cell)
        _fold_check(cell)
    for answer in [node for node in document.findall(nodes.admonition) if is_answer(node)]:
        _fold_answer(answer)
    for cell in [node for node in document.findall(nodes.container) if is_cell(node, ANSWER)]:
        if not isinstance(cell.parent, fold):
            _fold_alone(cell)


def _fold_code(cell: nodes.Element) -> None:
    """The code of a cell, or all of it; instead of the folds of myst-nb."""
    code = [part for part in cell.children if part.get("nb_element") == "cell_code_source"]
    outputs = [part for part in cell.children if part.get("nb_element") == "cell_code_output"]
    if not code:
        return
    picture = any(map(pictures, outputs))
    line = "Code of the figure" if picture else "Code"
    if cell.get("hide_mode") == "all":
        if outputs:
            line = "Figure and its code" if picture else "Code and what it prints"
        cell.children = [make_fold(line, cell.children)]
    elif cell.get("hide_mode") == "input" or is_cell(cell, ANSWER):
        cell.replace(code[0], make_fold(line, code))
    else:
        return
    cell.attributes.pop("hide_mode", None)
    cell.setup_child(cell.children[0])


def _fold_check(cell: nodes.Element) -> None:
    for block in [part for part in cell.children if part.get("nb_element") == "cell_code_source"]:
        (code,) = (part for part in block.children if isinstance(part, nodes.literal_block))
        rest, check = split_check(code.astext())
        if check:
            folded = nodes.container("", code.deepcopy(), classes=block["classes"])
            for part, text in ((code, rest), (folded.children[0], check)):
                part.rawsource = text
                part.children = [nodes.Text(text)]
                part.setup_child(part.children[0])
            cell += make_fold("The check", [folded])


def _behind(solution: nodes.Element) -> Iterator[nodes.Element]:
    """The cells that run a solution."""
    for node in solution.parent.children[solution.parent.index(solution) + 1 :]:
        if not is_cell(node, "hide-cell"):
            return
        yield node


def _fold_answer(answer: nodes.Element) -> None:
    """Its cells stand before it, in the order of the page."""
    cells, place = [], answer.parent.index(answer)
    while place and is_cell(before := answer.parent.children[place - 1]):
        if is_cell(before, ANSWER):
            cells.insert(0, before)
        place -= 1
    for cell in cells:
        answer.parent.remove(cell)
    title, *words = answer.children
    answer.replace_self(
        make_fold(title.children, [*cells, *words], ids=answer["ids"], classes=["answer"] if cells else [])
    )


def _fold_alone(cell: nodes.Element) -> None:
    """This cell and those behind it."""
    parent = cell.parent
    place = parent.index(cell)
    cells = [cell]
    while place + 1 < len(parent) and is_cell(parent.children[place + 1], ANSWER):
        cells.append(parent.children[place + 1])
        parent.remove(cells[-1])
    parent.remove(cell)
    parent.insert(place, make_fold(NUMBERS, cells, classes=["answer"]))


class FoldSolutions(SphinxPostTransform):
    """Solutions, once their titles stand."""

    default_priority = 30

    def run(self, **_: Any) -> None:
        for solution in list(self.document.findall(solution_node)):
            title, words, *cells = solution.children
            line = f"{title.astext()}, run" if cells else title.astext()
            solution.replace_self(make_fold(line, [*words.children, *cells], ids=solution["ids"], classes=["solution"]))


def visit_fold(self: HTML5Translator, node: fold) -> None:
    self.body.append(self.starttag(node, "details", CLASS="fold"))


def depart_fold(self: HTML5Translator, _: fold) -> None:
    self.body.append("</details>\n")


def visit_line(self: HTML5Translator, node: fold_line) -> None:
    self.body.append(self.starttag(node, "summary", ""))


def depart_line(self: HTML5Translator, _: fold_line) -> None:
    self.body.append("</summary>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(fold, html=(visit_fold, depart_fold))
    app.add_node(fold_line, html=(visit_line, depart_line))
    app.connect("doctree-read", fold_parts, priority=600)  # figures have their numbers
    app.add_post_transform(FoldSolutions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
