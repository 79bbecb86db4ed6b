"""The table of all methods, from the library's own catalogue, with a filter of native controls.

The directive ``method-map`` makes it. Without JavaScript every row is shown.
"""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deeptransfer.catalogue import Method, methods
from tables import Cell, link_to_code, link_to_page, make_table

KINDS = {
    "baseline": "a baseline",
    "discrepancy": "a loss: distance of two distributions",
    "adversarial": "a loss: an adversary",
    "prediction": "a loss on predictions",
    "normalization": "a normalisation layer",
    "test-time": "a step at test time",
    "generalization": "a step towards domains never seen",
    "multi-domain": "one network for several domains",
    "style": "statistics of one image",
}
NOTHING = "nothing beyond source images and their labels"
FILTERS = {
    "kind": "What it is",
    "assumes": "What it assumes",
    "needs": "What it needs",
}

SCRIPT = """<script>
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("method-filter"), rows = [...document.querySelectorAll(".method-map tbody tr")];
  const apply = () => {
    const asked = [...form.querySelectorAll("select")].map((choice) => choice.value).filter(Boolean);
    for (const row of rows) row.hidden = !asked.every((name) => row.classList.contains(name));
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} methods`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
});
</script>"""


def facts(method: Method) -> dict[str, tuple[str, ...]]:
    """What a method can be filtered by."""
    return {
        "kind": (KINDS[method.kind],),
        "assumes": (method.shift,),
        "needs": method.needs or (NOTHING,),
    }


def css_class(name: str, fact: str, known: list[str]) -> str:
    return f"{name}-{known.index(fact)}"


class MethodMap(SphinxDirective):
    """One row for each record of :mod:`deeptransfer.catalogue`."""

    def run(self) -> list[nodes.Node]:
        records = methods()
        known = {name: list(dict.fromkeys(fact for m in records for fact in facts(m)[name])) for name in FILTERS}
        titles = ("Method", "Assumes", "Needs", "Code and cost")
        classes = [
            [css_class(name, fact, known[name]) for name in FILTERS for fact in facts(method)[name]]
            for method in records
        ]
        table = make_table(titles, map(self._row, records), "method-map", classes)
        return [nodes.raw("", _form(known) + SCRIPT, format="html"), table]

    def _row(self, method: Method) -> list[Cell]:
        here = self.env.docname
        called = nodes.paragraph("", "", nodes.strong("", method.title))
        if method.page in self.env.found_docs:
            called += [
                nodes.Text(" · "),
                link_to_page(method.page, here, f"chapter {method.chapter}"),
            ]
        paper = nodes.paragraph(
            "",
            "",
            nodes.literal(method.name, method.name),
            nodes.Text(f" {method.paper}"),
        )
        options = ", ".join(f"{key}={value!r}" for key, value in method.options.items())
        code = nodes.paragraph(
            "",
            "",
            link_to_code(method.symbol, here),
            nodes.Text(f" with {options}" if options else ""),
        )
        cost = [
            nodes.paragraph("", KINDS[method.kind]),
            nodes.paragraph("", f"cost: {method.cost}"),
        ]
        needs = [nodes.paragraph("", need) for need in facts(method)["needs"]]
        return [[called, paper], method.shift, needs, [code, *cost]]


def _form(known: dict[str, list[str]]) -> str:
    fields = "".join(
        f'<label>{title} <select name="{name}"><option value="">any</option>'
        + "".join(
            f'<option value="{css_class(name, fact, facts_of)}">{html.escape(fact)}</option>' for fact in facts_of
        )
        + "</select></label>"
        for (name, title), facts_of in zip(FILTERS.items(), known.values(), strict=True)
    )
    return (
        f'<form id="method-filter" aria-label="Choose methods" hidden>{fields}'
        '<button type="reset">Show all</button> <output aria-live="polite"></output></form>'
    )


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("method-map", MethodMap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
