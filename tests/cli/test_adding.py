"""lpmbench models add: what it finds out, what it asks at a real terminal, and that its card runs."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustbench_lpm.cli import run
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.registry import cards

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, depth, classes=10, channels=3):
        super().__init__()
        self.each = 1 / depth
        self.body = nn.Sequential(*[nn.Conv2d(8 if i else channels, 8, 3, padding=1) for i in range(depth)])
        self.head = nn.Linear(8, classes)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 28 * 28, 10)
    def forward(self, x):
        return self.head(x.flatten(1))

def odd():
    return nn.Sequential(nn.Flatten(), nn.Linear(45 * 45, 10))

class ByBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(32 * 32, 10)
    def forward(self, x):
        return self.body(x.flatten(1)) - self.body(x.flatten(1)).mean(0)
"""


@pytest.fixture(autouse=True)
def mynets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of someone's networks, in the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mynets.py").write_text(CODE)
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    torch.manual_seed(0)
    yield namespace
    sys.modules.pop("mynets", None)


def saved(network: nn.Module, name: str = "weights.pt") -> str:
    torch.save({"state_dict": network.state_dict()}, name)
    return name


def written(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(name).read_text())


def add(*words: str) -> int:
    return run(["models", "add", *words, "--trust"])


def test_the_card_says_what_was_found_and_runs(mynets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(mynets["Net"](2, 10, 1))
    assert add("mynets:Net", weights, "--set", "depth=2", "--labels", "digits", "--mean", "0.5", "--std", "0.3") == 0
    told = capsys.readouterr().out
    assert "images of any size with 1 channel(s) and tells 10 classes apart" in told
    assert written("net.toml") == {
        "name": "net", "summary": "mynets:Net with the weights of weights.pt", "entry": "mynets:Net",
        "labels": "digits", "classes": 10, "parameters": {"depth": 2},
        "input": {"channels": 1, "mean": [0.5], "std": [0.3]},
        "weights": {"file": "weights.pt", "sha256": sha256_of(Path(weights))},
    }  # fmt: skip
    command = told.partition("Use it: lpmbench ")[2].split()
    assert run([*command, "--limit", "2", "--steps", "1", "--eps", "0.1"]) == 0


@pytest.mark.parametrize(("entry", "classes", "channels", "size"), [
    ("Net", 7, 3, None), ("Net", 2, 1, None), ("Flat", 10, 3, 28),
])  # fmt: skip
def test_shapes_are_found_by_trying(entry: str, classes: int, channels: int, size: int | None, mynets: Any) -> None:
    network = mynets["Net"](1, classes, channels) if entry == "Net" else mynets["Flat"]()
    save_file(network.state_dict(), "weights.safetensors")
    given = ["--set", "depth=1"] if entry == "Net" else []
    assert add(f"mynets:{entry}", "weights.safetensors", *given, "--labels", "mine", "--mean", "none") == 0
    card = cards.model(f"./{entry.lower()}.toml")
    assert (card.classes, card.input.channels, card.input.working_size) == (classes, channels, size)


def test_weights_from_elsewhere_are_copied_beside_the_card(
    mynets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("far").mkdir()
    Path("near").mkdir()
    weights = saved(mynets["Flat"](), "far/weights.pt")
    (tmp_path / "mynets.py").rename(tmp_path / "near/mynets.py")
    given = (weights, "--out", "near", "--labels", "cifar10", "--mean", "none")
    assert add("mynets:Flat", *given) == 0
    assert sha256_of(Path("near/weights.pt")) == sha256_of(Path(weights))
    saved(mynets["Flat"](), "far/weights.pt")
    assert add("mynets:Flat", *given, "--name", "other") == 1
    assert "near/weights.pt is another file than far/weights.pt" in capsys.readouterr().err


def test_a_link_that_leads_away_is_no_file_beside_the_card(mynets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("far").mkdir()
    Path("near").mkdir()
    saved(mynets["Flat"](), "far/weights.pt")
    Path("mynets.py").rename("near/mynets.py")
    Path("near/weights.pt").symlink_to(Path("far/weights.pt").resolve())
    assert add("mynets:Flat", "near/weights.pt", "--out", "near", "--labels", "cifar10", "--mean", "none") == 1
    assert "near/weights.pt is a link that leads out of its directory" in capsys.readouterr().err


def test_a_model_that_would_not_run_gets_no_card(mynets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("far").mkdir()
    weights = saved(mynets["ByBatch"](), "far/weights.pt")
    assert add("mynets:ByBatch", weights, "--labels", "digits", "--mean", "none") == 1
    assert "it depends on the rest of the batch" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["far", "mynets.py"]


@pytest.mark.parametrize(("words", "told"), [
    ("Net w.pt", "give --set depth=VALUE."),
    ("Net w.pt --set depth=2", "Which label set does it predict? There is no terminal to ask at: give --labels, "),
    ("Net w.pt --set depth=2 --labels mine", "give --mean, --std."),
    ("Net w.pt --set depth=2 --mean none --yes", "give --labels."),  # no dataset has seven classes
    ("Net w.pt --set depth=2 --labels mine --mean 1,2 --std 1,1", "--mean 1,2 must be 3 number(s) with commas"),
    ("Net w.pt --set depth=2 --labels mine --mean 1,2,3 --std 1,0,1", "std must be positive"),
    ("Net w.pt --set depth=3", "the weights do not fit the model: 2 missing: body.2.weight, body.2.bias."),
    ("Net w.pt --set depth=2 --classes 6", "2 of another shape"),
    ("Net w.pt --set depth=2 --channels 2", "channels"),
    ("Net w.pt --set deep=2 --set depth=2", "Unknown parameter 'deep'. Did you mean 'depth'?"),
    ("Nat w.pt", "Unknown entry 'Nat'. Did you mean 'Net'"),
    ("odd odd.pt", "How many pixels is a side? There is no terminal to ask at: give --working-size."),
    ("odd odd.pt --working-size 44", "does not answer images of that size"),
    ("Net none.pt --set depth=2", "There is no checkpoint at none.pt."),
    ("Net mynets.py --set depth=2", "it is text"),
    ("Net w.pt --name cnn", "'cnn' is the name of a registered model"),
    ("Net w.pt --name ../net", "must be a word of letters"),
    ("Net w.pt --set depth=0", "cannot be built: ZeroDivisionError"),
    ("timm:resnet18 w.pt", "timm:resnet18 needs no card: --model timm:resnet18 --checkpoint w.pt."),
])  # fmt: skip
def test_mistakes_and_what_cannot_be_asked(
    words: str, told: str, mynets: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(mynets["Net"](2, 7), "w.pt")
    saved(mynets["odd"](), "odd.pt")
    assert not sys.stdin.isatty()
    assert add(*(words if ":" in words else f"mynets:{words}").split()) == 1
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1
    assert not list(Path().glob("*.toml"))


def test_code_needs_trust_and_a_card_is_not_overwritten(mynets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("mynets:Flat", saved(mynets["Flat"]()), "--labels", "cifar10", "--mean", "none")
    assert run(["models", "add", *given]) == 1
    assert "read it, then add --trust" in capsys.readouterr().err
    assert "mynets" not in sys.modules
    assert add(*given) == 0
    before = Path("flat.toml").read_text()
    assert add(*given, "--summary", "again") == 1
    assert "flat.toml exists. Overwrite it? There is no terminal to ask at: give --yes." in capsys.readouterr().err
    assert Path("flat.toml").read_text() == before
    assert add(*given, "--summary", "again", "--yes") == 0
    assert written("flat.toml")["summary"] == "again"


def at_a_terminal(words: list[str], answers: dict[str, str]) -> tuple[int, str]:
    """A real command at a real terminal, which types each answer when its question comes: the status and all output.

    The answer "^C" presses Ctrl-C instead.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "robustbench_lpm", *words], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env=os.environ | {"COLUMNS": "200"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    shown, left, pressed, deadline = "", dict(answers), False, time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 2)[0]:
                if pressed and "Interrupted" not in shown:  # it came just before the question was waited at
                    process.send_signal(signal.SIGINT)
                continue
            try:
                shown += os.read(ours, 4096).decode()
            except OSError:  # the other end is closed
                break
            for question in [question for question in left if question in shown]:
                answer = left.pop(question)
                if answer == "^C":
                    process.send_signal(signal.SIGINT)
                    pressed = True
                else:
                    os.write(ours, f"{answer}\n".encode())
        return process.wait(timeout=10), shown
    finally:
        process.kill()
        os.close(ours)


def test_it_asks_at_a_terminal_for_what_it_cannot_find_out(mynets: Any) -> None:
    words = ["models", "add", "mynets:Net", saved(mynets["Net"](2, 10, 1)), "--trust"]
    answers = {"parameter 'depth'": "2", "digits, fashion": "digits", "'none'? [none]": "0.5,0.5"}
    answers |= {"Error: --mean": "0.5", "by which standard": "0.25"}
    status, shown = at_a_terminal(words, answers)
    assert status == 0, shown
    card = written("net.toml")
    assert card["labels"] == "digits"
    assert card["parameters"] == {"depth": 2}
    assert card["input"] == {"channels": 1, "mean": [0.5], "std": [0.25]}
    status, shown = at_a_terminal(words, {"Overwrite it?": "n"})
    assert status == 1
    assert "No card was written." in shown
    assert written("net.toml") == card


def test_ctrl_c_at_a_question_leaves_nothing(mynets: Any) -> None:
    words = ["models", "add", "mynets:Flat", saved(mynets["Flat"]()), "--trust"]
    status, shown = at_a_terminal(words, {"Which label set": "^C"})
    assert status == 130
    assert shown.rstrip().endswith("Interrupted. No card was written.")
    assert "Traceback" not in shown
    assert not list(Path().glob("*.toml"))
