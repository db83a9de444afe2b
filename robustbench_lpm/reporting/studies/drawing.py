"""What the figures share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.pictures import drawing, saved
from robustbench_lpm.reporting.plots import MARKERS, dress, per_cent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rendered(name: str, size: tuple[float, float], title: str, draw: Callable[[Figure], None]) -> dict[str, bytes]:
    """A figure of size (width, height) in inches, filled by `draw`, as {"NAME.png", "NAME.svg"}: always the same."""
    with drawing(size) as figure:
        draw(figure)
        figure.suptitle(plain(title), fontsize=11)
        return {f"{name}.{kind}": saved(figure, kind) for kind in ("png", "svg")}


def styles_of_mc(table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """The style of each M: shades in the order of their size."""
    from matplotlib import colormaps

    ms = sorted(int(m) for m in table["mc"].unique())
    return {
        m: {"color": colormaps["viridis"]((number + 1) / (len(ms) + 2)), "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4.5, "linewidth": 1.6}
        for number, m in enumerate(ms)
    }  # fmt: skip


def draw_line(
    axes: Axes, x: str, rows: pd.DataFrame, style: dict[str, Any], y: str = "accuracy", *, band: bool = True
) -> Any:
    """A column against another, growing, with its intervals as a band; the line that was drawn in this style."""
    rows = rows.sort_values(x)
    (line,) = axes.plot(rows[x], rows[y], **style)
    if band:
        axes.fill_between(rows[x], rows[f"{y}_low"], rows[f"{y}_high"], color=style["color"], alpha=0.12, linewidth=0)
    return line


def dress_titled(axes: Axes, x: str, y: str, title: str) -> None:
    dress(axes, x, y)
    axes.set_title(title, loc="left", fontsize=10)


def draw_mark(axes: Axes, x: float) -> None:
    axes.axvline(x, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)


def share_axis(axes: Axes, table: pd.DataFrame) -> None:
    """The axis of accuracies in per cent, from 0 or, if all are above a half, from below the lowest."""
    lowest = float(table[["accuracy", "accuracy_low"]].min().min())
    bottom = min(0.98, int(100 * lowest) / 100) if lowest >= 0.5 else 0.0
    per_cent(axes, bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom))


def set_ticks(axes: Axes, marks: list[float], words: str) -> None:
    """Marks on the x axis at these values alone, written as `words` says; the limits stay."""
    limits = axes.get_xlim()
    axes.set_xticks(marks, [words.format(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_xlim(limits)
