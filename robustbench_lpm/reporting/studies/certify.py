"""The share of images that are right, and certified, up to each radius."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.plots import legend, look, per_cent, shortened
from robustbench_lpm.reporting.studies.drawing import dress_titled, rendered
from robustbench_lpm.statistics import certified_radius, rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITH_INTERVALS = 3  # columns that fit into 80 characters with their intervals; of more, the first alone has them


def certify_table(table: pd.DataFrame, console: Console) -> None:
    """Print for each model its accuracy without smoothing, how often it abstains smoothed, and certified accuracies."""
    models = dict(list(table.groupby("model", sort=False)))
    sigma, alpha, samples = (table[name].iloc[0] for name in ("sigma", "alpha", "samples"))
    radii = [step * sigma / 2 for step in range(1 + int(2 * _largest_radius(table) / sigma))]
    shares = {"without smoothing": {name: rows["natural"] for name, rows in models.items()}}
    shares["abstains"] = {name: rows["prediction"] < 0 for name, rows in models.items()}
    shares |= {f"radius {r:.3g}": {name: _certified(rows, r) for name, rows in models.items()} for r in radii}
    grid = cells.grid(dict.fromkeys(("", *map(plain, models)), "right"))
    for what, by_model in shares.items():
        rates = [rate(by_model[name].to_numpy()) for name in models]
        shown = [cells.with_interval(found.value, found.low, found.high) for found in rates]
        grid.add_row(what, *(shown if len(models) <= WITH_INTERVALS else [cells.percent(r.value) for r in rates]))
    console.print(Text(f"Certified accuracy, %, in L2, smoothed with sigma {sigma:g}", style="bold"))
    console.print(grid)
    images, largest = table["index"].nunique(), _largest_radius(table)
    reach = f"{samples:,} samples certify at most radius {largest:.3g}"
    console.print(Text(f"{images:,} image(s), each certified with confidence {1 - alpha:g}; {reach}."))


def _largest_radius(table: pd.DataFrame) -> float:
    """What the samples certify at most: if all of them agree, the probability is at least alpha^(1/n)."""
    alpha, samples, sigma = (float(table[name].iloc[0]) for name in ("alpha", "samples", "sigma"))
    return certified_radius(alpha ** (1 / samples), sigma)


def _certified(rows: pd.DataFrame, radius: float) -> Any:
    """Which images are right, with a certificate that reaches a radius."""
    return (rows["prediction"] == rows["label"]) & (rows["radius"] >= radius)


def certify_figure(table: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: certified accuracy against the radius, a line per model.

    A dotted line at the left is the accuracy without smoothing.
    """
    models, largest = list(dict.fromkeys(table["model"])), _largest_radius(table)

    def draw(figure: Figure) -> None:
        axes, lines = figure.subplots(), {}
        for number, model in enumerate(models):
            rows, style = table[table["model"] == model], look(number) | {"marker": "", "linewidth": 1.7}
            radii = [0.0, *sorted(rows.loc[_certified(rows, 0), "radius"]), largest]
            # Up to and including a radius that some images have, they count.
            shares = [_certified(rows, radius).mean() for radius in radii[1:-1]]
            shares = [shares[0] if shares else 0.0, *shares, 0.0 if not shares or radii[-2] < largest else shares[-1]]
            (lines[shortened(str(model))],) = axes.step(radii, shares, where="pre", **style)
            axes.plot([0, 0.06 * largest], [rows["natural"].mean()] * 2, color=style["color"], linestyle=":")
        label = "L2 radius, in pixel values"
        dress_titled(
            axes, label, "certified accuracy", f"Smoothed with sigma {table['sigma'].iloc[0]:g}; dotted: without noise"
        )
        axes.set_xlim(0, 1.03 * largest)
        per_cent(axes, -0.02, 1.02)
        legend(figure, list(lines.values()), list(lines), ncols=min(4, len(lines)), fontsize=8.5)

    return rendered("summary", (6.0, 4.2), f"Certified accuracy: {title}", draw)
