"""Accuracy against the length of an attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.protocol.ranking import as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.plots import legend, look, per_cent, shortened
from robustbench_lpm.reporting.studies.drawing import draw_line, draw_mark, dress_titled, rendered, set_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SURE = {"more": "lowers it by more", "less": "by less than a point", "undecided": "undecided", "": ""}


def converge_table(table: pd.DataFrame, limits: pd.DataFrame, console: Console) -> None:
    """Print a row for each length, with what each doubling takes, then the limit: model, value, low, high."""
    grid = cells.grid({"Model": "left", "Passes": "right", "Accuracy": "right", "Doubling takes": "right", "": "left"})
    ends = {row["model"]: row for row in as_rows(limits)}
    for model, rows in table.groupby("model", sort=False):
        for number, row in enumerate(as_rows(rows)):
            gain = (
                f"{100 * row['gain']:.1f} [{100 * row['gain_low']:.1f}, {100 * row['gain_high']:.1f}]" if number else ""
            )
            name = "" if number else plain(str(model))
            grid.add_row(name, f"{row['passes']:,.0f}", cells.rate(row, "accuracy"), gain, SURE[row["verdict"]])
        if end := ends.get(model):
            grid.add_row(
                "", "limit", f"{100 * end['value']:.1f} [{100 * end['low']:.1f}, {100 * end['high']:.1f}]", "", ""
            )
    console.print(Text("Accuracy against forward passes for an image, %", style="bold"))
    console.print(grid)
    console.print(
        Text(f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images; limits by a power law.")
    )


def converge_figure(table: pd.DataFrame, limits: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: a curve for each model, its limit at the right."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = {row["model"]: row for row in as_rows(limits)}
        last = float(table["passes"].max())
        for number, (model, rows) in enumerate(table.groupby("model", sort=False)):
            style = look(number) | {"label": shortened(str(model))}
            draw_line(axes, "passes", rows, style)
            if end := ends.get(model):
                place, half = last * 1.5 * 1.06**number, [[end["value"] - end["low"]], [end["high"] - end["value"]]]
                axes.errorbar([place], [end["value"]], yerr=half, capsize=2.5, markersize=5, **(look(number)))
        if ends:
            draw_mark(axes, last * 1.2)
            axes.annotate(
                "limit", (last * 1.25, 0.96), xycoords=("data", "axes fraction"), fontsize=8, color="0.35"
            )  # fmt: skip
        dress_titled(axes, "forward passes for an image", "accuracy under attack", "")
        axes.set_xscale("log", base=2)
        set_ticks(axes, list(next(iter(table.groupby("model", sort=False)))[1]["passes"]), "{:,.0f}")
        per_cent(axes, -0.02, 1.02)
        legend(figure, *axes.get_legend_handles_labels(), ncols=min(4, table["model"].nunique()), fontsize=8.5)

    return rendered("summary", (6.2, 4.2), f"Accuracy against passes: {title}", draw)
