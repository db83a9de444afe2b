"""What is published is whole, was made with the checkpoints that are here, and is what the leaderboard shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_lpm import audits, cards, records, reporting
from robustbench_lpm.hashing import SEAL

RESULTS = Path(__file__).parent.parent / "results"
DECISIONS = RESULTS.parent / "docs" / "decisions" / "records"
FOLDERS = sorted(path.parent for path in RESULTS.rglob(records.RECORD))


def test_something_is_published() -> None:
    models = {records.read(folder).model for folder in FOLDERS}
    assert {"cnn", "cnn-at", "resnet18", "ram", "ramlpm", "efficientnet-lite0"} <= models


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_published_record_is_whole_and_leads_home(folder: Path) -> None:
    record = records.read(folder)  # checks its id, seal, hashes, budget and pictures
    assert SEAL in records.read_json(folder / records.RECORD)
    assert not record.failures
    assert folder.name == record.folder_name
    assert record.command.startswith("lpmbench attack --model ")
    assert record.versions["robustbench-lpm"]
    assert record.timing["hardware"]
    weights = cards.model(record.model).weights
    assert weights is not None
    assert record.configuration["model"]["weights_sha256"] == weights.sha256


def test_the_leaderboard_is_what_the_records_say(tmp_path: Path) -> None:
    for path in reporting.write_report(records.read_all(RESULTS), tmp_path):
        if path.suffix in (".csv", ".md", ".tex"):  # plots and the page carry the plotting library's version
            assert path.read_bytes() == (RESULTS / path.name).read_bytes()


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in DECISIONS.rglob(records.RECORD)), ids=lambda f: f.name
)
def test_the_records_behind_decisions_are_whole(folder: Path) -> None:
    assert not records.read(folder).failures
    assert SEAL in records.read_json(folder / records.RECORD)


@pytest.mark.parametrize(
    "path", sorted((RESULTS / "records" / audits.AUDITS).glob("*.json")), ids=lambda path: path.stem
)
def test_a_published_audit_is_whole(path: Path) -> None:
    assert audits.read(path).command.startswith("lpmbench audit ")
    assert SEAL in records.read_json(path)
