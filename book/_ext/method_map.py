"""The table of all methods, from the library's own catalogue, with a filter of native controls.

The directive ``method-map`` makes it. Without JavaScript every row is shown. The directive ``statistics-map`` puts the
same methods into four fields: whose statistics a method reads, and what it does with them.
"""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deeptransfer.catalogue import Method, label, methods
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
    "efficiency": "a cheaper network",
    "style": "statistics of one image",
    "weights": "a normalisation of weights",
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


WHOSE = {"set": "a set of images: a domain", "image": "one image: a style"}
USES = {False: "to remove (to classify)", True: "to edit (to generate, or to vary images in training)"}
FIELDS = {
    ("set", False): "Make the domains alike, so that the classifier meets what it knows.",
    ("image", False): "Make the images alike: contrast and style of each go, its content stays.",
    ("set", True): "Give a generator a scale and a shift for each domain or class, and choose which of them it draws.",
    ("image", True): "Give one image the statistics of another.",
}
SHORT = {
    "discrepancy": "distances",
    "adversarial": "adversaries",
    "normalization": "layers",
    "test-time": "at test time",
    "generalization": "for unseen domains",
    "multi-domain": "for several domains",
    "efficiency": "cheaper networks",
    "style": "style",
}


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


class StatisticsMap(SphinxDirective):
    """Every method of the catalogue in its field, by kind, with a link to its chapter if it has one."""

    def run(self) -> list[nodes.Node]:
        rows = [
            [[nodes.paragraph("", "", nodes.strong("", use))], *(self._field(whose, edits) for whose in WHOSE)]
            for edits, use in USES.items()
        ]
        table = make_table(("", *WHOSE.values()), rows, "statistics-map")
        without = [method for method in methods() if not method.statistics]
        last = nodes.paragraph("", "No statistics of a normalisation: ", *self._names(without), nodes.Text("."))
        return [table, last]

    def _field(self, whose: str, edits: bool) -> list[nodes.Node]:
        here = [method for method in methods() if whose in method.statistics and method.edits == edits]
        cell = [nodes.paragraph("", FIELDS[whose, edits])]
        for kind in dict.fromkeys(method.kind for method in here):
            words = nodes.inline("", f"{SHORT.get(kind, KINDS[kind])}: ", classes=["kind"])
            cell.append(nodes.paragraph("", "", words, *self._names([m for m in here if m.kind == kind])))
        return cell

    def _names(self, records: list[Method]) -> list[nodes.Node]:
        names: list[nodes.Node] = []
        for method in records:
            known = method.page in self.env.found_docs
            short = label(method.name)
            names += [
                link_to_page(method.page, self.env.docname, short) if known else nodes.Text(short),
                nodes.Text(", "),
            ]
        return names[:-1]


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
    app.add_directive("statistics-map", StatisticsMap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
