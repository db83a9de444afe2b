"""Accuracy on rotated, scaled and translated images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.plots import legend, look, shortened
from robustbench_lpm.reporting.studies.drawing import (
    draw_line,
    draw_mark,
    dress_titled,
    rendered,
    set_ticks,
    share_axis,
)
from robustbench_lpm.statistics import rate_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {  # title, axis, and where the image is as it was
    "rotate": ("Turned", "degrees against the clock, about the centre", 0.0),
    "scale": ("Scaled", "magnification, about the centre", 1.0),
    "translate": ("Moved", "share of the side, to the right or down (mean)", 0.0),
}


def invariance_table(table: pd.DataFrame, console: Console) -> None:
    """Print for each transformation how accurate a model is on the images as they are, at worst, and on average."""
    names = ("Model", "M", "", "As it is", "Lowest", "At", "Mean")
    grid = cells.grid({name: "left" if name in ("Model", "") else "right" for name in names})
    before = None
    for (model, mc, kind), rows in table.groupby(["model", "mc", "transformation"], sort=False):
        title, _, identity = PANELS[str(kind)]
        still = rows.loc[rows["value"] == identity, "accuracy"]
        grid.add_row(
            *([plain(model), str(mc)] if (model, mc) != before else ["", ""]),
            title.lower(),
            cells.percent(still.iloc[0] if len(still) else None),
            *_lowest(rows, "°" if kind == "rotate" else ""),
            cells.percent(rows["accuracy"].mean()),
        )
        before = (model, mc)
    console.print(Text("Accuracy on transformed images, %", style="bold"))
    console.print(grid)
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images."))


def _lowest(rows: pd.DataFrame, unit: str) -> tuple[str, str]:
    """The lowest accuracy of a curve, and its place: chosen on one half of the images and read on the other, both ways
    round, because the lowest of many values is partly chance."""
    first, second = (rows.get(f"accuracy_{half}_half", rows["accuracy"]).to_numpy() for half in ("first", "second"))
    images, places = int(rows["images"].iloc[0]), (int(second.argmin()), int(first.argmin()))
    weight = (images + 1) // 2 / images
    rate = rate_of(float(weight * first[places[0]] + (1 - weight) * second[places[1]]), images)
    values = dict.fromkeys(f"{rows['value'].iloc[place]:g}{unit}" for place in places)
    return cells.with_interval(rate.value, rate.low, rate.high), ", ".join(values)


def invariance_figure(table: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: a panel for each transformation, a line per model."""
    kinds = [kind for kind in PANELS if kind in set(table["transformation"])]
    models, ms = list(dict.fromkeys(table["model"])), sorted(table["mc"].unique())

    def draw(figure: Figure) -> None:
        panels, lines = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], {}
        for axes, kind in zip(panels, kinds, strict=True):
            shown = table[table["transformation"] == kind]
            for (model, mc), rows in shown.groupby(["model", "mc"], sort=False):
                style = look(models.index(model), ms.index(mc))  # M shows in the dashes
                style |= {"markersize": 4.2 if len(rows) <= 30 else 0, "linewidth": 1.6}
                several = table.loc[table["model"] == model, "mc"].nunique() > 1
                name = shortened(str(model)) + (f", M = {mc}" if several else "")
                lines[name] = draw_line(axes, "value", rows, style)
            panel, label, identity = PANELS[kind]
            dress_titled(axes, label, "accuracy" if axes is panels[0] else "", panel)
            if shown["value"].min() <= identity <= shown["value"].max():
                draw_mark(axes, identity)
            _ticks_of(axes, kind, float(shown["value"].min()), float(shown["value"].max()))
        share_axis(panels[0], table)
        names = list(lines)
        legend(figure, list(lines.values()), names, ncols=min(6, len(names)), fontsize=8.5, handlelength=2.6)

    size = max(5.2, 4.3 * len(kinds)), 4.2
    return rendered("summary", size, f"Accuracy on transformed images: {title}", draw)


def _ticks_of(axes: Axes, kind: str, low: float, high: float) -> None:
    """Quarter turns as degrees; factors on an axis where half and double are equally far from 1."""
    if kind == "rotate" and high - low >= 90:
        step = 90 if high - low > 200 else 45
        set_ticks(axes, [step * turn for turn in range(int(low // step), int(high // step) + 1)], "{:g}°")
    if kind == "scale" and high > low:
        axes.set_xscale("log", base=2)
        marks = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 8)
        set_ticks(axes, [mark for mark in marks if low <= mark <= high], "×{:g}")
