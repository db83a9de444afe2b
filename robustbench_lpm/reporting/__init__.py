"""Reports of records: tables, rankings, plots, one HTML page. Knows nothing about torch, and never runs a model.

The functions here are the interface; pandas, matplotlib and jinja2 are imported when they are called. Audits are passed
by the id of the record that they judge; None reads those stored beside the records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_lpm.records.audits import Audit, read_for
from robustbench_lpm.records.runs import RunRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["attack_picture", "leaderboard", "plot", "table", "terminal_table", "write_paper", "write_report"]


Audits = Mapping[str, Audit] | None


def write_report(records: Sequence[RunRecord], out: Path, audits: Audits = None) -> list[Path]:
    """Write leaderboard.csv, .md, .tex, .json and .html, probes.csv (the runs of audits alone), robustbench/*/*/*.json
    and plots/*.svg below `out`; their paths, HTML last. Scanpaths that are stored there (`scanpaths.write`) are drawn
    in the page.

    The same records and audits give the same bytes, in any order. Raises OSError, and LpmbenchError for
    a broken audit.
    """
    from robustbench_lpm.reporting import exports

    return exports.write_report(records, out, _found(records, audits))


def write_paper(
    records: Sequence[RunRecord], out: Path, layout: str, *, title: str = "", intervals: bool = False,
    audits: Audits = None,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """Write one LaTeX table of models by "attacks" or by "eps", and its figure as PDF and SVG, see `paper`.

    The paths, and sentences on names that several models share.
    """
    from robustbench_lpm.records.runs import write_atomically
    from robustbench_lpm.reporting import paper

    runs = table(records, audits)
    files = paper.write(runs, layout, title=title, intervals=intervals)  # type: ignore[arg-type]
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files], paper.ambiguous(runs)


def table(records: Sequence[RunRecord], audits: Audits = None) -> pd.DataFrame:
    """One row per record; shares in [0, 1], intervals empty below 20 images. Columns: `tables.COLUMNS`."""
    from robustbench_lpm.reporting import tables

    return tables.table(records, _found(records, audits))


def leaderboard(records: Sequence[RunRecord], audits: Audits = None) -> pd.DataFrame:
    """One row per model and budget, ranked by accuracy under the strongest attack. Columns: `ranking.COLUMNS`."""
    from robustbench_lpm.protocol.ranking import ranking

    return ranking(table(records, audits))


def terminal_table(records: Sequence[RunRecord], console: Console | None = None, audits: Audits = None) -> None:
    """Print a compact table of runs to the terminal, or to the console given."""
    from rich.console import Console

    from robustbench_lpm.reporting import exports

    exports.terminal_table(records, console or Console(), _found(records, audits))


def _found(records: Sequence[RunRecord], audits: Audits) -> Mapping[str, Audit]:
    return read_for(records) if audits is None else audits


def attack_picture(
    record: RunRecord, position: int = 0, class_names: Mapping[int, str] | Sequence[str] | None = None
) -> bytes:
    """A PNG of one stored example: original, amplified perturbation, adversarial, with the predictions.

    `position` counts the stored examples from 0; `class_names`, by label, replace those of the record. Raises
    LpmbenchError when the record stores no such example.
    """
    from robustbench_lpm.reporting import pictures

    return pictures.attack_picture(record, position, class_names)


def plot(record: RunRecord, position: int = 0, class_names: Mapping[int, str] | Sequence[str] | None = None) -> Figure:
    """What `attack_picture` shows as a figure of matplotlib: `savefig` writes it, and a notebook draws it after
    `%matplotlib inline`."""
    from robustbench_lpm.reporting import pictures

    return pictures.attack_figure(record, position, class_names)
