"""Write the report's files: CSV and JSON for programs, Markdown and LaTeX for papers, SVG plots, and the HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_lpm.records.audits import Audit
from robustbench_lpm.records.runs import RunRecord, write_atomically
from robustbench_lpm.reporting import cells, comparisons, escaping, gazes, page, pictures, plots, robustbench, tables
from robustbench_lpm.reporting.comparisons import Agreement, Comparison
from robustbench_lpm.reporting.tables import Ranking

RANKING_HEADER = ("Rank", "Model", "Clean, %", "Robust, %", "Strongest attack", "Audit", "Notes")
RUNS_HEADER = (
    "Data", "Norm", "eps", "M", "Model", "Attack", "Images", "Clean, %", "Robust, %", "Majority, %", "Worst of K, %",
    "Forwards", "Failed", "Record",
)  # fmt: skip
# Version 1 compared models at one M, and named no classes; version 2 ranked by the lowest over whole runs.
JSON_SCHEMA_VERSION = 3
EXPLANATION = (
    "Robust is the mean-draw accuracy under attack, with its 95 % Wilson interval over images (none below 20 images). "
    "A model's rank follows its robust accuracy under the strongest of all attacks but controls, chosen on one half of "
    "the graded draws and read on the other, both ways round; where the halves choose two runs, both are named. Where "
    "models met different images, each image set has a ranking of its own. A result that fails its audit has no rank, "
    "and neither has one without an audit beside audited ones; where none was audited, ranks are an order only."
)


def write_report(records: Sequence[RunRecord], out: Path, audits: Mapping[str, Audit] | None = None) -> list[Path]:
    """Write every export below `out`, each atomically, and take away plots of an older report; the paths written, HTML
    last."""
    records, audits = tables.in_order(records), audits or {}
    runs = tables.table(records, audits)
    ranked = tables.ranking(runs)
    figures = [*plots.accuracy_plots(runs, ranked), *plots.query_plots(runs, ranked)]
    pairs = comparisons.compare(records, runs, ranked)
    agreements = comparisons.agree(records, runs, ranked)
    shown = page.Content(figures, pairs, agreements, gazes.read(out))
    contents = {
        "leaderboard.csv": to_csv(runs),
        "leaderboard.md": to_markdown(runs, ranked),
        "leaderboard.tex": to_latex(runs, ranked),
        "leaderboard.json": to_json(records, runs, ranked, pairs, agreements),
        **robustbench.to_robustbench(records, ranked),
        **{f"plots/{figure.name}.svg": figure.standalone for figure in figures},
        "leaderboard.html": page.to_html(records, runs, ranked, audits, shown),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode())
    written = [out / name for name in contents]
    for path in plots.left_over(out / "plots", written):
        path.unlink()
    return written


def to_csv(runs: pd.DataFrame) -> str:
    """The table of runs, numbers in full precision; text that looks like a formula is led by an apostrophe."""
    safe = runs.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [escaping.csv(value) for value in safe[column]]
    return safe.to_csv(index=False, lineterminator="\n")


def to_json(
    records: Sequence[RunRecord],
    runs: pd.DataFrame,
    ranked: pd.DataFrame,
    pairs: Sequence[Comparison],
    agreements: Sequence[Agreement],
) -> str:
    """Runs, rankings, comparisons of classifiers, agreement of attacks; numbers in full precision, what is absent null.

    records: in the order of the rows of `runs`, which take the names of classes from them, by label.
    """
    named = [{"class_names": pictures.telling(record.class_names)} for record in records]
    content = {
        "schema_version": JSON_SCHEMA_VERSION,
        "runs": [row | names for row, names in zip(_json_rows(runs), named, strict=True)],
        "rankings": _json_rows(ranked),
        "comparisons": comparisons.plainly(pairs),
        "agreements": comparisons.plainly(agreements),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as what JSON knows."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {str(name): getattr(value, "item", lambda value=value: value)() for name, value in row.items()} for row in rows
    ]


def ranking_cells(ranking: Ranking) -> list[list[str]]:
    """The rows of one ranking as text, under RANKING_HEADER."""
    return [
        [
            cells.rank(row["rank"]),
            cells.label(row["model"], row["model_variant"]),
            cells.with_interval(row["clean_accuracy"], row["clean_accuracy_low"], row["clean_accuracy_high"]),
            cells.with_interval(row["robust_accuracy"], row["robust_accuracy_low"], row["robust_accuracy_high"]),
            row["strongest_attack"] or cells.MISSING,
            cells.verdict(row["verdict"]),
            row["notes"],
        ]
        for row in ranking.rows
    ]


def run_cells(runs: pd.DataFrame) -> list[list[str]]:
    """The rows of the table of runs as text, under RUNS_HEADER."""
    return [
        [
            f"{row['dataset']}, {cells.size(row['size'])}",
            cells.norm(row["norm"]),
            row["eps_text"],
            str(row["mc"]),
            cells.label(row["model"], row["model_variant"]),
            cells.label(row["attack"], row["attack_variant"]),
            str(row["images"]),
            cells.with_interval(row["clean_accuracy"], row["clean_accuracy_low"], row["clean_accuracy_high"]),
            cells.with_interval(row["robust_accuracy"], row["robust_accuracy_low"], row["robust_accuracy_high"]),
            cells.percent(row["robust_majority"]) if row["stochastic"] else cells.MISSING,
            cells.percent(row["robust_worst_of_k"]) if row["stochastic"] else cells.MISSING,
            cells.count(row["forwards"]),
            str(row["failed_examples"]),
            row["record"][:12],
        ]
        for row in runs.to_dict("records")
    ]


def notes(runs: pd.DataFrame) -> list[str]:
    """What a reader must know of the runs, such as an attack's known defects, each once."""
    noted = runs[runs["notes"] != ""]
    labels = [cells.label(*pair) for pair in zip(noted["attack"], noted["attack_variant"], strict=True)]
    return sorted({f"{label}: {note}" for label, note in zip(labels, noted["notes"], strict=True)})


def left_out(runs: pd.DataFrame) -> list[str]:
    """A sentence on the runs that stand in the CSV alone, where there are any."""
    count = int(runs["probe"].sum())
    return [f"{count} probe run{' of an audit is' if count == 1 else 's of audits are'} in leaderboard.csv."][:count]


def to_markdown(runs: pd.DataFrame, ranked: pd.DataFrame) -> str:
    """The rankings and the runs as GitHub-flavoured Markdown."""
    blocks = ["# Leaderboard", EXPLANATION]
    for ranking in tables.split(ranked):
        blocks += [f"## {escaping.markdown(tables.heading(ranking))}"]
        blocks += [_markdown_table(RANKING_HEADER, ranking_cells(ranking))]
    ordinary = runs[~runs["probe"]]
    blocks += ["## All runs", _markdown_table(RUNS_HEADER, run_cells(ordinary))]
    blocks += [escaping.markdown(text) for text in left_out(runs)]
    if found := notes(ordinary):
        blocks += ["## Notes", "\n".join(f"- {escaping.markdown(note)}" for note in found)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(header: Sequence[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([escaping.markdown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_latex(runs: pd.DataFrame, ranked: pd.DataFrame) -> str:
    """The rankings and the runs as LaTeX tables, to be \\input into a document."""
    blocks = ["% Needs \\usepackage{booktabs,longtable}.", "% " + escaping.latex(EXPLANATION)]
    for ranking in tables.split(ranked):
        caption = escaping.latex(tables.heading(ranking))
        body = _latex_rows(RANKING_HEADER, ranking_cells(ranking))
        blocks.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{rlrrlll}}\n{body}"
            "\\end{tabular}\n\\end{table}"
        )
    ordinary = runs[~runs["probe"]]
    body = _latex_rows(RUNS_HEADER, run_cells(ordinary))
    blocks.append(f"\\begin{{longtable}}{{lllrllrrrrrrrl}}\n\\caption{{All runs}}\\\\\n{body}\\end{{longtable}}")
    blocks += [f"\\noindent {escaping.latex(note)}" for note in (*left_out(runs), *notes(ordinary))]
    return "\n\n".join(blocks) + "\n"


def _latex_rows(header: Sequence[str], rows: Iterable[list[str]]) -> str:
    return f"\\toprule\n{_latex_row(header)}\\midrule\n{''.join(map(_latex_row, rows))}\\bottomrule\n"


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(map(escaping.latex, texts)) + " \\\\\n"
