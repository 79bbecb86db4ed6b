"""What a reader is told of an answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeptransfer.exercises import attempt, expect


def check(square: object) -> None:
    torch.testing.assert_close(square(torch.tensor(3.0)), torch.tensor(9.0))  # type: ignore[operator]


def stub(x: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("return the square of x")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (stub, "not yet: return the square of x\n"),
        (lambda x: x * x, "solved\n"),
        (lambda x: x + x, "not yet: Scalars are not close!\n         Expected 9.0 but got 6.0.\n"),
        (lambda x: {}["x"], "not yet: KeyError: 'x'\n"),
        (None, "not yet: TypeError: 'NoneType' object is not callable\n"),
    ],
    ids=["stub", "right", "wrong", "error", "nothing"],
)
def test_answer_is_judged_and_nothing_is_raised(answer: object, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(check, answer)
    assert capsys.readouterr().out.startswith(told)


def test_all_that_a_message_says_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(answer: object) -> None:
        raise AssertionError("three images:\n\n  expected 2\n got 1\n")

    attempt(wrong, None)
    assert capsys.readouterr().out == "not yet: three images:\n         expected 2\n         got 1\n"


def test_a_long_message_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    def talkative(answer: object) -> None:
        raise AssertionError("\n".join(map(str, range(100))))

    attempt(talkative, None)
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_assertion_without_a_message_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    def bare(answer: object) -> None:
        assert answer == 3

    attempt(bare, 2)
    told = capsys.readouterr().out
    assert told.startswith("not yet: ")
    assert "answer == 3" in told or "assert 2 == 3" in told  # pytest writes a message into an assertion of its own


def test_error_without_a_message_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def bare(answer: object) -> None:
        raise RuntimeError

    attempt(bare, None)
    assert capsys.readouterr().out == "not yet: RuntimeError in `raise RuntimeError`\n"


def test_error_of_code_without_a_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    exec("def bare(answer):\n    raise AssertionError", scope)
    attempt(scope["bare"], None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "not yet: AssertionError\n"


def test_a_reader_may_stop_a_check() -> None:
    def interrupted(answer: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupted, None)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (2, 2.0),
        (torch.tensor(2.0, requires_grad=True), 2),
        (np.array([1.0, 2.0]), torch.tensor([1, 2])),
        ((torch.tensor(1.0), 2.0), [1.0, 2.0]),
        ([], []),
        (float("nan"), float("nan")),
        (1 + 1e-7, 1.0),
        (torch.ones(2, 3), np.ones((2, 3))),
    ],
)
def test_what_is_expected_passes(got: object, expected: object) -> None:
    expect("case", got, expected)


@pytest.mark.parametrize(
    ("got", "expected", "told"),
    [
        (1.5, 2.0, "case: expected 2, got 1.5"),
        (float("nan"), 2.0, "case: expected 2, got nan"),
        (torch.tensor([1.0, 2.0]), [1.0, 3.0], "case: expected [1, 3], got [1, 2]"),
        (torch.eye(2), torch.ones(2, 2), "case: expected [[1, 1], [1, 1]], got [[1, 0], [0, 1]]"),
        (torch.ones(2), 1.0, "case: expected one number, got numbers of shape (2,)"),
        (torch.ones(2, 3), np.ones((3, 2)), "case: expected numbers of shape (3, 2), got numbers of shape (2, 3)"),
        (None, 2.0, "case: expected one number, got None"),
        ("two", 2.0, "case: expected one number, got str 'two'"),
        ({}, [1.0, 2.0], "case: expected numbers of shape (2,), got dict {}"),
        (1 + 1e-3, 1.0, "case: expected 1, got 1.001"),
    ],
)
def test_message_names_case_expected_and_got(got: object, expected: object, told: str) -> None:
    with pytest.raises(AssertionError) as error:
        expect("case", got, expected)
    assert str(error.value) == told


@pytest.mark.parametrize("wrong", [7.0, float("nan")])
def test_of_many_numbers_the_worst_is_named(wrong: float) -> None:
    expected = torch.zeros(4, 5)
    got = expected.clone()
    got[1, 2], got[3, 0] = 0.5, wrong
    with pytest.raises(AssertionError) as error:
        expect("case", got, expected)
    assert str(error.value) == f"case: 2 of 20 numbers are wrong\nat (3, 0): expected 0, got {wrong:g}"


def test_tolerance_is_that_of_the_check() -> None:
    expect("case", 1.01, 1.0, rtol=0.1)
    expect("case", 0.01, 0.0, atol=0.1)
    with pytest.raises(AssertionError):
        expect("case", 1.01, 1.0, rtol=0.001)
