"""curves.png: the rows of log.csv as curves of loss, accuracy and learning rate. Imports matplotlib when it draws."""

from __future__ import annotations

import math
import re
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

from robustbench_lpm.training.checkpoints import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ON_A_CARD = 20  # points, about
SHOWN_ON_A_CARD = re.compile(r"epoch|(train|validation)_(loss|accuracy)(_m\d+)?")
EVERY = 60.0  # seconds from one drawing to the next, at least: one takes a second, as short epochs do
TRAINING, VALIDATION, AVERAGED, CLEAN, CONTROL = "#d9722e", "#2f7fc1", "#2a9a78", "#8a6ac4", "#6b7f92"
GROUPS = ("#2f7fc1", "#d9722e", "#2a9a78", "#cf4a5b")
DASHES = ("-", "--", ":", "-.")
Line = tuple[str, str, str, str]  # a column of the log, its name in the legend, its colour, its dashes
FEW = 25  # lines of at most so many points have markers
STYLE: Any = ["seaborn-v0_8-whitegrid", {"font.size": 9, "legend.fontsize": 8.5, "text.parse_math": False}]


def thinned(rows: list[Row], most: int = ON_A_CARD) -> dict[str, list[float]]:
    """Losses and accuracies of at most `most` epochs, evenly spread up to the last, by column; for a model's card.

    If only some epochs are validated, they are chosen among those.
    """
    told = [row for row in rows if "validation_accuracy" in row] or rows
    step = max(1, math.ceil(len(told) / most))
    chosen = told[::-1][::step][::-1]
    columns = [name for name in (told[-1] if told else ()) if SHOWN_ON_A_CARD.fullmatch(name)]
    whole = {name: [float(f"{row[name]:.4g}") for row in chosen] for name in columns if all(name in r for r in chosen)}
    return whole | {"epoch": [int(row["epoch"]) for row in chosen]} if whole else {}


def draw(rows: list[Row], title: str, best_epoch: int = 0) -> bytes:
    """A PNG of the log's rows, at least one. best_epoch: the one that is kept, marked; 0 for none yet."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, with any backend of the user
    from matplotlib.figure import Figure

    with style.context(STYLE):
        figure = Figure(figsize=(12, 5), dpi=130)
        FigureCanvasAgg(figure)
        figure.subplots_adjust(left=0.04, right=0.99, top=0.87, bottom=0.26, wspace=0.2)  # quicker than a layout engine
        loss, accuracy, rate = figure.subplots(1, 3, width_ratios=[1, 1.25, 0.8])
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        _panel(loss, rows, loss_lines(rows), "Loss")
        _panel(accuracy, rows, accuracy_lines(rows), "Accuracy, %", scale=100)
        _panel(rate, rows, rate_lines(rows), "Learning rate")
        if best_epoch:
            _mark_best(accuracy, rows[best_epoch - 1])
        if all(value > 0 for column, *_ in rate_lines(rows) for _, value in _points(rows, column)):
            rate.set_yscale("log")
        rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # without TeX, which parse_math leaves as it is
        rate.yaxis.set_minor_formatter(lambda value, _: "")
        for axes in (loss, accuracy, rate):
            if any(axes.get_legend_handles_labels()[1]):
                columns = 2 if axes is accuracy else 1
                axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=columns)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def loss_lines(rows: list[Row]) -> list[Line]:
    """What is minimised, and the cross-entropy where that is only a part of it."""
    mixed = any(row.get("train_classification") != row.get("train_loss") for row in rows)
    lines = [("train_loss", "training: all that is minimised" if mixed else "training", TRAINING, "-")]
    lines += [("train_classification", "training: cross-entropy", TRAINING, ":")] if mixed else []
    return _present(rows, [*lines, ("validation_classification", "validation: cross-entropy", VALIDATION, "-")])


def accuracy_lines(rows: list[Row]) -> list[Line]:
    """Training, validation at M = 1 and M = draws, on clean images beside attacked ones, and the controls."""
    names = _columns(rows)
    averaged = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"validation_accuracy_m(\d+)", name)))
    attacked = ", attacked" if "validation_clean_accuracy" in names else ""
    lines = [
        ("train_accuracy", f"training{attacked}", TRAINING, "-"),
        ("validation_accuracy", f"validation{attacked}{', one run' if averaged else ''}", VALIDATION, "-"),
        *((f"validation_accuracy_m{m}", f"validation, mean of {m} runs", AVERAGED, "-") for m in averaged),
        ("train_clean_accuracy", "training, clean", CLEAN, ":"),
        ("validation_clean_accuracy", "validation, clean", CLEAN, "-"),
        ("validation_accuracy_random", "control: random fixations", CONTROL, "--"),
        ("validation_accuracy_centre", "control: centre fixations", CONTROL, ":"),
    ]
    return _present(rows, lines)


def rate_lines(rows: list[Row]) -> list[Line]:
    """The learning rate, of each group where there are several."""
    names = [name for name in _columns(rows) if name.startswith("learning_rate")]
    looks = cycle(zip(GROUPS, DASHES, strict=True))  # groups with the same rate overlap: dashes show both
    return [(name, re.sub("^learning_rate_?", "", name), *look) for name, look in zip(names, looks, strict=False)]


def _columns(rows: list[Row]) -> list[str]:
    """The columns of the log; not every epoch is validated."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _present(rows: list[Row], lines: list[Line]) -> list[Line]:
    return [line for line in lines if line[0] in _columns(rows)]


def _points(rows: list[Row], column: str) -> list[tuple[float, float]]:
    """Epoch and value where there is one; not every epoch is validated."""
    return [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]


def _panel(axes: Axes, rows: list[Row], lines: list[Line], title: str, scale: float = 1) -> None:
    from matplotlib.ticker import MaxNLocator

    for column, label, colour, dashes in lines:
        points = _points(rows, column)
        axes.plot(
            [epoch for epoch, _ in points], [scale * value for _, value in points], dashes, color=colour,
            label=label, linewidth=1.7, marker="o" if len(points) <= FEW else "", markersize=3.2,
        )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.02 * max(row["epoch"] for row in rows))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _mark_best(axes: Axes, row: Row) -> None:
    value = 100 * row["validation_accuracy"]
    axes.plot(
        [row["epoch"]], [value], "*", color=VALIDATION, markersize=13, markeredgecolor="white", zorder=5,
        label=f"kept: epoch {row['epoch']:.0f}, {value:.1f} %",
    )  # fmt: skip
