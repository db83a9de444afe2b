"""Plots of accuracy against eps, and against queries, as small SVG; and the looks that figures share.

The same table gives the same bytes; text stays text, lines take the text colour of the page, every curve is labelled
at its end, and each plot holds its numbers in words.

A plot is drawn only where there are at least two points, the clean accuracy (eps = 0, one pass) being one of them; runs
with failed examples are left out, because the failed ones could be right or wrong, and so are the probes of audits.
"""

from __future__ import annotations

import math
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Readable on white and on near-black alike (contrast of at least 3 to 1 with both).
COLOURS = ("#2f7fc1", "#d9722e", "#2a9a78", "#cf4a5b", "#8a6ac4", "#9c7a2c", "#cc5f9b", "#6b7f92")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: Any = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
# The outline of each marker from its centre, about 7 pixels wide.
OUTLINES = {
    "o": "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0-6,0z",
    "s": "m-2.7-2.7h5.4v5.4h-5.4z",
    "^": "m0-3.6l3.4,6h-6.8z",
    "D": "m0-3.8l3.8,3.8l-3.8,3.8l-3.8-3.8z",
    "v": "m0,3.6l3.4-6h-6.8z",
    "P": "m-1.2-3.5h2.4v2.3h2.3v2.4h-2.3v2.3h-2.4v-2.3h-2.3v-2.4h2.3z",
    "X": "m-3.4-1.7l1.7-1.7l1.7,1.7l1.7-1.7l1.7,1.7l-1.7,1.7l1.7,1.7l-1.7,1.7l-1.7-1.7l-1.7,1.7l-1.7-1.7l1.7-1.7z",
    "h": "m0-3.5l3,1.7v3.5l-3,1.7l-3-1.7v-3.5z",
}
SCENE = ["dataset", "size", "norm", "mc", "image_set"]
LINE = 46  # characters that fit across a plot
# In pixels of a drawing: its width, the height of its axes without labels that need more, the space for the numbers of
# the axes, the least distance of two labels and of two numbers, and the width of a character.
WIDTH, AXES, LEFT, BELOW, LABELS, NUMBERS, CHARACTER = 420, 190, 38, 40, 13, 34, 6.4
WORST = "lowest over all attacks"
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Figure:
    """One plot: its place in the report, its title, and its drawing."""

    name: str  # of the file, and the prefix of every id inside the drawing
    scene: str  # data, size, norm, M
    attack: str
    kind: str  # what the accuracy is drawn against: "eps" or "queries"
    places: int  # on the x axis, at which there is a point
    inline: str  # an <svg> element for an HTML page
    standalone: str  # the same as a file of its own


class _Axis(NamedTuple):
    """The x axis of a plot of accuracy."""

    kind: str
    label: str
    text: Callable[[float], str]  # of a place on it
    steps: bool = False  # a staircase on a logarithmic scale


def accuracy_plots(runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Figure]:
    """One plot per dataset, size, norm, M, image set and attack, the lowest over all attacks first."""
    rows = [row for row in as_rows(runs) if not row["probe"]]
    names, found = _in_order(rows), []
    for scene, images, attack, points in _facets(rows, as_rows(ranked)):
        curves = _curves(points)
        # A single image gives no accuracy: its picture shows more than a line from 100 to 0 %.
        if curves["x"].nunique() >= 2 and max(point["images"] for point in points) > 1:
            axis = _Axis("eps", f"eps ({cells.norm(scene[2])})", partial(cells.eps, threat=scene[2]))
            identity = [*map(str, scene), images, attack]
            words = _scene_words(scene, points[0]["images_text"])
            found.append(_figure(words, attack, curves, names, axis, identity))
    return found


def _in_order(rows: Sequence[Row]) -> list[str]:
    """All models, those of one dataset side by side: the order gives each its look, the same in every plot."""
    first: dict[str, str] = {}
    for row in rows:
        first[model_name(row)] = min(first.get(model_name(row), row["dataset"]), row["dataset"])
    return sorted(first, key=lambda name: (first[name], name))


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


def query_plots(runs: pd.DataFrame) -> list[Figure]:
    """One plot per budget and image set: accuracy under the strongest of the attacks of at most so many passes."""
    rows = [row for row in as_rows(runs) if not row["probe"]]
    listed = [row for row in rows if not row["failed_examples"] and row["knowledge"] != CONTROL]
    names, found = _in_order(rows), []
    for (*scene, images, eps, eps_text), points in grouped(listed, [*SCENE, "eps", "eps_text"]).items():
        curves = _best_so_far(points)
        # One attack makes no curve; see also `accuracy_plots`.
        if curves.groupby("series").size().max() > 2 and max(point["images"] for point in points) > 1:
            words = _scene_words(scene, points[0]["images_text"])
            words[2] += f" eps {eps_text}"
            axis = _Axis("queries", "forward passes for each image", cells.count, steps=True)
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
    return [dataset, cells.size(size), cells.norm(norm), f"M = {mc}", images]


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
    title = f"Accuracy against {axis.kind}, {scene}, {attack}"
    root = _drawing(curves, axis, [*textwrap.wrap(scene, 62)[:2], attack], names)
    for place, (tag, text, role) in enumerate(
        (("title", title, "labelledby"), ("desc", _told(curves, axis), "describedby"))
    ):
        element = ElementTree.Element(tag, {"id": f"plot-{name}-{tag}"})
        element.text = plain(text)
        root.insert(place, element)
        root.set(f"aria-{role}", f"plot-{name}-{tag}")
    inline = ElementTree.tostring(root, encoding="unicode")
    root.set("xmlns", SVG)
    standalone = ElementTree.tostring(root, encoding="unicode") + "\n"
    return Figure(name, scene, attack, axis.kind, curves["x"].nunique(), inline, standalone)


def _told(curves: pd.DataFrame, axis: _Axis) -> str:
    """The numbers of a plot in words, for readers who cannot see it."""
    lines = []
    for (name,), rows in grouped(as_rows(curves), ["series"]).items():
        points = [f"{cells.percent(row['accuracy'])} % at {axis.text(row['x'])}" for row in rows]
        lines.append(f"{name}: {', '.join(points)}.")
    return f"Accuracy, by {axis.label}. {' '.join(lines)}"


class _Frame(NamedTuple):
    """Where the axes of a drawing are, in its pixels, and which x is at their left and right end."""

    left: float
    right: float
    top: float
    bottom: float
    first: float
    last: float
    logarithmic: bool

    def x(self, value: float) -> float:
        low, high, at = (math.log(max(v, 1.0)) if self.logarithmic else v for v in (self.first, self.last, value))
        return self.left + (self.right - self.left) * (at - low) / ((high - low) or 1.0)

    def y(self, accuracy: float) -> float:
        return self.bottom - (self.bottom - self.top) * accuracy


def _drawing(curves: pd.DataFrame, axis: _Axis, title: Sequence[str], names: list[str]) -> ElementTree.Element:
    """The plot: one curve a model, each labelled at its end."""
    series = {name: as_rows(curves[curves["series"] == name]) for name in names if name in set(curves["series"])}
    space = 20 + CHARACTER * max(len(shortened(name, LINE // 2)) for name in series)
    top = 14.0 * len(title) + 16
    height = max(AXES, LABELS * len(series))
    first, last = (1.0 if axis.steps else 0.0), float(curves["x"].max())
    frame = _Frame(LEFT, WIDTH - space, top, top + height, first, last, axis.steps)
    root = ElementTree.Element("svg", {
        "viewBox": f"0 0 {WIDTH} {_px(frame.bottom + BELOW)}", "role": "img", "font-family": "sans-serif",
        "font-size": "11", "fill": "currentColor", "stroke-linejoin": "round",
    })  # fmt: skip
    for line, text in enumerate(title):
        _text(
            root, 0, 12 + 14 * line, shortened(text, 62), **({"font-weight": "bold"} if line == len(title) - 1 else {})
        )
    _axes(root, frame, axis, sorted(set(curves["x"])))
    ends = {name: frame.y(rows[-1]["accuracy"]) for name, rows in series.items()}
    labels = _apart(ends, frame.top, frame.bottom)
    for name, rows in series.items():
        _curve(root, frame, axis, name, rows, look(names.index(name)), labels[name])
    return root


def _axes(root: ElementTree.Element, frame: _Frame, axis: _Axis, places: Sequence[float]) -> None:
    """The scales, with a number at each place where there is room: from the left, and always at the last."""
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _px(frame.y(share))
        ElementTree.SubElement(root, "path", {
            "d": f"M{_px(frame.left)},{y}H{_px(frame.right)}", "stroke": "currentColor", "stroke-opacity": ".15",
        })  # fmt: skip
        _text(root, frame.left - 6, frame.y(share) + 4, f"{100 * share:.0f}%", **{"text-anchor": "end"})
    if axis.steps:
        places = [10.0**power for power in range(int(math.log10(max(frame.last, 1))) + 1)]
    shown: list[float] = []
    for place in [*places[-1:], *places]:
        if all(abs(frame.x(place) - frame.x(other)) >= NUMBERS for other in shown):
            shown.append(place)
            _text(root, frame.x(place), frame.bottom + 15, axis.text(place), **{"text-anchor": "middle"})
    middle = (frame.left + frame.right) / 2
    _text(root, middle, frame.bottom + 32, axis.label, **{"text-anchor": "middle"})


def _curve(
    root: ElementTree.Element, frame: _Frame, axis: _Axis, name: str, rows: Sequence[Row], style: Mapping[str, Any],
    label: float,
) -> None:  # fmt: skip
    """One curve with its intervals, markers and label; `label` is the label's height."""
    points = [(frame.x(row["x"]), frame.y(row["accuracy"])) for row in rows]
    line = f"M{_px(points[0][0])},{_px(points[0][1])}"
    line += "".join(f"H{_px(x)}V{_px(y)}" if axis.steps else f"L{_px(x)},{_px(y)}" for x, y in points[1:])
    whiskers = "".join(
        f"M{_px(x)},{_px(frame.y(row['low']))}V{_px(frame.y(row['high']))}"
        for row, (x, _) in zip(rows, points, strict=True)
        if not cells.missing(row["low"])
    )
    colour = {"stroke": style["color"], "fill": "none"}
    dashes = (
        {} if style["linestyle"] == "-" else {"stroke-dasharray": " ".join(f"{2 * d:g}" for d in style["linestyle"][1])}
    )
    group = ElementTree.SubElement(root, "g", {"class": "series"})
    if whiskers:
        ElementTree.SubElement(group, "path", {"d": whiskers, **colour, "stroke-opacity": ".45"})
    leader = f"M{_px(points[-1][0])},{_px(points[-1][1])}L{_px(frame.right + 9)},{_px(label)}"
    ElementTree.SubElement(group, "path", {"d": leader, **colour, "stroke-width": ".7", "stroke-opacity": ".7"})
    ElementTree.SubElement(group, "path", {"d": line, **colour, "stroke-width": "1.7", **dashes})
    marks = "".join(f"M{_px(x)},{_px(y)}{OUTLINES[style['marker']]}" for x, y in points)
    ElementTree.SubElement(group, "path", {"d": marks, "fill": style["color"]})
    _text(group, frame.right + 11, label + 4, shortened(name, LINE // 2))


def _apart(heights: Mapping[str, float], top: float, bottom: float) -> dict[str, float]:
    """Heights of labels, LABELS apart at least and near where they should be, between top and bottom if they fit."""
    placed: dict[str, float] = {}
    floor = top
    for name in sorted(heights, key=lambda name: heights[name]):
        floor = placed[name] = max(heights[name], floor)
        floor += LABELS
    ceiling = bottom
    for name in reversed(list(placed)):
        ceiling = placed[name] = min(placed[name], ceiling)
        ceiling -= LABELS
    return placed


def _text(parent: ElementTree.Element, x: float, y: float, text: str, **attributes: str) -> None:
    element = ElementTree.SubElement(parent, "text", {"x": _px(x), "y": _px(y), **attributes})
    element.text = text


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def look(position: int, shift: int = 0) -> dict[str, Any]:
    """Colour, marker and dashes of a model, the same in every plot; shift: other dashes for the same model."""
    lap = position // len(COLOURS)
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + lap) % len(MARKERS)],
        "linestyle": DASHES[(lap + shift) % len(DASHES)],
    }


def shortened(name: str, longest: int = LINE) -> str:
    """A name that fits across a plot, without control characters, shortened in the middle if necessary."""
    text, half = plain(name), longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"


def legend(figure: Any, lines: Sequence[Any], names: Sequence[str], **layout: Any) -> None:
    """A legend below a figure."""
    box = figure.legend(lines, map(str, range(len(names))), loc="outside lower left", frameon=False, **layout)
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_text(shortened(name))  # set afterwards: matplotlib leaves labels that begin with "_" out of legends


def dress(axes: Axes, x: str, y: str) -> None:
    """Labels, a faint grid, no box."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color="0.3", alpha=0.13, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, which="both")


def per_cent(axes: Axes, bottom: float, top: float) -> None:
    """The axis of accuracies, in per cent."""
    axes.set_ylim(bottom, top)
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
