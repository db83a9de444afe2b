"""lpmbench sweep and lpmbench invariance, from words to files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from robustbench_lpm.cli import run, studies
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.progress import ImageBar
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry import cards
from robustbench_lpm.studies import study as evaluation
from tests.cli import lpmbench

Capture = pytest.CaptureFixture[str]
SWEEP = "sweep ram --glimpses 1,3,7 --mc 1,2 --limit 21 --threads 1"
INVARIANCE = "invariance ram cnn --rotate 0..90:45 --scale 0.5,1 --limit 21 --draws 2 --threads 1"


CERTIFY = "certify cnn ram-centre --sigma 0.3 --samples 40 --select 9 --limit 21 --threads 1"


CORRUPTIONS = "corruptions ram --corruption fog,snow --severity 2,5 --reference cnn --limit 21 --draws 2 --threads 1"
SPATIAL = "spatial ram cnn --steps 3,1 --rotation 20 --select 2 --draws 2 --limit 21 --threads 1"
STUDIES = [
    ("sweep", SWEEP, 6), ("invariance", INVARIANCE, 10), ("certify", CERTIFY, 42), ("corruptions", CORRUPTIONS, 10),
    ("spatial", SPATIAL, 12),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "cells"), STUDIES)
def test_a_study_writes_its_table_figure_and_provenance(
    name: str, line: str, cells: int, tmp_path: Path, capsys: Capture
) -> None:
    lpmbench(f"{line} --out study")
    shown = capsys.readouterr().out
    files = [f"{name}.csv", f"{name}.json", "summary.png", "summary.svg", *["images.png"] * (name == "corruptions")]
    assert f"Written to study: {', '.join(files)}" in shown
    out = tmp_path / "study"
    assert {path.name for path in out.iterdir()} == set(files)
    table, stored = pd.read_csv(out / f"{name}.csv"), json.loads((out / f"{name}.json").read_text())
    assert len(table) == len(stored["table"]) == cells
    measured = "radius" if name == "certify" else "accuracy"
    assert table[measured].tolist() == pytest.approx([row[measured] for row in stored["table"]])
    assert "accuracy_low" not in table or table["accuracy_low"].notna().all()
    assert Image.open(out / "summary.png").width > 700

    before = {path: path.read_bytes() for path in out.iterdir()}
    lpmbench(f"{line} --out study")
    assert "Already run" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.iterdir()} == before

    (out / "summary.png").unlink()
    (out / f"{name}.csv").write_text("other")
    lpmbench(f"{line} --out study")
    assert "Already run" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.iterdir() if path.suffix != ".json"} == {
        path: content for path, content in before.items() if path.suffix != ".json"
    }

    lpmbench(f"{stored['command'].removeprefix('lpmbench ')} --threads 1")  # into a folder of its own
    (path,) = (tmp_path / "runs" / name).glob(f"*/{name}.json")
    again = json.loads(path.read_text())
    assert path.parent.name.endswith(again["id"][:8])
    assert (again["id"], again["table"]) == (stored["id"], stored["table"])


def test_another_configuration_is_refused_or_written_anew_but_never_mixed(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("sweep ram --glimpses 1,2 --mc 1 --limit 3 --out study")
    before = (tmp_path / "study" / "sweep.json").read_bytes()
    other = "sweep ram --glimpses 1,2 --mc 1 --limit 3 --seed 1 --out study"
    assert run(other.split()) == 1
    complaint = capsys.readouterr().err
    assert "holds another study: it differs in seed" in complaint
    assert "--force" in complaint
    assert (tmp_path / "study" / "sweep.json").read_bytes() == before
    lpmbench(f"{other} --force")
    assert json.loads((tmp_path / "study" / "sweep.json").read_text())["configuration"]["evaluation"]["seed"] == 1


def test_ctrl_c_keeps_what_is_finished_and_says_so(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "sweep ram --glimpses 1,2 --mc 1 --limit 12 --out study"
    monkeypatch.setattr(evaluation, "chunk_for", lambda *_, **__: 2)  # blocks of 8 images
    finished = ImageBar.finished

    def press(self: ImageBar, images: int) -> None:
        finished(self, images)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ImageBar, "finished", press)
        assert run(line.split()) == 130
    assert capsys.readouterr().err == (
        "lpmbench: Interrupted; 8 of 12 images are finished and kept: the same command goes on from there.\n"
    )
    assert not (tmp_path / "study" / "sweep.json").exists()
    lpmbench(line)
    assert not (tmp_path / "study" / ".partial").exists()


def test_what_fails_while_writing_leaves_no_record_of_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpmbench("sweep ram --glimpses 1 --mc 1 --limit 2 --out study")

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".svg":
            raise OSError(28, "No space left on device")
        records.write_atomically(path, content)

    monkeypatch.setattr(evaluation, "write_atomically", full)
    line = "sweep ram --glimpses 1 --mc 1 --limit 2 --out study --seed 2 --force"
    assert run(line.split()) == 1
    assert not (tmp_path / "study" / "sweep.json").exists()


def test_a_deterministic_model_says_that_m_does_not_matter(capsys: Capture) -> None:
    lpmbench("sweep ram-centre --glimpses 1,2 --limit 2 --out study")
    assert "ram-centre answers the same in every run" in capsys.readouterr().out


def test_all_three_transformations_run_by_default(tmp_path: Path) -> None:
    lpmbench("invariance cnn --limit 2 --out study")
    table = pd.read_csv(tmp_path / "study" / "invariance.csv")
    assert table.groupby("transformation")["value"].agg(["min", "max", "count"]).to_numpy().tolist() == [
        [0, 360, 25], [0.5, 2, 13], [-0.5, 0.5, 11],
    ]  # fmt: skip


NUMBERS = [("6", [6]), ("1..4", [1, 2, 3, 4]), ("1,2,4", [1, 2, 4]), ("8, 1..3,2", [1, 2, 3, 8])]


def test_whole_numbers() -> None:
    for text, expected in NUMBERS:
        assert studies.whole_numbers("--glimpses", text) == expected
    for text in ["", ",", "0", "1..", "..3", "4..2", "1.5", "-1", "1001", "1..99999999999", "٣", "1 2"]:
        with pytest.raises(LpmbenchError, match="--glimpses"):
            studies.whole_numbers("--glimpses", text)


MAGNITUDES = [
    ("0..360:90", [0, 90, 180, 270, 360]),
    ("0..40", [0, 15, 30]),  # the step given below
    ("-0.3..0.3:0.1", [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]),
    ("1,0.5,2", [0.5, 1, 2]),
    ("-1, 1..2:0.5", [-1, 1, 1.5, 2]),
    ("5..5", [5]),
]


def test_magnitudes_are_exact_decimals() -> None:
    for text, expected in MAGNITUDES:
        assert studies.magnitudes("--rotate", text, "15") == expected
    for text in ["", "x", "1..", "2..1", "0..1:0", "0..1:-1", "nan", "inf", "0..inf", "0..9:0.001", "1:2"]:
        with pytest.raises(LpmbenchError, match="--rotate"):
            studies.magnitudes("--rotate", text, "15")


DATASETS = [
    (["ramlpm"], None, "digits"),  # it was trained on it; MNIST has the same labels
    (["ram-centre"], None, "digits"),  # the dataset of its labels' name
    (["ramlpm-sim2mnist"], None, "sim2mnist"),
    (["resnet50-imagenet"], None, "imagenet"),
    (["ramlpm", "cnn"], "mnist", "mnist"),
]


def test_the_data_set_is_the_one_that_the_model_learned() -> None:
    for models, named, expected in DATASETS:
        assert studies.dataset_for(list(map(cards.model, models)), named) == expected


def test_steps_of_a_grid_are_two_numbers(capsys: Capture) -> None:
    for steps in ("31", "31;5", "a,b", "4,3"):
        assert run(["spatial", "cnn", "--steps", steps, "--limit", "2"]) == 1
        assert "teps" in capsys.readouterr().err
