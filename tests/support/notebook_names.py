"""What a cell of a notebook does with names, read from its code."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Which of their arguments these functions change, and the methods that change the object they belong to.
CHANGING_FUNCTIONS = {"fit": (0, 2), "convert_norm": (0,), "adapt_statistics": (0,)}
CHANGING_METHODS = {"append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "add", "discard",
                    "sort", "reverse", "step", "load_state_dict", "train", "requires_grad_", "backward",
                    "zero_grad", "add_", "sub_", "mul_", "div_", "copy_", "zero_", "fill_", "shuffle"}  # fmt: skip
GENERATORS = {"default_rng", "RandomState", "Generator"}


@dataclass
class Cell:
    """What one cell does with names at the top level of the notebook."""

    bound: set[str] = field(default_factory=set)
    from_other_cells: set[str] = field(default_factory=set)  # read where this cell has not bound them before
    in_functions: set[str] = field(default_factory=set)  # read when a function is called, whenever that is
    changed: set[str] = field(default_factory=set)  # objects of other cells that this cell changes in place
    generators: set[str] = field(default_factory=set)  # names of random generators that it makes
    imported: set[str] = field(default_factory=set)


def local_names(function: ast.AST) -> set[str]:
    """Arguments of a function, and names bound in its body."""
    arguments = function.args  # type: ignore[attr-defined]
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {argument.arg for argument in named if argument}
    body = function.body if isinstance(function.body, list) else [function.body]  # type: ignore[attr-defined]
    for part in body:
        names |= set(bindings(part))
    return names


def bindings(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds in its own scope."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    elif isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    for child in ast.iter_child_nodes(node):
        yield from bindings(child)


class Reader(ast.NodeVisitor):
    """Collects a :class:`Cell` in the order in which Python evaluates."""

    def __init__(self) -> None:
        self.cell = Cell()
        self.scopes: list[set[str]] = []  # of functions, comprehensions and classes around
        self.deferred = 0

    def is_local(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes) or hasattr(builtins, name)

    def read(self, name: str) -> None:
        if self.is_local(name):
            return
        if self.deferred:
            self.cell.in_functions.add(name)
        if name not in self.cell.bound:
            self.cell.from_other_cells.add(name)

    def change(self, node: ast.AST) -> None:
        """The object that an expression leads to is changed in place."""
        while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):  # what a call returns is another object
            node = node.value
        if isinstance(node, ast.Name) and not self.is_local(node.id) and node.id not in self.cell.bound:
            self.cell.changed.add(node.id)

    def bind(self, name: str) -> None:
        if not self.scopes:
            self.cell.bound.add(name)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bind(node.name)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read(node.id)
        else:
            self.bind(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        if isinstance(node.value, ast.Call):
            made = node.value.func
            if (made.attr if isinstance(made, ast.Attribute) else getattr(made, "id", "")) in GENERATORS or (
                isinstance(made, ast.Attribute) and made.attr == "manual_seed"
            ):
                self.cell.generators |= {t.id for t in node.targets if isinstance(t, ast.Name) and not self.scopes}
        for target in node.targets:
            self.store(target)

    def store(self, target: ast.AST) -> None:
        if isinstance(target, ast.Attribute | ast.Subscript):
            self.change(target)
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self.store(part)
            return
        self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.read(node.target.id)
        self.change(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.visit(node.target)
        for part in (*node.body, *node.orelse):
            self.visit(part)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars:
                self.visit(item.optional_vars)
        for part in node.body:
            self.visit(part)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in CHANGING_METHODS:
            self.change(called.value)
        elif isinstance(called, ast.Name):
            for place in CHANGING_FUNCTIONS.get(called.id, ()):
                if place < len(node.args):
                    self.change(node.args[place])
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name in bindings(node):
            self.bind(name)
            self.cell.imported.add(name)

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.Lambda) -> None:
        for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(default)
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                self.visit(decorator)
            self.bind(node.name)
        self.inside(local_names(node), node.body if isinstance(node.body, list) else [node.body])

    visit_Lambda = visit_FunctionDef  # type: ignore[assignment]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            self.visit(base)
        self.bind(node.name)
        self.inside({name for part in node.body for name in bindings(part)}, node.body)

    def inside(self, names: set[str], body: Sequence[ast.AST]) -> None:
        self.scopes.append(names)
        self.deferred += 1
        for part in body:
            self.visit(part)
        self.deferred -= 1
        self.scopes.pop()

    def visit_ListComp(self, node: ast.AST) -> None:
        generators = node.generators  # type: ignore[attr-defined]
        self.visit(generators[0].iter)
        names = {name for g in generators for part in ast.walk(g.target) for name in bindings(part)}
        self.scopes.append(names)
        for i, generator in enumerate(generators):
            if i:
                self.visit(generator.iter)
            for condition in generator.ifs:
                self.visit(condition)
        for part in ("key", "value", "elt"):
            if hasattr(node, part):
                self.visit(getattr(node, part))
        self.scopes.pop()

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


def read_cell(source: str) -> Cell:
    reader = Reader()
    for statement in ast.parse(source).body:
        reader.visit(statement)
    return reader.cell
