"""Accuracy under rotation, scaling and translation, as a table for the terminal and as a figure. Runs nothing.

The table has a row for each model, M ("mc"), transformation and value, with accuracy, accuracy_low and accuracy_high
in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustbench_lpm.reporting import cells, curves
from robustbench_lpm.reporting.escaping import plain
from robustbench_lpm.reporting.plots import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {  # title, axis, and where the image is as it was
    "rotate": ("Turned", "degrees against the clock, about the centre", 0.0),
    "scale": ("Scaled", "magnification, about the centre", 1.0),
    "translate": ("Moved", "share of the side, to the right or down (mean)", 0.0),
}
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))


def terminal_table(table: pd.DataFrame, console: Console) -> None:
    """Print for each transformation how accurate a model is on the images as they are, at worst, and on average."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, side in {"Model": "left", "M": "right", "": "left", "As it is": "right", "Lowest": "right",
                       "At": "right", "Mean": "right"}.items():  # fmt: skip
        grid.add_column(name, justify=side)  # type: ignore[arg-type]
    before = None
    for (model, mc, kind), rows in table.groupby(["model", "mc", "transformation"], sort=False):
        title, _, identity = PANELS[str(kind)]
        still = rows.loc[rows["value"] == identity, "accuracy"]
        lowest = rows.iloc[int(rows["accuracy"].to_numpy().argmin())]
        grid.add_row(
            *([plain(model), str(mc)] if (model, mc) != before else ["", ""]),
            title.lower(),
            cells.percent(still.iloc[0] if len(still) else None),
            cells.with_interval(lowest["accuracy"], lowest["accuracy_low"], lowest["accuracy_high"]),
            f"{lowest['value']:g}{'°' if kind == 'rotate' else ''}",
            cells.percent(rows["accuracy"].mean()),
        )
        before = (model, mc)
    console.print(Text("Accuracy on transformed images, %", style="bold"))
    console.print(grid)
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images."))


def invariance_figure(table: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: a panel for each transformation, a line per model."""
    panels = table["transformation"].nunique()
    size = max(5.2, 4.3 * panels), 4.2
    found = curves.rendered(size, f"Accuracy on transformed images: {title}", lambda figure: _draw(figure, table))
    return {f"summary.{kind}": content for kind, content in found.items()}


def _draw(figure: Figure, table: pd.DataFrame) -> None:
    kinds = [kind for kind in PANELS if kind in set(table["transformation"])]
    styles = _styles(table)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        rows = table[table["transformation"] == kind]
        for (model, mc), points in rows.groupby(["model", "mc"], sort=False):
            few = len(points) <= 30
            curves.line(axes, "value", points, styles[str(model), int(str(mc))] | {"markersize": 4.2 if few else 0})
        panel, label, identity = PANELS[kind]
        curves.dress(axes, label, "accuracy" if axes is panels[0] else "")
        axes.set_title(panel, loc="left", fontsize=10)
        if rows["value"].min() <= identity <= rows["value"].max():
            axes.axvline(identity, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        _ticks(axes, kind, rows["value"])
    curves.shares(panels[0], table)
    lines = {style["label"]: line for line, style in zip(_samples(styles), styles.values(), strict=True)}
    box = figure.legend(
        list(lines.values()), [str(number) for number in range(len(lines))], loc="outside lower left",
        ncols=min(6, len(lines)), frameon=False, fontsize=8.5, handlelength=2.6,
    )  # fmt: skip
    for text, name in zip(box.get_texts(), lines, strict=True):
        text.set_text(name)  # set afterwards: matplotlib leaves labels that begin with "_" out of legends


def _styles(table: pd.DataFrame) -> dict[tuple[str, int], dict[str, Any]]:
    """A colour and a marker for each model, dashes for each M; M is named where a model has several."""
    models = list(dict.fromkeys(table["model"]))
    ms = sorted(int(m) for m in table["mc"].unique())
    averages = {model: sorted({int(m) for m in table.loc[table["model"] == model, "mc"]}) for model in models}
    return {
        (model, m): {
            "color": COLOURS[models.index(model) % len(COLOURS)],
            "marker": MARKERS[models.index(model) % len(MARKERS)],
            "markersize": 4.2,
            "linewidth": 1.6,
            "linestyle": DASHES[(ms.index(m) + models.index(model) // len(COLOURS)) % len(DASHES)],
            "label": curves.shortened(model) + (f", M = {m}" if len(averages[model]) > 1 else ""),
        }
        for model in models
        for m in averages[model]
    }


def _samples(styles: dict[tuple[str, int], dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], **{key: value for key, value in style.items() if key != "label"}) for style in styles.values()
    ]


def _ticks(axes: Axes, kind: str, values: pd.Series[float]) -> None:
    """Quarter turns as degrees; factors on an axis where half and double are equally far from 1."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

    span = float(values.max() - values.min())
    if kind == "rotate" and span >= 90:
        axes.xaxis.set_major_locator(MultipleLocator(90 if span > 200 else 45))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}°"))
    if kind == "scale" and span > 0:
        axes.set_xscale("log", base=2)
        marks = [mark for mark in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 8) if values.min() <= mark <= values.max()]
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(marks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
