"""What figures of curves share: style, panels, lines with bands, a legend below, and the bytes of PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from robustbench_lpm.reporting.escaping import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {"text.parse_math": False, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "lpmbench"}
LINE = 46  # characters of a name that fit into a legend


def rendered(size: tuple[float, float], title: str, draw: Callable[[Figure], None]) -> dict[str, bytes]:
    """A figure of size (width, height) in inches, filled by `draw`, as {"png": ..., "svg": ...}: always the same."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says, same bytes
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, dpi=144, layout="constrained")
        draw(figure)
        figure.suptitle(plain(title), fontsize=11)
        found = {}
        for kind, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            found[kind] = buffer.getvalue()
    return found


def line(axes: Axes, x: str, rows: pd.DataFrame, style: dict[str, Any], *, band: bool = True) -> None:
    """Accuracy against a column, growing, with its intervals as a band; `style` is that of the line."""
    rows = rows.sort_values(x)
    axes.plot(rows[x], rows["accuracy"], **style)
    if band:
        low, high = rows["accuracy_low"], rows["accuracy_high"]
        axes.fill_between(rows[x], low, high, color=style["color"], alpha=0.12, linewidth=0)


def dress(axes: Axes, x: str, y: str) -> None:
    """Labels, a faint grid, no box."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color="0.3", alpha=0.15, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, which="both")


def shares(axes: Axes, table: pd.DataFrame) -> None:
    """The axis of accuracies in per cent, from 0, or, where all are above a half, from below what is drawn."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lowest = float(table[["accuracy", "accuracy_low"]].min().min())
    bottom = min(0.98, int(100 * lowest) / 100) if lowest >= 0.5 else 0.0
    axes.set_ylim(bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def shortened(name: str) -> str:
    """A name that fits into a legend, without control characters, its middle left out if need be."""
    text, half = plain(name), LINE // 2
    return text if len(text) <= LINE else f"{text[: half - 1]}…{text[-half:]}"
