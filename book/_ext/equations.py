"""Below a numbered equation links to the code that implements it and to its tests, and a page that lists all equations.

The facts are in ``equations.toml`` beside the pages, one table for each label::

    [eq-biased]
    code = ["deeptransfer.discrepancy.mmd2"]
    tests = ["tests/unit/test_discrepancy.py::test_mmd2_equals_the_loop"]

``cell = true`` says that the chapter's own cells compute it, a notebook among the tests that its cells check it.
The directive ``equation-index`` makes the list, on the page ``equations``. Below an equation that only the chapter's own
cells compute stands nothing: they are beside it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from tables import link_to_code

REGISTER = "equations.toml"
PAGE = "equations"
CELLS = "the chapter’s cells"


@dataclass(frozen=True)
class Entry:
    """What computes an equation, and what would fail if it did so wrongly."""

    code: tuple[str, ...]
    cell: bool
    tests: tuple[str, ...]


def read_register(path: Path) -> dict[str, Entry]:
    """The entries by label.

    Raises
    ------
    ValueError
        If an entry holds an unknown key, or does not name both what computes the equation and what tests it.
    """
    entries = {}
    for label, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if unknown := set(table) - {"code", "cell", "tests"}:
            raise ValueError(f"{path.name}: [{label}] has unknown keys {sorted(unknown)}: known are code, cell, tests")
        entry = Entry(
            tuple(table.get("code", ())),
            table.get("cell", False),
            tuple(table.get("tests", ())),
        )
        if not (entry.code or entry.cell) or not entry.tests:
            raise ValueError(f"{path.name}: [{label}] needs `code` or `cell = true`, and `tests`")
        entries[label] = entry
    return entries


def short_links(entry: Entry, label: str, app: Sphinx) -> list[nodes.Node]:
    """The words below an equation: what computes it by name, and the way to its tests on the page of all equations."""
    here = app.env.docname
    tests = ", ".join(name.rpartition("::")[2] for name in entry.tests)
    target = f"{app.builder.get_relative_uri(here, PAGE)}#{anchor(label)}"
    return [
        nodes.Text("code: "),
        *_listed([link_to_code(path, here) for path in entry.code]),
        nodes.Text(" · "),
        nodes.reference("", "", nodes.Text("test"), internal=True, refuri=target, reftitle=f"tested by {tests}"),
    ]


def anchor(label: str) -> str:
    """Where the page of all equations tells of one."""
    return nodes.make_id(f"source-{label}")


def describe(entry: Entry) -> list[nodes.Node]:
    """The words, with links, on the page of all equations."""
    makers: list[nodes.Node] = [link_to_code(path, PAGE) for path in entry.code]
    makers += [nodes.Text(CELLS)] * entry.cell
    tests: list[nodes.Node] = []
    for name in entry.tests:
        notebook = PurePosixPath(name).suffix == ".ipynb"
        tests.append(nodes.Text(CELLS) if notebook else nodes.literal(name, name))
    return [nodes.Text("implemented in "), *_listed(makers), nodes.Text(" · tested by "), *_listed(tests)]


def _listed(items: list[nodes.Node]) -> Iterator[nodes.Node]:
    for place, item in enumerate(items):
        if place:
            yield nodes.Text(", ")
        yield item


def _labelled(
    document: nodes.document,
) -> Iterator[tuple[nodes.math_block, str]]:
    for equation in document.findall(nodes.math_block):
        if str(equation.get("label") or "").startswith("eq-"):
            yield equation, equation["label"]


def add_lines(app: Sphinx, document: nodes.document) -> None:
    """Put the links below the numbered equations of a page that was just read."""
    env = app.env
    equations = list(_labelled(document))
    if not equations:
        return
    register = Path(app.srcdir) / REGISTER
    env.note_dependency(str(register))
    entries = read_register(register)
    for equation, label in equations:
        if label in entries:
            if entries[label].code:
                words = short_links(entries[label], label, app)
                equation.parent.insert(
                    equation.parent.index(equation) + 1,
                    nodes.paragraph("", "", *words, classes=["equation-source"]),
                )
        else:
            logging.getLogger(__name__).warning(
                "no entry [%s] in %s: say what computes and what tests this equation", label, REGISTER,
                location=equation,
            )  # fmt: skip


class equation_index(nodes.General, nodes.Element):
    """Where the list will stand; it can be made only when every page has been read."""


class EquationIndex(SphinxDirective):
    """All numbered equations, page by page in the order of the book."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # another page's equations are this page's content
        return [equation_index()]


class FillIndex(SphinxPostTransform):
    """Make the list, in time for its links to be resolved."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        for place in list(self.document.findall(equation_index)):
            entries = read_register(Path(self.env.srcdir) / REGISTER)
            sections = [
                self._section(
                    name,
                    [(e, entries[label]) for e, label in equations if label in entries],
                )
                for name in pages_in_order(self.env)
                if (equations := list(_labelled(self.env.get_doctree(name))))
            ]
            place.replace_self(sections)
            self.env.domains["math"].data["has_equations"][self.env.docname] = True  # so that the page loads MathJax

    def _section(self, page: str, equations: list[tuple[nodes.math_block, Entry]]) -> nodes.section:
        here = self.env.docname
        section = nodes.section(ids=[nodes.make_id(f"equations-{page}")])
        title = self.env.titles[page].astext()
        section += nodes.title("", "", *self.env.titles[page].deepcopy().children, names=[title])
        for equation, entry in equations:
            latex = equation.astext()
            section += nodes.math_block(
                latex,
                latex,
                nowrap=equation.get("nowrap", False),
                number=None,
                docname=here,
            )
            number = addnodes.pending_xref(
                "", nodes.inline(), refdomain="math", reftype="eq", reftarget=equation["label"], refdoc=here,
                refwarn=True,
            )  # fmt: skip
            section += nodes.paragraph(
                "",
                "",
                number,
                nodes.Text(": "),
                *describe(entry),
                classes=["equation-source"],
                ids=[anchor(equation["label"])],
            )
        return section


def pages_in_order(env: BuildEnvironment) -> list[str]:
    """All pages below the first one, as a reader who follows the contents meets them."""

    def below(page: str) -> Iterator[str]:
        yield page
        for child in env.toctree_includes.get(page, []):
            yield from below(child)

    return list(below(env.config.root_doc))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(equation_index)
    app.add_directive("equation-index", EquationIndex)
    app.connect("doctree-read", add_lines)
    app.add_post_transform(FillIndex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
