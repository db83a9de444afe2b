"""Several models, attacks and budgets in one command: what fails is named, the others go on, and the status says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from robustbench_lpm.cli import run
from robustbench_lpm.records import audits
from robustbench_lpm.records import runs as records

Capture = pytest.CaptureFixture[str]

# Each way in which a model of somebody's own may fail: where, and what the line says of it.
FAILING = {
    "import": ("import nothing_of_that_name", "nothing_of_that_name"),
    "syntax": ("def", "SyntaxError"),
    "building": ("BUILD = RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    "files": ("BUILD = FileNotFoundError('vocabulary.txt')", "vocabulary.txt"),
    "passing": ("PASS = KeyError('scale')", "KeyError: 'scale'"),
}
MODEL = """
import torch

BUILD = PASS = None
{}


class Net(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        if BUILD is not None:
            raise BUILD
        self.bias = torch.nn.Parameter(torch.zeros(classes))

    def forward(self, images):
        if PASS is not None:
            raise PASS
        return images.flatten(1)[:, :10] + self.bias
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model for each failure, and a suite of them all."""
    import hashlib

    import torch
    from safetensors.torch import save_file

    save_file({"bias": torch.zeros(10)}, tmp_path / "bias.safetensors")
    digest = hashlib.sha256((tmp_path / "bias.safetensors").read_bytes()).hexdigest()
    for name, (code, _) in FAILING.items():
        (tmp_path / f"failing_{name}.py").write_text(MODEL.format(code))
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nsummary = "s"\nentry = "failing_{name}:Net"\nlabels = "digits"\nclasses = 10\n'
            f'[input]\nchannels = 1\n[weights]\nfile = "bias.safetensors"\nsha256 = "{digest}"\n'
        )
    models = ", ".join(f'"{name}"' for name in [*(f"{name}.toml" for name in FAILING), "cnn"])
    (tmp_path / "all.toml").write_text(
        f'name = "all"\nsummary = "s"\n[[part]]\ndataset = "digits"\nmodels = [{models}]\nattacks = ["noise"]\n'
        'eps = ["8/255", 0.1, "0.1", 1]\nlimit = 2\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status_of(line: str) -> int:
    return run([*line.split(), "--threads", "1"])


def check_told(complaint: str, fate: str) -> None:
    """A line for each failure, and one at the end; no traceback."""
    *lines, last = complaint.strip().splitlines()
    for name, (_, reason) in FAILING.items():
        (told,) = [line for line in lines if line.startswith(f"lpmbench: {name}")]
        assert reason in told
    assert len(lines) == len(FAILING)
    assert last.startswith(f"lpmbench: {len(FAILING)} ")
    assert f" could not be {fate}: " in last


def test_attack_goes_on_without_the_models_that_fail(folder: Path, capsys: Capture) -> None:
    models = " ".join(f"--model {name}.toml" for name in FAILING)
    assert status_of(f"attack {models} --model cnn --attack noise --eps 0.1 --limit 2 --trust") == 1
    check_told(capsys.readouterr().err, "attacked")
    assert [record.model for record in records.read_all(folder / "runs")] == ["cnn"]


def test_a_suite_goes_on_without_the_models_that_fail(folder: Path, capsys: Capture) -> None:
    """Its budgets are numbers or text, each once."""
    assert status_of("run all.toml --trust") == 1
    check_told(capsys.readouterr().err, "run")
    found = [(record.model, record.eps) for record in records.read_all(folder / "runs" / "all")]
    assert sorted(found) == [("cnn", 8 / 255), ("cnn", 0.1), ("cnn", 1.0)]
    assert (folder / "runs" / "all" / "leaderboard.md").is_file()


def test_invariance_goes_on_without_the_models_that_fail(folder: Path, capsys: Capture) -> None:
    models = " ".join(f"{name}.toml" for name in FAILING)
    assert status_of(f"invariance {models} cnn --dataset digits --rotate 0 --limit 2 --trust --out study") == 1
    check_told(capsys.readouterr().err, "studied")
    assert {line.split(",")[0] for line in (folder / "study" / "invariance.csv").read_text().splitlines()[1:]} == {
        "cnn"
    }


@pytest.mark.parametrize(
    "line",
    [
        "attack --model {}.toml --attack noise --eps 0.1 --limit 2",
        "audit {}.toml --attack fgsm --eps 0.1 --limit 2",
        "sweep {}.toml --dataset digits --limit 2",
        "invariance {}.toml --dataset digits --rotate 0 --limit 2",
        "glimpses {}.toml --eps 0.1 --limit 2",
    ],
    ids=lambda line: line.split()[0],
)
def test_a_single_model_that_fails_is_one_line(line: str, capsys: Capture) -> None:
    for name, (_, reason) in FAILING.items():
        assert status_of(f"{line.format(name)} --trust") == 1
        (told,) = capsys.readouterr().err.strip().splitlines()
        assert name in told
        assert reason in told or "glimpses" in told  # a model that sees images whole is refused before it is asked


def test_the_traceback_is_there_for_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LPMBENCH_DEBUG", "1")
    monkeypatch.setattr(logging.getLogger("robustbench_lpm"), "level", logging.NOTSET)
    assert status_of("attack --model building.toml --attack noise --eps 0.1 --limit 2 --trust") == 1
    assert "Traceback" in caplog.text
    assert "raise BUILD" in caplog.text


@pytest.mark.parametrize(("words", "expected"), [
    ("--attack noise,fgsm --eps 0.05,0.1", [("fgsm", 0.05), ("fgsm", 0.1), ("noise", 0.05), ("noise", 0.1)]),
    ("--attack noise --attack fgsm,noise --eps 0.1 --eps 1/10,0.1", [("fgsm", 0.1), ("noise", 0.1)]),
    ("--attack fgsm, --eps 2/255", [("fgsm", 2 / 255)]),
    ("--attack pgd,noise --steps 2 --set pgd.restarts=2 --eps 0.1", [("noise", 0.1), ("pgd", 0.1)]),
    ("--attack pgd,noise --set steps=2 --eps 0.1", [("noise", 0.1), ("pgd", 0.1)]),
])  # fmt: skip
def test_attacks_and_budgets_repeat_and_take_commas(
    words: str, expected: list[tuple[str, float]], folder: Path
) -> None:
    assert status_of(f"attack --model cnn --limit 2 {words}") == 0
    found = records.read_all(folder / "runs")
    assert sorted((record.attack, record.eps) for record in found) == expected
    given = {record.attack: record.configuration["attack"]["parameters"] for record in found}
    if "pgd" in given:
        assert given["pgd"]["steps"] == 2
        assert "steps" not in given["noise"]
        assert given["pgd"].get("restarts", 1) == (2 if "restarts" in words else 1)


@pytest.mark.parametrize(("words", "complaint"), [
    ("--attack pgd,pdg", "Did you mean 'pgd'?"),
    ("--attack ,", "--attack is empty"),
    ("--attack noise,transfer --steps 2 --eot 2 --set stepz=3", "Did you mean 'steps'?"),
    ("--attack noise,rays --steps 2 --eot 2", "takes no eot"),
    ("--attack pgd,noise --set fgsn.eot=2", "Unknown attack 'fgsn'"),
    ("--attack pgd,noise --surrogate cnn-at", "takes no surrogates"),
    ("--attack pgd --eps 8", "did you mean 8/255?"),
    ("--attack pgd --eps 0.1 --eps 8", "did you mean 8/255?"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_runs(words: str, complaint: str, folder: Path, capsys: Capture) -> None:
    assert status_of(f"attack --model cnn --limit 2 {words}") != 0
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in told
    assert not (folder / "runs").exists()


def test_an_attack_that_cannot_be_made_does_not_stop_the_others(folder: Path, capsys: Capture) -> None:
    assert status_of("attack --model cnn --attack gaze,noise --eps 0.1 --limit 2") == 1
    assert "lpmbench: cnn under gaze: Attack 'gaze' moves fixations" in capsys.readouterr().err
    assert [record.attack for record in records.read_all(folder / "runs")] == ["noise"]


def test_an_audit_that_cannot_be_made_does_not_stop_the_others(folder: Path, capsys: Capture) -> None:
    """And above half of all that pixels can take, twice the eps is all that they can take."""
    line = "audit cnn --attack pgd-kiritani2020,fgsm --norm l2 --eps 1.5 --limit 2 --black-box square"
    assert status_of(f"{line} --set square.queries=4") == 1
    assert "audit of cnn under pgd-kiritani2020" in capsys.readouterr().err
    assert status_of("audit cnn --attack fgsm --eps 0.6 --limit 2 --black-box square --set square.queries=4") == 0
    found = [audits.read(path) for path in (folder / "runs" / "audits").glob("*.json")]
    assert [audit.attack for audit in found] == ["fgsm", "fgsm"]
