"""The pages of the library are made from its source: they tell of it what Python itself says."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from types import ModuleType
from typing import Any

import griffe
import pytest
from library import constructor, find, public, setup, signature
from notebooks import BOOK

MODULES = sorted(
    {
        name
        for page in (BOOK / "api").glob("*.md")
        for name in re.findall(r"^\.\. automodule:: (\S+)", page.read_text(encoding="utf-8"), flags=re.M)
    }
)
Parameters = list[tuple[str, Any, bool]]


def written(text: str) -> Parameters:
    """Name and kind of each parameter of a page's signature, and whether it has a default."""
    (function,) = ast.parse(f"def f{text}: ...").body
    given, kinds = function.args, inspect.Parameter
    plain = [*((p, kinds.POSITIONAL_ONLY) for p in given.posonlyargs)]
    plain += [(p, kinds.POSITIONAL_OR_KEYWORD) for p in given.args]
    first = len(plain) - len(given.defaults)
    found = [(p.arg, kind, place >= first) for place, (p, kind) in enumerate(plain)]
    found += [(given.vararg.arg, kinds.VAR_POSITIONAL, False)] if given.vararg else []
    named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found += [(p.arg, kinds.KEYWORD_ONLY, default is not None) for p, default in named]
    return found + ([(given.kwarg.arg, kinds.VAR_KEYWORD, False)] if given.kwarg else [])


def told(thing: Any) -> Parameters:
    parameters = inspect.signature(thing).parameters.values()
    return [(p.name, p.kind, p.default is not p.empty) for p in parameters]


def documented(module: ModuleType) -> list[str]:
    """The public functions and classes with a docstring of their own, as Python finds them."""
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    ]
    things = {name: getattr(module, name) for name in names}
    return [
        name
        for name, thing in things.items()
        if (inspect.isclass(thing) and vars(thing).get("__doc__"))
        or (inspect.isroutine(inspect.unwrap(thing)) and thing.__doc__)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_page_has_every_public_name_in_order_and_no_private_one(name: str) -> None:
    shown = [member for member, thing in public(find(name)) if not thing.is_attribute]
    expected = documented(import_module(name))
    assert shown
    assert [n for n in shown if n in expected] == [n for n in expected if n in shown]
    assert set(shown) == set(expected)


@pytest.mark.parametrize("name", MODULES)
def test_signatures_are_those_of_the_functions_and_classes(name: str) -> None:
    module = import_module(name)
    for member, thing in public(find(name)):
        real = getattr(module, member)
        if isinstance(thing, griffe.Function):
            assert written(signature(list(thing.parameters), thing.returns)) == told(inspect.unwrap(real)), member
        elif isinstance(thing, griffe.Class):
            if text := constructor(thing):
                assert written(text) == told(real), member
            else:  # Protocols, and what another library makes
                own = [c for c in real.__mro__ if "__init__" in vars(c) and c.__module__.startswith("deeptransfer")]
                assert all(getattr(c, "_is_protocol", False) for c in own), member
            for part, inner in public(thing):
                if isinstance(inner, griffe.Function):
                    method = inspect.getattr_static(real, part)
                    method = getattr(method, "__func__", method)
                    assert written(signature(list(inner.parameters), inner.returns)) == told(method), part


def test_every_documented_method_and_property_is_shown() -> None:
    for name in MODULES:
        module = import_module(name)
        for member, thing in public(find(name)):
            if isinstance(thing, griffe.Class):
                expected = {
                    part
                    for part, inner in vars(getattr(module, member)).items()
                    if not part.startswith("_")
                    if isinstance(inner, property | classmethod | staticmethod) or inspect.isfunction(inner)
                    if inner.__doc__
                }
                assert {part for part, _ in public(thing)} == expected, member


def test_pages_use_no_directive_that_would_import_the_library() -> None:
    """Whoever only reads has no PyTorch; sphinx.ext.autodoc, which napoleon brings along, would need it."""
    own: set[str] = set()

    class App:
        def add_directive(self, name: str, _: type, override: bool = False) -> None:
            if override:  # in place of autodoc's
                own.add(name)

        def __getattr__(self, _: str) -> Any:
            return lambda *_: None

    setup(App())
    pages = [page.read_text(encoding="utf-8") for page in BOOK.rglob("*.md")]
    used = {name for text in pages for name in re.findall(r"^\.\. (auto\w+)::", text, flags=re.M)}
    assert used == own
