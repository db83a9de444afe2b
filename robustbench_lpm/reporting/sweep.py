"""The inference sweep as a table for the terminal and as a figure. Draws the table that it is given; runs nothing.

The table has a row for each M ("mc") and number of glimpses, with accuracy, accuracy_low and accuracy_high in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_lpm.reporting import cells, curves
from robustbench_lpm.reporting.plots import MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WITH_INTERVALS = 3  # columns that fit into 80 characters with their intervals; of more, the first alone has them


def terminal_table(table: pd.DataFrame, console: Console) -> None:
    """Print a row for each number of glimpses and a column for each M, in per cent."""
    ms = sorted(table["mc"].unique())
    rows = table.set_index(["glimpses", "mc"])[["accuracy", "accuracy_low", "accuracy_high"]]
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Glimpses", *(f"M = {m}" for m in ms)):
        grid.add_column(name, justify="right", no_wrap=True)
    for t in sorted(table["glimpses"].unique()):
        texts = [
            cells.with_interval(*rows.loc[(t, m)]) if len(ms) <= WITH_INTERVALS or m == ms[0]
            else cells.percent(rows.loc[(t, m), "accuracy"])
            for m in ms
        ]  # fmt: skip
        grid.add_row(str(t), *texts)
    console.print(Text("Accuracy, %, after each number of glimpses, of M averaged runs", style="bold"))
    console.print(grid)
    draws = ", ".join(f"{rows['draws'].iloc[0]} at M = {m}" for m, rows in table.groupby("mc"))
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); draws: {draws}. Intervals (95 %) are over images."))


def sweep_figure(table: pd.DataFrame, title: str, usual: int) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: accuracy against glimpses, and against what they cost.

    usual: the number of glimpses on the model's card, which is marked.
    """
    found = curves.rendered((9.4, 4.3), title, lambda figure: _draw(figure, table, usual))
    return {f"summary.{kind}": content for kind, content in found.items()}


def _draw(figure: Figure, table: pd.DataFrame, usual: int) -> None:
    import seaborn
    from matplotlib.ticker import MaxNLocator

    ms = sorted(int(m) for m in table["mc"].unique())
    shades = seaborn.color_palette("viridis", n_colors=len(ms) + 1)[: len(ms)]
    styles: dict[int, dict[str, Any]] = {
        m: {"color": shade, "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5, "linewidth": 1.6,
            "label": f"M = {m}"}
        for number, (m, shade) in enumerate(zip(ms, shades, strict=True))
    }  # fmt: skip
    left, right = figure.subplots(1, 2, sharey=True)
    for m, rows in table.groupby("mc"):
        curves.line(left, "glimpses", rows, styles[int(str(m))])
        curves.line(right, "cost", rows.assign(cost=rows["mc"] * rows["glimpses"]), styles[int(str(m))], band=False)
    curves.dress(left, "glimpses t of a run", "accuracy on clean images")
    curves.dress(right, "glimpses per decision, M · t", "")
    curves.shares(left, table)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    _powers_of_two(right)
    left.set_title("What more glimpses and more runs bring", loc="left", fontsize=10)
    right.set_title("The same at equal compute", loc="left", fontsize=10)
    if table["glimpses"].min() <= usual <= table["glimpses"].max():
        left.axvline(usual, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        left.annotate(
            "the card's T", (usual, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", fontsize=8, color="0.35",
        )  # fmt: skip
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(8, len(ms)), frameon=False, fontsize=8.5)


def _powers_of_two(axes: Axes) -> None:
    """A logarithmic axis of counts."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
