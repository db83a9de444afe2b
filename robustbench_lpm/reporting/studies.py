"""The studies, as tables for the terminal and as figures.

Each shows a table and runs nothing. A table has columns accuracy, accuracy_low and accuracy_high in
[0, 1] (for glimpses: clean_accuracy, ...), and a row for each M ("mc") and value of what else was varied. That of
certify has a row for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.protocol.ranking import Row, as_rows
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.pictures import displayable, drawing, saved
from robustbench_lpm.reporting.plots import COLOURS, MARKERS, dress, legend, look, per_cent, shortened
from robustbench_lpm.statistics import certified_radius, rate, rate_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

WITH_INTERVALS = 3  # columns that fit into 80 characters with their intervals; of more, the first alone has them
PANELS = {  # title, axis, and where the image is as it was
    "rotate": ("Turned", "degrees against the clock, about the centre", 0.0),
    "scale": ("Scaled", "magnification, about the centre", 1.0),
    "translate": ("Moved", "share of the side, to the right or down (mean)", 0.0),
}
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


# Sweep: accuracy for every number of glimpses and of averaged runs


def sweep_table(table: pd.DataFrame, console: Console) -> None:
    """Print a row for each number of glimpses and a column for each M, in per cent."""
    ms = sorted(table["mc"].unique())
    rows = {(row["glimpses"], row["mc"]): row for row in as_rows(table)}
    grid = cells.grid(dict.fromkeys(("Glimpses", *(f"M = {m}" for m in ms)), "right"))
    for t in sorted(table["glimpses"].unique()):
        short = [cells.percent(rows[t, m]["accuracy"]) for m in ms]
        full = [cells.rate(rows[t, m], "accuracy") for m in ms]
        grid.add_row(str(t), *(full if len(ms) <= WITH_INTERVALS else [full[0], *short[1:]]))
    console.print(Text("Accuracy, %, after each number of glimpses, of M averaged runs", style="bold"))
    console.print(grid)
    draws = ", ".join(f"{rows['draws'].iloc[0]} at M = {m}" for m, rows in table.groupby("mc"))
    console.print(Text(f"{table['images'].iloc[0]:,} image(s); draws: {draws}. Intervals (95 %) are over images."))


def sweep_figure(table: pd.DataFrame, title: str, usual: int) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: accuracy against glimpses, and against their cost.

    usual: the number of glimpses on the model's card, which is marked.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for m, style in _styles_of_mc(table).items():
            rows = table[table["mc"] == m]
            _line(left, "glimpses", rows, style | {"label": f"M = {m}"})
            _line(right, "cost", rows.assign(cost=rows["mc"] * rows["glimpses"]), style, band=False)
        _dress(left, "glimpses t of a run", "accuracy on clean images", "What more glimpses and more runs bring")
        _dress(right, "glimpses per decision, M · t", "", "The same at equal compute")
        _shares(left, table)
        left.locator_params(axis="x", integer=True)
        right.set_xscale("log", base=2)
        _ticks(right, [2.0**power for power in range(20)], "{:g}")
        names = left.get_legend_handles_labels()
        if table["glimpses"].min() <= usual <= table["glimpses"].max():
            _mark(left, usual)
            left.annotate(
                "the card's T", (usual, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", fontsize=8, color="0.35",
            )  # fmt: skip
        legend(figure, *names, ncols=min(8, len(names[0])), fontsize=8.5)

    return _rendered("summary", (9.4, 4.3), title, draw)


# Invariance: accuracy on rotated, scaled and translated images


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
                lines[name] = _line(axes, "value", rows, style)
            panel, label, identity = PANELS[kind]
            _dress(axes, label, "accuracy" if axes is panels[0] else "", panel)
            if shown["value"].min() <= identity <= shown["value"].max():
                _mark(axes, identity)
            _ticks_of(axes, kind, float(shown["value"].min()), float(shown["value"].max()))
        _shares(panels[0], table)
        names = list(lines)
        legend(figure, list(lines.values()), names, ncols=min(6, len(names)), fontsize=8.5, handlelength=2.6)

    size = max(5.2, 4.3 * len(kinds)), 4.2
    return _rendered("summary", size, f"Accuracy on transformed images: {title}", draw)


def _ticks_of(axes: Axes, kind: str, low: float, high: float) -> None:
    """Quarter turns as degrees; factors on an axis where half and double are equally far from 1."""
    if kind == "rotate" and high - low >= 90:
        step = 90 if high - low > 200 else 45
        _ticks(axes, [step * turn for turn in range(int(low // step), int(high // step) + 1)], "{:g}°")
    if kind == "scale" and high > low:
        axes.set_xscale("log", base=2)
        marks = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 8)
        _ticks(axes, [mark for mark in marks if low <= mark <= high], "×{:g}")


# Certify: the share of images that are right, and certified, up to each radius


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
        _dress(
            axes, label, "certified accuracy", f"Smoothed with sigma {table['sigma'].iloc[0]:g}; dotted: without noise"
        )
        axes.set_xlim(0, 1.03 * largest)
        per_cent(axes, -0.02, 1.02)
        legend(figure, list(lines.values()), list(lines), ncols=min(4, len(lines)), fontsize=8.5)

    return _rendered("summary", (6.0, 4.2), f"Certified accuracy: {title}", draw)


# Corruptions: accuracy by corruption and severity


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
                lines[shortened(str(model)) + (f", M = {mc}" if several else "")] = _line(axes, "severity", rows, style)
            _dress(axes, "", "accuracy" if axes in panels[:, 0] else "", kind.replace("-", " "))
            axes.locator_params(axis="x", integer=True)
        for axes in panels.flat[len(kinds) :]:
            axes.set_visible(False)
        _shares(panels[0, 0], table)
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
    found = _rendered("summary", size, f"Accuracy under corruption: {title}", draw)
    size = 1.1 + 1.15 * len(severities), 0.5 + 1.15 * len(kinds)
    return found | {"images.png": _rendered("images", size, "One image under each corruption", show)["images.png"]}


# Spatial: accuracy on the worst rotation and translation of each image


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
        _dress(axes, "", "accuracy", "")
        axes.set_xticks(list(places.values()), [words.replace(", ", ",\n") for words in searches.values()], fontsize=8)
        per_cent(axes, 0, 1.04)
        legend(figure, marks, [shortened(str(model)) for model in models], ncols=min(6, len(models)), fontsize=8.5)

    return _rendered("summary", (8.6, 4.2), f"Accuracy on turned and moved images: {title}", draw)


# Glimpses: the accuracy after each glimpse, and how far an attack moves the fixations


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

    return _rendered("glimpses", (4.3 * panels, 4.0), title, draw)


def _curves(
    axes: Axes, rows: pd.DataFrame, x: str, curves: Mapping[str, tuple[str, str, str]], label: str, y: str, title: str
) -> None:
    """Columns against another, with their intervals as bands."""
    for number, (column, (_, name, colour)) in enumerate(curves.items()):
        style = {"color": colour, "marker": MARKERS[number], "markersize": 5, "linewidth": 1.7, "label": name}
        _line(axes, x, rows, style, column)
    _dress(axes, label, y, title)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0)


def _draw_compute(axes: Axes, accuracies: pd.DataFrame) -> None:
    """Accuracy against the glimpses that a decision costs, a line for each M."""
    for m, style in _styles_of_mc(accuracies).items():
        rows, clean = accuracies[accuracies["mc"] == m], {"linewidth": 1.1, "linestyle": "--", "alpha": 0.8}
        x = "glimpses_per_decision"
        _line(axes, x, rows, style | {"label": f"M = {m}"}, "attacked_accuracy", band=False)
        _line(axes, x, rows, style | clean, "clean_accuracy", band=False)
    axes.plot([], [], color="0.3", linestyle="--", label="clean")
    axes.plot([], [], color="0.3", label="attacked (all glimpses)")
    _dress(axes, "glimpses per decision, M · t", "accuracy", "At equal compute: averaging M runs")
    axes.locator_params(axis="x", integer=True)
    per_cent(axes, -0.02, 1.02)
    axes.legend(
        frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16), borderaxespad=0,
        columnspacing=1.2, handlelength=1.8,
    )  # fmt: skip


# Curve: accuracy against every eps


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
        _dress(axes, f"eps ({cells.norm(norm)})", "accuracy", "")
        axes.set_xlim(0, last)
        per_cent(axes, -0.02, 1.02)
        legend(figure, lines, names, ncols=2, fontsize=8.5)

    return _rendered("summary", (6.2, 4.2), f"Accuracy against eps: {title}", draw)


# Converge: accuracy against the length of an attack


SURE = {"more": "takes more", "less": "takes less than a point", "undecided": "undecided", "": ""}


def converge_table(table: pd.DataFrame, limits: pd.DataFrame, console: Console) -> None:
    """Print a row for each length, with what each doubling takes, then the limit: model, value, low, high."""
    grid = cells.grid({"Model": "left", "Passes": "right", "Accuracy": "right", "Doubling takes": "right", "": "left"})
    ends = {row["model"]: row for row in as_rows(limits)}
    for model, rows in table.groupby("model", sort=False):
        for number, row in enumerate(as_rows(rows)):
            gain = (
                f"{100 * row['gain']:.1f} [{100 * row['gain_low']:.1f}, {100 * row['gain_high']:.1f}]" if number else ""
            )
            name = "" if number else plain(str(model))
            grid.add_row(name, f"{row['passes']:,.0f}", cells.rate(row, "accuracy"), gain, SURE[row["verdict"]])
        if end := ends.get(model):
            grid.add_row(
                "", "limit", f"{100 * end['value']:.1f} [{100 * end['low']:.1f}, {100 * end['high']:.1f}]", "", ""
            )
    console.print(Text("Accuracy against forward passes for an image, %", style="bold"))
    console.print(grid)
    console.print(
        Text(f"{table['images'].iloc[0]:,} image(s); intervals (95 %) are over images; limits by a power law.")
    )


def converge_figure(table: pd.DataFrame, limits: pd.DataFrame, title: str) -> dict[str, bytes]:
    """The figure as {"summary.png": ..., "summary.svg": ...}: a curve for each model, its limit at the right."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = {row["model"]: row for row in as_rows(limits)}
        last = float(table["passes"].max())
        for number, (model, rows) in enumerate(table.groupby("model", sort=False)):
            style = look(number) | {"label": shortened(str(model))}
            _line(axes, "passes", rows, style)
            if end := ends.get(model):
                place, half = last * 1.5 * 1.06**number, [[end["value"] - end["low"]], [end["high"] - end["value"]]]
                axes.errorbar([place], [end["value"]], yerr=half, capsize=2.5, markersize=5, **(look(number)))
        if ends:
            _mark(axes, last * 1.2)
            axes.annotate(
                "limit", (last * 1.25, 0.96), xycoords=("data", "axes fraction"), fontsize=8, color="0.35"
            )  # fmt: skip
        _dress(axes, "forward passes for an image", "accuracy under attack", "")
        axes.set_xscale("log", base=2)
        _ticks(axes, list(next(iter(table.groupby("model", sort=False)))[1]["passes"]), "{:,.0f}")
        per_cent(axes, -0.02, 1.02)
        legend(figure, *axes.get_legend_handles_labels(), ncols=min(4, table["model"].nunique()), fontsize=8.5)

    return _rendered("summary", (6.2, 4.2), f"Accuracy against passes: {title}", draw)


# What the figures share


def _rendered(name: str, size: tuple[float, float], title: str, draw: Callable[[Figure], None]) -> dict[str, bytes]:
    """A figure of size (width, height) in inches, filled by `draw`, as {"NAME.png", "NAME.svg"}: always the same."""
    with drawing(size) as figure:
        draw(figure)
        figure.suptitle(plain(title), fontsize=11)
        return {f"{name}.{kind}": saved(figure, kind) for kind in ("png", "svg")}


def _styles_of_mc(table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """The style of each M: shades in the order of their size."""
    from matplotlib import colormaps

    ms = sorted(int(m) for m in table["mc"].unique())
    return {
        m: {"color": colormaps["viridis"]((number + 1) / (len(ms) + 2)), "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4.5, "linewidth": 1.6}
        for number, m in enumerate(ms)
    }  # fmt: skip


def _line(
    axes: Axes, x: str, rows: pd.DataFrame, style: dict[str, Any], y: str = "accuracy", *, band: bool = True
) -> Any:
    """A column against another, growing, with its intervals as a band; the line that was drawn in this style."""
    rows = rows.sort_values(x)
    (line,) = axes.plot(rows[x], rows[y], **style)
    if band:
        axes.fill_between(rows[x], rows[f"{y}_low"], rows[f"{y}_high"], color=style["color"], alpha=0.12, linewidth=0)
    return line


def _dress(axes: Axes, x: str, y: str, title: str) -> None:
    dress(axes, x, y)
    axes.set_title(title, loc="left", fontsize=10)


def _mark(axes: Axes, x: float) -> None:
    axes.axvline(x, color="0.35", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)


def _shares(axes: Axes, table: pd.DataFrame) -> None:
    """The axis of accuracies in per cent, from 0 or, if all are above a half, from below the lowest."""
    lowest = float(table[["accuracy", "accuracy_low"]].min().min())
    bottom = min(0.98, int(100 * lowest) / 100) if lowest >= 0.5 else 0.0
    per_cent(axes, bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom))


def _ticks(axes: Axes, marks: list[float], words: str) -> None:
    """Marks on the x axis at these values alone, written as `words` says; the limits stay."""
    limits = axes.get_xlim()
    axes.set_xticks(marks, [words.format(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_xlim(limits)
