"""A suite: planned before it starts, killed and interrupted while it runs, and seen to be the same in the end."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import kills
from robustbench_lpm.cli import run
from robustbench_lpm.execution.matrix import resolve_suite
from robustbench_lpm.records import audits
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry import cards
from tests.processes import interrupted

Capture = pytest.CaptureFixture[str]

SUITE = """
name = "tiny"
summary = "an audit and a worst case"
[[part]]
dataset = "digits"
models = ["cnn", "ram"]
attacks = ["noise", "PLACE/worst.toml"]
audit = ["pgd"]
black_box = ["square"]
eps = ["0.1"]
limit = 4
draws = 2
gradient_modes = ["detached"]
[part.parameters]
pgd = { steps = 2, eot = 1, restarts = 1 }
square = { queries = 3, draws = 1 }
[[part]]
dataset = "panda"
models = ["efficientnet-lite0"]
attacks = ["fgsm"]
eps = ["2/255"]
"""
WORST = """
name = "worst"
summary = "noise or PGD"
members = ["noise", "pgd"]
knowledge = "white-box"
norms = ["linf", "l2"]
"""
LONG = """
name = "long"
summary = "long enough to be interrupted"
[[part]]
dataset = "digits"
models = ["cnn", "ramlpm"]
attacks = ["noise", "spsa"]
eps = ["0.1"]
limit = 128
draws = 2
"""


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustbench_lpm.protocol.audit.STILL", (8, 1e-3))  # it has tests of its own
    (tmp_path / "tiny.toml").write_text(SUITE.replace("PLACE", str(tmp_path)))
    (tmp_path / "worst.toml").write_text(WORST)
    (tmp_path / "long.toml").write_text(LONG)


def test_audits_of_a_suite_go_on_until_they_are_decided(tmp_path: Path, capsys: Capture) -> None:
    """80 images can bound no difference by two points; the run on more is a result, too."""
    part = 'dataset = "digits"\nmodels = ["cnn"]\nattacks = ["fgsm"]\naudit = ["fgsm"]\nblack_box = ["square"]\n'
    part += 'eps = ["0.3"]\nlimit = 80\nuntil_decided = true\n[part.parameters]\nsquare = { queries = 3 }\n'
    (tmp_path / "on.toml").write_text(f'name = "on"\nsummary = "an audit"\n[[part]]\n{part}')
    assert run(["run", "on.toml", "--threads", "1"]) == 0
    verdicts = re.findall(r"fgsm, linf 0.3, (\d+) images: (\w+)", capsys.readouterr().out)
    assert verdicts[0] == ("80", "UNDECIDED")
    assert len(verdicts) > 1
    listed = pd.read_csv(tmp_path / "runs/on/leaderboard.csv")
    assert set(listed["images"]) == {80, int(verdicts[-1][0])}
    made = records.read_all(tmp_path / "runs/on")
    (last,) = [each for each in audits.read_for(made).values() if each.record == listed["record"].iloc[-1]]
    assert last.verdict.upper() == verdicts[-1][1]


@pytest.mark.parametrize("attacks", [["pgd"], ["worst.toml", "pgd"]])
def test_a_lower_run_of_an_audit_counts_on_the_leaderboard(tmp_path: Path, attacks: list[str]) -> None:
    named = json.dumps([str(tmp_path / name) if name.endswith(".toml") else name for name in attacks])
    part = f'dataset = "digits"\nmodels = ["cnn"]\nattacks = {named}\naudit = {named}\nblack_box = ["square"]\n'
    part += 'eps = ["0.1"]\nlimit = 40\n[part.parameters]\nsquare = { queries = 3 }\npgd = { steps = 1 }\n'
    (tmp_path / "short.toml").write_text(f'name = "short"\nsummary = "an audit"\n[[part]]\n{part}')
    assert run(["run", "short.toml", "--threads", "1"]) == 0
    (row,) = json.loads((tmp_path / "runs/short/leaderboard.json").read_text())["rankings"]
    assert "steps=2" in row["strongest_attack"]
    assert row["robust_accuracy"] < pd.read_csv(tmp_path / "runs/short/leaderboard.csv")["robust_accuracy"].min()


def test_what_is_planned_is_what_is_run(tmp_path: Path, capsys: Capture) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run(["run", "tiny.toml", "--dry-run", "--threads", "1"]) == 0
    planned = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written
    matrix = resolve_suite(cards.suite("tiny.toml"))
    assert f"{len(matrix.cells)} runs" in planned
    assert planned.count("for the audit") == sum(not cell.listed for cell in matrix.cells) > 10
    (row,) = [
        line.split() for line in planned.splitlines() if line.startswith("cnn") and " 0.1 " in line and "fgsm" in line
    ]
    assert row[4:7] == ["4", "4", "4"]  # images, forwards, backwards
    totals = next(line for line in planned.splitlines() if line.startswith("Total to run"))
    assert f"{sum(len(cell.plan.indices) for cell in matrix.cells):,}" in totals

    assert run(["run", "tiny.toml", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"  {len(matrix.cells)} of {len(matrix.cells)} runs done · " in shown  # members of a worst case count once
    assert "queries per second · about" in shown
    made = {record.id for record in records.read_all(tmp_path / "runs" / "tiny")}
    assert made == {cell.plan.id for cell in matrix.cells}
    assert len(list((tmp_path / "runs" / "tiny").rglob("audits/*.json"))) == 2
    assert len(list((tmp_path / "runs" / "tiny").rglob("picture.png"))) == 1
    found = audits.read_for(records.read_all(tmp_path / "runs" / "tiny"))
    assert {audit.attack for audit in found.values()} == {"pgd"}

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    assert run(["run", "tiny.toml", "--dry-run", "--threads", "1"]) == 0
    again = capsys.readouterr().out
    assert again.count("finished") == len(matrix.cells)
    assert "0 runs" in again
    assert run(["run", "tiny.toml", "--threads", "1"]) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}


def test_a_suite_lies_anywhere_and_parts_of_it_are_a_smoke_test(tmp_path: Path, capsys: Capture) -> None:
    """Its paths are relative to its card."""
    folder = tmp_path / "somewhere" / "else"
    folder.mkdir(parents=True)
    (folder / "tiny.toml").write_text(
        SUITE.replace("PLACE/worst", "./worst").replace("draws = 2", "until_decided = true")
    )
    (tmp_path / "worst.toml").rename(folder / "worst.toml")
    line = ["run", str(folder / "tiny.toml"), "--threads", "1", "--limit", "2"]
    assert run([*line, "--only", "rma"]) == 1
    assert "Did you mean 'ram'?" in capsys.readouterr().err
    assert run([*line, "--only", "cnn"]) == 0
    found = records.read_all(tmp_path / "runs" / "tiny-limit2")
    assert {(record.model, len(record.outcomes)) for record in found} == {("cnn", 2)}
    assert {"noise", "worst", "pgd"} <= {record.attack for record in found}
    assert len(list((tmp_path / "runs").rglob("audits/*.json"))) == 1


OPTIONAL = """
name = "optional"
summary = "one dataset comes along, two do not"
[[part]]
dataset = "digits"
models = ["cnn"]
attacks = ["noise"]
eps = ["0.1"]
limit = 4
[[part]]
dataset = "sim2mnist"
optional = true
models = ["cnn-sim2mnist"]
attacks = ["noise"]
eps = ["0.1"]
limit = 4
[[part]]
dataset = "mnist"
optional = true
models = ["cnn"]
attacks = ["noise"]
eps = ["0.1"]
size = "32"
limit = 4
"""


@pytest.fixture
def little_sim2mnist(tmp_path: Path) -> Path:
    """Noise under the names of SIM2MNIST's file: it takes part in a suite, and no claim rests on it."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 8), ("valid", 4), ("test", 6)):
        arrays[f"x_{split}"] = random.random((count, 96, 96, 1), np.float32)
        arrays[f"y_{split}"] = np.eye(10, dtype=np.float32)[np.arange(count) % 10]
    np.savez(tmp_path / "sim2mnist.npz", **arrays)
    return tmp_path


def test_optional_parts_without_data_are_left_out_and_named(
    tmp_path: Path, little_sim2mnist: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("LPMBENCH_DATA", str(tmp_path / "empty"))
    (tmp_path / "optional.toml").write_text(OPTIONAL)
    assert run(["run", "optional.toml", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert [record.dataset for record in records.read_all(tmp_path / "runs" / "optional")] == ["digits"]
    assert "Left out, for want of data: sim2mnist." in shown
    assert "Left out, for want of data: mnist." in shown
    assert "--data sim2mnist=DIR" in shown

    given = f"sim2mnist={little_sim2mnist}"
    assert run(["run", "optional.toml", "--threads", "1", "--data", given]) == 0
    shown = capsys.readouterr().out
    found = {record.dataset: record.command for record in records.read_all(tmp_path / "runs" / "optional")}
    assert set(found) == {"digits", "sim2mnist"}
    assert "--data DIR" in found["sim2mnist"]
    assert "--data DIR" not in found["digits"]
    assert "Left out, for want of data: sim2mnist." not in shown
    assert "2 runs, 1 of them to be made" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["cifar10=x"], "has no dataset 'cifar10'; it has digits, mnist, sim2mnist"),
        (["sim2mnist=nowhere"], "nowhere"),
        (["sim2mnist=x", "sim2mnist=y"], "two directories for 'sim2mnist'"),
        (["sim2mnist=x", "y"], "--data y must be NAME=DIR"),
        (["sim2mnist="], "must be NAME=DIR"),
        (["x", "y"], "of several directories each needs its dataset"),
    ],
)
def test_folders_that_cannot_be_used(words: list[str], complaint: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "optional.toml").write_text(OPTIONAL)
    options = [part for word in words for part in ("--data", word)]
    assert run(["run", "optional.toml", "--threads", "1", *options]) == 1
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_on_a_terminal_there_is_a_live_table(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(LONG.replace('"ramlpm"', '"cnn-at"').replace('"spsa"', '"fgsm"'))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "robustbench_lpm", "run", "short.toml", "--threads", "1"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side has gone
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=60) == 0
    text = shown.decode(errors="replace")
    assert "queries per second" in text
    assert "runs done" in text
    assert "Ctrl-C stops" in text
    assert "Traceback" not in text


def test_failed_examples_end_a_suite_with_status_1_and_the_rest_goes_on(tmp_path: Path, capsys: Capture) -> None:
    import torch

    from tests.execution.test_failing_blocks import NAN_SOMETIMES

    (tmp_path / "sometimes_nan.py").write_text(NAN_SOMETIMES)
    torch.save({"w": torch.ones(10)}, tmp_path / "w.pt")
    import hashlib

    (tmp_path / "nan.toml").write_text(
        'name = "nan"\nsummary = "NaN for bright images"\nentry = "sometimes_nan:Sometimes"\nlabels = "digits"\n'
        f'classes = 10\n[input]\nchannels = 1\n[weights]\nfile = "w.pt"\n'
        f'sha256 = "{hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()}"\n'
    )
    (tmp_path / "mixed.toml").write_text(
        'name = "mixed"\nsummary = "one that fails"\n[[part]]\ndataset = "digits"\n'
        f'models = ["{tmp_path}/nan.toml", "cnn"]\nattacks = ["noise"]\naudit = ["noise"]\neps = ["0.01"]\nlimit = 30\n'
    )
    assert run(["run", "mixed.toml", "--threads", "1", "--trust"]) == 1
    shown = capsys.readouterr()
    (complaint,) = shown.err.strip().splitlines()
    assert "1 run(s) are not whole: nan under noise" in complaint
    assert (tmp_path / "runs" / "mixed" / "leaderboard.html").is_file()
    assert {r.model: bool(r.failures) for r in records.read_all(tmp_path / "runs")} == {"nan": True, "cnn": False}


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--workers", "2"]], ids=["here", "on workers"])
def test_ctrl_c_stops_and_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    options = ["--threads", "1", "--out", "my runs", *words]
    started = "manifest.json" if words else "record.json"  # workers have many runs under way before one is done
    status, complaint = interrupted(["run", "long.toml", *options], lambda: any((tmp_path / "my runs").rglob(started)))
    assert status == 130
    assert "Traceback" not in complaint
    (line,) = [line for line in complaint.splitlines() if line.startswith("lpmbench: ")]
    assert line.startswith("lpmbench: Interrupted: ")
    assert line.endswith(f"Go on with: lpmbench run long.toml {shlex.join(options)}")


@pytest.mark.slow
def test_killed_eight_times_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    tally = kills.survive(8, tmp_path, seed=1, suite=kills.SUITE.replace("limit = 160", "limit = 80"))
    assert tally.kills >= 8
    assert tally.differing == []
    assert tally.hits > 0  # it was hit where it hurts
