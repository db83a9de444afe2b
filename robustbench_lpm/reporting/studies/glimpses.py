"""The accuracy after each glimpse, and how far an attack moves the fixations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.protocol.ranking import Row, as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.plots import COLOURS, MARKERS, per_cent
from robustbench_lpm.reporting.studies.drawing import draw_line, dress_titled, rendered, styles_of_mc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, ATTACKED, ADAPTIVE = COLOURS[0], COLOURS[3], COLOURS[1]
KINDS = {  # of accuracies after each glimpse: head of the column, name and colour of the curve
    "clean": ("Clean", "clean", CLEAN),
    "attacked": ("Attacked", "attacked, images made against all glimpses", ATTACKED),
    "adaptive": ("Attacked anew", "attacked anew for each number of glimpses", ADAPTIVE),
}
SHIFTS = {
    "shift": ("By the attack", "by the attack, same noise", ATTACKED),
    "restlessness": ("By noise alone", "by another draw of noise, clean", CLEAN),
}


def glimpse_tables(accuracies: pd.DataFrame, fixations: pd.DataFrame, console: Console) -> None:
    """Print the accuracy after each glimpse, the accuracy at equal compute, and how far the fixations move.

    accuracies: a row for each M and t. fixations: a row for each glimpse from the second on, or none.
    """
    kinds = _kinds(accuracies)
    heads = [head for head, *_ in kinds.values()]
    console.print(Text("Accuracy after each glimpse, %", style="bold"))
    grid = cells.grid(dict.fromkeys(("Glimpses", *heads), "right"))
    for row in as_rows(accuracies[accuracies["mc"] == 1].sort_values("glimpses")):
        grid.add_row(str(row["glimpses"]), *[cells.rate(row, f"{kind}_accuracy") for kind in kinds])
    console.print(grid)
    if accuracies["mc"].nunique() > 1:
        console.print(Text("\nAt equal compute: the mean logits of M runs of t glimpses each, %", style="bold"))
        grid = cells.grid(dict.fromkeys(("Glimpses in all", "M", "t", "Forwards", *heads), "right"))
        before = None
        for row in as_rows(accuracies):
            total = row["glimpses_per_decision"]
            spent = "" if total == before else str(total), *(str(row[name]) for name in ("mc", "glimpses"))
            shares = [cells.percent(row[f"{kind}_accuracy"]) for kind in kinds]
            grid.add_row(*spent, str(row["forwards_per_decision"]), *shares)
            before = total
        console.print(grid)
    if len(fixations):
        title = "\nHow far the next fixation is displaced (1 = half the image's width)"
        console.print(Text(title, style="bold"))
        grid = cells.grid(dict.fromkeys(("Glimpse", *(head for head, *_ in SHIFTS.values()), "Ratio"), "right"))
        for row in as_rows(fixations):
            ratio = f"{row['shift'] / row['restlessness']:.1f}" if row["restlessness"] > 0 else cells.MISSING
            grid.add_row(str(row["glimpse"]), *(_distance(row, name) for name in SHIFTS), ratio)
        console.print(grid)


def _kinds(accuracies: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Clean, attacked, and attacked for each number of glimpses if that was run."""
    return {kind: words for kind, words in KINDS.items() if accuracies[f"{kind}_accuracy"].notna().any()}


def _distance(row: Row, name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if cells.missing(value):
        return cells.MISSING
    return f"{value:.3f}" if cells.missing(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def glimpse_figure(accuracies: pd.DataFrame, fixations: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"glimpses.png": ..., "glimpses.svg": ...}: accuracy against t, against glimpses spent, and the
    displacement."""
    panels = 3 if len(fixations) else 2

    def draw(figure: Figure) -> None:
        left, middle, *rest = figure.subplots(1, panels)
        rows = accuracies[accuracies["mc"] == 1].sort_values("glimpses")
        curves = {f"{kind}_accuracy": words for kind, words in _kinds(accuracies).items()}
        _curves(left, rows, "glimpses", curves, "glimpses t of one run (M = 1)", "accuracy", "What each glimpse adds")
        per_cent(left, -0.02, 1.02)
        _draw_compute(middle, accuracies)
        for axes in rest:
            distance = "mean distance (the image is 2 wide)"
            _curves(axes, fixations, "glimpse", SHIFTS, "glimpse", distance, "How far the next fixation is displaced")
            axes.set_ylim(bottom=0)

    return rendered("glimpses", (4.3 * panels, 4.0), title, draw)


def _curves(
    axes: Axes, rows: pd.DataFrame, x: str, curves: Mapping[str, tuple[str, str, str]], label: str, y: str, title: str
) -> None:
    """Columns against another, with their intervals as bands."""
    for number, (column, (_, name, colour)) in enumerate(curves.items()):
        style = {"color": colour, "marker": MARKERS[number], "markersize": 5, "linewidth": 1.7, "label": name}
        draw_line(axes, x, rows, style, column)
    dress_titled(axes, label, y, title)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0)


def _draw_compute(axes: Axes, accuracies: pd.DataFrame) -> None:
    """Accuracy against the glimpses that a decision costs, a line for each M."""
    for m, style in styles_of_mc(accuracies).items():
        rows, clean = accuracies[accuracies["mc"] == m], {"linewidth": 1.1, "linestyle": "--", "alpha": 0.8}
        x = "glimpses_per_decision"
        draw_line(axes, x, rows, style | {"label": f"M = {m}"}, "attacked_accuracy", band=False)
        draw_line(axes, x, rows, style | clean, "clean_accuracy", band=False)
    axes.plot([], [], color="0.3", linestyle="--", label="clean")
    axes.plot([], [], color="0.3", label="attacked (all glimpses)")
    dress_titled(axes, "glimpses per decision, M · t", "accuracy", "At equal compute: averaging M runs")
    axes.locator_params(axis="x", integer=True)
    per_cent(axes, -0.02, 1.02)
    axes.legend(
        frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0,
        columnspacing=1.2, handlelength=1.8,
    )  # fmt: skip
