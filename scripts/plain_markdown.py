"""From the MyST of the chapters to Markdown that every notebook viewer shows.

What has no counterpart is written out: a number from a cell, the number of an equation, a citation. Blocks become
quotes, headed text, or folded text. A role or a directive that is not known here is an error, never left as it stands.
"""

from __future__ import annotations

import ast
import html
import re
import textwrap
from dataclasses import dataclass, field

from cross_references import PARSER, Book, Directive, directive_of
from markdown_it.token import Token

INLINE = re.compile(
    r"""
    \{(?P<role>[a-z]\w*(?::\w+)?)\}(?P<ticks>`+)(?P<content>.+?)(?P=ticks)(?!`)
  | (?P<fence>`+)(?!`).+?(?<!`)(?P=fence)(?!`)
  | (?P<math>(?<!\\)(?P<dollars>\$\$?)(?!\$).+?(?<!\\)(?P=dollars))
  | \[\^(?P<note>[\w-]+)\](?P<defines>:?)
  | (?<!!)\[(?P<words>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\)
    """,
    flags=re.VERBOSE | re.DOTALL,
)
TITLED = re.compile(r"(?P<words>.*?)\s*<(?P<target>[^<>]+)>", flags=re.DOTALL)
SPECIAL = re.compile(r"([\\`*_\[\]<>|$])")
CALLED = {"func", "meth"}
CODE_ROLES = CALLED | {"class", "mod", "attr", "data", "exc", "obj"}
# Blocks under a title that stand apart from the text. Those of the second kind have a title of their own.
TITLED_BOXES = {"admonition", "card", "grid-item-card", "dropdown", "topic", "sidebar"}
BOXES = {"note", "tip", "hint", "important", "warning", "caution", "attention", "danger", "error", "seealso"}
CONTAINERS = {"tab-set", "grid", "card-carousel"}
FORMULAS = {"math_block", "math_block_label"}
DROPPED = {"myst_target", "myst_line_comment", "myst_block_break"}
APART = {"fence", "colon_fence", "code_block", "html_block"} | FORMULAS | DROPPED  # all that is not running text


@dataclass
class Context:
    """On which page of which book a text stands, and the values that the page's cells gave to names.

    ``notes`` and ``cited`` collect what the texts that are converted with it mention.
    """

    book: Book
    page: str
    values: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cited: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Part:
    """A stretch of a cell: plain text, or the solution of an exercise."""

    text: str
    solves: str = ""


def split_solutions(source: str) -> list[Part]:
    """The stretches of a cell, each solution apart; blank ones are left out."""
    lines, parts, start = source.split("\n"), [], 0
    for token in PARSER.parse(source):
        directive = directive_of(token)
        if token.map and token.level == 0 and directive and directive.name == "solution":
            parts.append(Part("\n".join(lines[start : token.map[0]]).strip("\n")))
            parts.append(Part(directive.body, solves=directive.argument))
            start = token.map[1]
    parts.append(Part("\n".join(lines[start:]).strip("\n")))
    return [part for part in parts if part.text.strip() or part.solves]


def convert(source: str, context: Context, quoted: bool = False) -> str:
    """The text in plain Markdown.

    Parameters
    ----------
    source
        Blocks and text in MyST.
    context
        Where it stands.
    quoted
        Whether it comes into a quote, where a formula must not run over lines.

    Raises
    ------
    ValueError
        For a role or directive without a counterpart, and for a name without a value.
    """
    lines, start = source.split("\n"), 0
    done: list[str] = []
    for token in PARSER.parse(source):
        if token.map is None or token.map[0] < start or token.type not in APART:
            continue
        first, stop = token.map
        if first > start:
            done.append(_inline("\n".join(lines[start:first]), context))
        if token.type in FORMULAS:
            done.append(_indented(_formula(token, context, quoted), lines[first]))
        elif directive := directive_of(token):
            done.append(_indented(_box(directive, context, quoted), lines[first]))
        elif token.type not in DROPPED:
            done.append("\n".join(lines[first:stop]))
        start = stop
    done.append(_inline("\n".join(lines[start:]), context))
    return "\n".join(done).strip("\n")


def _indented(text: str, like: str) -> str:
    """The text as far to the right as a line, for blocks of a list."""
    return textwrap.indent(text, like[: len(like) - len(like.lstrip())])


def _formula(token: Token, context: Context, quoted: bool) -> str:
    parts = [re.sub(r"^[ ]+$", "", token.content, flags=re.MULTILINE).strip()]
    if token.type == "math_block_label":
        parts.append(rf"\tag{{{_known(context.book.equations, token.info, 'equation')}}}")
    if quoted:
        return f"$${' '.join(' '.join(parts).split())}$$"
    return "\n".join(("$$", *parts, "$$"))


def _box(directive: Directive, context: Context, quoted: bool) -> str:
    """A directive: what stands apart on the page becomes a quote, what unfolds is folded, the rest gets a heading."""
    name, title, body = directive.name, directive.argument, directive.body
    if name == "solution":
        return fold(f"Solution of {exercise_name(title, context)}", convert(body, context))
    if name == "exercise":
        heading = exercise_name(directive.options["label"], context) + (f" ({title})" if title else "")
        return f"### {heading}\n\n{convert(body, context, quoted)}"
    if name in CONTAINERS:
        return convert(body, context, quoted)
    if name == "tab-item":
        return f"**{_inline(title, context)}**\n\n{convert(body, context, quoted)}\n"
    if name not in TITLED_BOXES | BOXES:
        raise ValueError(f"{context.page}: no counterpart of the directive {{{name}}} in plain Markdown")
    if name in BOXES:
        body = f"{title}\n{body}".strip("\n")
        title = "See also" if name == "seealso" else name.capitalize()
    if name == "dropdown" or "dropdown" in directive.options.get("class", ""):
        return fold(title, convert(body, context))
    return _quote(f"**{_inline(title, context)}**\n\n{convert(body, context, quoted=True)}".removeprefix("****\n\n"))


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def fold(summary: str, text: str) -> str:
    """Text behind a line that unfolds it. The blank lines make what is between them Markdown again."""
    return f"<details>\n<summary>{html.escape(summary, quote=False)}</summary>\n\n{text}\n\n</details>"


def exercise_name(label: str, context: Context) -> str:
    """Exercise 3.1"""
    return f"Exercise {_known(context.book.exercises, label, 'exercise')}"


def _known(numbers: dict[str, str], label: str, kind: str) -> str:
    if label not in numbers:
        raise ValueError(f"no {kind} has the label {label}")
    return numbers[label]


def _inline(text: str, context: Context) -> str:
    """Running text: roles, links and notes in place, code and formulas as they are."""

    def replace(match: re.Match[str]) -> str:
        if role := match["role"]:
            return _role(role, " ".join(match["content"].split()), context)
        if match["math"]:
            return " ".join(match[0].split("\n"))
        if match["note"]:
            return _note(match["note"], context)
        if match["target"]:
            return _link(_inline(match["words"], context), match["target"], context)
        return match[0]

    return INLINE.sub(replace, text)


def _link(words: str, target: str, context: Context) -> str:
    if "://" in target or target.startswith(("#", "mailto:")):
        return f"[{words}]({target})"
    path, _, anchor = target.partition("#")
    return context.book.link(words, context.book.resolve(path, context.page), context.page, anchor)


def _note(name: str, context: Context) -> str:
    """A number, the same at the mark and at the note."""
    if name not in context.notes:
        context.notes.append(name)
    return f"<sup>{context.notes.index(name) + 1}</sup>"


def _role(role: str, content: str, context: Context) -> str:
    titled = TITLED.fullmatch(content)
    words, target = (titled["words"], titled["target"]) if titled else ("", content)
    book = context.book
    if role == "glue:text":
        return _value(content, context)
    if role == "eq":
        return f"({_known(book.equations, content, 'equation')})"
    if role in ("cite", "cite:p", "cite:t"):
        return _citation(content, context, textual=role == "cite:t")
    if role == "doc":
        page = book.resolve(target, context.page)
        return book.link(words or book.pages[page].title, page, context.page)
    if role in ("ref", "numref"):
        name = words or exercise_name(target, context)
        return book.link(name, book.where[target], context.page, target)
    if role in CODE_ROLES:
        return _code(role, words, target, context)
    if role == "term":
        return words or target
    if role == "math":
        return f"${content}$"
    raise ValueError(f"{context.page}: no counterpart of the role {{{role}}} in plain Markdown")


def _code(role: str, words: str, target: str, context: Context) -> str:
    path = target.lstrip("~!.")
    name = words or (path.rpartition(".")[2] if target.startswith("~") else path) + "()" * (role in CALLED)
    return context.book.link_to_code(f"`{name}`", path, is_module=role == "mod")


def _citation(keys: str, context: Context, textual: bool) -> str:
    """[Gretton et al., 2012], or as part of the sentence: Gretton et al. (2012)."""
    book, works = context.book, [key.strip() for key in keys.split(",")]
    context.cited.update(works)
    if textual:
        return ", ".join(book.cite(f"{book.authors(key)} ({book.year(key)})", key) for key in works)
    return "[" + "; ".join(book.cite(f"{book.authors(key)}, {book.year(key)}", key) for key in works) + "]"


def _value(name: str, context: Context) -> str:
    """What a cell gave to the name, in the format behind a colon if there is one."""
    name, _, how = name.partition(":")
    if name not in context.values:
        raise ValueError(f"{context.page}: no cell glues the name {name}")
    value = shown(context.values[name])
    return escape(format(float(value), how) if how else value)


def shown(stored: str) -> str:
    """The text of a stored value: its ``repr``, of which quotes are not shown."""
    return str(ast.literal_eval(stored)) if stored[:1] in "'\"" else stored


def escape(text: str) -> str:
    """Text whose signs Markdown must not read as its own."""
    return SPECIAL.sub(r"\\\1", text)
