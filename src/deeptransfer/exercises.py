"""Exercises in code: each starts from a stub and has a check, which the stub fails and its solution passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["attempt"]


def attempt(check: Callable[[Any], object], answer: Any) -> None:
    """Print whether an answer passes the check of its exercise, and if not, why.

    Nothing is raised, so that a notebook with open exercises runs to its end.

    Parameters
    ----------
    check : callable
        Raises if the answer is wrong, as ``assert`` and :func:`torch.testing.assert_close` do.
    answer : object
        What the exercise asks for: a function, most often.
    """
    try:
        check(answer)
    except Exception as error:  # whatever an unfinished answer runs into
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        print(f"not yet: {reason}")
    else:
        print("solved")
