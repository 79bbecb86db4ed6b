"""Tables as document nodes, for the directives beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from docutils import nodes
from sphinx import addnodes

Cell = str | nodes.Node | Sequence[nodes.Node]


def make_table(
    titles: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    name: str = "",
    row_classes: Iterable[Sequence[str]] = (),
) -> nodes.table:
    """A table with a head.

    Parameters
    ----------
    titles
        One for each column.
    rows
        A cell is a text, or what stands in its paragraph, or a sequence of paragraphs.
    name
        Class of the table.
    row_classes
        Classes of each row.
    """
    head = nodes.row(
        "",
        *(nodes.entry("", nodes.paragraph(title, title)) for title in titles),
    )
    body = [nodes.row("", *(_entry(cell) for cell in row)) for row in rows]
    for row, classes in zip(body, row_classes, strict=False):
        row["classes"] += classes
    group = nodes.tgroup(cols=len(titles))
    group += [nodes.colspec(colwidth=1) for _ in titles]
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group, classes=[name] if name else [])


def _entry(cell: Cell) -> nodes.entry:
    if isinstance(cell, str):
        return nodes.entry("", nodes.paragraph(cell, cell))
    if isinstance(cell, nodes.Node):
        return nodes.entry("", nodes.paragraph("", "", cell))
    return nodes.entry("", *cell)


def link_to_page(page: str, here: str, words: str = "") -> addnodes.pending_xref:
    """A link to a page of the book, under its title unless other words are given."""
    return addnodes.pending_xref(
        "", nodes.inline("", words), refdomain="std", reftype="doc", reftarget=f"/{page}", refexplicit=bool(words),
        refwarn=True, refdoc=here,
    )  # fmt: skip


def link_to_code(path: str, here: str) -> addnodes.pending_xref:
    """A link to a name of the library, shown by its last part."""
    name = path.rpartition(".")[2]
    return addnodes.pending_xref(
        "", nodes.literal(name, name), refdomain="py", reftype="obj", reftarget=path, refexplicit=True, refwarn=True,
        refdoc=here,
    )  # fmt: skip


def link_to_exercise(label: str, here: str) -> addnodes.pending_xref:
    """A link to an exercise, under its number."""
    return addnodes.pending_xref(
        "", nodes.literal(label, label, classes=["xref", "std", "std-numref"]), refdomain="std", reftype="numref",
        reftarget=label, refexplicit=False, refwarn=True, refdoc=here,
    )  # fmt: skip
