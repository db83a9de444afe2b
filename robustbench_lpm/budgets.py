"""Read perturbation budgets as people write them: 8/255, 0.03, 1/255,2/255. Knows nothing about torch."""

from __future__ import annotations

import math
from fractions import Fraction

from robustbench_lpm.errors import LpmbenchError


def parse_eps(text: str) -> float:
    """One budget, in units of pixel values in [0, 1]; a fraction ('2/255') or a decimal ('0.1').

    Raises LpmbenchError unless it is a finite number >= 0.
    """
    try:
        value = float(Fraction(text.strip()))
    except ZeroDivisionError:
        raise LpmbenchError(f"eps '{text}' divides by zero; write it like 2/255 or 0.1.") from None
    except (ValueError, OverflowError):
        raise LpmbenchError(f"eps '{text}' is not a number; write it like 2/255 or 0.1.") from None
    if value < 0 or not math.isfinite(value):
        raise LpmbenchError(f"eps '{text}' must be a finite number that is zero or more.")
    return value


def parse_eps_list(text: str) -> list[float]:
    """Several budgets separated by commas, in the order given, repeats dropped."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise LpmbenchError("eps is empty; write it like 1/255,2/255,0.1.")
    return list(dict.fromkeys(parse_eps(part) for part in parts))


def format_eps(eps: float) -> str:
    """The way people write it: '2/255' when it is a whole number of 8-bit steps, else a short decimal."""
    steps = eps * 255
    if round(steps) >= 1 and abs(steps - round(steps)) < 1e-9:
        return f"{round(steps)}/255"
    return f"{eps:.6g}"
