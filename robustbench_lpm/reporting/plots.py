"""Draw accuracy against eps, and against queries, as SVG: same table, same bytes; text stays text, ink takes the
colour of the page, and each drawing holds its numbers in words.

A plot is drawn only where there are at least two points, the clean accuracy (eps = 0, one pass) being one of them; runs
with failed examples are left out, for what failed could lie on either side, and so are the probes of audits.
"""

from __future__ import annotations

import re
import textwrap
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd

from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.reporting import cells, tables
from robustbench_lpm.reporting.tables import CONTROL, MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Readable on white and on near-black alike (contrast of at least 3 to 1 with both).
COLOURS = ("#2f7fc1", "#d9722e", "#2a9a78", "#cf4a5b", "#8a6ac4", "#9c7a2c", "#cc5f9b", "#6b7f92")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("", (4, 1.5), (1, 1.2), (5, 1.2, 1, 1.2))
INK = "#010203"  # drawn by matplotlib, then replaced by currentColor, so that dark pages get light ink
SCENE = ["dataset", "size", "norm", "mc", "image_set"]
LINE, COLUMN = 46, 24  # characters that fit across a plot, and into half of it
WORST = "lowest over all attacks"
SVG = "http://www.w3.org/2000/svg"
STYLE: Any = {
    "svg.hashsalt": "lpmbench",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a model may be called $\frac
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
}


@dataclass(frozen=True)
class Figure:
    """One plot: where it belongs, what it shows, and its drawing."""

    kind: Literal["eps", "queries"]  # what accuracy is drawn against
    name: str  # of the file, and the prefix of every id inside the drawing
    scene: str  # data, size, norm, M
    attack: str
    inline: str  # an <svg> element for an HTML page
    standalone: str  # the same as a file of its own


def accuracy_plots(runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Figure]:
    """One plot per data set, size, norm, M, image set and attack, the lowest over all attacks first."""
    runs = runs[~runs["probe"]]
    names = _names(runs)
    found = []
    for (*scene, images), attack, points in _facets(runs, ranked):
        curves = _curves(points).rename(columns={"eps": "x"})
        # A share of one image is no accuracy: its picture says more than a line from 100 to 0 %.
        if curves["x"].nunique() >= 2 and points["images"].max() > 1:
            identity = [*map(str, scene), images, attack]
            words = _scene_words(scene, images)
            found.append(_figure(words, attack, curves, names, _eps_axis(scene[2]), identity))
    return found


def _facets(runs: pd.DataFrame, ranked: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], str, pd.DataFrame]]:
    failed = _with_failures(runs)
    runs = runs[runs["failed_examples"] == 0]
    sets = {key: group["image_set"].nunique() for key, group in runs.groupby(SCENE[:-1])}
    for scene, group in runs.groupby(SCENE):
        title = scene if sets[scene[:-1]] > 1 else (*scene[:-1], "")
        group = group.assign(label=[cells.label(*a) for a in zip(group.attack, group.attack_variant, strict=True)])
        if group.loc[group["knowledge"] != CONTROL, "label"].nunique() > 1:
            at_scene = (ranked[SCENE] == list(scene)).all(axis=1)
            whole = ~ranked["record"].isin(failed) & ranked["robust_accuracy"].notna()
            yield title, WORST, ranked[at_scene & whole]
        for (control, attack), points in group.groupby([group["knowledge"] == CONTROL, "label"]):
            yield title, f"{attack} (control)" if control else str(attack), _strongest_of_each(points)


def _strongest_of_each(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per model and eps, of several runs of one attack under the strongest."""
    rows = []
    for _, mine in runs.groupby([*MODEL, "eps"], sort=False):
        row = {str(name): value for name, value in mine.iloc[0].items()}
        rows.append(row | tables.columns_of("robust_accuracy", tables.strongest(mine).accuracy))
    return pd.DataFrame(rows, columns=runs.columns).astype(dict.fromkeys(tables.RATES, "float64"))


def _with_failures(runs: pd.DataFrame) -> set[str]:
    """The runs of all models that have failed examples in any run at the same budget."""
    key = [*SCENE, "eps", "model", "model_variant"]
    return set(runs.loc[runs.groupby(key)["failed_examples"].transform("max") > 0, "record"])


def _curves(points: pd.DataFrame) -> pd.DataFrame:
    """Points to draw, from rows of one run per model and eps; the clean accuracy at eps = 0 where no run is."""
    columns = ["series", "eps", "accuracy", "low", "high"]
    points = points.assign(series=_series(points))
    attacked = points.rename(columns={f"robust_accuracy{end}": f"accuracy{end}" for end in ("", "_low", "_high")})
    clean = points.rename(columns={f"clean_accuracy{end}": f"accuracy{end}" for end in ("", "_low", "_high")})
    both = pd.concat([attacked, clean.assign(eps=0.0)[lambda rows: ~rows["series"].isin(_at_zero(attacked))]])
    both = both.rename(columns={"accuracy_low": "low", "accuracy_high": "high"})
    # What a model's runs say of clean images is the same, or told by another seed: none is chosen for being low.
    both = both[columns].dropna(subset=["accuracy"]).sort_values(["series", "eps"], kind="stable")
    return both.drop_duplicates(["series", "eps"]).reset_index(drop=True)


def _at_zero(attacked: pd.DataFrame) -> set[str]:
    return set(attacked.loc[attacked["eps"] == 0, "series"])


def query_plots(runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Figure]:
    """One plot per budget and image set: accuracy under the strongest of the attacks of at most so many passes."""
    names = _names(runs[~runs["probe"]])
    listed = runs[~runs["probe"] & (runs["failed_examples"] == 0) & (runs["knowledge"] != CONTROL)]
    several = set(ranked.loc[ranked["image_sets"] > 1, "image_set"])
    found = []
    for key, points in listed.groupby([*SCENE, "eps", "eps_text"]):
        *scene, eps, eps_text = cast("tuple[Any, ...]", key)
        curves = _falling(points)
        # One attack has no course; see also `accuracy_plots`.
        if curves.groupby("series").size().max() > 2 and points["images"].max() > 1:
            words = _scene_words(scene[:-1], scene[-1] if scene[-1] in several else "")
            budget = f"{cells.norm(scene[2])} eps {eps_text}"
            title = [*words[:2], budget, *words[3:]]
            axis = Axis("queries", "forward passes for each image", steps=True)
            identity = [*map(str, scene), repr(float(eps)), "queries"]
            found.append(_figure(title, WORST, curves, names, axis, identity))
    return found


def _falling(points: pd.DataFrame) -> pd.DataFrame:
    """Per model the accuracy under the strongest so far, by growing cost; the clean accuracy is that after the one pass
    of a user.

    x counts forward passes; runs that cost more and find nothing more make no point.
    """
    rows: list[dict[str, Any]] = []
    for name, mine in points.assign(series=_series(points)).groupby("series"):
        ordered = mine.sort_values(["forwards", "record"])
        clean = float(ordered["clean_accuracy"].iloc[0])
        rows.append({"series": name, "x": 1.0, "accuracy": clean, "low": None, "high": None})
        last = max(1.0, float(ordered["forwards"].max()))
        for count in range(1, len(ordered) + 1):
            accuracy = tables.strongest(ordered.iloc[:count]).accuracy
            if abs(accuracy.value - rows[-1]["accuracy"]) > tables.TIE:
                # An attack that asks nothing of the model, such as transfer, is drawn at one pass, too.
                x = max(1.0, float(ordered["forwards"].iloc[count - 1]))
                rows.append(
                    {"series": name, "x": x, "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
                )
        if rows[-1]["x"] < last:
            rows.append(rows[-1] | {"x": last, "low": None, "high": None})
    found = pd.DataFrame(rows, columns=["series", "x", "accuracy", "low", "high"])
    found = found.drop_duplicates(["series", "x"], keep="last")
    return found.astype(dict.fromkeys(("x", "accuracy", "low", "high"), "float64"))


def _names(runs: pd.DataFrame) -> list[str]:
    """All models, in the order that gives each its look."""
    return sorted(set(_series(runs)))


def _series(runs: pd.DataFrame) -> list[str]:
    return [cells.label(*pair) for pair in zip(runs["model"], runs["model_variant"], strict=True)]


def _scene_words(scene: Sequence[Any], images: str) -> list[str]:
    dataset, size, norm, mc = scene
    return [dataset, cells.size(size), cells.norm(norm), f"M = {mc}", *([f"image set {images}"] if images else [])]


@dataclass(frozen=True)
class Axis:
    """What accuracy is drawn against."""

    kind: Literal["eps", "queries"]
    label: str
    unit: float = 1.0  # x is multiplied by it
    steps: bool = False  # a staircase on a logarithmic scale


def left_over(folder: Path, written: Sequence[Path]) -> list[Path]:
    """The plots in a folder that `_figure` made and that are not among those just written; other files are not ours."""
    others = sorted(set(folder.glob("*.svg")).difference(written))
    return [path for path in others if f'aria-labelledby="plot-{path.stem}-title"'.encode() in path.read_bytes()]


def _eps_axis(norm: str) -> Axis:
    label = f"eps ({cells.norm(norm)})"
    return Axis("eps", f"{label}, in 1/255", 255.0) if norm == "linf" else Axis("eps", label)


def _figure(
    words: list[str], attack: str, curves: pd.DataFrame, names: list[str], axis: Axis, identity: list[str]
) -> Figure:
    scene = ", ".join(words)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", " ".join([*identity[:3], f"mc{identity[3]}", *identity[4:]])).strip("-")[:80]
    name = f"{slug}-{sha256_of_value(identity)[:6]}"
    drawing = _draw(curves, axis, attack, scene, names)
    title = f"Accuracy against {axis.kind}, {scene}, {attack}"
    root = _tidy(drawing, f"plot-{name}-", title, _told(curves, axis))
    inline = ElementTree.tostring(root, encoding="unicode")
    root.set("xmlns", SVG)
    standalone = ElementTree.tostring(root, encoding="unicode") + "\n"
    return Figure(axis.kind, name, scene, attack, inline, standalone)


def _told(curves: pd.DataFrame, axis: Axis) -> str:
    """The numbers of a plot in words, for those who do not see it."""
    lines = []
    for name, rows in curves.groupby("series"):
        points = [f"{cells.percent(row['accuracy'])} % at {_x_text(row['x'], axis)}" for row in rows.to_dict("records")]
        lines.append(f"{name}: {', '.join(points)}.")
    return f"Accuracy, by {axis.label}. {' '.join(lines)}"


def _x_text(x: float, axis: Axis) -> str:
    return cells.count(x) if axis.steps else f"{x * axis.unit:.4g}"


def _draw(curves: pd.DataFrame, axis: Axis, attack: str, scene: str, names: list[str]) -> bytes:
    """The plot as matplotlib writes it."""
    import matplotlib
    import seaborn
    from matplotlib.figure import Figure as Canvas

    curves = curves.assign(x=curves["x"] * axis.unit)
    present = [name for name in names if name in set(curves["series"])]
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says, same bytes
        matplotlib.rcParams.update(STYLE)
        warnings.simplefilter("ignore")  # glyphs missing here do not matter: the reader's fonts draw the text
        columns = 2 if max(map(len, present)) <= COLUMN else 1
        rows_of_names = -(-len(present) // columns)
        canvas = Canvas(figsize=(4.9, 3.3 + 0.2 * rows_of_names), layout="constrained")
        axes = canvas.subplots()
        look: dict[str, dict[str, Any]] = {name: _look(names.index(name)) for name in present}
        seaborn.lineplot(
            curves, x="x", y="accuracy", hue="series", style="series",
            hue_order=present, style_order=present, errorbar=None, legend=False, ax=axes, linewidth=1.6, markersize=5.5,
            palette={name: style["colour"] for name, style in look.items()},
            markers={name: style["marker"] for name, style in look.items()},
            dashes={name: style["dashes"] for name, style in look.items()},
            markeredgecolor="none", drawstyle="steps-post" if axis.steps else "default",
        )  # fmt: skip
        for name, rows in curves.groupby("series"):
            axes.vlines(rows["x"], rows["low"], rows["high"], color=look[str(name)]["colour"], alpha=0.45, lw=1.2)
        _dress(axes, axis)
        lines = textwrap.wrap(scene, LINE)
        axes.set_title("\n".join(map(_short, [*lines[:2], attack])), loc="left")
        _legend(axes, look, columns)
        buffer = BytesIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _look(position: int) -> dict[str, Any]:
    """Colour, marker and dashes of a model, the same in every plot of a report."""
    lap = position // len(COLOURS)
    return {
        "colour": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + lap) % len(MARKERS)],
        "dashes": DASHES[lap % len(DASHES)],
    }


def _short(text: str) -> str:
    """Text that fits across a plot, its middle left out if need be."""
    half = LINE // 2
    return text if len(text) <= LINE else f"{text[: half - 1]}…{text[-half:]}"


def _dress(axes: Axes, axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

    axes.set(ylim=(-0.02, 1.02), xlabel=axis.label, ylabel="accuracy")
    axes.margins(x=0.03)
    if axis.steps:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_alpha(0.4)
    axes.tick_params(length=0)
    for line in axes.lines:
        line.set_clip_on(False)


def _legend(axes: Axes, look: dict[str, dict[str, Any]], columns: int) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=style["colour"], marker=style["marker"], markersize=5, markeredgecolor="none",
               linestyle=(0, style["dashes"]) if style["dashes"] else "-")
        for style in look.values()
    ]  # fmt: skip
    figure: Any = axes.figure
    box = figure.legend(
        lines,
        map(str, range(len(lines))),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=2.4,
        borderpad=0,
        borderaxespad=0.2,
    )
    for text, name in zip(box.get_texts(), look, strict=True):
        text.set_text(_short(name))  # set afterwards: matplotlib leaves labels that begin with "_" out of legends


def _tidy(drawing: bytes, prefix: str, title: str, told: str) -> ElementTree.Element:
    """Matplotlib's SVG made fit for a page: ids of its own, no style sheet, no metadata, ink as currentColor.

    What it shows stands in <title>, its numbers in <desc>.
    """
    root = ElementTree.fromstring(drawing)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.rpartition("}")[2], _attribute(key.rpartition("}")[2], value, prefix))
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


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href":
        return value.replace("#", f"#{prefix}", 1)
    return value.replace("url(#", f"url(#{prefix}").replace(INK, "currentColor")
