"""What is published is whole, was made with the checkpoints that are here, and is what the leaderboard shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from robustbench_lpm import audits, records
from robustbench_lpm.hashing import SEAL
from robustbench_lpm.reporting import comparisons, exports, gazes, robustbench, tables
from robustbench_lpm.reporting.cells import percent

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
DECISIONS = ROOT / "docs" / "decisions" / "records"


@pytest.mark.slow
def test_what_is_published_is_whole_and_is_what_the_leaderboard_shows() -> None:
    """Reading checks ids, seals, hashes, budgets and pictures; `make verify-results` checks what records claim."""
    found = tables.in_order(records.read_all(RESULTS))
    assert {"cnn", "cnn-at", "resnet18", "ram", "ramlpm", "efficientnet-lite0"} <= {record.model for record in found}
    for record in found:
        assert record.path is not None
        assert SEAL in records.read_json(record.path / records.RECORD), record.path
        assert not record.failures, record.path
        assert record.path.name == record.folder_name
        assert record.command.startswith("lpmbench attack --model "), record.path
        assert record.versions["robustbench-lpm"], record.path
        assert record.timing["hardware"], record.path
    for path in (RESULTS / "records" / audits.AUDITS).glob("*.json"):
        assert audits.read(path).command.startswith("lpmbench audit "), path
        assert SEAL in records.read_json(path), path
    pictures = {record.id: {picture.index for picture in record.pictures()} for record in found}
    assert [(record, index) for record, index in gazes.read(RESULTS) if index not in pictures[record]] == []

    runs = tables.table(found, audits.read_for(found))
    ranked = tables.ranking(runs)
    pairs, agreements = comparisons.compare(found, runs, ranked), comparisons.agree(found, runs, ranked)
    written = {
        "leaderboard.csv": exports.to_csv(runs),
        "leaderboard.md": exports.to_markdown(runs, ranked),
        "leaderboard.tex": exports.to_latex(runs, ranked),
        "leaderboard.json": exports.to_json(found, runs, ranked, pairs, agreements),
        **robustbench.to_robustbench(found, ranked),
    }  # plots and the page carry the plotting library's version
    published = {path.relative_to(RESULTS).as_posix() for path in RESULTS.glob("robustbench/*/*/*.json")}
    assert published == {name for name in written if name.startswith("robustbench/")}
    different = [name for name, text in written.items() if (RESULTS / name).read_text(encoding="utf-8") != text]
    assert different == [], "make them again: lpmbench report --results results"


def test_the_records_behind_decisions_are_whole() -> None:
    for path in DECISIONS.rglob(records.RECORD):
        assert not records.read(path.parent).failures, path
        assert SEAL in records.read_json(path), path


# Tables of the documentation, by page and how their head begins: data, eps, images, and what each column shows: an
# attack with its settings (as the leaderboard tells it apart), "clean", "ranked" by the ranking's number, or "verdict"
# of the audit of the attack named.
JUDGED = "worst-case (apgd-margin: eot=10, steps=20)"
AT = {"norm": "linf", "mc": 1, "model_variant": ""}
DIGITS = ("digits", 0.1, 200)
TABLES = [
    ("README.md", "| model | clean |", *DIGITS, ["clean", JUDGED, "ranked", f"verdict {JUDGED}"]),
    (
        "docs/protocol.md", "| | clean | noise | FGSM |", *DIGITS,
        ["clean", "noise", "fgsm", "pgd", "apgd-margin (eot=10, steps=20)", "transfer", "gaze", JUDGED, "ranked",
         f"verdict {JUDGED}"],
    ),
    (
        "docs/experiments.md", "| L∞ 0.05, 200 images |", "sim2mnist", 0.05, 200,
        ["clean", "noise", "fgsm", "square", "transfer", "pgd", "apgd-margin (eot=5, steps=10)",
         "apgd-margin (eot=20, steps=40)", "ranked", "verdict apgd-margin (eot=5, steps=10)"],
    ),
]  # fmt: skip


def rows_below(page: str, head: str) -> list[list[str]]:
    """The cells of the rows of a Markdown table."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head)) + 2
    end = next(number for number, line in enumerate(lines[start:], start) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


@pytest.mark.parametrize(
    ("page", "head", "dataset", "eps", "images", "columns"), TABLES, ids=[page for page, *_ in TABLES]
)
def test_a_table_says_what_the_records_say(
    page: str, head: str, dataset: str, eps: float, images: int, columns: list[str]
) -> None:
    runs = pd.read_csv(RESULTS / "leaderboard.csv", keep_default_na=False, na_values={"robust_accuracy": [""]})
    runs = runs[(runs.dataset == dataset) & (runs.eps == eps) & (runs.images == images)]
    for key, value in AT.items():
        runs = runs[runs[key] == value]
    runs["label"] = runs.attack + runs.attack_variant.map(lambda variant: f" ({variant})" if variant else "")
    ranked = {
        row["model"]: row["robust_accuracy"]
        for row in json.loads((RESULTS / "leaderboard.json").read_text())["rankings"]
        if all(row[key] == value for key, value in AT.items())
        and (row["dataset"], row["eps"], row["images"]) == (dataset, eps, images)
    }
    rows = rows_below(page, head)
    assert len(rows) >= 5
    for name, *cells in rows:
        (model,) = re.findall(r"`([^`]+)`", name)
        mine = runs[runs.model == model]
        for column, cell in zip(columns, cells, strict=True):
            kind, _, attack = column.partition(" ")
            if kind == "verdict":
                (verdict,) = mine[mine.label == attack].verdict
                assert re.match(r"\W*" + (verdict or "none"), cell), (model, column, verdict)
                continue
            if kind == "clean":
                value = mine.clean_accuracy.iloc[0]
            else:
                ordinary = mine[(mine.label == column) & ~mine.probe].robust_accuracy
                value = ranked[model] if kind == "ranked" else ordinary.min()
            assert cell == ("" if pd.isna(value) else percent(value)), (model, column, value)
