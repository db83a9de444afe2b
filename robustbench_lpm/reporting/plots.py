"""Plots of accuracy against eps, and against queries, as SVG. The same table gives the same bytes; text stays text,
lines take the text colour of the page, and each plot holds its numbers in words.

A plot is drawn only where there are at least two points, the clean accuracy (eps = 0, one pass) being one of them; runs
with failed examples are left out, because the failed ones could be right or wrong, and so are the probes of audits.
"""

from __future__ import annotations

import re
import textwrap
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.protocol.ranking import (
    CONTROL,
    MODEL,
    RATES,
    TIE,
    Row,
    as_rows,
    attack_name,
    columns_of,
    grouped,
    model_name,
    strongest,
)
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.pictures import drawing, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Readable on white and on near-black alike (contrast of at least 3 to 1 with both).
COLOURS = ("#2f7fc1", "#d9722e", "#2a9a78", "#cf4a5b", "#8a6ac4", "#9c7a2c", "#cc5f9b", "#6b7f92")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
INK = "#010203"  # drawn by matplotlib, then replaced by currentColor, so that dark pages get light lines
SCENE = ["dataset", "size", "norm", "mc", "image_set"]
LINE, COLUMN = 46, 24  # characters that fit across a plot, and into half of it
WORST = "lowest over all attacks"
SVG = "http://www.w3.org/2000/svg"
STYLE: dict[str, Any] = {
    "axes.titlesize": 10,
    "legend.fontsize": 8.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
}


@dataclass(frozen=True)
class Figure:
    """One plot: its place in the report, its title, and its drawing."""

    name: str  # of the file, and the prefix of every id inside the drawing
    scene: str  # data, size, norm, M
    attack: str
    inline: str  # an <svg> element for an HTML page
    standalone: str  # the same as a file of its own


class _Axis(NamedTuple):
    """The x axis of a plot of accuracy."""

    kind: str
    label: str
    unit: float = 1.0  # x is multiplied by it
    steps: bool = False  # a staircase on a logarithmic scale


def accuracy_plots(runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Figure]:
    """One plot per data set, size, norm, M, image set and attack, the lowest over all attacks first."""
    rows = [row for row in as_rows(runs) if not row["probe"]]
    names, found = sorted(set(map(model_name, rows))), []  # the order of the names gives each model its look
    for scene, images, attack, points in _facets(rows, as_rows(ranked)):
        curves = _curves(points)
        # A single image gives no accuracy: its picture shows more than a line from 100 to 0 %.
        if curves["x"].nunique() >= 2 and max(point["images"] for point in points) > 1:
            norm = f"eps ({cells.norm(scene[2])})"
            axis = _Axis("eps", f"{norm}, in 1/255", 255.0) if scene[2] == "linf" else _Axis("eps", norm)
            identity = [*map(str, scene), images, attack]
            found.append(_figure(_scene_words(scene, images), attack, curves, names, axis, identity))
    return found


def _facets(rows: list[Row], ranked: list[Row]) -> Iterator[tuple[tuple[Any, ...], str, str, list[Row]]]:
    """The content of each plot: data, size, norm and M; the image set, if there are several; the attack; the points."""
    # A point of a ranking is drawn if no run of its model at its budget has failed examples.
    by_model = grouped(rows, [*SCENE, "eps", *MODEL]).values()
    failed = {run["record"] for mine in by_model for run in mine if any(other["failed_examples"] for other in mine)}
    whole = [row for row in rows if not row["failed_examples"]]
    sets = {scene: len(grouped(runs, ["image_set"])) for scene, runs in grouped(whole, SCENE[:-1]).items()}
    at_scene = grouped(ranked, SCENE)
    for (*scene, images), group in grouped(whole, SCENE).items():
        title, shown = tuple(scene), images if sets[tuple(scene)] > 1 else ""
        by_attack = grouped(
            [row | {"control": row["knowledge"] == CONTROL, "label": attack_name(row)} for row in group],
            ["control", "label"],
        )
        if sum(not control for control, _ in by_attack) > 1:
            points = [row for row in at_scene.get((*scene, images), []) if row["record"] not in failed]
            yield title, shown, WORST, [row for row in points if not cells.missing(row["robust_accuracy"])]
        for (control, attack), points in by_attack.items():
            yield title, shown, f"{attack} (control)" if control else attack, _strongest_of_each(points)


def _strongest_of_each(runs: Sequence[Row]) -> list[Row]:
    """One row per model and eps, of several runs of one attack under the strongest."""
    groups = grouped(runs, [*MODEL, "eps"]).values()
    return [mine[0] | columns_of("robust_accuracy", strongest(mine)[0]) for mine in groups]


def _curves(points: Sequence[Row]) -> pd.DataFrame:
    """Points to draw, from rows of one run per model and eps; the clean accuracy at eps = 0 where no run is."""
    found: dict[tuple[str, float], Row] = {}
    at_zero = {model_name(row) for row in points if row["eps"] == 0}
    # A model's runs agree on clean images, unless their seeds differ: none is chosen because it is low.
    for kind in ("robust_accuracy", "clean_accuracy"):
        for row in points:
            x = row["eps"] if kind == "robust_accuracy" else 0.0
            accuracy, low, high = (row[name] for name in RATES if name.startswith(kind))
            if not cells.missing(accuracy) and not (kind == "clean_accuracy" and model_name(row) in at_zero):
                point = {"series": model_name(row), "x": x, "accuracy": accuracy, "low": low, "high": high}
                found.setdefault((model_name(row), x), point)
    return _points(row for _, row in sorted(found.items()))


def _points(rows: Iterator[Row]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["series", "x", "accuracy", "low", "high"])
    return found.astype(dict.fromkeys(("x", "accuracy", "low", "high"), "float64"))


def query_plots(runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Figure]:
    """One plot per budget and image set: accuracy under the strongest of the attacks of at most so many passes."""
    rows = [row for row in as_rows(runs) if not row["probe"]]
    listed = [row for row in rows if not row["failed_examples"] and row["knowledge"] != CONTROL]
    several = {row["image_set"] for row in as_rows(ranked) if row["image_sets"] > 1}
    names, found = sorted(set(map(model_name, rows))), []  # the order of the names gives each model its look
    for (*scene, images, eps, eps_text), points in grouped(listed, [*SCENE, "eps", "eps_text"]).items():
        curves = _best_so_far(points)
        # One attack makes no curve; see also `accuracy_plots`.
        if curves.groupby("series").size().max() > 2 and max(point["images"] for point in points) > 1:
            words = _scene_words(scene, images if images in several else "")
            words[2] += f" eps {eps_text}"
            axis = _Axis("queries", "forward passes for each image", steps=True)
            identity = [*map(str, scene), images, repr(float(eps)), "queries"]
            found.append(_figure(words, WORST, curves, names, axis, identity))
    return found


def _best_so_far(points: Sequence[Row]) -> pd.DataFrame:
    """Per model the accuracy under the strongest attack so far, by increasing cost; at one pass the clean accuracy.

    x counts forward passes; runs that cost more without a lower accuracy make no point.
    """
    rows: dict[tuple[str, float], Row] = {}
    for name, mine in grouped([point | {"series": model_name(point)} for point in points], ["series"]).items():
        ordered = sorted(mine, key=lambda run: (run["forwards"], run["record"]))
        # An attack without passes of the model, such as transfer, is drawn at one pass, too.
        costs = [max(1.0, float(run["forwards"])) for run in ordered]
        last = {"series": name[0], "x": 1.0, "accuracy": float(ordered[0]["clean_accuracy"]), "low": None, "high": None}
        rows[name[0], 1.0] = last
        for count, x in enumerate(costs, 1):
            rate, _ = strongest(ordered[:count])
            if abs(rate.value - last["accuracy"]) > TIE:
                last = last | {"x": x, "accuracy": rate.value, "low": rate.low, "high": rate.high}
                rows[name[0], x] = last
        if last["x"] < costs[-1]:
            rows[name[0], costs[-1]] = last | {"x": costs[-1], "low": None, "high": None}
    return _points(iter(rows.values()))


def _scene_words(scene: Sequence[Any], images: str) -> list[str]:
    dataset, size, norm, mc = scene
    return [dataset, cells.size(size), cells.norm(norm), f"M = {mc}", *([f"image set {images}"] if images else [])]


def left_over(folder: Path, written: Sequence[Path]) -> list[Path]:
    """The plots in a directory that `_figure` made earlier and not now; other files are not ours."""
    others = sorted(set(folder.glob("*.svg")).difference(written))
    return [path for path in others if f'aria-labelledby="plot-{path.stem}-title"'.encode() in path.read_bytes()]


def _figure(
    words: list[str], attack: str, curves: pd.DataFrame, names: list[str], axis: _Axis, identity: list[str]
) -> Figure:
    scene = ", ".join(words)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", " ".join([*identity[:3], f"mc{identity[3]}", *identity[4:]])).strip("-")[:80]
    name = f"{slug}-{sha256_of_value(identity)[:6]}"
    drawing = _draw(curves, axis, attack, scene, names)
    title = f"Accuracy against {axis.kind}, {scene}, {attack}"
    root = _tidy(drawing, f"plot-{name}-", title, _told(curves, axis))
    inline = ElementTree.tostring(root, encoding="unicode")
    root.set("xmlns", SVG)
    return Figure(name, scene, attack, inline, ElementTree.tostring(root, encoding="unicode") + "\n")


def _told(curves: pd.DataFrame, axis: _Axis) -> str:
    """The numbers of a plot in words, for readers who cannot see it."""
    lines = []
    for (name,), rows in grouped(as_rows(curves), ["series"]).items():
        places = [cells.count(row["x"]) if axis.steps else f"{row['x'] * axis.unit:.4g}" for row in rows]
        points = [f"{cells.percent(row['accuracy'])} % at {x}" for row, x in zip(rows, places, strict=True)]
        lines.append(f"{name}: {', '.join(points)}.")
    return f"Accuracy, by {axis.label}. {' '.join(lines)}"


def _draw(curves: pd.DataFrame, axis: _Axis, attack: str, scene: str, names: list[str]) -> bytes:
    """The plot as seaborn draws it."""
    import seaborn

    present = [name for name in names if name in set(curves["series"])]
    columns = 2 if max(map(len, present)) <= COLUMN else 1
    size = 4.9, 3.3 + 0.2 * -(-len(present) // columns)
    with drawing(size, style=STYLE) as canvas, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs missing here do not matter: the reader's fonts draw the text
        axes = canvas.subplots()
        for name in present:
            rows, style = curves[curves["series"] == name], look(names.index(name))
            x, drawstyle = rows["x"] * axis.unit, "steps-post" if axis.steps else "default"
            seaborn.lineplot(
                x=x, y=rows["accuracy"], ax=axes, errorbar=None, **style, linewidth=1.6, markersize=5.5,
                markeredgecolor="none", drawstyle=drawstyle, clip_on=False,
            )  # fmt: skip
            axes.vlines(x, rows["low"], rows["high"], color=style["color"], alpha=0.45, lw=1.2)
        _scale(axes, axis)
        lines = textwrap.wrap(scene, LINE)
        axes.set_title("\n".join(map(shortened, [*lines[:2], attack])), loc="left")
        legend(canvas, axes.lines, present, ncols=columns, handlelength=2.4, borderpad=0, borderaxespad=0.2)
        return saved(canvas, "svg", transparent=True)


def look(position: int, shift: int = 0) -> dict[str, Any]:
    """Colour, marker and dashes of a model, the same in every plot; shift: other dashes for the same model."""
    lap = position // len(COLOURS)
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + lap) % len(MARKERS)],
        "linestyle": DASHES[(lap + shift) % len(DASHES)],
    }


def shortened(name: str) -> str:
    """A name that fits across a plot, without control characters, shortened in the middle if necessary."""
    text, half = plain(name), LINE // 2
    return text if len(text) <= LINE else f"{text[: half - 1]}…{text[-half:]}"


def legend(figure: Any, lines: Sequence[Any], names: Sequence[str], **layout: Any) -> None:
    """A legend below a figure."""
    box = figure.legend(lines, map(str, range(len(names))), loc="outside lower left", frameon=False, **layout)
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_text(shortened(name))  # set afterwards: matplotlib leaves labels that begin with "_" out of legends


def _scale(axes: Axes, axis: _Axis) -> None:
    dress(axes, axis.label, "accuracy", INK)
    per_cent(axes, -0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.margins(x=0.03)
    axes.spines[:].set_alpha(0.4)
    if axis.steps:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda x, _: cells.count(x))
    else:
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])


def dress(axes: Axes, x: str, y: str, ink: str = "0.3") -> None:
    """Labels, a faint grid, no box."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color=ink, alpha=0.13, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, which="both")


def per_cent(axes: Axes, bottom: float, top: float) -> None:
    """The axis of accuracies, in per cent."""
    axes.set_ylim(bottom, top)
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")


def _tidy(drawing: bytes, prefix: str, title: str, told: str) -> ElementTree.Element:
    """Matplotlib's SVG, prepared for a page: unique ids, no style sheet, no metadata, lines in currentColor.

    <title> says what it shows, <desc> its numbers.
    """
    root = ElementTree.fromstring(drawing)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            own = prefix + value if name == "id" else value.replace("url(#", f"url(#{prefix}")
            own = value.replace("#", f"#{prefix}", 1) if name == "href" else own
            element.set(name, own.replace(INK, "currentColor"))
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in ("metadata", "style")]:
            parent.remove(child)
    viewbox = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {"viewBox": viewbox, "role": "img", "stroke-linejoin": "round", "stroke-linecap": "butt"}
    for place, (tag, text, role) in enumerate((("title", title, "labelledby"), ("desc", told, "describedby"))):
        element = ElementTree.Element(tag, {"id": prefix + tag})
        element.text = text
        root.insert(place, element)
        root.set(f"aria-{role}", prefix + tag)
    return root
