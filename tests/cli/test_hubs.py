"""Models by their address on the command line, in processes that find a hub on this machine by HF_ENDPOINT."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robustbench_lpm.cli import run
from robustbench_lpm.records.runs import read_all
from robustbench_lpm.registry import hubs
from tests.hubs import HubServer, ask_only, save_timm, served

EFFICIENTNET, VIT = "test_efficientnet.r160_in1k", "test_vit.r160_in1k"  # timm's own models for tests
PANDA = "--dataset panda --size 64 --attack pgd --steps 2 --threads 1"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with served(tmp_path / "served") as server:
        for name in (EFFICIENTNET, VIT):
            save_timm(server.repository(f"timm/{name}"), name)
        yield server


def test_a_second_process_needs_no_hub(hub: HubServer, tmp_path: Path) -> None:
    caches = {name: str(tmp_path / name) for name in ("HF_HOME", "LPMBENCH_CACHE", "TORCH_HOME")}

    def lpmbench(line: str, **environment: str) -> tuple[int, str]:
        words, told = [sys.executable, "-m", "robustbench_lpm", *shlex.split(line)], subprocess.PIPE
        done = subprocess.run(
            words, env=os.environ | caches | environment, text=True, stdout=told, stderr=told, check=False
        )
        return done.returncode, done.stderr

    assert lpmbench(f"attack --model timm:test_efficientnet {PANDA}", HF_ENDPOINT=hub.url) == (0, "")
    (record,) = read_all(Path("runs"))
    assert record.model == f"timm:{EFFICIENTNET}"
    assert f"--model timm:{EFFICIENTNET} " in record.command
    first = {path.name: path.read_bytes() for path in (Path("runs") / record.folder_name).iterdir()}
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    again = record.command.removeprefix("lpmbench ") + " --out again"
    assert lpmbench(again, **offline) == (0, "")
    for name in ("record.json", "outcomes.parquet", "adversarials.safetensors"):
        assert (Path("again") / record.folder_name / name).read_bytes() == first[name]
    status, told = lpmbench(f"attack --model timm:test_vit {PANDA}", **offline)
    assert status == 1
    assert told.count("\n") == 1
    assert "is not in the cache" in told
    assert "HF_HUB_OFFLINE forbids" in told


@pytest.fixture
def lpmbench(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], str]]:
    """A command in this process that must succeed, with the hub; its output."""
    ask_only(hub.url, tmp_path / "cache", monkeypatch)
    hubs.describe.cache_clear()

    def do(line: str) -> str:
        assert run(shlex.split(line)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    yield do
    hubs.describe.cache_clear()


def test_an_address_stands_wherever_a_model_s_name_stands(lpmbench: Callable[[str], str]) -> None:
    card = tomllib.loads(lpmbench("models show timm:test_vit"))
    assert (card["name"], card["input"]["working_size"]) == (f"timm:{VIT}", 160)
    transfer = "--attack transfer --surrogate timm:test_efficientnet --dataset panda --size 64 --steps 2"
    lpmbench(f"attack --model timm:test_vit {transfer}")
    assert "FAILS" not in lpmbench("verify runs --strict")
    Path("suite.toml").write_text(
        'name = "theirs"\nsummary = "two"\n[[part]]\ndataset = "panda"\nsize = "64"\neps = ["2/255"]\n'
        'attacks = ["fgsm"]\nmodels = ["timm:test_vit", "timm:test_efficientnet"]\n'
    )
    lpmbench("run ./suite.toml --out matrix")
    assert {record.model for record in read_all(Path("matrix"))} == {f"timm:{VIT}", f"timm:{EFFICIENTNET}"}
    sha256 = tomllib.loads(lpmbench("models show timm:test_vit"))["weights"]["sha256"]
    assert f"{sha256}  timm:{VIT}\n" in (hubs.folder() / hubs.SEEN).read_text()


def test_the_lists_and_the_help_mention_the_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    mentioned = {"models": "robustbench", "attack --help": "timm:resnet18", "models --help": "add"}
    for words, told in mentioned.items():
        assert run(words.split()) == 0
        assert told in capsys.readouterr().out
