"""Budgets are read as people write them, refused with a reason, and written so that they read back."""

from __future__ import annotations

import pytest

from robustbench_lpm.budgets import format_eps, parse_eps, parse_eps_list
from robustbench_lpm.errors import LpmbenchError


@pytest.mark.parametrize(("text", "value"), [
    ("2/255", 2 / 255),
    (" 8/255 ", 8 / 255),
    ("0.1", 0.1),
    (".5", 0.5),
    ("1e-3", 0.001),
    ("0", 0.0),
    ("0/255", 0.0),
    ("1", 1.0),
    ("3", 3.0),
    ("0.2/255", None),
])  # fmt: skip
def test_what_people_write(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(LpmbenchError, match="is not a number"):
            parse_eps(text)
    else:
        assert parse_eps(text) == value


@pytest.mark.parametrize(("text", "complaint"), [
    ("2/0", "divides by zero"),
    ("-1/255", "zero or more"),
    ("1/-255", "is not a number"),
    ("-0.1", "zero or more"),
    ("nan", "is not a number"),
    ("inf", "is not a number"),
    ("-inf", "is not a number"),
    ("1e400", "is not a number"),
    ("", "is not a number"),
    (" ", "is not a number"),
    ("eight", "is not a number"),
    ("2/255/3", "is not a number"),
    ("1/255,2/255", "is not a number"),
])  # fmt: skip
def test_what_is_no_budget(text: str, complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=complaint) as error:
        parse_eps(text)
    assert f"'{text}'" in str(error.value)


@pytest.mark.parametrize(("text", "values"), [
    ("1/255,2/255,0.1", [1 / 255, 2 / 255, 0.1]),
    ("0.1,1/255", [0.1, 1 / 255]),
    ("0.1, 1/10,0.2", [0.1, 0.2]),
    ("0.1,", [0.1]),
    ("0", [0.0]),
])  # fmt: skip
def test_lists_keep_their_order_and_lose_repeats(text: str, values: list[float]) -> None:
    assert parse_eps_list(text) == values


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "eps is empty"),
    (" , ", "eps is empty"),
    ("1/255,2/0", "'2/0' divides by zero"),
    ("1/255;2/255", "is not a number"),
])  # fmt: skip
def test_lists_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=complaint):
        parse_eps_list(text)


@pytest.mark.parametrize(("eps", "text"), [
    (2 / 255, "2/255"),
    (1.0, "255/255"),
    (0.1, "0.1"),
    (0.0, "0"),
    (0.5, "0.5"),
    (2.5 / 255, "0.00980392"),
    (1e-13, "1e-13"),
    (3.0, "765/255"),
])  # fmt: skip
def test_how_budgets_are_written(eps: float, text: str) -> None:
    assert format_eps(eps) == text


@pytest.mark.parametrize("eps", [*(steps / 255 for steps in range(256)), 0.1, 0.05, 0.3, 0.007, 1e-13])
def test_what_is_written_reads_back(eps: float) -> None:
    assert parse_eps(format_eps(eps)) == eps
