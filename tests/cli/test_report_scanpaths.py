"""lpmbench report --scanpaths: the models look once, and the page keeps where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_lpm.records import runs as records
from robustbench_lpm.reporting import scanpaths
from tests.cli import lpmbench

Capture = pytest.CaptureFixture[str]


def test_glimpsing_models_look_and_later_reports_draw_it(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("attack --model ram --model cnn --attack fgsm --eps 0.1 --limit 3 --draws 3 --threads 1")
    lpmbench("report --scanpaths")
    ((record, index),) = found = scanpaths.read(tmp_path / "runs")
    (ram,) = [r for r in records.read_all(tmp_path / "runs") if r.model == "ram"]
    assert (record, index) in {(ram.id, picture.index) for picture in ram.pictures()}
    gaze = found[record, index]
    assert len(gaze.clean) == len(gaze.adversarial) > 1
    assert gaze.clean[0] == gaze.adversarial[0]  # the first fixation does not depend on the image
    assert gaze.clean != gaze.adversarial
    lpmbench("report")
    page = (tmp_path / "runs" / "leaderboard.html").read_text(encoding="utf-8")
    assert page.count('<svg class="path"') == 2


def test_a_model_that_says_something_else_than_the_record_is_left_out(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("attack --model ram --attack fgsm --eps 0.1 --limit 1 --draws 2 --threads 1")
    (record,) = records.read_all(tmp_path / "runs")
    rows = record.outcomes
    rows["predictions"] = [[(said + 1) % 10 for said in draws] for draws in rows["predictions"]]
    records.write(record, tmp_path / "runs")
    capsys.readouterr()
    lpmbench("report --scanpaths")
    assert "predicts another class of image" in capsys.readouterr().out.replace("\n", " ")
    assert json.loads((tmp_path / "runs" / scanpaths.FILE).read_text())["scanpaths"] == []
