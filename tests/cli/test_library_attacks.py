"""Attacks of other libraries on the command line: they are listed, shown as cards, run, verified and run again."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from robustbench_lpm.attacks import libraries
from robustbench_lpm.cli import run
from robustbench_lpm.records.runs import read_all


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_library_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(output_of(capsys, "attacks", "--library", "cleverhans", "--json"))
    (found,) = [row for row in rows if row["address"] == "cleverhans:projected_gradient_descent"]
    assert found == {
        "address": "cleverhans:projected_gradient_descent", "knowledge": "white-box", "norms": "linf, l2",
        "targeted": "yes", "parameters": "eot=5, eps_iter=2.5·eps/nb_iter, nb_iter=40, rand_init=True",
    }  # fmt: skip
    told = output_of(capsys, "attacks", "--library", "art")
    assert "art:HopSkipJump" in told
    assert "Left out: DPatch (it attacks object detectors)." in told


def test_the_lists_and_the_help_mention_the_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--library NAME" in output_of(capsys, "attacks")
    assert "art:HopSkipJump" in output_of(capsys, "attack", "--help")
    assert all(library in output_of(capsys, "attacks", "--help") for library in libraries.LIBRARIES)


def test_an_address_is_shown_as_a_card_that_can_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = output_of(capsys, "attacks", "show", "art:HopSkipJump")
    assert tomllib.loads(text)["parameters"]["max_iter"] == 50
    card = tmp_path / "mine.toml"
    card.write_text(text.replace('"art:HopSkipJump"', '"mine"', 1).replace("50", "1").replace("10000", "100"))
    output_of(capsys, "attack", "--model", "cnn", "--attack", str(card), "--norm", "l2", "--eps", "1", "--limit", "1")


def test_a_record_verifies_and_its_command_gives_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    output_of(
        capsys, "attack", "--model", "ramlpm", "--attack", "art:HopSkipJump,cleverhans:projected_gradient_descent",
        "--norm", "l2", "--eps", "1.5", "--limit", "2", "--steps", "2", "--eot", "2", "--set", "max_eval=100",
        "--draws", "3",
    )  # fmt: skip
    assert "FAILS" not in output_of(capsys, "verify", "runs")
    first = {record.folder_name: record for record in read_all(Path("runs"))}
    assert len(first) == 2
    for record in first.values():
        assert f"--attack {record.attack} " in record.command
        assert record.configuration["attack"]["parameters"]["eot"] == 2
        output_of(capsys, *shlex.split(record.command)[1:], "--out", "again")
        for file in ("record.json", "outcomes.parquet", "adversarials.safetensors"):
            again = Path("again") / record.folder_name / file
            assert again.read_bytes() == (Path("runs") / record.folder_name / file).read_bytes()


def test_a_suite_takes_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    Path("suite.toml").write_text(
        'name = "theirs"\nsummary = "two"\n[[part]]\ndataset = "digits"\nmodels = ["cnn"]\nlimit = 3\n'
        'attacks = ["art:BasicIterativeMethod", "art:SquareAttack"]\neps = ["0.1"]\n'
        'parameters = { "art:BasicIterativeMethod" = { max_iter = 3 }, "art:SquareAttack" = { max_iter = 2 } }\n'
    )
    output_of(capsys, "run", "./suite.toml", "--out", "runs")
    found: dict[str, Any] = {record.attack: record for record in read_all(Path("runs"))}
    assert sorted(found) == ["art:BasicIterativeMethod", "art:SquareAttack"]
    assert found["art:BasicIterativeMethod"].outcomes["backwards"].tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["attack", "--attack", "art:HopSkip"], "Unknown attack 'art:HopSkip'. Did you mean 'art:HopSkipJump'?"),
        (["attack", "--attack", "artt:HopSkip"], "Unknown library 'artt'. Did you mean 'art'?"),
        (["attack", "--attack", "art:HopSkipJump", "--set", "maxiter=3"], "no parameter 'maxiter' can be set."),
        (["attack", "--attack", "art:HopSkipJump,pgd", "--set", "maxiter=3"], "Did you mean 'max_iter'?"),
        (["attacks", "--library", "artt"], "Unknown library 'artt'. Did you mean 'art'?"),
        (["attacks", "show", "art:HopSkip"], "Unknown attack 'art:HopSkip'."),
    ],
)
def test_mistakes(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, *(["--model", "cnn", "--eps", "0.1"] if arguments[0] == "attack" else [])]) == 1
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1
