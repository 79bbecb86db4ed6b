"""Which code made a number: a hash of the definitions that a function reaches inside this package.

Starting from some roots, every top-level function, class and constant whose name occurs in a reached definition is
reached too; a name behind a module, as in ``module.function``, is not followed. Comments, docstrings, annotations, and
conditions that can only raise make no number and are left out; so is code that is not reached, whatever file it is in.
A definition counts by what it says and by what the names in it stand for, not by the module it stands in: moving code
changes no hash. The listing does not depend on the version of Python.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "deeptransfer"
NO_NUMBER = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params"}


class Definition(NamedTuple):
    """What a name stands for.

    Attributes
    ----------
    says : str
        Its listing: everything in it that can make a number.
    names : dict of str to str
        The names in it that this package defines, and the dotted path of each definition.
    """

    says: str
    names: dict[str, str]


def fingerprint_code(roots: Collection[str], stop: Collection[str] = ()) -> str:
    """SHA-256 over the definitions that ``roots`` reach.

    Parameters
    ----------
    roots : collection of str
        Dotted paths of functions, classes, methods or constants; those of other packages are skipped.
    stop : collection of str
        Dotted paths where the search ends: neither they nor what only they reach is included.
    """
    found = reached(roots, stop)
    digest = {path: hashlib.sha256(definition.says.encode()).hexdigest() for path, definition in found.items()}
    # With each definition the others that its names stand for: two that trade places behind one name are told apart.
    lines = [
        f"{digest[path]} " + " ".join(f"{name}={digest.get(other, '')}" for name, other in sorted(names.items()))
        for path, (_, names) in found.items()
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def reached(roots: Collection[str], stop: Collection[str] = ()) -> dict[str, Definition]:
    """The reached definitions by their dotted paths.

    Raises
    ------
    ValueError
        If a root of this package does not exist.
    """
    found: dict[str, Definition] = {}
    ends, waiting = {_defined_at(path) for path in stop}, list(roots)
    while waiting:
        path = _defined_at(waiting.pop())
        if path is None or path in found or path in ends:
            continue
        module, local = _locate(path)  # type: ignore[misc]
        definitions = _definitions(module)
        items = list(_items(definitions[local]))
        says = " ".join(type(item).__name__ if isinstance(item, ast.AST) else item for item in items)
        used = {item.id for item in items if isinstance(item, ast.Name)}
        names = {name: f"{module}.{name}" for name in used & definitions.keys()}
        for item in items:
            if isinstance(item, ast.ImportFrom):
                names |= _imported(item, module)
        defined = {name: _defined_at(origin) for name, origin in names.items()}
        found[path] = Definition(says, {name: place for name, place in defined.items() if place is not None})
        waiting += found[path].names.values()
    return found


def _defined_at(path: str) -> str | None:
    """Where a name is defined, behind all imports; None for a module as such, and for another package."""
    while (place := _locate(path)) is not None:
        module, local = place
        definitions = _definitions(module)
        if local not in definitions:
            raise ValueError(f"{module} defines no {local!r}: can't tell which code it stands for")
        definition = definitions[local]
        if not isinstance(definition, str):
            return path
        path = definition
    return None


@cache
def _source(module: str) -> str:
    """Read once: a process that runs for hours goes on with the code that it imported."""
    return _file(module).read_text(encoding="utf-8")  # type: ignore[union-attr]


def _file(module: str) -> Path | None:
    path = Path(__file__).parents[2].joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _locate(dotted: str) -> tuple[str, str] | None:
    """Module and name inside it; None for a module as such, and for another package."""
    if dotted.split(".")[0] != PACKAGE or _file(dotted):
        return None
    module, _, local = dotted.rpartition(".")
    while not _file(module):
        module, _, outer = module.rpartition(".")
        local = f"{outer}.{local}"
    return module, local


def _definitions(module: str) -> dict[str, ast.AST | list | str]:
    return _parsed(module, _source(module))


@lru_cache(maxsize=128)
def _parsed(module: str, source: str) -> dict[str, ast.AST | list | str]:
    """What each top-level name of a module stands for: its definition, or the dotted path it is imported from."""
    names: dict[str, ast.AST | list | str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{part.name}": part for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target)):
                if isinstance(part, ast.Name):
                    before = names.get(part.id, [])
                    names[part.id] = [*before, node] if isinstance(before, list) else [node]
        elif isinstance(node, ast.ImportFrom):
            names |= _imported(node, module)
    return names


def _imported(node: ast.ImportFrom, module: str) -> dict[str, str]:
    """Local name and dotted path of what an import statement takes from this package."""
    package = module.split(".")
    if node.level:
        is_package = (_file(module) or Path()).name == "__init__.py"
        package = package[: len(package) - node.level + is_package]
        origin = ".".join([*package, *([node.module] if node.module else [])])
    else:
        origin = node.module or ""
    if origin.split(".")[0] != PACKAGE:
        return {}
    return {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}


def _is_guard(value: ast.AST) -> bool:
    """Whether nothing but an error can come of a statement: a raise, or a condition behind which all ends in one."""
    if isinstance(value, ast.If):
        names_a_value = any(isinstance(part, ast.NamedExpr) for part in ast.walk(value.test))
        return isinstance(value.body[-1], ast.Raise) and not value.orelse and not names_a_value
    return isinstance(value, ast.Raise)


def _items(value: object) -> Iterator[ast.AST | str]:
    """A definition in order: its nodes, and the texts of the rest."""
    if isinstance(value, list):
        for part in value:
            yield from _items(part)
        yield "]"
    elif isinstance(value, ast.AST):
        if _is_guard(value):
            return
        yield value
        # An import of ours: the definition behind it counts, not the module it stands in.
        ours = isinstance(value, ast.ImportFrom) and (value.level or (value.module or "").split(".")[0] == PACKAGE)
        documented = isinstance(value, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(value) is not None
        for name, part in ast.iter_fields(value):
            if name not in NO_NUMBER and part is not None and part != [] and not (ours and name in ("module", "level")):
                yield name
                yield from _items(part[1:] if documented and name == "body" else part)
        yield ")"
    else:
        yield repr(value)
