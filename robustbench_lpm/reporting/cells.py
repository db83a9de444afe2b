"""How numbers are written for people, the same in Markdown, LaTeX, HTML and the terminal."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
VERDICTS = {
    "pass": "passed",
    "fail": "failed",
    "undecided": "undecided",
    "not applicable": "not applicable",
    "": "not audited",
}


def missing(value: Any) -> bool:
    """Whether a cell of a table holds nothing: None, NaN, or pandas' NA."""
    return value is None or value != value or type(value).__name__ == "NAType"


def percent(share: Any) -> str:
    """A share in [0, 1] in per cent with one decimal, without the sign."""
    return MISSING if missing(share) else f"{100 * float(share):.1f}"


def interval(low: Any, high: Any) -> str:
    """The bounds of an interval of shares, in per cent; empty when there is none."""
    return "" if missing(low) or missing(high) else f"[{percent(low)}, {percent(high)}]"


def with_interval(share: Any, low: Any, high: Any) -> str:
    """A share and its interval, in per cent."""
    return f"{percent(share)} {interval(low, high)}".rstrip()


def count(number: Any) -> str:
    """A count, with thin spaces between thousands; a mean count below 100 keeps one decimal if it has one."""
    if missing(number):
        return MISSING
    value = float(number)
    digits = 1 if abs(value) < 100 and not value.is_integer() else 0
    return f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def seconds(number: Any) -> str:
    """A duration in s, min or h, to two or three figures."""
    if missing(number) or not math.isfinite(number):
        return MISSING
    if number < 99.5:
        return f"{number:.1f} s"
    return f"{number / 60:.0f} min" if number < 99.5 * 60 else f"{number / 3600:.1f} h"


def rank(number: Any) -> str:
    """A rank, or a dash for a model that has none."""
    return MISSING if missing(number) else str(int(number))


def norm(name: str) -> str:
    """A norm as people write it."""
    return {"linf": "L∞", "l2": "L2"}.get(name, name)


def size(name: str) -> str:
    """The size of the attacked images; it is part of the threat, so it stands beside the data set."""
    return f"{name} px" if name.isdigit() else f"{name} size"


def label(name: str, variant: str) -> str:
    """A model or attack, told apart from others of its name."""
    return f"{name} ({variant})" if variant else name


def verdict(name: str) -> str:
    """What an audit, or one of its checks, came to, in a word or two."""
    return VERDICTS.get(name, name)
