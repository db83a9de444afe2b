"""Accuracy by corruption and severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.protocol.ranking import as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.pictures import displayable
from robustbench_lpm.reporting.plots import legend, look, shortened
from robustbench_lpm.reporting.studies.drawing import draw_line, dress_titled, rendered, share_axis
from robustbench_lpm.statistics import rate_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def corruptions_table(table: pd.DataFrame, console: Console, reference: str = "") -> None:
    """Print for each model and M the accuracy under each corruption at each severity, then the means of all models.

    reference: the model to which the mean corruption error is related; "" for none.
    """
    severities = [int(severity) for severity in sorted(set(table["severity"]) - {0})]
    corrupted = table[table["severity"] > 0]
    for (model, mc), rows in corrupted.groupby(["model", "mc"], sort=False):
        grid = cells.grid({"": "left", **dict.fromkeys((*map(str, severities), "Mean"), "right")})
        for kind, found in rows.groupby("corruption", sort=False):
            shares = dict(zip(found["severity"], found["accuracy"], strict=True))
            shown = [shares[severity] for severity in severities] + [found["accuracy"].mean()]
            grid.add_row(str(kind), *map(cells.percent, shown))
        console.print(Text(f"{plain(model)}, M = {mc}: accuracy, %, by severity", style="bold"))
        console.print(grid)
        console.print()
    heads = ("M", "Clean", "Corrupted", *["mCE"] * bool(reference))
    summary = cells.grid({"Model": "left", **dict.fromkeys(heads, "right")})
    theirs = _errors(corrupted[(corrupted["model"] == reference) & (corrupted["mc"] == 1)])
    theirs = theirs[theirs > 0]
    for (model, mc), rows in corrupted.groupby(["model", "mc"], sort=False):
        clean = table[(table["model"] == model) & (table["mc"] == mc) & (table["severity"] == 0)]
        mean = rate_of(float(rows["accuracy"].mean()), int(rows["images"].iloc[0]))
        related = [cells.percent((_errors(rows) / theirs).mean())] * bool(reference)
        both = cells.rate(as_rows(clean)[0], "accuracy"), cells.with_interval(mean.value, mean.low, mean.high)
        summary.add_row(plain(model), str(mc), *both, *related)
    console.print(Text("Mean over corruptions and severities, %", style="bold"))
    console.print(summary)
    told = f" mCE: mean error in % of that of {plain(reference)}, over the {len(theirs)} corruptions where it errs."
    images = f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images."
    console.print(Text(images + told * bool(reference)))


def _errors(rows: pd.DataFrame) -> pd.Series[float]:
    """The error under each corruption, over all severities: the terms of the mean corruption error (section 4.2)."""
    return 1 - rows.groupby("corruption")["accuracy"].mean()


def corruptions_figures(
    table: pd.DataFrame, pictures: NDArray[np.float32], kinds: Sequence[str], severities: Sequence[int], title: str
) -> dict[str, bytes]:
    """Accuracy against severity, a panel for each corruption, as {"summary.png", "summary.svg"}; and "images.png".

    pictures: one image under each corruption at each severity, (corruptions, severities, C, H, W).
    """
    models, ms = list(dict.fromkeys(table["model"])), sorted(table["mc"].unique())
    columns = min(5, len(kinds))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(-(-len(kinds) // columns), columns, sharex=True, sharey=True, squeeze=False)
        lines = {}
        for axes, kind in zip(panels.flat, kinds, strict=False):
            shown = table[table["corruption"].isin([kind, "none"])]
            for (model, mc), rows in shown.groupby(["model", "mc"], sort=False):
                style = look(models.index(model), ms.index(mc)) | {"markersize": 4, "linewidth": 1.5}
                several = table.loc[table["model"] == model, "mc"].nunique() > 1
                lines[shortened(str(model)) + (f", M = {mc}" if several else "")] = draw_line(
                    axes, "severity", rows, style
                )
            dress_titled(axes, "", "accuracy" if axes in panels[:, 0] else "", kind.replace("-", " "))
            axes.locator_params(axis="x", integer=True)
        for axes in panels.flat[len(kinds) :]:
            axes.set_visible(False)
        share_axis(panels[0, 0], table)
        figure.supxlabel("severity; 0: as it is", fontsize=9)
        legend(figure, list(lines.values()), list(lines), ncols=min(6, len(lines)), fontsize=8.5)

    def show(figure: Figure) -> None:
        panels = figure.subplots(len(kinds), len(severities), squeeze=False)
        for row, of_kind, kind in zip(panels, pictures, kinds, strict=True):
            for axes, image, severity in zip(row, of_kind, severities, strict=True):
                axes.imshow(displayable(image), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.set_title(f"severity {severity}" if axes in panels[0] else "", fontsize=8)
            row[0].set_ylabel(kind.replace("-", "\n"), rotation=0, ha="right", va="center", fontsize=8)

    size = max(5.2, 2.2 * columns), 1.2 + 1.7 * -(-len(kinds) // columns)
    found = rendered("summary", size, f"Accuracy under corruption: {title}", draw)
    size = 1.1 + 1.15 * len(severities), 0.5 + 1.15 * len(kinds)
    return found | {"images.png": rendered("images", size, "One image under each corruption", show)["images.png"]}
