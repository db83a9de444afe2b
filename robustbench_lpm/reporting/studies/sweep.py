"""Accuracy for every number of glimpses and of averaged runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.protocol.ranking import as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.plots import legend
from robustbench_lpm.reporting.studies.drawing import (
    draw_line,
    draw_mark,
    dress_titled,
    rendered,
    set_ticks,
    share_axis,
    styles_of_mc,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITH_INTERVALS = 3  # columns that fit into 80 characters with their intervals; of more, the first alone has them


def sweep_table(table: pd.DataFrame, console: Console) -> None:
    """Print a row for each number of glimpses and a column for each M, in per cent."""
    ms = sorted(table["mc"].unique())
    rows = {(row["glimpses"], row["mc"]): row for row in as_rows(table)}
    grid = cells.grid(dict.fromkeys(("Glimpses", *(f"M = {m}" for m in ms)), "right"))
    for t in sorted(table["glimpses"].unique()):
        short = [cells.percent(rows[t, m]["accuracy"]) for m in ms]
        full = [cells.rate(rows[t, m], "accuracy") for m in ms]
        grid.add_row(str(t), *(full if len(ms) <= WITH_INTERVALS else [full[0], *short[1:]]))
    console.print(Text("Accuracy, %, after each number of glimpses, of M averaged runs", style="bold"))
    console.print(grid)
    draws = ", ".join(f"{rows['draws'].iloc[0]} at M = {m}" for m, rows in table.groupby("mc"))
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); draws: {draws}. Intervals (95 %) are over images."))


def sweep_figure(table: pd.DataFrame, title: str, usual: int) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: accuracy against glimpses, and against their cost.

    usual: the number of glimpses on the model's card, which is marked.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for m, style in styles_of_mc(table).items():
            rows = table[table["mc"] == m]
            draw_line(left, "glimpses", rows, style | {"label": f"M = {m}"})
            draw_line(right, "cost", rows.assign(cost=rows["mc"] * rows["glimpses"]), style, band=False)
        dress_titled(left, "glimpses t of a run", "accuracy on clean images", "What more glimpses and more runs bring")
        dress_titled(right, "glimpses per decision, M · t", "", "The same at equal compute")
        share_axis(left, table)
        left.locator_params(axis="x", integer=True)
        right.set_xscale("log", base=2)
        set_ticks(right, [2.0**power for power in range(20)], "{:g}")
        names = left.get_legend_handles_labels()
        if table["glimpses"].min() <= usual <= table["glimpses"].max():
            draw_mark(left, usual)
            left.annotate(
                "the card's T", (usual, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", fontsize=8, color="0.35",
            )  # fmt: skip
        legend(figure, *names, ncols=min(8, len(names[0])), fontsize=8.5)

    return rendered("summary", (9.4, 4.3), title, draw)
