"""One table and one figure for a paper: models by attacks, or by eps, as LaTeX, PDF and SVG.

Models of every M stand together; what cannot be compared (other data, another norm, other images, and for a table of
attacks another eps) makes a table of its own. Runs with failed examples are left out, and the probes of audits among
the attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from robustbench_lpm.protocol.ranking import (
    CONTROL,
    RATES,
    Row,
    as_rows,
    attack_name,
    grouped,
    label,
    ranking,
)
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.pictures import drawing, saved
from robustbench_lpm.reporting.plots import dress, legend, look, per_cent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layout = Literal["attacks", "eps"]
Cell = tuple[float, float | None, float | None]  # a share and its interval
SCENE = ["dataset", "size", "norm", "image_set"]
CLEAN = "Clean"


@dataclass(frozen=True)
class Table:
    """Accuracies that can be compared."""

    words: str  # data, size, norm, images
    columns: tuple[str, ...]  # the clean accuracy, then an attack or a budget each
    rows: dict[str, dict[str, Cell]]  # by model and column
    budgets: tuple[float, ...] = ()  # of the columns after the first, if they are budgets


def write(runs: pd.DataFrame, layout: Layout, *, title: str = "", intervals: bool = False) -> dict[str, bytes]:
    """The files of a layout, {name: content}: table-LAYOUT.tex, and figure-LAYOUT.pdf and .svg for each table in it.

    runs: the table of runs (`tables.table`). title: the caption, and the title of the figures.
    """
    names, told = _names(runs)
    found = tables(runs, layout, names)
    content = [f"% Needs \\usepackage{{booktabs}}.\n% {cells.latex(EXPLANATION[layout])}"]
    content += [f"% {cells.latex(line)}" for line in told]
    files: dict[str, bytes] = {}
    for number, one in enumerate(found, 1):
        place = layout if number == 1 else f"{layout}-{number}"
        caption = title if title and len(found) == 1 else f"{title or TITLES[layout]}: {one.words}"
        content.append(to_latex(one, caption, f"tab:{place}", intervals=intervals))
        files |= _figure_files(one, caption, f"figure-{place}")
    return {f"table-{layout}.tex": ("\n\n".join(content) + "\n").encode()} | files


EXPLANATION: Mapping[Layout, str] = {
    "attacks": "Accuracy in % under each attack; the best of a column is bold.",
    "eps": "Accuracy in % under the strongest attack at each eps, as in the ranking; the best of a column is bold.",
}
TITLES: Mapping[Layout, str] = {"attacks": "Accuracy under attack", "eps": "Accuracy against eps"}


def ambiguous(runs: pd.DataFrame) -> list[str]:
    """Sentences on names that several models share, and what tells them apart."""
    return _names(runs)[1]


def _names(runs: pd.DataFrame) -> tuple[dict[tuple[str, str], str], list[str]]:
    """The name of every model (name, variant) in a table, and sentences on names that several models share.

    A variant that is a hash means nothing to a reader: such models are numbered.
    """
    shared: dict[str, list[str]] = {}
    for name, variant in sorted(set(zip(runs["model"], runs["model_variant"], strict=True))):
        shared.setdefault(name, []).append(variant)
    names, told = {}, []
    for name, variants in shared.items():
        hashes = list(dict.fromkeys(_parts(variant)[0] for variant in variants if _parts(variant)[0]))
        for variant in variants:
            checkpoint, rest = _parts(variant)
            number = str(hashes.index(checkpoint) + 1) if len(hashes) > 1 else ""
            names[name, variant] = label(name, ", ".join(filter(None, (number, rest))))
        if len(hashes) > 1:
            meant = ", ".join(f"({number}) {text}" for number, text in enumerate(hashes, 1))
            told.append(
                f"{len(hashes)} models are called '{name}': {meant}. Give each a name: name= in Python, or a card."
            )
    return names, told


def _parts(variant: str) -> tuple[str, str]:
    """What a variant says of the checkpoint, by its hash, and the rest."""
    first, _, rest = variant.partition(", ")
    return (first, rest) if first.startswith(("weights ", "model ")) else ("", variant)


def tables(runs: pd.DataFrame, layout: Layout, names: Mapping[tuple[str, str], str]) -> list[Table]:
    """What can be compared, the most images first."""
    failed = set(runs.loc[runs["failed_examples"] > 0, "record"])  # whose failed examples could be right or wrong
    rows = [
        row | {"series": _series(row, names)}
        for row in as_rows(runs[~runs["probe"]] if layout == "attacks" else ranking(runs))
        if row["record"] not in failed and not cells.missing(row["robust_accuracy"])
    ]
    scene = [*SCENE, "eps", "eps_text"] if layout == "attacks" else SCENE
    found = []
    for (dataset, size, norm, _, *eps), group in grouped(rows, scene).items():
        budget = f"{cells.norm(norm)} eps {eps[1]}" if eps else cells.norm(norm)
        words = f"{dataset}, {cells.size(size)}, {budget}, {max(row['images'] for row in group)} images"
        make = _by_attack if layout == "attacks" else _by_eps
        if (one := make(words, group)).rows:
            found.append((-max(row["images"] for row in group), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _series(row: Row, names: Mapping[tuple[str, str], str]) -> str:
    averaged = f", M = {row['mc']}" if row["mc"] > 1 else ""
    return names[row["model"], row["model_variant"]] + averaged


def _by_attack(words: str, rows: Sequence[Row]) -> Table:
    """Controls come first, a worst case last."""
    order = {attack_name(row): (row["knowledge"] != CONTROL, bool(row["members"]), attack_name(row)) for row in rows}
    found: dict[str, dict[str, Cell]] = {}
    for (model, _), runs in grouped([row | {"shown": attack_name(row)} for row in rows], ["series", "shown"]).items():
        lowest = min(runs, key=lambda run: run["robust_accuracy"])  # of runs of one attack under other noise
        found.setdefault(model, {CLEAN: _cell(runs[0], "clean_accuracy")})[attack_name(lowest)] = _cell(lowest)
    return Table(words, (CLEAN, *sorted(order, key=lambda name: order[name])), found)


def _by_eps(words: str, rows: Sequence[Row]) -> Table:
    """From the rows of the ranking, one for each model and eps: the strongest attack decides."""
    budgets = {row["eps"]: f"eps {row['eps_text']}" for row in sorted(rows, key=lambda row: row["eps"])}
    found: dict[str, dict[str, Cell]] = {}
    for row in rows:
        mine = found.setdefault(row["series"], {CLEAN: _cell(row, "clean_accuracy")})
        mine[budgets[row["eps"]]] = _cell(row)
    return Table(words, (CLEAN, *budgets.values()), found, tuple(budgets))


def _cell(row: Row, name: str = "robust_accuracy") -> Cell:
    value, low, high = (
        None if cells.missing(row[each]) else float(row[each]) for each in RATES if each.startswith(name)
    )
    return float("nan") if value is None else value, low, high


def to_latex(table: Table, caption: str, name: str, *, intervals: bool = False) -> str:
    """A LaTeX table with a caption and a label; the best of each column, as it is printed, is bold."""
    best = {
        column: max((cells.percent(row[column][0]) for row in table.rows.values() if column in row), key=_number)
        for column in table.columns
    }

    def written(row: Mapping[str, Cell], column: str) -> str:
        if column not in row:
            return cells.latex(cells.MISSING)
        value, low, high = row[column]
        text = cells.percent(value)
        shown = f"\\textbf{{{text}}}" if text == best[column] != cells.MISSING else cells.latex(text)
        bounds = cells.interval(low, high) if intervals else ""
        return f"{shown} {{\\scriptsize {cells.latex(bounds)}}}" if bounds else shown

    texts = [
        [cells.latex(model), *(written(row, column) for column in table.columns)]
        for model, row in sorted(table.rows.items())
    ]
    frame = pd.DataFrame(texts, columns=["Model", *map(cells.latex, table.columns)])
    sides = "l" + "r" * len(table.columns)
    text = frame.to_latex(index=False, caption=cells.latex(caption), label=name, column_format=sides)
    return text.replace("\\begin{table}", "\\begin{table}\n\\centering").rstrip("\n")


def _number(text: str) -> float:
    return -1.0 if text == cells.MISSING else float(text)


def _figure_files(table: Table, title: str, name: str) -> dict[str, bytes]:
    """A figure as PDF and as SVG; the same table gives the same bytes."""
    size = 5.2, (3.4 if table.budgets else 1.3 + 0.3 * len(table.columns)) + 0.2 * -(-len(table.rows) // 2)
    draw: Callable[[Figure, Table], None] = _draw_curves if table.budgets else _draw_dots
    with drawing(size, style={"pdf.fonttype": 42}) as canvas:
        draw(canvas, table)
        canvas.suptitle(cells.plain(title), x=0.01, ha="left", wrap=True)
        buffer = BytesIO()
        # Neither the date nor a version: the same table gives the same bytes.
        canvas.savefig(buffer, format="pdf", metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
        return {f"{name}.pdf": buffer.getvalue(), f"{name}.svg": saved(canvas, "svg")}


def _draw_curves(canvas: Figure, table: Table) -> None:
    """A line for each model, from its clean accuracy at eps = 0."""
    axes = canvas.subplots()
    for position, (_, row) in enumerate(sorted(table.rows.items())):
        places = dict(zip(table.columns, (0.0, *table.budgets), strict=True))
        points = [(places[column], *row[column]) for column in table.columns if column in row]
        style: dict[str, Any] = look(position)
        axes.plot([x for x, *_ in points], [value for _, value, *_ in points], **style, linewidth=1.6, markersize=5)
        for x, _, low, high in points:
            if low is not None and high is not None:
                axes.vlines(x, low, high, color=style["color"], alpha=0.45, lw=1.2)
    dress(axes, "eps", "accuracy")
    per_cent(axes, -0.02, 1.02)
    axes.set_xlim(left=0)
    legend(canvas, axes.lines, sorted(table.rows), ncols=2)


def _draw_dots(canvas: Figure, table: Table) -> None:
    """A row for each attack, a dot for each model."""
    axes, models = canvas.subplots(), sorted(table.rows)
    for position, model in enumerate(models):
        style = look(position) | {"linestyle": "none"}
        shift = 0.5 * (position - (len(models) - 1) / 2) / len(models)  # dots of one row do not hide each other
        places = [(row + shift, *table.rows[model][c]) for row, c in enumerate(table.columns) if c in table.rows[model]]
        axes.plot([value for _, value, *_ in places], [y for y, *_ in places], **style, markersize=5)
        for y, _, low, high in places:
            if low is not None and high is not None:
                axes.hlines(y, low, high, color=style["color"], alpha=0.45, lw=1.2)
    dress(axes, "accuracy", "")
    axes.set_yticks(range(len(table.columns)), table.columns)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(table.columns) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
    legend(canvas, axes.lines, models, ncols=2)
