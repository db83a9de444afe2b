"""The terminal table is compact, and names are text in it."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO

from rich.console import Console

from robustbench_lpm import reporting
from tests.reporting.conftest import ORDINARY, check, make_audit, probed


def printed(*records, width=100, audits=None):
    console = Console(file=StringIO(), width=width)
    reporting.terminal_table(records, console, audits)
    return console.file.getvalue()


def test_one_line_per_run(make):
    text = printed(make("cnn", robust=0.5), make("ram", robust=0.25, draws=4))
    assert "50.0 [35.2, 64.8]" in text
    assert len(text.strip().splitlines()) == 3
    assert "Failed" not in text


def test_columns_appear_when_needed(make):
    text = printed(make(failed=4, mc=10))
    assert "Failed" in text
    assert " M " in text


def test_verdicts_have_a_column_only_where_there_are_any(make):
    a, b = make("a"), make("b")
    assert "Audit" not in printed(a, b)
    text = printed(a, b, audits={a.id: make_audit(a, check("fail"))})
    assert "Audit" in text
    assert [line.split()[-1] for line in text.strip().splitlines()[1:]] == ["failed", "–"]


def test_names_are_neither_markup_nor_control_codes(make):
    text = printed(make("[bold]x[/bold]", "\x1b[31my"))
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text


def test_reporting_imports_no_torch():
    code = (
        "import sys; from robustbench_lpm import reporting; "
        "from robustbench_lpm.reporting import exports, page, pictures, plots, terminal; "
        "reporting.leaderboard([]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_probes_are_left_out(make):
    found, judged = probed(make)
    assert len(printed(*found.values(), audits=judged).strip().splitlines()) == 1 + len(ORDINARY)
    assert len(printed(*found.values(), audits={}).strip().splitlines()) == 1 + len(found)
