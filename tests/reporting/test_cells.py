"""How numbers and evidence are written, and escaping, character by character."""

from __future__ import annotations

import pytest

from robustbench_lpm.reporting import cells
from tests.reporting.conftest import check

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
PLAIN = [
    ("a\nb", "a b"),
    ("\x1b[1m", "�[1m"),
    ("\x00", "�"),
    ("\ud800", "�"),
    ("\u202ea", "�a"),
    ("é模\u200d", "é模\u200d"),
]
COUNTS = [(None, "–"), (3, "3"), (3.25, "3.2"), (99.0, "99"), (1234.5, "1\u202f234"), (2e6, "2\u202f000\u202f000")]
SECONDS = [(None, "–"), (float("nan"), "–"), (0.25, "0.2 s"), (99.4, "99.4 s"), (100, "2 min"), (7200, "2.0 h")]


EPS = [
    ((8 / 255, "linf"), "8/255"),
    ((0.1, "linf"), "0.1"),
    ((0.2, "linf"), "0.2"),  # 51/255, too
    ((1 / 255, "linf patch 8x8"), "1/255"),
    ((1.0, "l2"), "1"),
    ((128 / 255, "l2"), "0.501961"),
    ((0.0, "linf"), "0"),
]


@pytest.mark.parametrize(("budget", "text"), EPS)
def test_a_budget_has_one_unit(budget, text):
    assert cells.eps(*budget) == text


CASES = [
    (function, value, text)
    for function, pairs in (
        (cells.latex, LATEX), (cells.csv, CSV), (cells.plain, PLAIN), (cells.count, COUNTS), (cells.seconds, SECONDS),
        (cells.markdown, [("<b>|`*_[x]", r"&lt;b&gt;\|\`\*\_\[x\]")]),
    )
    for value, text in pairs
]  # fmt: skip


@pytest.mark.parametrize(("function", "value", "text"), CASES)
def test_text_of(function, value, text):
    assert function(value) == text


EVIDENCE = [
    ({}, ("62.0 %", "40.1 %", "+21.9 [14.1, 29.7]"), "name: 62.0 % against 40.1 %, difference [14.1, 29.7]"),
    ({"unit": "cosine"}, ("0.62", "0.40", "+0.22 [0.14, 0.30]"), "name: 0.62 against 0.40, difference [0.14, 0.30]"),
    ({"judged": None, "reference": None, "low": None, "high": None}, ("–", "–", "–"), "name"),
]


@pytest.mark.parametrize(("changes", "texts", "line"), EVIDENCE)
def test_evidence_of_a_check(changes, texts, line):
    made = check("fail", "name", **changes)
    assert cells.evidence(made)[:3] == texts
    assert cells.evidence_line(made) == line
