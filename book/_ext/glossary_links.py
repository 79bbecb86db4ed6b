"""The first time a chapter uses a term of the glossary, the word leads there and shows its definition when pointed at."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

PAGE = "glossary"
NOT_IN = (
    nodes.reference,
    nodes.literal,
    nodes.math,
    nodes.title,
    nodes.caption,
    nodes.table,
    nodes.raw,
    nodes.strong,
)


def definitions(document: nodes.document) -> dict[str, tuple[str, str]]:
    """Anchor and definition of each term, by the term in small letters."""
    found = {}
    for item in document.findall(nodes.definition_list_item):
        words = next(item.findall(nodes.definition)).astext().replace("\n", " ")
        for term in item.findall(nodes.term):
            found[term.astext().lower()] = (term["ids"][0], words)
    return found


def pattern_of(terms: list[str]) -> re.Pattern[str]:
    """Any of the terms as whole words, also in the plural; of two that begin alike the longer one."""
    longest_first = sorted(terms, key=len, reverse=True)
    return re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?:s|es)?(?![\w-])",
        re.IGNORECASE,
    )


class LinkTerms(SphinxPostTransform):
    """Only chapters, and only running text."""

    default_priority = 200  # all other links stand

    def run(self, **_: Any) -> None:
        here = self.env.docname
        if "/" not in here or here.startswith("api/") or PAGE not in self.env.all_docs:
            return
        known = definitions(self.env.get_doctree(PAGE))
        page = self.app.builder.get_relative_uri(here, PAGE)
        pattern = pattern_of(list(known))
        seen: set[str] = set()
        for text in list(self.document.findall(nodes.Text)):
            if not _is_prose(text):
                continue
            pieces: list[nodes.Node] = []
            end = 0
            for match in pattern.finditer(text.astext()):
                term = match[1].lower()
                if term in seen:
                    continue
                seen.add(term)
                anchor, words = known[term]
                pieces.append(nodes.Text(text.astext()[end : match.start()]))
                pieces.append(
                    nodes.reference(
                        "", "", nodes.Text(match[0]), internal=True, refuri=f"{page}#{anchor}", reftitle=words,
                        classes=["glossary-term"],
                    )
                )  # fmt: skip
                end = match.end()
            if pieces:
                text.parent.replace(text, [*pieces, nodes.Text(text.astext()[end:])])


def _is_prose(text: nodes.Text) -> bool:
    node, in_paragraph = text.parent, False
    while node is not None:
        if isinstance(node, NOT_IN):
            return False
        in_paragraph = in_paragraph or isinstance(node, nodes.paragraph)
        node = node.parent
    return in_paragraph


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(LinkTerms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
