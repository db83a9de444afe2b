"""What an audit found, in words and numbers: for the tables and for the page."""

from __future__ import annotations

from robustbench_lpm.records.audits import Audit, Check
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.escaping import plain


def number(check: Check, value: float | None) -> str:
    """One of the two numbers of a check: a share in per cent, or a cosine."""
    if cells.missing(value):
        return cells.MISSING
    return f"{value:.2f}" if check.unit == "cosine" else f"{cells.percent(value)} %"


def interval(check: Check) -> str:
    """The interval of the difference, judged - reference, in points or as cosines; empty where there is none."""
    if check.low is None or check.high is None:
        return ""
    if check.unit == "cosine":
        return f"[{check.low:.2f}, {check.high:.2f}]"
    return cells.interval(check.low, check.high)


def difference(check: Check) -> str:
    """By how much the two numbers of a check differ, with the interval of that."""
    if check.judged is None or check.reference is None:
        return cells.MISSING
    gap = check.judged - check.reference
    text = f"{gap:+.2f}" if check.unit == "cosine" else f"{100 * gap:+.1f}"
    return f"{text} {interval(check)}".rstrip()


def comparison(check: Check) -> str:
    """A check in one line, such as "eps: 62.0 % against 40.1 %, difference [14.1, 29.7]"."""
    parts = []
    if check.judged is not None:
        parts.append(f"{number(check, check.judged)} against {number(check, check.reference)}")
    if bounds := interval(check):
        parts.append(f"difference {bounds}")
    return plain(": ".join(part for part in (check.name, ", ".join(parts)) if part))


def failures(audit: Audit) -> list[Check]:
    """The checks that speak against a result."""
    return [check for check in audit.checks if check.verdict == "fail"]
