"""What each glimpse contributes, as tables for the terminal and as a figure. Draws what it is given; runs nothing.

The tables are those of `evaluation.glimpses`: accuracies (a row for each M and t) and fixations (a row for each t).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_lpm.reporting import cells, curves
from robustbench_lpm.reporting.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, ATTACKED, ADAPTIVE = COLOURS[0], COLOURS[3], COLOURS[1]
NAMES = {
    "clean": "clean",
    "attacked": "attacked, images made against all glimpses",
    "adaptive": "attacked anew for each number of glimpses",
}


def terminal_tables(accuracies: pd.DataFrame, fixations: pd.DataFrame, console: Console) -> None:
    """Print what each glimpse adds, what accuracy costs at equal compute, and how far the fixations move."""
    console.print(Text("Accuracy after each glimpse, %", style="bold"))
    console.print(per_glimpse(accuracies))
    if accuracies["mc"].nunique() > 1:
        console.print(Text("\nAt equal compute: the mean logits of M runs of t glimpses each, %", style="bold"))
        console.print(at_equal_compute(accuracies))
    if len(fixations):
        title = "\nHow far the next fixation is displaced (1 = half the image's width)"
        console.print(Text(title, style="bold"))
        console.print(displacement(fixations))


def per_glimpse(accuracies: pd.DataFrame) -> Table:
    """A row for each t at M = 1, with intervals."""
    kinds = _kinds(accuracies)
    heads = {"clean": "Clean", "attacked": "Attacked", "adaptive": "Attacked anew"}
    grid = _grid(["Glimpses", *[heads[kind] for kind in kinds]])
    for row in _rows(accuracies[accuracies["mc"] == 1].sort_values("glimpses")):
        grid.add_row(str(row["glimpses"]), *[_accuracy(row, kind) for kind in kinds])
    return grid


def at_equal_compute(accuracies: pd.DataFrame) -> Table:
    """A row for each M and t, those that cost the same number of glimpses together."""
    kinds = _kinds(accuracies)
    heads = {"clean": "Clean", "attacked": "Attacked", "adaptive": "Attacked anew"}
    grid = _grid(["Glimpses in all", "M", "t", "Forwards", *[heads[kind] for kind in kinds]])
    before = None
    for row in _rows(accuracies):
        total = row["glimpses_per_decision"]
        shares = [cells.percent(row[f"{kind}_accuracy"]) for kind in kinds]
        shown = str(total) if total != before else ""
        grid.add_row(shown, str(row["mc"]), str(row["glimpses"]), str(row["forwards_per_decision"]), *shares)
        before = total
    return grid


def displacement(fixations: pd.DataFrame) -> Table:
    """A row for each glimpse from the second on: under attack, between two draws of noise, and their ratio."""
    grid = _grid(["Glimpse", "By the attack", "By noise alone", "Ratio"])
    for row in _rows(fixations):
        ratio = row["shift"] / row["restlessness"] if row["restlessness"] > 0 else float("nan")
        texts = [_distance(row, "shift"), _distance(row, "restlessness")]
        grid.add_row(str(row["glimpse"]), *texts, cells.MISSING if ratio != ratio else f"{ratio:.1f}")
    return grid


def _grid(names: list[str]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        grid.add_column(name, justify="right")
    return grid


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _kinds(accuracies: pd.DataFrame) -> list[str]:
    """Clean, attacked, and attacked anew where that was run."""
    return [kind for kind in NAMES if accuracies[f"{kind}_accuracy"].notna().any()]


def _accuracy(row: dict[str, Any], kind: str) -> str:
    return cells.with_interval(*(row[f"{kind}_accuracy{end}"] for end in ("", "_low", "_high")))


def _distance(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    if cells.missing(value):
        return cells.MISSING
    return f"{value:.3f}" if cells.missing(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def glimpse_figure(accuracies: pd.DataFrame, fixations: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"png": ..., "svg": ...}: accuracy against t, against glimpses spent, and the displacement."""
    panels = 3 if len(fixations) else 2

    def draw(figure: Figure) -> None:
        left, middle, *rest = figure.subplots(1, panels)
        _draw_accuracy(left, accuracies)
        _draw_compute(middle, accuracies)
        for axes in rest:
            _draw_displacement(axes, fixations)

    return curves.rendered((4.3 * panels, 4.0), title, draw)


def _draw_accuracy(axes: Axes, accuracies: pd.DataFrame) -> None:
    """Accuracy after each glimpse of a single run, with intervals over images."""
    rows = accuracies[accuracies["mc"] == 1].sort_values("glimpses")
    colours = {"clean": CLEAN, "attacked": ATTACKED, "adaptive": ADAPTIVE}
    for number, kind in enumerate(_kinds(accuracies)):
        values, low, high = (rows[f"{kind}_accuracy{end}"] for end in ("", "_low", "_high"))
        style: dict[str, Any] = {"color": colours[kind], "marker": MARKERS[number], "markersize": 5, "linewidth": 1.7}
        axes.plot(rows["glimpses"], values, label=NAMES[kind], **style)
        axes.fill_between(rows["glimpses"], low, high, color=colours[kind], alpha=0.14, linewidth=0)
    _dress(axes, "glimpses t of one run (M = 1)", "accuracy", shares=True)
    axes.set_title("What each glimpse adds", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0)


def _draw_compute(axes: Axes, accuracies: pd.DataFrame) -> None:
    """Accuracy against the glimpses that a decision costs, a line for each M."""
    import seaborn
    from matplotlib.lines import Line2D

    ms = sorted(accuracies["mc"].unique())
    shades = seaborn.color_palette("viridis", n_colors=len(ms) + 1)[: len(ms)]
    looks: dict[int, Any] = dict(zip(ms, shades, strict=True))
    for number, (mc, rows) in enumerate(accuracies.groupby("mc")):
        style: dict[str, Any] = {
            "color": looks[int(str(mc))],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4.5,
        }
        spent = rows["glimpses_per_decision"]
        axes.plot(spent, rows["attacked_accuracy"], linewidth=1.6, **style)
        axes.plot(spent, rows["clean_accuracy"], linewidth=1.1, linestyle="--", alpha=0.8, **style)
    keys = [
        Line2D([], [], color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5, label=f"M = {mc}")
        for number, (mc, colour) in enumerate(looks.items())
    ]
    keys += [Line2D([], [], color="0.3", linestyle="--", label="clean")]
    keys += [Line2D([], [], color="0.3", label="attacked (all glimpses)")]
    _dress(axes, "glimpses per decision, M · t", "accuracy", shares=True)
    axes.set_title("At equal compute: averaging M runs", loc="left", fontsize=10)
    axes.legend(
        handles=keys, frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16),
        borderaxespad=0, columnspacing=1.2, handlelength=1.8,
    )  # fmt: skip


def _draw_displacement(axes: Axes, fixations: pd.DataFrame) -> None:
    """How far the attack moves each aim, beside how far noise alone does."""
    names = {
        "shift": ("by the attack, same noise", ATTACKED),
        "restlessness": ("by another draw of noise, clean", CLEAN),
    }
    for number, (name, (label, colour)) in enumerate(names.items()):
        values, low, high = (fixations[name + end] for end in ("", "_low", "_high"))
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[number], "markersize": 5, "linewidth": 1.7}
        axes.plot(fixations["glimpse"], values, label=label, **style)
        axes.fill_between(fixations["glimpse"], low, high, color=colour, alpha=0.14, linewidth=0)
    _dress(axes, "glimpse", "mean distance (the image is 2 wide)", shares=False)
    axes.set_title("How far the next fixation is displaced", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0)


def _dress(axes: Axes, x: str, y: str, *, shares: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    curves.dress(axes, x, y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shares:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.set_ylim(bottom=0)
