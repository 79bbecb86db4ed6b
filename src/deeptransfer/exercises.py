"""Exercises in code: each starts from a stub and has a check, which the stub fails and its solution passes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["attempt", "expect"]

LINES = 8  # of a message
FEW = 6  # numbers that are shown one by one


def attempt(check: Callable[[Any], object], answer: Any) -> None:
    """Print whether an answer passes the check of its exercise, and if not, why.

    Nothing is raised, so that a notebook with open exercises runs to its end.

    Parameters
    ----------
    check : callable
        Raises if the answer is wrong, as ``assert``, :func:`expect` and :func:`torch.testing.assert_close` do.
    answer : object
        What the exercise asks for: a function, most often.
    """
    try:
        check(answer)
    except Exception as error:  # whatever an unfinished answer runs into
        first, *rest = _reasons(error)[:LINES]
        print(f"not yet: {first}", *(f"         {line}" for line in rest), sep="\n")
    else:
        print("solved")


def expect(case: str, got: Any, expected: Any, *, rtol: float = 1e-6, atol: float = 1e-8) -> None:
    """Raise unless an answer is what its check expects; the message names the case, what it expects and what it got.

    Parameters
    ----------
    case : str
        What the answer was given.
    got, expected : Tensor, ndarray, number or sequence of numbers
        Compared as numbers of double precision, whatever their types, and without their gradients.
    rtol, atol : float
        The difference may be ``atol + rtol * |expected|``.

    Raises
    ------
    AssertionError
        When shape or values differ, or ``got`` is no number.
    """
    wanted = _numbers(expected)
    try:
        found = _numbers(got)
    except (TypeError, ValueError, RuntimeError):
        raise AssertionError(f"{case}: expected {_kind(wanted)}, got {_named(got)}") from None
    if found.shape != wanted.shape:
        raise AssertionError(f"{case}: expected {_kind(wanted)}, got {_kind(found)}")
    wrong = ~torch.isclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return
    if wanted.numel() <= FEW:
        raise AssertionError(f"{case}: expected {_shown(wanted)}, got {_shown(found)}")
    off = (found - wanted).abs().nan_to_num(torch.inf).where(wrong, -1.0)
    place = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
    raise AssertionError(
        f"{case}: {int(wrong.sum())} of {wanted.numel()} numbers are wrong\n"
        f"at {place if len(place) > 1 else place[0]}: expected {wanted[place]:.6g}, got {found[place]:.6g}"
    )


def _reasons(error: Exception) -> list[str]:
    """The lines of an error's message, or what stands for one that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    if not lines:
        place = traceback.extract_tb(error.__traceback__)[-1].line
        return [f"{kind} in `{place}`" if place else kind]
    if not isinstance(error, AssertionError | NotImplementedError):
        lines[0] = f"{kind}: {lines[0]}"
    return lines


def _numbers(value: Any) -> torch.Tensor:
    if isinstance(value, list | tuple):
        value = torch.stack([_numbers(part) for part in value]) if value else torch.empty(0)
    return torch.as_tensor(value).detach().double().cpu()


def _kind(numbers: torch.Tensor) -> str:
    return f"numbers of shape {tuple(numbers.shape)}" if numbers.dim() else "one number"


def _named(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"


def _shown(numbers: torch.Tensor) -> str:
    if numbers.dim():
        return "[" + ", ".join(_shown(part) for part in numbers) + "]"
    return f"{numbers:.6g}"
