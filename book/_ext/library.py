"""The pages of the library, made from its source and not by importing it: to build the book PyTorch is not needed.

The directive ``automodule`` shows what a module offers under ``:members:``, as that of ``sphinx.ext.autodoc`` does: each
public name that has a docstring, in the order of ``__all__`` or else of the source; ``autofunction`` shows one, ``module-list`` has a sentence for each module. Names are resolved by griffe, docstrings
are read by napoleon, and viewcode gets the source from here too.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any

import griffe
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = "deeptransfer"
MARKS = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}


@cache
def package() -> griffe.Module:
    """The whole library, parsed once."""
    return griffe.load(PACKAGE, search_paths=[SOURCE], allow_inspection=False)  # type: ignore[return-value]


def find(path: str) -> griffe.Object | None:
    """What a dotted path of the library stands for, through imports; None for what is not the library's."""
    name = path.removeprefix(f"{PACKAGE}.")
    if name == path:
        return None
    try:
        found = package()[name]
        return found.final_target if found.is_alias else found
    except (KeyError, griffe.AliasResolutionError):
        return None


@cache
def analyzed(module: str) -> ModuleAnalyzer:
    """Sphinx's own reading of a module: where definitions begin and end, and comments behind ``#:``."""
    analyzer = ModuleAnalyzer.for_file(find(module).filepath, module)
    analyzer.analyze()
    return analyzer


def annotation(expression: griffe.Expr | str) -> str:
    """A type for Sphinx's Python domain: full names to link to, shown by their last part, aliases of types written out."""
    if isinstance(expression, str):
        return expression
    if not isinstance(expression, griffe.ExprName | griffe.ExprAttribute):
        return "".join(annotation(part) for part in expression.iterate(flat=False))
    path = expression.canonical_path
    alias = find(path)
    if alias is not None and alias.is_attribute and alias.value is not None:
        return annotation(alias.value)
    return f"~{path}" if "." in path else path


def signature(parameters: list[griffe.Parameter], returns: griffe.Expr | str | None = None) -> str:
    """Parameters in brackets and what comes back, as a ``def`` has them."""
    words, star = [], False
    for place, parameter in enumerate(parameters):
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not star:
            words.append("*")
        star = star or kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        word = MARKS.get(kind, "") + parameter.name
        if parameter.annotation is not None:
            word += f": {annotation(parameter.annotation)}"
        if parameter.default is not None and kind not in MARKS:
            word += f" = {parameter.default}"
        words.append(word)
        following = parameters[place + 1].kind if place + 1 < len(parameters) else None
        if kind is griffe.ParameterKind.positional_only and following is not kind:
            words.append("/")
    return f"({', '.join(words)})" + (f" -> {annotation(returns)}" if returns is not None else "")


def constructor(cls: griffe.Class) -> str:
    """The arguments that make an object; nothing where only another library knows them."""
    if "NamedTuple" in map(str, cls.bases):
        kind = griffe.ParameterKind.positional_or_keyword
        fields = [member for member in cls.members.values() if "property" not in member.labels and member.is_attribute]
        return signature(
            [griffe.Parameter(f.name, annotation=f.annotation, kind=kind, default=f.value) for f in fields]
        )
    made = cls.all_members.get("__init__")
    return "" if made is None else signature(list(made.parameters)[1:])


def is_exception(cls: griffe.Class) -> bool:
    """Whether one of Python's own exceptions is among its ancestors."""
    bases = [getattr(builtins, str(base), None) for ancestor in (cls, *cls.mro()) for base in ancestor.bases]
    return any(isinstance(base, type) and issubclass(base, BaseException) for base in bases)


def text_of(member: griffe.Object) -> str:
    """The docstring, or the comment behind ``#:`` above a constant."""
    if member.docstring is not None:
        return cleandoc(member.docstring.value)
    if member.is_attribute and "property" not in member.labels:
        _, _, local = member.path.removeprefix(member.module.path).rpartition(".")
        return "\n".join(analyzed(member.module.path).attr_docs.get(("", local), []))
    return ""


def public(place: griffe.Module | griffe.Class) -> Iterator[tuple[str, griffe.Object]]:
    """The documented public members under their names."""
    offered = place.exports if isinstance(place, griffe.Module) and place.exports is not None else place.members
    for name in map(str, offered):
        member = find(f"{place.path}.{name}")
        imported = place.members[name].is_alias and offered is place.members
        if member is not None and not imported and not member.is_module and name[0] != "_" and text_of(member):
            yield name, member


class Described(SphinxDirective):
    """What the library says of the one dotted path that is named."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        named = find(self.arguments[0])
        if named is None:
            raise self.error(f"{self.arguments[0]} is nothing below {SOURCE}")
        self.env.note_dependency(str(named.filepath))
        self.lines = StringList()
        self._say(named)
        return self._parsed()

    def _say(self, named: griffe.Object) -> None:
        """Put the lines together; each directive has its own way."""

    def _parsed(self) -> list[nodes.Node]:
        place = nodes.Element()
        place.document = self.state.document
        self.state.nested_parse(self.lines, 0, place)
        return place.children

    def _describe(self, module: griffe.Module, name: str, member: griffe.Object, indent: str) -> None:
        """Directive, docstring, and for a class its members."""
        labels = member.labels
        options = {"module": module.path}
        canonical = f"{member.module.path}.{member.path.removeprefix(f'{member.module.path}.')}"
        if canonical != f"{module.path}.{name}":
            options["canonical"] = canonical
        head = name
        if isinstance(member, griffe.Class):
            kind = "exception" if is_exception(member) else "class"
            head += constructor(member)
        elif isinstance(member, griffe.Function):
            kind = "method" if indent else "function"
            bound = indent and "staticmethod" not in labels
            head += signature(list(member.parameters)[bool(bound) :], member.returns)
            options |= {label: "" for label in ("staticmethod", "classmethod") if label in labels}
        else:
            kind = "property" if "property" in labels else "attribute" if indent else "data"
            if member.annotation is not None:
                options["type"] = annotation(member.annotation)
            if member.value is not None and kind != "property":
                options["value"] = str(member.value)
        self._add(kind, head, member, indent, options)
        if isinstance(member, griffe.Class):
            for part, inner in public(member):
                self._describe(module, f"{name}.{part}", inner, indent + "   ")

    def _add(
        self, kind: str, head: str, member: griffe.Object, indent: str, options: dict[str, str] | None = None
    ) -> None:
        source = f"{member.filepath}:docstring of {member.path}"
        # An author's initial at the beginning of a line, or a symbol alone in it, is no number of a list.
        plain = re.sub(r"^(\s*[A-Z])\.(?= |$)", r"\1\\.", text_of(member), flags=re.M)
        text = NumpyDocstring(plain, self.config, self.env.app, kind, member.path).lines()
        above = [f".. py:{kind}:: {head}", *(f"   :{name}: {value}" for name, value in (options or {}).items()), ""]
        below = text if kind == "module" else [f"   {line}" for line in text]
        for number, line in enumerate([*above, *below, ""]):
            self.lines.append((indent + line).rstrip(), source, max(number - len(above), 0))


class AutoModule(Described):
    """The docstring of a module, then its members."""

    option_spec = {"members": directives.flag}  # noqa: RUF012

    def _say(self, named: griffe.Object) -> None:
        if not isinstance(named, griffe.Module):
            raise self.error(f"{named.path} is no module")
        self._add("module", named.path, named, "")
        if "members" in self.options:
            for name, member in public(named):
                self.env.note_dependency(str(member.filepath))
                self._describe(named, name, member, "")


class AutoFunction(Described):
    """One function, where the page tells of no other name of its module."""

    def _say(self, named: griffe.Object) -> None:
        if not isinstance(named, griffe.Function):
            raise self.error(f"{named.path} is no function")
        self._describe(named.module, named.name, named, "")


def first_sentence(module: griffe.Module) -> str:
    """What a module says that it is."""
    paragraph = " ".join(text_of(module).split("\n\n")[0].split())
    found = re.match(r".+?\.(?=\s|$)", paragraph)
    return found[0] if found else f"{paragraph}."


class ModuleList(SphinxDirective):
    """A line for each page of the folder ``api``: the module and its first sentence."""

    def run(self) -> list[nodes.Node]:
        lines = StringList()
        for page in sorted(page for page in self.env.found_docs if page.startswith("api/")):
            module = find(f"{PACKAGE}.{page.removeprefix('api/')}")
            if not isinstance(module, griffe.Module):
                raise self.error(f"the page {page} has the name of no module")
            self.env.note_dependency(str(module.filepath))
            lines.append(f"- :doc:`{module.name} </{page}>`: {first_sentence(module)}", str(module.filepath), 0)
        place = nodes.Element()
        place.document = self.state.document
        self.state.nested_parse(lines, 0, place)
        return place.children


def find_source(_: Sphinx, module: str) -> tuple[str, dict[str, tuple[str, int, int]]] | None:
    """For viewcode: a module's text, and the lines of each definition."""
    if find(module) is None:
        return None
    return analyzed(module).code, analyzed(module).tags


def follow_imported(_: Sphinx, module: str, attribute: str) -> str | None:
    """For viewcode: the module in which a name that another one offers is written."""
    found = find(f"{module}.{attribute}")
    return None if found is None else found.module.path


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.napoleon")
    app.setup_extension("sphinx.ext.viewcode")
    app.add_directive("automodule", AutoModule, override=True)
    app.add_directive("autofunction", AutoFunction, override=True)
    app.add_directive("module-list", ModuleList)
    app.connect("viewcode-find-source", find_source)
    app.connect("viewcode-follow-imported", follow_imported)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
