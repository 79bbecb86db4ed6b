"""What a chapter says of its own runs, told again where a reader runs them: as the book has it, or what is different.

A reader changes steps, seeds and rates. Then a sentence may no longer hold, and a number is another one than the stored
one: that is no error, so nothing is raised and the notebook goes on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["as_stored", "claim"]

CHANGED = "you changed the recipe"  # outputs with these words are not stored


def as_stored(what: str, here: Any, stored: Any, within: float, unit: str = "%") -> None:
    """Print whether a number that was computed again is the stored one, to within what the run may move.

    Parameters
    ----------
    what : str
        What the number is.
    here, stored : number or sequence of numbers
        In ``unit``; of a sequence each number is compared.
    within : float
        They agree if ``|here - stored| < within``. The line then holds the stored number alone, and stays the same on
        every processor.
    unit : str
        Printed behind the numbers.
    """
    ours, theirs = np.ravel(np.asarray(here, dtype=float)), np.ravel(np.asarray(stored, dtype=float))
    digits = max(0, 1 - math.floor(math.log10(within)))
    shown = [" ".join([", ".join(f"{value:.{digits}f}" for value in values), unit]) for values in (ours, theirs)]
    if ours.shape == theirs.shape and (np.abs(ours - theirs) < within).all():
        print(f"{what}: as stored, {shown[1]} (to within {within:g})")
    else:
        print(f"{CHANGED}: {what} is {shown[0]} here, stored is {shown[1]}")


def claim(sentence: str, *holds: Any, quiet: bool = False) -> None:
    """Print a sentence of the text if it is true of the numbers at hand, else that it is not.

    Parameters
    ----------
    sentence : str
        What the text says.
    *holds : bool or array of bool
        All of them must be true for the sentence to be.
    quiet : bool
        Print nothing if it is true: for what the numbers above it, or the figure, show already.
    """
    if not all(np.all(np.asarray(each)) for each in holds):
        print(f"{CHANGED}, and here this does not hold: {sentence}")
    elif not quiet:
        print(sentence)
