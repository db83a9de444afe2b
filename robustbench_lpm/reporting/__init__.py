"""From records to what people read: tables, rankings, plots, one HTML page. No torch, and nothing is ever run again.

The functions here are the façade; what they need (pandas, matplotlib, jinja2) is imported when they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_lpm.records import RunRecord

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

__all__ = ["attack_picture", "leaderboard", "table", "terminal_table", "write_report"]


def write_report(records: Sequence[RunRecord], out: Path) -> list[Path]:
    """Write leaderboard.csv, .md, .tex, plots/*.svg and leaderboard.html below `out`; their paths, HTML last.

    The same records give the same bytes, in whatever order they come. Raises OSError.
    """
    from robustbench_lpm.reporting import exports

    return exports.write_report(records, out)


def table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per record; shares in [0, 1], intervals empty below 20 images. Columns: `tables.COLUMNS`."""
    from robustbench_lpm.reporting import tables

    return tables.table(records)


def leaderboard(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per model and budget, ranked by its lowest robust accuracy. Columns: `tables.RANKING_COLUMNS`."""
    from robustbench_lpm.reporting import tables

    return tables.ranking(tables.table(records))


def terminal_table(records: Sequence[RunRecord], console: Console | None = None) -> None:
    """Print a compact table of runs to the terminal, or to the console given."""
    from robustbench_lpm.reporting import terminal

    terminal.terminal_table(records, console)


def attack_picture(record: RunRecord, position: int = 0, class_names: Sequence[str] | None = None) -> bytes:
    """A PNG of one stored example: original, amplified perturbation, adversarial, with what was predicted.

    `position` counts the stored examples from 0. Raises LpmbenchError when the record stores no such example.
    """
    from robustbench_lpm.reporting import pictures

    return pictures.attack_picture(record, position, class_names)
