"""What a reader is told of a number or a sentence that a changed recipe no longer gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from notebooks import CHANGED

from deeptransfer import claims
from deeptransfer.claims import as_stored, claim


def test_number_that_agrees_is_told_as_stored(capsys: pytest.CaptureFixture[str]) -> None:
    """The line does not hold the number at hand, which may move with the processor."""
    as_stored("DaNN on pen", 72.4, 72.15, within=0.3)
    assert capsys.readouterr().out == "DaNN on pen: as stored, 72.15 % (to within 0.3)\n"


@pytest.mark.parametrize("here", [64.2, 72.45001, float("nan"), torch.tensor(64.2), [64.2, 72.15], []])
def test_number_that_does_not_agree_is_told_with_the_stored_one(
    here: object, capsys: pytest.CaptureFixture[str]
) -> None:
    as_stored("DaNN on pen", here, 72.15, within=0.3)
    told = capsys.readouterr().out
    assert told.startswith("you changed the recipe: DaNN on pen is ")
    assert told.endswith(" % here, stored is 72.15 %\n")


def test_of_several_numbers_each_must_agree(capsys: pytest.CaptureFixture[str]) -> None:
    stored = np.array([80.0, 90.0])
    as_stored("n = 0, 1", [80.5, 89.5], stored, within=6)
    as_stored("n = 0, 1", [80.0, 96.0], stored, within=6)
    agrees, differs = capsys.readouterr().out.splitlines()
    assert agrees == "n = 0, 1: as stored, 80.0, 90.0 % (to within 6)"
    assert differs == "you changed the recipe: n = 0, 1 is 80.0, 96.0 % here, stored is 80.0, 90.0 %"


@pytest.mark.parametrize("holds", [[True], [True, np.True_], [np.array([1, 2]) > 0], [torch.ones(2) > 0, 1.0 < 2], []])
def test_sentence_that_holds_is_printed(holds: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    claim("JAN beats DAN", *holds)
    claim("JAN beats DAN", *holds, quiet=True)
    assert capsys.readouterr().out == "JAN beats DAN\n"


@pytest.mark.parametrize("holds", [[False], [True, np.False_], [np.array([1, -2]) > 0], [torch.ones(2) > 0, 2.0 < 1]])
@pytest.mark.parametrize("quiet", [False, True])
def test_sentence_that_does_not_hold_is_told_not_to(
    holds: list[object], quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    claim("JAN beats DAN", *holds, quiet=quiet)
    assert capsys.readouterr().out == "you changed the recipe, and here this does not hold: JAN beats DAN\n"


def test_what_stores_notebooks_knows_the_words() -> None:
    """It runs where the library cannot be imported, so it has a copy of them."""
    assert CHANGED == claims.CHANGED
