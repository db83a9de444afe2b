"""A compact table of runs for the end of a run, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_lpm.records import RunRecord
from robustbench_lpm.reporting import cells, tables


def terminal_table(records: Sequence[RunRecord], console: Console | None = None) -> None:
    """Print one line per run: model, attack, eps, clean and robust accuracy in per cent, forwards per image.

    M and failed examples have a column only where a run has M above 1, or failures.
    """
    rows = [{str(key): value for key, value in row.items()} for row in tables.table(records).to_dict("records")]
    with_mc = any(row["mc"] != 1 for row in rows)
    with_failures = any(row["failed_examples"] for row in rows)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column("Model", overflow="fold")
    grid.add_column("Attack", overflow="fold")
    names = ["eps", *(["M"] if with_mc else []), "Clean, %", "Robust, %", "Forwards"]
    for name in [*names, *(["Failed"] if with_failures else [])]:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(*_texts(row, with_mc, with_failures))
    (console or Console()).print(grid)


def _texts(row: dict[str, Any], with_mc: bool, with_failures: bool) -> list[Text]:
    """One line; Text keeps brackets in a name from being read as markup."""
    robust = cells.with_interval(row["robust_accuracy"], row["robust_accuracy_low"], row["robust_accuracy_high"])
    return [
        Text(cells.label(row["model"], row["model_variant"])),
        Text(cells.label(row["attack"], row["attack_variant"])),
        Text(f"{cells.norm(row['norm'])} {row['eps_text']}"),
        *([Text(str(row["mc"]))] if with_mc else []),
        Text(cells.percent(row["clean_accuracy"])),
        Text(robust, style="bold"),
        Text(cells.count(row["forwards"])),
        *([Text(str(row["failed_examples"] or ""), style="bold red")] if with_failures else []),
    ]
