"""The check of an exercise, apart from the stub: the pages fold it, and readers' notebooks collapse it."""

from __future__ import annotations

import ast
import re


def split_check(source: str) -> tuple[str, str]:
    """The code of an exercise without the functions that check an answer, and these; all of other code, and nothing."""
    try:
        parts = ast.parse(source).body
    except SyntaxError:  # magics of IPython
        return source, ""
    if not any(isinstance(part, ast.Expr) and ast.unparse(part).startswith("attempt(") for part in parts):
        return source, ""
    lines, checks = source.split("\n"), []
    for part in parts:
        if isinstance(part, ast.FunctionDef) and part.name.startswith("check_"):
            span = slice(part.lineno - 1, part.end_lineno)
            checks.append("\n".join(lines[span]))
            lines[span] = [""] * len(lines[span])
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n"), "\n\n\n".join(checks)
