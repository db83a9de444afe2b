"""Text from cards and records, made harmless for the place where it is printed. HTML is left to jinja2's autoescape."""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*_[]|~#!$"}
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}", "–": "--", "∞": r"\ensuremath{\infty}",
    REPLACEMENT: "?",
}  # fmt: skip


def plain(text: object) -> str:
    """One line without control characters: they could move a terminal's cursor, or make the file invalid."""
    return "".join(_printable(character) for character in " ".join(str(text).split()))


def _printable(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cs", "Cn") or character in BIDI_CONTROLS:
        return REPLACEMENT
    return character


def markdown(text: object) -> str:
    """Text that stays text, and in its cell, in a GitHub-flavoured Markdown table."""
    return "".join(MARKDOWN.get(character, character) for character in plain(text))


def latex(text: object) -> str:
    """Text that LaTeX prints as it is; a run of hyphens does not become a dash."""
    escaped = plain(text).replace("--", "-\0-").replace("--", "-\0-")
    return "".join(LATEX.get(character, character) for character in escaped).replace("\0", "{}")


def csv(text: object) -> str:
    """Text that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    line = plain(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
