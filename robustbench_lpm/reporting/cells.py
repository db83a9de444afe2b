"""Format numbers, names and evidence, and escape text for Markdown, LaTeX and CSV.

HTML is left to jinja2's autoescape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from rich.table import Table

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.protocol.ranking import Row
from robustbench_lpm.records.audits import Check

MISSING = "–"
VERDICTS = {"pass": "passed", "fail": "failed", "": "not audited"}  # others are written by their names
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
JOINERS = "\u200c\u200d"  # part of words in some scripts, and of emoji
MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_[]|~#!$"})
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "–": "--", "∞": r"\ensuremath{\infty}",
    REPLACEMENT: "?", "\0": "{}",
})  # fmt: skip


def plain(text: object) -> str:
    """One line without control characters: they could move a terminal's cursor, or make the file invalid."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() or c in JOINERS else REPLACEMENT for c in line)


def markdown(text: object) -> str:
    """Text escaped for a cell of a GitHub-flavoured Markdown table."""
    return plain(text).translate(MARKDOWN)


def latex(text: object) -> str:
    """Text escaped for LaTeX; a run of hyphens does not become a dash."""
    return re.sub("-(?=-)", "-\0", plain(text)).translate(LATEX)


def csv(text: object) -> str:
    """Text that no spreadsheet reads as a formula (OWASP, CSV injection)."""
    line = plain(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


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


def rate(row: Mapping[Any, Any], name: str) -> str:
    """A share and its interval, from the columns NAME, NAME_low and NAME_high of a row."""
    return with_interval(*(row[name + end] for end in ("", "_low", "_high")))


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


def norm(name: str) -> str:
    """A norm, which may be followed by a patch, as people write it."""
    head, space, patch = name.partition(" ")
    return {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}.get(head, head) + space + patch


def eps(value: float, threat: str) -> str:
    """A budget, without its norm: in L∞ as n/255 where it is that and no short decimal, elsewhere as a decimal."""
    decimal = f"{value:.6g}"
    return min(format_eps(value), decimal, key=len) if threat.startswith("linf") else decimal


def size(name: str) -> str:
    """The size of the attacked images; it is part of the threat, so it is written with the dataset."""
    return f"{name} px" if name.isdigit() else f"{name} size"


def verdict(name: str) -> str:
    """The verdict of an audit, or of one of its checks, in a word or two."""
    return VERDICTS.get(name, name)


def threat(row: Row) -> str:
    """The threat of a ranking, without M, from any of its rows: data, size, budget."""
    return f"{row['dataset']}, {size(row['size'])}, {norm(row['norm'])} eps {row['eps_text']}"


def heading(row: Row) -> str:
    """The heading of a ranking, from any of its rows."""
    return f"{threat(row)}, M = {row['mc']}, {row['images_text']}"


def evidence(check: Check) -> tuple[str, str, str, str]:
    """Both numbers of a check, their difference with its interval, and the interval: shares in per cent, or cosines."""
    scale, digits, unit = (1, 2, "") if check.unit == "cosine" else (100, 1, " %")
    judged, reference = (
        MISSING if value is None else f"{scale * value:.{digits}f}{unit}" for value in (check.judged, check.reference)
    )
    bounds = ""
    if check.low is not None and check.high is not None:
        bounds = f"[{scale * check.low:.{digits}f}, {scale * check.high:.{digits}f}]"
    if check.judged is None or check.reference is None:
        return judged, reference, MISSING, bounds
    gap = f"{scale * (check.judged - check.reference):+.{digits}f}"
    return judged, reference, f"{gap} {bounds}".rstrip(), bounds


def evidence_line(check: Check) -> str:
    """A check in one line, such as "eps: 62.0 % against 40.1 %, difference [14.1, 29.7]"."""
    judged, reference, _, bounds = evidence(check)
    numbers = "" if check.judged is None else f"{judged} against {reference}"
    told = ", ".join(filter(None, (numbers, bounds and f"difference {bounds}")))
    return plain(": ".join(filter(None, (check.name, told))))


def grid(columns: Mapping[str, Literal["left", "right"]]) -> Table:
    """An empty table for the terminal, without lines, from the names and the alignment of its columns."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, side in columns.items():
        table.add_column(name, justify=side)
    return table
