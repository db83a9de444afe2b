"""Budgets are read as people write them, refused with a reason, and written so that they read back."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from robustbench_lpm.budgets import format_eps, parse_eps, parse_eps_list
from robustbench_lpm.errors import LpmbenchError


@pytest.mark.parametrize(("text", "value"), [
    ("2/255", 2 / 255),
    (" 8/255 ", 8 / 255),
    ("0.1", 0.1),
    (".5", 0.5),
    ("1e-3", 0.001),
    ("1e-999999999", 0.0),
    ("0", 0.0),
    ("0/255", 0.0),
    ("1", 1.0),
    ("3", 3.0),
    ("0.5/255", 0.5 / 255),
])  # fmt: skip
def test_what_people_write(text: str, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize(("given", "value"), [
    (0, 0.0),
    (1, 1.0),
    (0.03, 0.03),
    (8 / 255, 8 / 255),
    (Fraction(8, 255), 8 / 255),
    (Decimal("0.1"), 0.1),
    (np.float64(0.1), 0.1),
    (np.float32(0.1), 0.1),
    (np.float32(8 / 255), 8 / 255),
    (np.float32(1 / 32), 1 / 32),
    (np.int64(1), 1.0),
    (np.array(0.25), 0.25),
    (torch.tensor(8 / 255), 8 / 255),
    (torch.tensor(0.1, dtype=torch.float64), 0.1),
    (torch.tensor(0.05, requires_grad=True), 0.05),
    (torch.tensor(1), 1.0),
])  # fmt: skip
def test_numbers_and_scalars(given: object, value: float) -> None:
    """A scalar of single precision means the number that was rounded to it: the same run as from the command line."""
    found = parse_eps(given, "linf")
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize(("given", "complaint"), [
    *[(given, "zero or more") for given in (-1, -0.1, float("nan"), float("inf"), np.float32("nan"), torch.tensor(-1))],
    *[(given, "is not a number") for given in (
        None, True, np.True_, torch.tensor(True), 1j, np.complex64(1), b"8/255", {}, [], [0.1], (0.1, 0.2),
        np.array([0.1]), torch.tensor([0.1]), torch.tensor([[0.1, 0.2], [1, 2]]), 10**400, Decimal("snan"), object())],
])  # fmt: skip
def test_objects_that_are_no_budget(given: object, complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=complaint) as error:
        parse_eps(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "meant"), [
    (8, "8/255?"),
    ("8", "8/255?"),
    ("16/8", "2/255?"),
    (1.5, "1.5/255?"),
    (np.float32(8), "8/255?"),
    (torch.tensor(4.0), "4/255?"),
    (300, "like 8/255"),
])  # fmt: skip
def test_in_l_infinity_nothing_is_beyond_1(given: object, meant: str) -> None:
    with pytest.raises(LpmbenchError, match="beyond the whole range") as error:
        parse_eps(given, "linf")
    assert meant in str(error.value)
    assert parse_eps(given, "l2") > 1


@pytest.mark.parametrize(("text", "complaint"), [
    ("2/0", "divides by zero"),
    ("-1/255", "zero or more"),
    ("1/-255", "is not a number"),
    ("-0.1", "zero or more"),
    ("nan", "is not a number"),
    ("inf", "is not a number"),
    ("-inf", "is not a number"),
    ("1e400", "is not a number"),
    ("1e999999999", "is not a number"),
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
    (0.1, [0.1]),
    (("1/255,2/255", "0.1", "2/255"), [1 / 255, 2 / 255, 0.1]),
    (["2/255", 0.1, np.float32(0.1)], [2 / 255, 0.1]),
    (np.array([0.1, 0.2]), [0.1, 0.2]),
    (torch.tensor([0.1, 0.2]), [0.1, 0.2]),
    ((eps / 10 for eps in (1, 2)), [0.1, 0.2]),
])  # fmt: skip
def test_lists_keep_their_order_and_lose_repeats(text: object, values: list[float]) -> None:
    assert parse_eps_list(text) == values


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "eps is empty"),
    (" , ", "eps is empty"),
    ("1/255,2/0", "'2/0' divides by zero"),
    ("1/255;2/255", "is not a number"),
    ([], "eps is empty"),
    ([0.1, [0.2]], "is not a number"),
    (None, "is not a number"),
])  # fmt: skip
def test_lists_that_are_none(text: object, complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=complaint):
        parse_eps_list(text)


@pytest.mark.parametrize(("eps", "text"), [
    (2 / 255, "2/255"),
    (0.5 / 255, "0.5/255"),
    (1.0, "1"),
    (0.1, "0.1"),
    (0.0, "0"),
    (0.5, "0.5"),
    (2.5 / 255, "0.00980392"),
    (1e-13, "1e-13"),
    (3.0, "3"),
    (12.0, "12"),  # in l1
    (1024.0, "1024"),
])  # fmt: skip
def test_how_budgets_are_written(eps: float, text: str) -> None:
    assert format_eps(eps) == text


def test_what_is_written_reads_back() -> None:
    for eps in (*(steps / 255 for steps in range(256)), 0.5 / 255, 0.1, 0.05, 0.3, 0.007, 1e-13):
        assert parse_eps(format_eps(eps)) == eps
