"""lpmbench converge, from words to files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from robustbench_lpm.cli import run
from robustbench_lpm.records import runs as records
from tests.cli import lpmbench

Capture = pytest.CaptureFixture[str]
LINE = "converge cnn cnn-at --limit 20 --steps 4 --doublings 2 --eps 0.1 --out study --threads 1"


def test_a_curve_for_each_model_and_its_limit(tmp_path: Path, capsys: Capture) -> None:
    lpmbench(LINE)
    shown = capsys.readouterr().out
    out = tmp_path / "study"
    found = {(r.model, r.configuration["attack"]["parameters"]["steps"]): r for r in records.read_all(out)}
    assert set(found) == {(model, steps) for model in ("cnn", "cnn-at") for steps in (4, 8, 16)}
    table, stored = pd.read_csv(out / "converge.csv"), json.loads((out / "converge.json").read_text())
    expected = [found[model, steps].robust_accuracy.value for model in ("cnn", "cnn-at") for steps in (4, 8, 16)]
    assert table["accuracy"].tolist() == pytest.approx(expected)
    assert table["gain"].isna().tolist() == [True, False, False] * 2
    assert table["gain"][1] == pytest.approx(expected[0] - expected[1])
    assert [row["model"] for row in stored["limits"]] == ["cnn", "cnn-at"]
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in stored["limits"])
    assert stored["command"] == "lpmbench converge cnn cnn-at --doublings 2 --limit 20 --eps 0.1 --steps 4"
    assert shown.count("limit ") >= 2
    assert shown.count("on these images.") == 2
    assert Image.open(out / "summary.png").width > 600
    lpmbench(LINE)
    assert capsys.readouterr().out.count("already run") == 6


@pytest.mark.parametrize(("line", "told"), [
    ("converge", "Missing argument 'MODEL...'"),
    ("converge cnn --eps 0.1,0.2", "Give one --eps"),
    ("converge cnn --attack noise --eps 0.1 --limit 2", "'noise' has no steps that could be doubled"),
    ("converge cnn cnn-at --checkpoint x --eps 0.1", "--checkpoint goes with exactly one MODEL"),
])  # fmt: skip
def test_one_clear_line(line: str, told: str, capsys: Capture) -> None:
    assert run(line.split()) != 0
    assert told in " ".join(capsys.readouterr().err.split())
