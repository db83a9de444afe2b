"""lpmbench glimpses, from words to files."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from robustbench_lpm.records import runs as records
from tests.cli import lpmbench

Capture = pytest.CaptureFixture[str]
FAST = "--steps 1 --eot 1 --gradient-mode detached --threads 1"


@pytest.mark.slow
def test_a_whole_study(tmp_path: Path, capsys: Capture) -> None:
    line = f"glimpses ramlpm --limit 20 --draws 3 --mc 1,3 --pictures 1 --eps 0.1 --out study {FAST}"
    lpmbench(line)
    shown = capsys.readouterr().out
    assert "ramlpm (1 glimpse) · momentum" in shown
    assert "At equal compute" in shown
    out = tmp_path / "study"
    found = {record.model: record for record in records.read_all(out)}
    assert set(found) == {"ramlpm", "ramlpm (1 glimpse)", *(f"ramlpm ({t} glimpses)" for t in range(2, 6))}
    assert all(len(record.pictures()) == 20 for record in found.values())

    table = pd.read_csv(out / "glimpses.csv", keep_default_na=True).set_index(["mc", "glimpses"])
    assert len(table) == 12
    whole = table.loc[(1, 6)]
    assert whole["clean_accuracy"] == found["ramlpm"].clean_accuracy.value
    assert whole["attacked_accuracy"] == whole["adaptive_accuracy"] == found["ramlpm"].robust_accuracy.value
    assert table.loc[(1, 2), "adaptive_accuracy"] == found["ramlpm (2 glimpses)"].robust_accuracy.value
    assert table.loc[(1, 2), "clean_accuracy"] == found["ramlpm (2 glimpses)"].clean_accuracy.value
    assert table.loc[3, "adaptive_accuracy"].isna().all()
    fixations = pd.read_csv(out / "fixations.csv")
    assert fixations["glimpse"].tolist() == [2, 3, 4, 5, 6]
    assert (fixations["shift_low"] <= fixations["shift"]).all()

    assert Image.open(out / "glimpses.png").width > 1600
    (animation,) = out.glob("scanpath-*.gif")
    assert Image.open(animation).n_frames == 6  # type: ignore[attr-defined]
    assert animation.with_suffix(".png").is_file()

    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    lpmbench(line)
    assert capsys.readouterr().out.count("already run") == 6
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_truncated_runs_are_verified_and_their_command_makes_them_again(tmp_path: Path, capsys: Capture) -> None:
    """Their records name no card of their own: that of the whole model is found."""
    lpmbench(f"glimpses ram --limit 2 --draws 2 --mc 1 --pictures 0 --out first {FAST}")
    found = {record.model: record for record in records.read_all(tmp_path / "first")}
    capsys.readouterr()
    lpmbench(f"verify {found['ram (3 glimpses)'].path}")
    lpmbench(f"verify {found['ram (1 glimpse)'].path} --model ram")
    shown = capsys.readouterr().out
    assert "run with glimpses = 3" in shown
    assert "run with glimpses = 1" in shown
    assert "not checked" not in shown

    command = found["ram (2 glimpses)"].command
    assert command.startswith("lpmbench glimpses ram ")
    lpmbench(f"{command.removeprefix('lpmbench ')} --out again --pictures 0 --threads 1")
    assert {record.id for record in records.read_all(tmp_path / "again")} == {record.id for record in found.values()}


def test_without_adaptive_attacks_and_pictures_into_a_folder_of_its_own(tmp_path: Path, capsys: Capture) -> None:
    lpmbench(f"glimpses ram --limit 2 --draws 1 --no-adaptive --pictures 0 --eps 8/255 {FAST}")
    out = tmp_path / "runs" / "glimpses" / "ram-digits-momentum-linf-8-255"
    assert [record.model for record in records.read_all(out)] == ["ram"]
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "glimpses.csv", "fixations.csv", "glimpses.png", "glimpses.svg",
    }  # fmt: skip
    assert pd.read_csv(out / "glimpses.csv")["adaptive_accuracy"].isna().all()
    shown = capsys.readouterr().out
    assert "anew" not in shown
    assert "Written to runs/glimpses/ram-digits-momentum-linf-8-255" in re.sub(r"\s+", " ", shown)
