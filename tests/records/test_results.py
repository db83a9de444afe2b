"""What is published is whole, was made with the checkpoints that are here, and is what the leaderboard shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.hashing import SEAL
from robustbench_lpm.records import archive, audits
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import cards
from robustbench_lpm.reporting.cells import percent

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "results"
DECISIONS = ROOT / "docs" / "decisions" / "records"


@pytest.fixture(scope="module")
def published() -> list[RunRecord]:
    """Every published record; reading one checks its id, seal, hashes, budget and pictures."""
    return records.read_all(RESULTS)


def test_what_is_published_was_made_with_the_checkpoints_that_are_here(published: list[RunRecord]) -> None:
    assert {"cnn", "cnn-at", "resnet18", "ram", "ramlpm", "efficientnet-lite0"} <= {
        record.model for record in published
    }
    for record in published:
        assert record.path is not None
        assert record.path == RESULTS / "records" / records.as_file_name(record.dataset)
        assert not record.failures, record.path
        assert record.command.startswith("lpmbench attack --model "), record.path
        assert record.timing["hardware"], record.path
        weights = cards.model(record.model).weights
        assert weights is not None, record.path
        assert record.configuration["model"]["weights_sha256"] == weights.sha256, record.path
    every = [audit for index in RESULTS.rglob(archive.INDEX) for audit in archive.read(index.parent).audits]
    assert audits.read_for(published).keys() == {audit.record for audit in every}


def test_what_decides_a_rank_keeps_its_images_where_they_may_be_published(published: list[RunRecord]) -> None:
    ranked = reporting.leaderboard(published)
    deciding = {name for names in ranked["read_from"] for name in names.split(", ") if name}
    for record in published:
        wanted = record.id in deciding and cards.dataset(record.dataset).publish_images
        assert bool(record.adversarials) >= wanted, record.folder_name
        assert not record.adversarials or record.id in deciding | set(ranked["record"]) | set(ranked["audited"])


def test_the_results_are_light() -> None:
    sizes = {path: path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()}
    assert sum(size for path, size in sizes.items() if path.parent.parent.name == "records") < 8e6


@pytest.mark.slow
def test_the_leaderboard_is_what_the_records_say(published: list[RunRecord], tmp_path: Path) -> None:
    for path in reporting.write_report(published, tmp_path):
        if path.suffix in (".csv", ".md", ".tex"):  # plots and the page carry the plotting library's version
            assert path.read_bytes() == (RESULTS / path.name).read_bytes()


def test_every_record_and_audit_has_a_seal() -> None:
    for path in DECISIONS.rglob(records.RECORD):
        assert SEAL in records.read_json(path), path
    for path in RESULTS.rglob(archive.INDEX):
        header, *lines = map(json.loads, path.read_text().splitlines())
        for content in [header, *(line.get("audit") or line["record"] for line in lines)]:
            assert SEAL in content, path


def test_the_records_behind_decisions_are_whole() -> None:
    assert not any(record.failures for record in records.read_all(DECISIONS))


# Tables of the documentation, by page and how their head begins: data, eps, images, and what each column shows: an
# attack with its settings (as the leaderboard tells it apart), "clean", "ranked" by the ranking's number, "verdict" of
# the audit of the attack named, or "" for what is no number of this budget.
AT = {"norm": "linf", "mc": 1, "model_variant": ""}
DIGITS = ("digits", 0.1, 200)
CONTROLS = ["noise", "fgsm", "square", "transfer"]
ALL = ["clean", *CONTROLS, "pgd", "momentum", "ranked", "verdict momentum"]
TABLES = [
    ("README.md", "| model | clean |", "cifar10", 2 / 255, 200, ["clean", "ranked", "verdict momentum", "", ""]),
    ("README.md", "| model | clean |", "cifar10", 8 / 255, 200, ["clean", "", "", "ranked", "verdict momentum"]),
    (
        "docs/protocol.md", "| | clean | noise | FGSM |", *DIGITS,
        ["clean", *CONTROLS, "gaze", "pgd", "momentum", "ranked", "verdict momentum"],
    ),
    ("docs/experiments.md", "| L∞ 2/255, 200 images |", "cifar10", 2 / 255, 200, ALL),
    ("docs/experiments.md", "| L∞ 8/255, 200 images |", "cifar10", 8 / 255, 200, ALL),
    ("docs/experiments.md", "| model | fixations |", "cifar10", 2 / 255, 200, ["", "clean", "noise", "momentum"]),
    (
        "docs/experiments.md", "| L∞ 1/255, 300 images |", "imagenet", 1 / 255, 300,
        ["clean", "noise", "fgsm", "transfer", "pgd", "apgd-t", "ranked", "verdict apgd-t"],
    ),
    ("docs/experiments.md", "| L∞ 0.05, 200 images |", "sim2mnist", 0.05, 200, ALL),
    (
        "docs/experiments.md", "| model | front end |", "cifar10", 2 / 255, 200,
        ["", "clean", "fgsm", "pgd", "momentum", "ranked", "", "verdict momentum"],
    ),
]  # fmt: skip


def rows_below(page: str, head: str) -> list[list[str]]:
    """The cells of the rows of a Markdown table."""
    lines = (ROOT / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head)) + 2
    end = next(number for number, line in enumerate(lines[start:], start) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def at_one_setting(runs: pd.DataFrame, attack: str) -> pd.DataFrame:
    """A model's runs of an attack; of several settings those that were audited."""
    found = runs[runs.attack == attack]
    audited = found[found.verdict.fillna("") != ""]
    return audited if found.label.nunique() > 1 and len(audited) else found


@pytest.mark.parametrize(
    ("page", "head", "dataset", "eps", "images", "columns"), TABLES, ids=[f"{page} {head}" for page, head, *_ in TABLES]
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
    assert len(rows) >= 2
    for name, *cells in rows:
        (model,) = re.findall(r"`([^`]+)`", name)
        mine = runs[runs.model == model]
        for column, cell in zip(columns, cells, strict=True):
            kind, _, attack = column.partition(" ")
            if not column:
                continue
            if kind == "verdict":
                (verdict,) = at_one_setting(mine, attack).verdict
                assert re.match(r"\W*" + (verdict or "none"), cell), (model, column, verdict)
                continue
            if kind == "clean":
                value = mine.clean_accuracy.iloc[0]
            else:
                ordinary = at_one_setting(mine, column).robust_accuracy
                value = ranked[model] if kind == "ranked" else ordinary.min()
            assert cell == ("" if pd.isna(value) else percent(value)), (model, column, value)
