"""What `lpmbench train` says: all of its options, and after Ctrl-C what to type to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustbench_lpm.cli import run
from robustbench_lpm.cli.train import _again
from robustbench_lpm.training.plans import command_of

NOTHING: dict[str, Any] = {
    "recipe": None, "seed": 3, "device": "cpu", "dataset": None, "data": None, "epochs": None, "resume": False,
    "save_every": None, "workers": None, "tensorboard": False, "trust": False,
}  # fmt: skip
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "lpmbench train cnn --seed 3 --out 'my runs' --resume"),
    ({"data": Path("d")}, "lpmbench train cnn --seed 3 --data d --out 'my runs' --resume"),
    (
        {"save_every": 2.0, "workers": 0, "tensorboard": True},
        "lpmbench train cnn --seed 3 --out 'my runs' --resume --save-every 2 --workers 0 --tensorboard",
    ),
    ({"trust": True, "device": "cuda"}, "lpmbench train cnn --seed 3 --device cuda --trust --out 'my runs' --resume"),
]


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_going_on_repeats_every_option(changes: dict[str, Any], expected: str) -> None:
    options = NOTHING | changes
    assert _again(command_of("cnn", options), Path("my runs"), options) == expected


def test_the_card_keeps_only_what_decides_the_network() -> None:
    options = NOTHING | {"save_every": 2.0, "workers": 4, "tensorboard": True, "resume": True, "data": Path("/home/me")}
    assert command_of("cnn", options) == "lpmbench train cnn --seed 3 --data DIR"


def test_help_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    text = capsys.readouterr().out
    options = ["--recipe", "--dataset", "--data", "--epochs", "--seed", "--out", "--resume", "--save-every"]
    assert [
        word for word in [*options, "--workers", "--tensorboard", "--device", "--threads"] if word not in text
    ] == []
    assert "recipes/README.md" in text
