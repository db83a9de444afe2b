"""A checkout that lies on the path and was never installed works as an installed one does."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from robustbench_lpm import __version__
from robustbench_lpm.records.runs import read

CHECKOUT = Path(__file__).parent.parent
SCRIPT = """
import importlib.metadata
try:
    importlib.metadata.version("robustbench-lpm")
except importlib.metadata.PackageNotFoundError:
    from robustbench_lpm.cli import run
    assert run(["train", "cnn", "--epochs", "1", "--out", "trained"]) == 0
    attack = ["attack", "--model", "trained/card.toml", "--attack", "noise", "--limit", "2", "--eps", "0.1"]
    assert run(attack) == 0
    print("not installed")
"""


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """What is installed, without this package."""
    folder = tmp_path / "site"
    folder.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if "robustbench_lpm" not in entry.name and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.slow
def test_training_and_attacks_need_no_installation(others: Path, tmp_path: Path) -> None:
    path = {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(others)])}
    words = [sys.executable, "-S", "-c", SCRIPT]  # -S: without the folder that holds what is installed
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("not installed\n")
    card = tomllib.loads((tmp_path / "trained/card.toml").read_text())
    (record,) = (tmp_path / "runs").rglob("record.json")
    for versions in (card["trained"]["versions"], read(record.parent).versions):
        assert versions["robustbench-lpm"] == __version__
        assert "torch" in versions


def test_a_version_is_written_in_one_way() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"version: {__version__}\n" in (CHECKOUT / "CITATION.cff").read_text()
