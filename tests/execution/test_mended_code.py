"""A finished run is given back only where the code of model, attack and dataset, and all answers, are the same."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustbench_lpm.cli import run
from robustbench_lpm.records import runs as records

MODEL = """
import os, torch, parts
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(2))
    def forward(self, images):
        logits = torch.tensor([{first}, 2.0]) * float(os.environ.get("LEVEL", 1)) * parts.SCALE + self.bias
        return logits.expand(len(images), 2)
"""
ATTACK = """
def nothing(oracle, images, labels, *, norm, eps):
    return images + {moved} * eps
"""
DATA = """
import numpy as np
from robustbench_lpm.datasets.images import from_arrays
def few(*, data, split, folder):
    return from_arrays(np.full((4, 8, 8), {shade}, np.uint8), [0, 1, 0, 1], "ab")
"""
FILES = {
    "net.py": MODEL.format(first=1.0),
    "parts.py": "SCALE = 1.0\n",
    "moves.py": ATTACK.format(moved=0),
    "source.py": DATA.format(shade=100),
}
# What is changed, to what, and what must be told; nothing told where nothing that counts has changed.
CHANGES: dict[str, tuple[str, str, str]] = {
    "a comment": ("net.py", "# mended\n" + FILES["net.py"], ""),
    "the model": ("net.py", MODEL.format(first=3.0), "code of the model"),
    "a helper of the model": ("parts.py", "SCALE = -1.0\n", "code of the model"),
    "the attack": ("moves.py", ATTACK.format(moved=1), "code of the attack"),
    "what the model reads elsewhere": ("LEVEL", "-1", "answers of the model"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    save_file({"bias": torch.zeros(2)}, tmp_path / "net.safetensors")
    digest = hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    (tmp_path / "net.toml").write_text(
        'name = "net"\nsummary = "s"\nentry = "net:Net"\nlabels = "ab"\nclasses = 2\n[input]\nchannels = 1\n'
        f'[weights]\nfile = "net.safetensors"\nsha256 = "{digest}"\n'
    )
    (tmp_path / "moves.toml").write_text(
        'name = "moves"\nsummary = "s"\nentry = "moves:nothing"\nknowledge = "white-box"\nnorms = ["linf"]\n'
    )
    (tmp_path / "source.toml").write_text(
        'name = "source"\nsummary = "s"\nentry = "source:few"\nlabels = "ab"\nclasses = 2\nchannels = 1\n'
    )
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    forget()


def forget() -> None:
    """What a new process would not know: the modules as they were."""
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def attack() -> None:
    forget()
    words = "attack --model net.toml --attack moves.toml --dataset source.toml --eps 0.1 --trust --threads 1"
    assert run(words.split()) == 0


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_of_other_code_is_run_again_and_says_why(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, content, told = CHANGES[name]
    attack()
    attack()
    assert "already run" in capsys.readouterr().out
    if where in FILES:
        (folder / where).write_text(content)
    else:
        monkeypatch.setenv(where, content)
    attack()
    said = capsys.readouterr().out
    assert ("already run" in said) == (not told)
    assert ("run again" in said) == bool(told)
    assert told in said
    (record,) = records.read_all(folder / "runs")
    assert set(record.code) == {"model", "answers", "attack", "dataset"}
    assert not list(folder.glob("__pycache__"))
