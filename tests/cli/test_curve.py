"""lpmbench curve, from words to files."""

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
LINE = "curve cnn --limit 20 --steps 10 --eps 0.05,0.1 --against fgsm,noise --out study --threads 1"


def test_a_curve_beside_attacks_at_one_eps(tmp_path: Path, capsys: Capture) -> None:
    lpmbench(LINE)
    shown = capsys.readouterr().out
    out = tmp_path / "study"
    found = {(record.attack, record.eps): record for record in records.read_all(out)}
    assert set(found) == {("fmn", 1.0), *((attack, eps) for attack in ("fgsm", "noise") for eps in (0.05, 0.1))}
    search = found["fmn", 1.0]
    table, stored = pd.read_csv(out / "curve.csv"), json.loads((out / "curve.json").read_text())
    assert table["eps"].tolist() == [0.0, *sorted(search.outcomes["linf"])]
    assert table["accuracy"].iloc[0] == search.clean_accuracy.value
    assert table["accuracy"].iloc[-1] == search.robust_accuracy.value
    assert stored["command"] == "lpmbench curve cnn --against fgsm,noise --limit 20 --eps 0.05,0.1 --steps 10"
    assert set(stored["configuration"]["runs"]) == {record.id for record in found.values()}
    assert [row["attack"] for row in stored["comparisons"]] == ["fgsm", "fgsm", "noise", "noise"]
    assert "At eps 0.1 noise leaves" in shown
    assert "significantly above the curve" in shown  # random noise does
    assert Image.open(out / "summary.png").width > 600

    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    lpmbench(LINE)
    assert capsys.readouterr().out.count("already run") == 5
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_without_eps_only_the_search_runs(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("curve cnn --attack ddn --norm l2 --limit 3 --steps 5")
    (record,) = records.read_all(tmp_path / "runs" / "curve" / "cnn-digits-ddn-l2")
    assert (record.attack, record.eps) == ("ddn", 32.0)
    assert "agree" not in capsys.readouterr().out


@pytest.mark.parametrize(("line", "reason"), [
    ("curve cnn --attack pgd --limit 2", "spends all of eps"),
    ("curve cnn --attack ddn --limit 2", "works in l2, not in 'linf'"),
    ("curve cnm --limit 2", "Did you mean 'cnn'?"),
])  # fmt: skip
def test_mistakes(line: str, reason: str, capsys: Capture) -> None:
    assert run(line.split()) == 1
    assert reason in capsys.readouterr().err
