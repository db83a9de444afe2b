"""lpmbench verify over folders of records: what CI asks of everything in results/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import lpmbench
from tests.reporting.conftest import make_and_read

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small runs of ours, below results/."""
    monkeypatch.chdir(tmp_path)
    lpmbench("attack --model cnn --attack fgsm --eps 0.05,0.1 --limit 3 --threads 1 --out results/records")
    return tmp_path / "results"


def test_a_folder_is_verified_record_by_record(folder: Path, capsys: Capture) -> None:
    capsys.readouterr()
    lpmbench("verify results --strict --threads 1")
    assert capsys.readouterr().out == "2 of 2 records verified\n"
    lpmbench("verify results --part 2/2 --threads 1")
    assert "1 of 2 records verified" in capsys.readouterr().out


def test_one_record_that_was_altered_fails_the_folder_and_is_named(folder: Path, capsys: Capture) -> None:
    altered, _ = sorted(path.parent for path in folder.rglob("record.json"))
    content = json.loads((altered / "record.json").read_text())
    content["configuration"]["threat"]["eps"] = 0.2
    (altered / "record.json").write_text(json.dumps(content))
    capsys.readouterr()
    lpmbench("verify results --threads 1", status=1)
    captured = capsys.readouterr()
    assert f"FAILS        {altered.name}: the record is whole" in captured.out
    assert "1 claim(s) of results do not hold" in captured.err


def test_a_record_of_a_model_that_is_not_here_is_no_proof(tmp_path: Path, capsys: Capture) -> None:
    make_and_read(tmp_path)("nobody's model")
    lpmbench(f"verify {tmp_path} --threads 1")
    assert "not checked" in capsys.readouterr().out
    lpmbench(f"verify {tmp_path} --threads 1 --strict", status=1)
    assert "could not be checked" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/", "-1/2"])
def test_a_part_that_is_none_is_refused(part: str, capsys: Capture) -> None:
    lpmbench(f"verify results --part {part}", status=1)
    assert "must be like 1/2" in capsys.readouterr().err


def test_a_folder_without_records_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    lpmbench(f"verify {tmp_path} --threads 1", status=1)
    assert "record.json" in capsys.readouterr().err
