"""lpmbench audit, from words to files: the evidence as a table, the verdict on disk and on the leaderboard."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from robustbench_lpm.records import audits
from robustbench_lpm.records import runs as records
from tests.cli import lpmbench

Capture = pytest.CaptureFixture[str]
LINE = "audit cnn --attack fgsm --limit 20 --eps 0.1 --black-box square --set square.queries=10 --out runs --threads 1"
CHECKS = ["attack vs noise", "white-box vs black-box", "more eps", "unbounded", "direction"]


@pytest.fixture(autouse=True)
def somewhere_else_and_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of directions asks the model 512 times for each image; it has tests of its own: here 16 do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustbench_lpm.protocol.audit.STILL", (8, 1e-3))
    monkeypatch.setattr("robustbench_lpm.protocol.audit.NOISY", (8, 0.05))


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}


def test_from_words_to_a_verdict_on_the_leaderboard(tmp_path: Path, capsys: Capture) -> None:
    runs = tmp_path / "runs"
    lpmbench(LINE)
    shown = capsys.readouterr().out
    for heading in ("Check", "Against", "Verdict", "Judged", "Reference", "Difference, 95 %"):
        assert heading in shown
    for check in CHECKS:
        assert check in shown
    assert "Verdict on cnn under fgsm, linf 0.1, 20 images: " in shown

    (path,) = (runs / "audits").glob("*.json")
    audit = audits.read(path)
    assert f"Audit: runs/audits/{path.name}" in shown
    assert (audit.model, audit.attack) == ("cnn", "fgsm")
    assert audit.verdict == "undecided"  # twenty images bound nothing by two points
    assert "20 images: UNDECIDED" in shown
    found = {record.id: record for record in records.read_all(runs)}
    assert path.stem == found[audit.record].folder_name
    assert {name for check in audit.checks for name in check.records} <= found.keys()
    (squared,) = {record.id for record in found.values() if record.attack == "square"}
    assert found[squared].configuration["attack"]["parameters"]["queries"] == 10
    verdicts = {check.name: check.verdict for check in audit.checks}
    assert set(CHECKS) <= verdicts.keys()
    assert verdicts["frozen noise"] == verdicts["twice the steps"] == "not applicable"

    lpmbench("report")
    table = pd.read_csv(runs / "leaderboard.csv").set_index("record")
    assert table.loc[audit.record, "verdict"] == "undecided"
    assert table.drop(index=audit.record)["verdict"].isna().all()


def test_the_same_audit_or_its_command_again_runs_nothing_and_says_the_same(tmp_path: Path, capsys: Capture) -> None:
    lpmbench(LINE)
    shown, before = capsys.readouterr().out, stamps(tmp_path / "runs")
    (path,) = (tmp_path / "runs" / "audits").glob("*.json")
    judged = path.read_bytes()
    lpmbench(LINE)
    again = capsys.readouterr().out
    assert stamps(tmp_path / "runs") == before
    assert again.count("already run") == len(before)
    assert shown.splitlines()[-15:] == again.splitlines()[-15:]
    assert path.read_bytes() == judged
    command = audits.read(path).command
    assert command.startswith("lpmbench audit cnn --attack fgsm ")
    lpmbench(f"{command.removeprefix('lpmbench ')} --threads 1")
    assert stamps(tmp_path / "runs") == before
    assert len(list((tmp_path / "runs" / "audits").iterdir())) == 1


def test_an_audit_of_a_carried_over_attack_and_its_command(tmp_path: Path) -> None:
    """The command names the surrogates, and `audit` takes them."""
    lpmbench(
        "audit cnn --attack transfer --steps 1 --surrogate cnn-at --limit 3 --eps 0.1 --black-box square --threads 1"
    )
    (path,) = (tmp_path / "runs" / "audits").glob("*.json")
    audit, before = audits.read(path), stamps(tmp_path / "runs")
    for record in records.read_all(tmp_path / "runs"):
        expected = ["cnn-at"] if record.attack == "transfer" else []
        assert list(record.configuration["attack"].get("surrogates", {})) == expected
    lpmbench(f"{audit.command.removeprefix('lpmbench ')} --threads 1")
    assert stamps(tmp_path / "runs") == before


def test_a_stochastic_model_is_judged_with_its_noise_frozen_too(tmp_path: Path) -> None:
    line = "audit ram --attack pgd --steps 1 --eot 1 --gradient-mode detached --draws 3 --limit 3 --eps 0.1"
    lpmbench(f"{line} --black-box square --set square.queries=4 --set square.draws=1 --threads 1")
    (path,) = (tmp_path / "runs" / "audits").glob("*.json")
    checks = {check.name: check for check in audits.read(path).checks}
    assert checks["unbounded"].verdict == "not applicable"
    assert "stochastic" in checks["unbounded"].note
    found = {record.id: record for record in records.read_all(tmp_path / "runs")}
    frozen = found[checks["frozen noise"].records[0]]
    assert [mode for _, mode in frozen.configuration["evaluation"]["noise"]] == ["frozen", "frozen"]
    assert checks["twice the draws"].records[1] in found


SUITE = """
name = "judged"
summary = "two models, one judged result"
[[part]]
dataset = "digits"
models = ["cnn", "cnn-at"]
attacks = ["fgsm", "square", "transfer"]
audit = ["fgsm"]
eps = ["0.1"]
limit = 3
draws = 2
gradient_modes = ["detached"]

[part.parameters]
fgsm = { eot = 1 }
square = { queries = 4, draws = 1 }
transfer = { steps = 1, eot = 1 }
"""


def test_a_suite_judges_what_its_card_says(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "judged.toml").write_text(SUITE)
    lpmbench("run judged.toml --threads 1")
    shown = capsys.readouterr().out
    for model in ("cnn", "cnn-at"):
        assert f"Verdict on {model} under fgsm (eot=1), linf 0.1, 3 images: " in shown
    folder = tmp_path / "runs" / "judged"
    found = {audit.model: audit for audit in map(audits.read, (folder / "audits").glob("*.json"))}
    assert {name: audit.attack for name, audit in found.items()} == {"cnn": "fgsm", "cnn-at": "fgsm"}
    assert {"white-box vs black-box", "white-box vs transfer"} <= {check.name for check in found["cnn-at"].checks}
    table = pd.read_csv(folder / "leaderboard.csv").set_index("record")
    for audit in found.values():
        assert table.loc[audit.record, "verdict"] == audit.verdict
