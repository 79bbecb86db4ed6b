"""Numbers and digits of the first page, from the stored results: the role ``accuracy``, the directives ``accuracy-bars`` and ``digits``.

The role takes a grid and what its runs have to be, ``{accuracy}`digits-source norm=bn source=print target=pen```, and says the
mean of their accuracies, ``72 %``; with ``of=source`` that on the source's test images. The directives take the same in TOML::

    [[state]]
    label = "trained on printed digits"
    runs = "digits-source norm=bn source=print target=pen"

``digits`` shows written digits and marks those that the run with seed 0 gets wrong, one state after the other.
"""

from __future__ import annotations

import html
import json
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

RESULTS = Path(__file__).parents[2] / "data" / "results"
PRINTED, WRITTEN = 20, 40  # of the row of digits that scripts/front_page.py makes


def chosen(asked: str) -> tuple[list[dict[str, Any]], str]:
    """The runs of a grid that are asked for, and of which domain the accuracy is.

    Raises
    ------
    ValueError
        If there is no such run, or runs of several recipes.
    """
    grid, *conditions = asked.split()
    where = dict(condition.split("=", 1) for condition in conditions)
    of = where.pop("of", "target")
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / grid).glob("*.json"))]
    runs = [run for run in stored if all(str(run["config"].get(key)) == value for key, value in where.items())]
    recipes = {json.dumps({**run["config"], "seed": None}, sort_keys=True) for run in runs}
    if len(recipes) != 1:
        raise ValueError(f"{asked!r} asks for one recipe, and {len(recipes)} are stored")
    return runs, of


def accuracy(asked: str) -> tuple[float, int]:
    """Mean accuracy in per cent, and the number of runs."""
    runs, of = chosen(asked)
    values = [run["curve"][-1]["source"] if of == "source" else run["selections"]["last"]["accuracy"] for run in runs]
    return 100 * sum(values) / len(values), len(values)


def percent(mean: float) -> str:
    """As a sentence says it: no 100 where an answer was wrong."""
    return "above 99\u00a0%" if 99.5 <= mean < 100 else f"{mean:.0f}\u00a0%"


class Accuracy(SphinxRole):
    """A number in a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        note_grid(self.env, self.text)
        return [nodes.Text(percent(accuracy(self.text)[0]))], []


def note_grid(env: Any, asked: str) -> None:
    for path in (RESULTS / asked.split()[0]).glob("*.json"):
        env.note_dependency(str(path))


class States(SphinxDirective):
    """What the two directives share: their states."""

    has_content = True

    def states(self) -> list[dict[str, str]]:
        found = tomllib.loads("\n".join(self.content))["state"]
        for state in found:
            note_grid(self.env, state["runs"])
        return found


class AccuracyBars(States):
    """A bar for each state, as long as its accuracy."""

    def run(self) -> list[nodes.Node]:
        rows, counts = "", set()
        for state in self.states():
            mean, count = accuracy(state["runs"])
            counts.add(count)
            rows += (
                f'<tr><th scope="row">{html.escape(state["label"])}</th>'
                f'<td><span class="bar {state["kind"]}" style="width: {mean:.1f}%"></span></td><td>{percent(mean)}</td></tr>'
            )
        (seeds,) = counts
        caption = f"Correct answers on test images. Mean of {seeds} runs each, which differ in nothing but their seed."
        table = f'<table class="accuracy-bars"><caption>{caption}</caption><tbody>{rows}</tbody></table>'
        return [nodes.raw("", table, format="html")]


class Digits(States):
    """Printed digits, and written ones with the wrong answers marked; buttons choose the state, without a script."""

    def run(self) -> list[nodes.Node]:
        states = self.states()
        wrong = []
        for state in states:
            runs, _ = chosen(state["runs"])
            (first,) = (run for run in runs if run["config"]["seed"] == 0)
            wrong.append({place for place in first["wrong"] if place < WRITTEN})
        buttons = "".join(
            f'<label><input type="radio" name="digits" id="digits-{place}"{" checked" * (not place)}> '
            f"{html.escape(state['label'])}</label>"
            for place, state in enumerate(states)
        )
        said = "".join(
            f'<span class="said-{place}">{WRITTEN - len(missed)} of {WRITTEN} right, {len(missed)} wrong</span>'
            for place, missed in enumerate(wrong)
        )
        printed = "".join(_digit(place) for place in range(PRINTED))
        written = "".join(
            _digit(PRINTED + place, *(f"wrong-{state}" for state, missed in enumerate(wrong) if place in missed))
            for place in range(WRITTEN)
        )
        return [
            nodes.raw(
                "",
                f'<figure class="digits-figure"><p class="digits-name">Printed: labels in any number</p>'
                f'<div class="digits" role="img" aria-label="{PRINTED} printed digits">{printed}</div>'
                f'<p class="digits-name">Written: no labels</p>'
                f'<div class="digits written" role="img" aria-label="{WRITTEN} digits written by hand; a cross marks those'
                f' that the network gets wrong">{written}</div>'
                f"<fieldset><legend>The network was</legend>{buttons}</fieldset>"
                f'<p class="digits-said" aria-live="polite">{said}</p></figure>',
                format="html",
            )
        ]


def _digit(place: int, *classes: str) -> str:
    return f'<i class="{" ".join(("digit", *classes))}" style="--place: {place}"></i>'


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("accuracy", Accuracy())
    app.add_directive("accuracy-bars", AccuracyBars)
    app.add_directive("digits", Digits)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
