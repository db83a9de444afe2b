"""What a person sees of evaluations from Python: bars, notes, records in a few lines, tables and pictures."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import robustbench_lpm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import attack_picture

SETTINGS = "'pgd', eps=0.1, limit=8, parameters={'steps': 2}"


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    attacks = ["pgd", "fgsm"]
    return robustbench_lpm.evaluate("cnn", attacks, eps=[0.05, "0.1"], limit=20, parameters={"steps": 2})


def on_stderr(code: str, *, terminal: bool) -> str:
    """What a program writes to stderr, which is a terminal or a pipe."""
    command = [sys.executable, "-c", f"import robustbench_lpm\n{code}"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += (part := os.read(ours, 65536))
        except OSError:  # the other side has gone
            break
        if not part:
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return shown.decode(errors="replace")


def test_a_bar_on_a_terminal_alone_and_not_where_it_is_switched_off() -> None:
    assert "8 images" in on_stderr(f"robustbench_lpm.evaluate('cnn', {SETTINGS})", terminal=True)
    assert on_stderr(f"robustbench_lpm.evaluate('cnn', {SETTINGS}, progress=False)", terminal=True) == ""
    assert on_stderr(f"robustbench_lpm.evaluate('cnn', {SETTINGS})", terminal=False) == ""


def test_a_note_is_told_once_in_a_call(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))  # in training mode, which is a note
    found = robustbench_lpm.evaluate(model, ["noise", "fgsm"], eps=[0.1, 0.2], limit=2, name="mine")
    (note,) = found[0].notes
    assert all(record.notes == [note] for record in found)
    assert caplog.text.count(note) == 1
    robustbench_lpm.evaluate(model, "noise", eps=0.1, limit=2, name="another")
    assert caplog.text.count("another under noise: ") == 1


def test_a_record_is_shown_in_a_few_lines(records: list[RunRecord]) -> None:
    head, rates, cost = repr(records[1]).splitlines()
    assert head == "cnn under pgd, linf eps 0.1, digits, 20 image(s)"
    clean, robust = records[1].clean_accuracy, records[1].robust_accuracy
    assert robust.low is not None
    assert robust.high is not None
    assert f"clean {100 * clean.value:.1f} % [" in rates
    bounds = f"[{100 * robust.low:.1f}, {100 * robust.high:.1f}]"
    assert rates.endswith(f"robust {100 * robust.value:.1f} % {bounds}")
    assert cost.startswith("2 forwards and 2 backwards for each image, ")


def test_a_record_with_notes_and_a_place_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
    record = robustbench_lpm.evaluate(model, "noise", eps=0.1, limit=2, name="mine", out=tmp_path)
    *_, note, place = repr(record).splitlines()
    assert note == f"note: {record.notes[0]}"
    assert place == f"record: {record.path}"


def test_records_are_a_table(records: list[RunRecord]) -> None:
    table = robustbench_lpm.table(records)
    wanted = {(r.attack, r.eps): r.robust_accuracy.value for r in records}
    assert len(wanted) == 4
    found = zip(table["attack"], table["eps"], table["robust_accuracy"], strict=True)
    assert {(attack, eps): value for attack, eps, value in found} == wanted


def test_an_image_of_a_record_is_a_figure(records: list[RunRecord], tmp_path: Path) -> None:
    figure = robustbench_lpm.plot(records[0], position=3)
    assert isinstance(figure, Figure)
    original, _, adversarial = figure.axes
    picture = records[0].pictures()[3]
    assert torch.equal(torch.tensor(original.images[0].get_array()), torch.tensor(picture.clean[0]))
    assert torch.equal(torch.tensor(adversarial.images[0].get_array()), torch.tensor(picture.adversarial[0]))
    figure.savefig(tmp_path / "picture.pdf")
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")
    assert attack_picture(records[0], 3).startswith(b"\x89PNG")
    with pytest.raises(LpmbenchError, match="none at 99"):
        robustbench_lpm.plot(records[0], position=99)
