"""How to read: which chapter needs which, and how long each takes, as a drawing and as a table.

What needs what is in ``reading.toml`` beside the pages; the minutes to read are those that a chapter itself tells, the
time to run is what its stored outputs took. The directive ``reading-order`` makes both.

The directive ``schedule`` makes the table of a course: a line for each week, ``part2/dan or part2/jan``, with the chapter's
main exercise as homework, or for a chapter without one ``part1/shift: ex-shift-shares``.
"""

from __future__ import annotations

import html
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from deeptransfer.catalogue import CHAPTERS
from tables import Cell, link_to_exercise, link_to_page, make_table

WIDTH, HEIGHT, GAP_X, GAP_Y = 190, 56, 30, 34  # of a box and between boxes
MARGIN = 36  # lines that pass a box go round it on the left


def read_order(path: Path) -> dict[str, dict[str, Any]]:
    """Title, column, needs and helps of each chapter."""
    chapters = tomllib.loads(path.read_text(encoding="utf-8"))
    return {page: {"needs": [], "helps": [], **facts} for page, facts in chapters.items()}


def minutes_to_read(notebook: dict[str, Any]) -> int | None:
    """What the chapter says in its opening box."""
    said = re.search(
        r"\*\*Time\*\*: about (\d+) minutes",
        "".join(notebook["cells"][0]["source"]),
    )
    return int(said[1]) if said else None


def seconds_to_run(notebook: dict[str, Any]) -> float:
    return notebook["metadata"]["stored"]["seconds"]


def row_of(page: str, order: dict[str, dict[str, Any]]) -> int:
    """The longest way to a chapter through what it needs."""
    before = [p for p in (*order[page]["needs"], *order[page]["helps"]) if p in order]
    return 1 + max((row_of(p, order) for p in before), default=-1)


def draw(
    order: dict[str, dict[str, Any]],
    titles: dict[str, tuple[str, str]],
    links: dict[str, str],
) -> str:
    """The drawing as SVG, in the colours of the page around it.

    Parameters
    ----------
    order
        As :func:`read_order` gives it.
    titles, links
        Two lines of text and the address for each chapter.
    """
    places = {
        page: (
            MARGIN + facts["column"] * (WIDTH + GAP_X),
            MARGIN + row_of(page, order) * (HEIGHT + GAP_Y),
        )
        for page, facts in order.items()
    }
    lines, boxes = [], []
    for page, (x, y) in places.items():
        for kind in ("needs", "helps"):
            for before in (p for p in order[page][kind] if p in places):
                dash = ' stroke-dasharray="5 4"' if kind == "helps" else ""
                lines.append(f'<path d="{_way(places[before], (x, y))}"{dash}/>')
        first, second = (html.escape(words) for words in titles[page])
        boxes.append(
            f'<a href="{links[page]}"><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
            f'<text x="{x + 12}" y="{y + 24}">{first}</text><text x="{x + 12}" y="{y + 44}">{second}</text></a>'
        )
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    return (
        f'<div class="reading-order" tabindex="0" role="group" aria-label="Which chapter needs which">'
        f'<svg viewBox="0 0 {width} {height}" style="max-width: {width}px" role="group" aria-label="Chapters as boxes that link to them. A solid line'
        f' leads from a chapter to one that needs it, a dashed one to one that it helps; the table below says the same.">'
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z"/></marker></defs>'
        f'<g class="lines">{"".join(lines)}</g>{"".join(boxes)}</svg></div>'
    )


def _way(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From below one box to above the next; to one that is further down, through the gaps between boxes."""
    (x0, y0), (x1, y1) = start, end
    if y1 - y0 <= HEIGHT + GAP_Y:
        x0, y0, x1, y1 = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2, y1 - 3
        return f"M{x0} {y0}C{x0} {y0 + GAP_Y} {x1} {y1 - GAP_Y} {x1} {y1}"
    gap, side, middle = y0 + HEIGHT + GAP_Y / 2, x1 - GAP_X / 2, y1 + HEIGHT / 2
    if x0 == x1:
        return f"M{x0} {y0 + HEIGHT / 2}H{side + 8}Q{side} {y0 + HEIGHT / 2} {side} {gap}V{middle - 8}Q{side} {middle} {x1 - 3} {middle}"
    turn = 8 if x0 + WIDTH / 2 < side else -8
    return (
        f"M{x0 + WIDTH / 2} {y0 + HEIGHT}V{gap - 8}Q{x0 + WIDTH / 2} {gap} {x0 + WIDTH / 2 + turn} {gap}H{side - turn}"
        f"Q{side} {gap} {side} {gap + 8}V{middle - 8}Q{side} {middle} {x1 - 3} {middle}"
    )


def together(minutes: int) -> str:
    """Minutes as a reader plans them."""
    return f"{minutes / 60:.0f} hours" if minutes >= 90 else f"{minutes} min"


class ReadingTime(SphinxRole):
    """How long all chapters take: ``{reading-time}`chapters```."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        total = 0
        for page in CHAPTERS.values():
            path = Path(self.env.srcdir, f"{page}.ipynb")
            self.env.note_dependency(str(path))
            total += minutes_to_read(json.loads(path.read_text(encoding="utf-8"))) or 0
        return [nodes.Text(together(total))], []


class ReadingOrder(SphinxDirective):
    """The drawing and the table of the chapters that are in the book."""

    def run(self) -> list[nodes.Node]:
        source, here = Path(self.env.srcdir), self.env.docname
        self.env.note_dependency(str(source / "reading.toml"))
        known = read_order(source / "reading.toml")
        order = {page: known[page] for page in CHAPTERS.values() if page in self.env.found_docs and page in known}
        numbers = {page: number for number, page in CHAPTERS.items()}
        titles, links, rows = {}, {}, []
        total = 0
        for page, facts in order.items():
            path = source / f"{page}.ipynb"
            self.env.note_dependency(str(path))
            notebook = json.loads(path.read_text(encoding="utf-8"))
            minutes = minutes_to_read(notebook)
            total += minutes or 0
            reading = f"{minutes} min" if minutes else ""
            titles[page] = f"{numbers[page]}  {facts['short']}", reading
            links[page] = self.env.app.builder.get_relative_uri(here, page)
            before = ", ".join(str(numbers[p]) for p in facts["needs"])
            if helping := ", ".join(str(numbers[p]) for p in facts["helps"]):
                before += f" ({helping} helps)"
            seconds = f"{seconds_to_run(notebook):.0f} s"
            rows.append(
                (
                    str(numbers[page]),
                    link_to_page(page, here),
                    before,
                    reading,
                    seconds,
                )
            )
        rows.append(("", "together", "", together(total), ""))
        table = make_table(("", "Chapter", "Read before", "To read", "To run"), rows)
        return [nodes.raw("", draw(order, titles, links), format="html"), table]


class Week(NamedTuple):
    """One line of a schedule.

    Attributes
    ----------
    pages : tuple of str
        Chapters of which one is read.
    homework : str
        Label of an exercise; empty for the main exercise of each.
    """

    pages: tuple[str, ...]
    homework: str


def parse_schedule(lines: Iterable[str], order: dict[str, dict[str, Any]]) -> list[Week]:
    """The weeks of a course.

    Raises
    ------
    ValueError
        If a chapter is unknown, or comes before one that it needs; only one of several chapters is read in a week.
    """
    weeks: list[Week] = []
    for line in filter(None, map(str.strip, lines)):
        names, _, homework = line.partition(":")
        pages = tuple(name.strip() for name in names.split(" or "))
        read = {week.pages[0] for week in weeks if len(week.pages) == 1}
        for page in pages:
            if page not in order:
                raise ValueError(f"no chapter {page!r}")
            if missing := set(order[page]["needs"]) - read:
                raise ValueError(f"week {len(weeks) + 1}: {page} needs {', '.join(sorted(missing))} before it")
        weeks.append(Week(pages, homework.strip()))
    return weeks


def main_exercise(notebook: dict[str, Any]) -> tuple[str, str]:
    """Label of the exercise in which a chapter's method is written, and what is to be written; two empty texts without."""
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    found = re.search(r":label: (\S+)\n\*\*Main exercise: (.+?)\.\*\*", text)
    return (found[1], found[2]) if found else ("", "")


class Schedule(SphinxDirective):
    """The table of a course."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        source, here = Path(self.env.srcdir), self.env.docname
        self.env.note_dependency(str(source / "reading.toml"))
        try:
            weeks = parse_schedule(self.content, read_order(source / "reading.toml"))
        except ValueError as error:
            raise self.error(str(error)) from None
        numbers = {page: number for number, page in CHAPTERS.items()}
        rows: list[list[Cell]] = []
        for count, week in enumerate(weeks, 1):
            for page in week.pages:
                path = source / f"{page}.ipynb"
                self.env.note_dependency(str(path))
                notebook = json.loads(path.read_text(encoding="utf-8"))
                label, task = (week.homework, "") if week.homework else main_exercise(notebook)
                if not label:
                    raise self.error(f"{page} has no main exercise: name another")
                chapter = nodes.paragraph("", "", nodes.Text(f"{numbers[page]}. "), link_to_page(page, here))
                words = nodes.Text(f": {task}" if task else "")
                homework = nodes.paragraph("", "", link_to_exercise(label, here), words)
                first = str(count) if page == week.pages[0] else "or"
                rows.append([first, [chapter], f"{minutes_to_read(notebook)} min", [homework]])
        return [make_table(("Week", "Chapter", "To read", "Homework"), rows, "schedule")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("reading-order", ReadingOrder)
    app.add_directive("schedule", Schedule)
    app.add_role("reading-time", ReadingTime())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
