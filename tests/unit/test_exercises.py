"""What a reader is told of an answer."""

from __future__ import annotations

import pytest
import torch

from deeptransfer.exercises import attempt


def check(square: object) -> None:
    torch.testing.assert_close(square(torch.tensor(3.0)), torch.tensor(9.0))  # type: ignore[operator]


def stub(x: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("return the square of x")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (stub, "not yet: return the square of x\n"),
        (lambda x: x * x, "solved\n"),
        (lambda x: x + x, "not yet: Scalars are not close!\n"),
        (lambda x: {}["x"], "not yet: 'x'\n"),
        (None, "not yet: 'NoneType' object is not callable\n"),
    ],
    ids=["stub", "right", "wrong", "error", "nothing"],
)
def test_answer_is_judged_and_nothing_is_raised(answer: object, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(check, answer)
    assert capsys.readouterr().out.startswith(told)


def test_error_without_a_message_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def bare(answer: object) -> None:
        raise AssertionError

    attempt(bare, None)
    assert capsys.readouterr().out == "not yet: AssertionError\n"


def test_a_reader_may_stop_a_check() -> None:
    def interrupted(answer: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupted, None)
