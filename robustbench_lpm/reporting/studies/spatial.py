"""Accuracy on the worst rotation and translation of each image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.protocol.ranking import as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.plots import legend, look, per_cent, shortened
from robustbench_lpm.reporting.studies.drawing import dress_titled, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spatial_table(table: pd.DataFrame, console: Console) -> None:
    """Print a row for each search and a column for each model, in per cent."""
    models = list(dict.fromkeys(table["model"]))
    rows = {(row["searched"], row["model"]): row for row in as_rows(table)}
    grid = cells.grid({"": "left", **dict.fromkeys(map(plain, models), "right")})
    for searched, words in _searches(table).items():
        found = [rows[searched, model] for model in models]
        short = [cells.percent(row["accuracy"]) for row in found]
        grid.add_row(words, *([cells.rate(row, "accuracy") for row in found] if len(models) <= 2 else short))
    console.print(Text("Accuracy on turned and moved images, %", style="bold"))
    console.print(grid)
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images."))


def _searches(table: pd.DataFrame) -> dict[str, str]:
    """The searches of a table, the weakest first, in words."""
    return dict(zip(table["searched"], table["words"], strict=True))


def spatial_figure(table: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: accuracy for each search, a mark for each model."""
    models, searches = list(dict.fromkeys(table["model"])), _searches(table)
    places = {searched: place for place, searched in enumerate(searches)}

    def draw(figure: Figure) -> None:
        axes, marks = figure.subplots(), []
        for number, model in enumerate(models):
            rows, style = table[table["model"] == model], look(number)
            shift = 0.7 * ((number + 0.5) / len(models) - 0.5)
            x = [places[searched] + shift for searched in rows["searched"]]
            lengths = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
            ends = [length.clip(lower=0) for length in lengths]  # from 1, rounding may go down
            axes.bar(x, rows["accuracy"], width=0.62 / len(models), color=style["color"], alpha=0.25)
            marks.append(axes.errorbar(
                x, rows["accuracy"], yerr=ends, color=style["color"], marker=style["marker"], linestyle="", capsize=2
            ))  # fmt: skip
        dress_titled(axes, "", "accuracy", "")
        axes.set_xticks(list(places.values()), [words.replace(", ", ",\n") for words in searches.values()], fontsize=8)
        per_cent(axes, 0, 1.04)
        legend(figure, marks, [shortened(str(model)) for model in models], ncols=min(6, len(models)), fontsize=8.5)

    return rendered("summary", (8.6, 4.2), f"Accuracy on turned and moved images: {title}", draw)
