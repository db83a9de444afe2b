"""Escaping, character by character."""

from __future__ import annotations

import pytest

from robustbench_lpm.reporting import cells, escaping

LATEX = [
    ("a_b", r"a\_b"),
    ("50% & #1", r"50\% \& \#1"),
    ("$x^2$", r"\$x\textasciicircum{}2\$"),
    ("\\input{x}", r"\textbackslash{}input\{x\}"),
    ("~<|>", r"\textasciitilde{}\textless{}\textbar{}\textgreater{}"),
    ("a---b", "a-{}-{}-b"),
    ("[1]", "{[}1{]}"),
]
CSV = [("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\t=1", "'=1"), ("a=1", "a=1"), ("", "")]
PLAIN = [("a\nb", "a b"), ("\x1b[1m", "�[1m"), ("\x00", "�"), ("\ud800", "�"), ("\u202ea", "�a"), ("é模👍", "é模👍")]
COUNTS = [(None, "–"), (3, "3"), (3.25, "3.2"), (99.0, "99"), (1234.5, "1\u202f234"), (2e6, "2\u202f000\u202f000")]
SECONDS = [(None, "–"), (float("nan"), "–"), (0.25, "0.2 s"), (99.4, "99.4 s"), (100, "2 min"), (7200, "2.0 h")]


@pytest.mark.parametrize(("text", "escaped"), LATEX)
def test_latex(text, escaped):
    assert escaping.latex(text) == escaped


@pytest.mark.parametrize(("text", "escaped"), CSV)
def test_csv(text, escaped):
    assert escaping.csv(text) == escaped


@pytest.mark.parametrize(("text", "escaped"), PLAIN)
def test_plain(text, escaped):
    assert escaping.plain(text) == escaped


def test_markdown():
    assert escaping.markdown("<b>|`*_[x]") == r"&lt;b&gt;\|\`\*\_\[x\]"


@pytest.mark.parametrize(("number", "text"), COUNTS)
def test_counts(number, text):
    assert cells.count(number) == text


@pytest.mark.parametrize(("number", "text"), SECONDS)
def test_seconds(number, text):
    assert cells.seconds(number) == text
