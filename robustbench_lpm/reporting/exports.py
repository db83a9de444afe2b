"""Write the report's files: CSV and JSON for programs, Markdown and LaTeX for papers, SVG plots, and the HTML page; and
print the table of runs to a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from robustbench_lpm.protocol.ranking import Row, as_rows, attack_name, model_name, ranking, split
from robustbench_lpm.records.audits import Audit
from robustbench_lpm.records.runs import RunRecord, write_atomically
from robustbench_lpm.reporting import (
    cells,
    comparisons,
    pictures,
    plots,
    robustbench,
    scanpaths,
    tables,
)
from robustbench_lpm.reporting.comparisons import Agreement, Comparison

Columns = Mapping[str, Callable[[Row], str]]  # how the cell of each column is written

MODEL: Columns = {"Model": model_name}
ATTACK: Columns = {"Attack": attack_name}
CLEAN: Columns = {"Clean, %": lambda row: cells.rate(row, "clean_accuracy")}
ROBUST: Columns = {"Robust, %": lambda row: cells.rate(row, "robust_accuracy")}
FORWARDS: Columns = {"Forwards": lambda row: cells.count(row["forwards"])}
RANKING: Columns = {
    "Rank": lambda row: cells.count(row["rank"]),
    **MODEL,
    **CLEAN,
    **ROBUST,
    "Strongest attack": lambda row: row["strongest_attack"] or cells.MISSING,
    "Audit": lambda row: cells.verdict(row["verdict"]),
    "Notes": lambda row: row["notes"],
}
RUNS: Columns = {
    "Data": lambda row: f"{row['dataset']}, {cells.size(row['size'])}",
    "Norm": lambda row: cells.norm(row["norm"]),
    "eps": lambda row: row["eps_text"],
    "M": lambda row: str(row["mc"]),
    **MODEL,
    **ATTACK,
    "Images": lambda row: str(row["images"]),
    **CLEAN,
    **ROBUST,
    "Majority, %": lambda row: cells.percent(row["robust_majority"] if row["stochastic"] else None),
    "Worst of K, %": lambda row: cells.percent(row["robust_worst_of_k"] if row["stochastic"] else None),
    **FORWARDS,
    "Failed": lambda row: str(row["failed_examples"]),
    "Record": lambda row: row["record"][:12],
}
TERMINAL: Columns = {
    **MODEL,
    **ATTACK,
    "eps": lambda row: f"{cells.norm(row['norm'])} {row['eps_text']}",
    "M": lambda row: str(row["mc"]),
    "Clean, %": lambda row: cells.percent(row["clean_accuracy"]),
    **ROBUST,
    **FORWARDS,
    "Failed": lambda row: str(row["failed_examples"] or ""),
    "Audit": lambda row: cells.verdict(row["verdict"]) if row["verdict"] else cells.MISSING,
}
STYLES = {"passed": "green", "failed": "bold red", "undecided": "yellow"}  # of verdicts in the terminal
# Version 1 compared models at one M, and named no classes; version 2 ranked by the lowest over whole runs; version 3
# had the probes of audits among the runs; version 4 called the "misclassified" of agreements "fallen".
JSON_SCHEMA_VERSION = 5
EXPLANATION = (
    "Robust is the mean-draw accuracy under attack, with its 95 % Wilson interval over images (none below 20 images). "
    "Models are ranked by robust accuracy under their strongest attack, without controls. The strongest attack is "
    "chosen on one half of the graded draws and read on the other, both ways round; if the halves choose two runs, "
    "both are named. Models with different images are ranked separately. Only results whose audit passes have a rank; "
    "where nothing is audited, models are in the order of their accuracy."
)


def write_report(records: Sequence[RunRecord], out: Path, audits: Mapping[str, Audit] | None = None) -> list[Path]:
    """Write every export below `out`, each atomically, and delete the plots of an older report; the paths written, HTML
    last."""
    from robustbench_lpm.reporting import page  # with jinja2, which a terminal table does not need

    records, audits = tables.in_order(records), audits or {}
    runs = tables.table(records, audits)
    ranked = ranking(runs)
    figures = [*plots.accuracy_plots(runs, ranked), *plots.query_plots(runs)]
    pairs = comparisons.compare(records, runs, ranked)
    agreements = comparisons.agree(records, runs, ranked)
    gazes = scanpaths.read(out)
    contents = {
        "leaderboard.csv": to_csv(runs[~runs["probe"]]),
        **({"probes.csv": to_csv(runs[runs["probe"]])} if runs["probe"].any() else {}),
        "leaderboard.md": to_markdown(runs, ranked),
        "leaderboard.tex": to_latex(runs, ranked),
        "leaderboard.json": to_json(records, runs, ranked, pairs, agreements),
        **robustbench.to_robustbench(records, ranked),
        **{f"plots/{figure.name}.svg": figure.standalone for figure in figures},
        "leaderboard.html": page.to_html(records, runs, ranked, audits, figures, pairs, agreements, gazes),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode())
    written = [out / name for name in contents]
    for path in [*plots.left_over(out / "plots", written), *({out / "probes.csv"} - set(written))]:
        path.unlink(missing_ok=True)
    return written


def to_csv(runs: pd.DataFrame) -> str:
    """A table of runs, numbers in full precision; text that looks like a formula gets an apostrophe in front."""
    runs = runs.drop(columns="probe", errors="ignore")  # tables of studies have none
    text = runs.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in runs.dtypes]]
    return runs.assign(**{name: runs[name].map(cells.csv) for name in text}).to_csv(index=False, lineterminator="\n")


def to_json(
    records: Sequence[RunRecord],
    runs: pd.DataFrame,
    ranked: pd.DataFrame,
    pairs: Sequence[Comparison],
    agreements: Sequence[Agreement],
) -> str:
    """Runs, probes of audits, rankings, comparisons of classifiers, agreement of attacks; numbers in full precision,
    missing values null.

    records: in the order of the rows of `runs`, which take the names of classes from them, by label.
    """
    named = [{"class_names": pictures.telling(record.class_names)} for record in records]
    rows = _json_rows(runs.drop(columns="probe"))
    told = [(probe, row | names) for probe, row, names in zip(runs["probe"], rows, named, strict=True)]
    content = {
        "schema_version": JSON_SCHEMA_VERSION,
        "runs": [row for probe, row in told if not probe],
        "probes": [row for probe, row in told if probe],
        "rankings": _json_rows(ranked),
        "comparisons": list(map(asdict, pairs)),
        "agreements": list(map(asdict, agreements)),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON values."""
    rows = as_rows(table.astype(object).where(table.notna(), None))
    return [{name: getattr(value, "item", lambda value=value: value)() for name, value in row.items()} for row in rows]


def _ordinary(runs: pd.DataFrame) -> tuple[list[Row], list[str], list[str]]:
    """The runs that are not probes; a sentence on the probes, if there are any; and the notes on the runs, such as an
    attack's known defects, each once."""
    rows = as_rows(runs[~runs["probe"]])
    probes = len(runs) - len(rows)
    told = f"{probes} probe run{' of an audit is' if probes == 1 else 's of audits are'} in probes.csv."
    noted = {f"{attack_name(row)}: {row['notes']}" for row in rows if row["notes"]}
    return rows, [told] if probes else [], sorted(noted)


def to_markdown(runs: pd.DataFrame, ranked: pd.DataFrame) -> str:
    """The rankings and the runs as GitHub-flavoured Markdown."""
    ordinary, left_out, notes = _ordinary(runs)
    blocks = ["# Leaderboard", textwrap.fill(EXPLANATION, 120)]
    for part in split(ranked):
        blocks += [f"## {cells.markdown(cells.heading(part[0]))}", _markdown_table(RANKING, part)]
    blocks += ["## All runs", _markdown_table(RUNS, ordinary), *map(cells.markdown, left_out)]
    if notes:
        blocks += ["## Notes", "\n".join(f"- {cells.markdown(note)}" for note in notes)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(columns: Columns, rows: Iterable[Row]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cells.markdown(write(row)) for write in columns.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_latex(runs: pd.DataFrame, ranked: pd.DataFrame) -> str:
    """The rankings and the runs as LaTeX tables, to be \\input into a document."""
    ordinary, left_out, notes = _ordinary(runs)
    blocks = ["% Needs \\usepackage{booktabs,longtable}.\n% " + cells.latex(EXPLANATION)]
    blocks += [_latex_table(RANKING, part, cells.heading(part[0]), "rlrrlll") for part in split(ranked)]
    blocks.append(_latex_table(RUNS, ordinary, "All runs", "lllrllrrrrrrrl", longtable=True))
    blocks += [f"\\noindent {cells.latex(note)}" for note in (*left_out, *notes)]
    return "\n\n".join(blocks) + "\n"


def _latex_table(columns: Columns, rows: Iterable[Row], caption: str, sides: str, longtable: bool = False) -> str:
    texts = [[cells.latex(write(row)) for write in columns.values()] for row in rows]
    table = pd.DataFrame(texts, columns=list(map(cells.latex, columns)))
    text = table.to_latex(index=False, caption=cells.latex(caption), column_format=sides, longtable=longtable)
    return text.replace("\\begin{table}", "\\begin{table}\n\\centering").rstrip("\n")


def terminal_table(records: Sequence[RunRecord], console: Console, audits: Mapping[str, Audit] | None = None) -> None:
    """Print one line per run: model, attack, eps, clean and robust accuracy in per cent, forwards per image.

    M, failed examples and the audit have a column only where a run has M above 1, failures, or an audit. The probes of
    an audit are left out.
    """
    rows = [row for row in as_rows(tables.table(records, audits)) if not row["probe"]]
    asked = {
        "M": any(row["mc"] != 1 for row in rows),
        "Failed": any(row["failed_examples"] for row in rows),
        "Audit": any(row["verdict"] for row in rows),
    }
    shown = {name: write for name, write in TERMINAL.items() if asked.get(name, True)}
    grid = cells.grid({name: "left" if name in ("Model", "Attack", "Audit") else "right" for name in shown})
    for column in grid.columns:
        named = column.header in ("Model", "Attack")
        column.overflow, column.no_wrap = "fold" if named else "ellipsis", not named
    styles = {"Robust, %": "bold", "Failed": "bold red"}
    for row in rows:
        texts = {name: write(row) for name, write in shown.items()}  # Text: no bracket in a name is read as markup
        grid.add_row(*(Text(text, styles.get(name, STYLES.get(text, ""))) for name, text in texts.items()))
    console.print(grid)
