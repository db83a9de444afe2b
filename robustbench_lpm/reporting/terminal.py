"""A compact table of runs for the end of a run, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_lpm.records.audits import Audit
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import cells, tables

STYLES = {"pass": "green", "fail": "bold red", "undecided": "yellow", "": "dim"}


def terminal_table(
    records: Sequence[RunRecord], console: Console | None = None, audits: Mapping[str, Audit] | None = None
) -> None:
    """Print one line per run: model, attack, eps, clean and robust accuracy in per cent, forwards per image.

    M, failed examples and the audit have a column only where a run has M above 1, failures, or an audit. The probes of
    an audit are left out.
    """
    found = tables.table(records, audits).to_dict("records")
    rows = [{str(key): value for key, value in row.items()} for row in found if not row["probe"]]
    extra = {
        "M": any(row["mc"] != 1 for row in rows),
        "Failed": any(row["failed_examples"] for row in rows),
        "Audit": any(row["verdict"] for row in rows),
    }
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("Model", overflow="fold")
    grid.add_column("Attack", overflow="fold")
    for name in ("eps", "M", "Clean, %", "Robust, %", "Forwards", "Failed", "Audit"):
        if extra.get(name, True):
            grid.add_column(name, justify="left" if name == "Audit" else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(text for name, text in _texts(row).items() if extra.get(name, True)))
    (console or Console()).print(grid)


def _texts(row: dict[str, Any]) -> dict[str, Text]:
    """One line, by column; Text keeps brackets in a name from being read as markup."""
    robust = cells.with_interval(row["robust_accuracy"], row["robust_accuracy_low"], row["robust_accuracy_high"])
    return {
        "Model": Text(cells.label(row["model"], row["model_variant"])),
        "Attack": Text(cells.label(row["attack"], row["attack_variant"])),
        "eps": Text(f"{cells.norm(row['norm'])} {row['eps_text']}"),
        "M": Text(str(row["mc"])),
        "Clean, %": Text(cells.percent(row["clean_accuracy"])),
        "Robust, %": Text(robust, style="bold"),
        "Forwards": Text(cells.count(row["forwards"])),
        "Failed": Text(str(row["failed_examples"] or ""), style="bold red"),
        "Audit": Text(cells.verdict(row["verdict"]) if row["verdict"] else cells.MISSING, style=STYLES[row["verdict"]]),
    }
