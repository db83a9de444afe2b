"""Perturbation budgets: their norms, and numbers as people write them (8/255, 0.03). Knows nothing about torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, TypeGuard, get_args

from robustbench_lpm.errors import LpmbenchError

Norm = Literal["linf", "l2", "l1", "l0"]  # that bounds a perturbation; "l0": how many values change
NORMS: tuple[Norm, ...] = get_args(Norm)
MOST_STEPS = 3 * 255  # that are written as a fraction; sums over pixels are larger


def parse_eps(given: object, norm: str | None = None) -> float:
    """One budget, in units of pixel values in [0, 1].

    given: a fraction ('2/255') or a decimal ('0.1') as text, a number, or a scalar of numpy or torch. norm: where it is
    "linf", a budget above 1 is refused.

    Raises LpmbenchError unless it is a finite number >= 0.
    """
    value = _number_in(given) if isinstance(given, str) else _number(given)
    shown = f"'{given}'" if isinstance(given, str) else str(value)
    if value < 0 or not math.isfinite(value):
        raise LpmbenchError(f"eps {shown} must be a finite number that is zero or more.")
    if norm == "linf" and value > 1:
        meant = f"did you mean {value:g}/255?" if value <= 255 else "write it like 8/255 or 0.03."
        raise LpmbenchError(f"eps {value:g} is beyond the whole range of pixels in [0, 1] (linf); {meant}")
    return value


def _number_in(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    try:
        if slash and not denominator.strip().isdecimal():  # a number of grey levels: no sign, no point
            raise ValueError(denominator)
        value = float(numerator) / (int(denominator) if slash else 1)
        if not math.isfinite(value):
            raise ValueError(numerator)
        return value
    except ZeroDivisionError:
        raise LpmbenchError(f"eps '{text}' divides by zero; write it like 2/255 or 0.1.") from None
    except (ValueError, OverflowError):
        raise LpmbenchError(f"eps '{text}' is not a number; write it like 2/255 or 0.1.") from None


def _number(given: object) -> float:
    """The float that a number is, or a scalar of numpy or torch."""
    scalar: Any = given
    if hasattr(given, "item") and getattr(given, "ndim", 0) == 0:
        scalar = given.item()
    if type(scalar) is not bool and isinstance(scalar, Real | Decimal):
        with suppress(ValueError, OverflowError):  # a Decimal may be a signalling NaN, an int too large
            return _before_rounding(float(scalar))
    shown = " ".join(repr(given).split())[:60]
    raise LpmbenchError(f"eps {shown} is not a number; write it like 8 / 255, 0.1 or '8/255'.")


def _before_rounding(value: float) -> float:
    """A number that has been in single precision as it was before: np.float32(0.1) means 0.1, not 0.10000000149."""
    with suppress(OverflowError, ValueError):
        single = _single(value)
        if single == value:
            for meant in (round(value * 255) / 255, float(f"{value:.7g}")):
                if _single(meant) == single:
                    return meant
    return value


def _single(value: float) -> float:
    found: float = struct.unpack("f", struct.pack("f", value))[0]
    return found


def parse_eps_list(given: object, norm: str | None = None) -> list[float]:
    """Several budgets in the order given, repeats dropped: text with commas, or any number of texts and numbers.

    In "l0" one below 1, in which nothing could change, is refused. Raises LpmbenchError.
    """
    found: list[float] = []
    for part in given if several(given) else [given]:
        texts = [text for text in part.split(",") if text.strip()] if isinstance(part, str) else [part]
        found += [parse_eps(text, norm) for text in texts]
    if norm == "l0" and any(0 < eps < 1 for eps in found):
        raise LpmbenchError("In l0 eps is how many values may change; write it like 1,12,24.")
    if not found:
        raise LpmbenchError("eps is empty; write it like 1/255,2/255,0.1.")
    return list(dict.fromkeys(found))


def several(given: object) -> TypeGuard[Iterable[Any]]:
    """Whether an argument holds several values: a list, a tuple, an array with a dimension; but no text, no scalar."""
    return isinstance(given, Iterable) and not isinstance(given, str | bytes) and getattr(given, "ndim", 1) != 0


def format_eps(eps: float) -> str:
    """The way people write it: '2/255' when it is a whole number of 8-bit steps, up to 3, or '0.5/255', half of one.

    Else a short decimal: 0.1 is 25.5 steps, but nobody writes it so. Whole numbers stay as they are.
    """
    if float(eps).is_integer():
        return f"{eps:.6g}"
    steps = eps * 255
    nearest = round(2 * steps) / 2
    if abs(steps - nearest) < 1e-9 and (nearest.is_integer() or nearest == 0.5) and 0 < nearest <= MOST_STEPS:
        return f"{nearest:g}/255"
    return f"{eps:.6g}"
