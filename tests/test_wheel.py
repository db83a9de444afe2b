"""An installed wheel needs no checkout: cards and checkpoints travel inside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from robustbench_lpm.registry import cards

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """What a fresh Python prints; with `path` it looks there first, before the checkout of an editable installation."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    python(*pip, "--target", str(target), str(wheel), cwd=target)
    return target


def test_the_wheel_carries_every_card_with_its_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind, folder in cards.FOLDERS.items():
        for name in cards.names(kind):
            assert f"robustbench_lpm/_cards/{folder}/{name}.toml" in names
    for weights in (REPOSITORY / "models").glob("*.safetensors"):
        assert f"robustbench_lpm/_cards/models/{weights.name}" in names
    assert not [name for name in names if name.startswith(("tests/", "runs/", "results/"))]
    assert not [name for name in names if "__pycache__" in name]


def test_it_is_the_wheel_that_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import robustbench_lpm as package; from robustbench_lpm.registry import cards; "
    code += "print(package.__file__, cards.root())"
    package, root = python("-c", code, cwd=tmp_path, path=installed).split()
    assert Path(package).is_relative_to(installed)
    assert Path(root) == installed / "robustbench_lpm/_cards"


def test_the_wheel_lists_its_cards(installed: Path, tmp_path: Path) -> None:
    for kind in ("model", "attack", "dataset"):
        listed = python("-m", "robustbench_lpm", cards.FOLDERS[kind], "--json", cwd=tmp_path, path=installed)
        assert [row["name"] for row in json.loads(listed)] == cards.names(kind)


def test_the_wheel_attacks_a_committed_model(installed: Path, tmp_path: Path) -> None:
    arguments = ["--model", "cnn", "--dataset", "digits", "--attack", "pgd", "--steps", "2", "--limit", "3"]
    python("-m", "robustbench_lpm", "attack", *arguments, "--eps", "0.1", cwd=tmp_path, path=installed)
    (record,) = (tmp_path / "runs").glob("*/record.json")
    configuration = json.loads(record.read_text())["configuration"]
    assert configuration["model"]["weights_sha256"] == cards.model("cnn").weights.sha256  # type: ignore[union-attr]
    assert configuration["dataset"]["indices"] == [0, 1, 2]
