"""What stands around the text of each page: fewer scripts than the theme brings, two ways to print, a picture for links.

``_templates/layout.html`` leaves scripts out by the filter that is defined here, and says what is missed without them.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from markupsafe import Markup
from sphinx.application import Sphinx

COVER = "_static/cover.png"
PRINT = {
    "type": "javascript",
    "icon": "fas fa-file-pdf",
}
UNFOLDED = {  # words of the second button, by the first of these classes that a fold of the page has
    "solution": ("Print with solutions", "Solutions, answers and other folded text are unfolded first"),
    "answer": ("Print with answers", "Answers to predictions and other folded text are unfolded first"),
    "fold-text": ("Print unfolded", "Folded text is unfolded first"),
}


def without(text: str, *names: str) -> Markup:
    """The lines that name none of these files."""
    return Markup("\n".join(line for line in text.splitlines() if not any(name in line for name in names)))


def add_filter(app: Sphinx) -> None:
    environment = getattr(getattr(app.builder, "templates", None), "environment", None)
    if environment is not None:  # a builder that writes pages
        environment.filters["without"] = without


def no_formula_no_mathjax(
    _: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """Sphinx loads it too where only a page further down the contents has formulas."""
    if document is not None and not any(document.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))):
        context["script_files"] = [
            file for file in context["script_files"] if "mathjax" not in str(getattr(file, "filename", file) or "")
        ]


def say_what_needs_scripts(
    _: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """Whether the page has formulas or code, which look otherwise without JavaScript: for the template."""
    scripted = (nodes.math, nodes.math_block, nodes.literal_block)
    context["needs_script"] = document is not None and any(
        isinstance(node, scripted) for node in document.findall(nodes.Element)
    )


def print_buttons(
    _: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """The page as it is, and with its folded text unfolded, in place of the theme's one button.

    A book without solutions still has answers.
    """
    for group in context.get("header_buttons", []):
        buttons = group.get("buttons", [])
        for place, button in enumerate(buttons):
            if button.get("label") == "download-pdf-button":
                folds = [] if document is None else document.findall(nodes.Element)
                found = {name for node in folds for name in node.get("classes", ())}
                words = [told for name, told in UNFOLDED.items() if name in found][:1]
                buttons[place : place + 1] = [
                    PRINT | {"javascript": "window.print()", "text": "Print", "tooltip": "Folded parts are left out",
                             "label": "print-button"},
                    *(PRINT | {"javascript": "printUnfolded()", "text": text, "tooltip": tooltip, "label": "print-all-button"}
                      for text, tooltip in words),
                ]  # fmt: skip
                return


def describe_for_links(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """Title and picture of a page where a link to it is shown; the picture needs the address of the published book."""
    base = app.config.html_baseurl.rstrip("/")
    cover = f"{base}/{COVER}" if base else context["pathto"](COVER, 1)
    title = context.get("title") or app.config.html_title
    facts = {"title": title, "type": "book", "image": cover, "image:alt": "Printed and written digits"}
    context["metatags"] = context.get("metatags", "") + "".join(
        f'<meta property="og:{name}" content="{Markup.escape(Markup(value).striptags())}" />\n'
        for name, value in facts.items()
    )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", add_filter)
    app.connect("html-page-context", no_formula_no_mathjax, priority=900)
    app.connect("html-page-context", say_what_needs_scripts, priority=900)
    app.connect("html-page-context", print_buttons, priority=900)
    app.connect("html-page-context", describe_for_links, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
