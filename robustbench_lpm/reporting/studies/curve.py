"""Accuracy against every eps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.protocol.ranking import as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.plots import COLOURS, legend, look, per_cent
from robustbench_lpm.reporting.studies.drawing import dress_titled, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN, ATTACKED, ADAPTIVE = COLOURS[0], COLOURS[3], COLOURS[1]


QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the distances, that the table shows


def curve_table(table: pd.DataFrame, beside: pd.DataFrame, console: Console) -> None:
    """Print the curve at quantiles of its distances and, beside it, attacks at one eps (rows of attack, eps, ...)."""
    asked = set(beside.get("eps", ()))
    shown = asked.union(table["eps"].quantile(QUANTILES, interpolation="nearest"))
    attacks = list(dict.fromkeys(beside.get("attack", ())))
    others = {(row["attack"], row["eps"]): cells.rate(row, "accuracy") for row in as_rows(beside)}
    grid = cells.grid(dict.fromkeys(("eps", "Curve", *map(plain, attacks)), "right"))
    for eps in sorted(shown):
        (row,) = as_rows(table[table["eps"] <= eps].tail(1))
        name = format_eps(eps) if eps in asked else f"{eps:.4g}"
        grid.add_row(name, cells.rate(row, "accuracy"), *(others.get((attack, eps), "") for attack in attacks))
    console.print(Text("Accuracy against eps, %", style="bold"))
    console.print(grid)
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images."))


def curve_figure(table: pd.DataFrame, beside: pd.DataFrame, title: str, searcher: str, norm: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: the curve with its band, attacks at one eps as points."""
    last = 1.05 * max(float(table["eps"].quantile(0.98)), *beside.get("eps", (0.0,)), 1e-12)
    shown = pd.concat([table, table.tail(1).assign(eps=max(last, float(table["eps"].max())))])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        lines: list[Any] = axes.plot(
            shown["eps"], shown["accuracy"], color=ATTACKED, linewidth=1.7, drawstyle="steps-post"
        )
        band: dict[str, Any] = {"color": ATTACKED, "alpha": 0.15, "linewidth": 0, "step": "post"}
        axes.fill_between(shown["eps"], shown["accuracy_low"], shown["accuracy_high"], **band)
        names, by_majority = (
            [f"{searcher}: smallest perturbations"],
            (table["majority"] - table["accuracy"]).abs().max(),
        )
        if by_majority > 1e-9:  # of a stochastic model
            lines += axes.plot(
                shown["eps"], shown["majority"], color=ATTACKED, linewidth=1.2, linestyle="--", drawstyle="steps-post"
            )
            names.append("most draws right (attacks: hollow)")
        for number, (attack, rows) in enumerate(beside.groupby("attack", sort=False) if len(beside) else ()):
            ends = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
            style: dict[str, Any] = look(number + 1 + (number >= 2)) | {
                "linestyle": "none"
            }  # the fourth is the curve's
            lines.append(axes.errorbar(rows["eps"], rows["accuracy"], yerr=ends, capsize=2.5, markersize=5, **style))
            names.append(f"{attack}, at one eps")
            if by_majority > 1e-9:
                axes.plot(rows["eps"], rows["majority"], **(style | {"markerfacecolor": "none", "markersize": 6}))
        dress_titled(axes, f"eps ({cells.norm(norm)})", "accuracy", "")
        axes.set_xlim(0, last)
        per_cent(axes, -0.02, 1.02)
        legend(figure, lines, names, ncols=2, fontsize=8.5)

    return rendered("summary", (6.2, 4.2), f"Accuracy against eps: {title}", draw)
