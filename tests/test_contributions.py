"""An attack and a model that are contributed as the READMEs say pass the tests of all attacks and models, unedited."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readmes import README, files

CHECKOUT = Path(__file__).parents[1]
NEEDED = ("robustbench_lpm", "tests", "attacks", "models", "datasets", "recipes", "suites")
OF_ALL = (
    "tests/protocol/test_fairness.py", "tests/protocol/test_costs.py", "tests/protocol/test_oracle.py",
    "tests/registry/test_contents.py", "tests/registry/test_cards.py", "tests/test_readmes.py",
    "tests/training/test_model_cards.py",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This checkout, with the examples of both READMEs where contributions go, and their rows in the tables."""
    for name in NEEDED:
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    code, models = tmp_path / "robustbench_lpm", tmp_path / "models"
    attack, model = files(README["attack"]), files(README["model"])
    (code / "attacks/myattack.py").write_text(attack["myattack.py"])
    (code / "architectures/mymodel.py").write_text(model["mymodel.py"])
    add_card(tmp_path / "attacks/myattack.toml", attack, "attacks", "| `myattack` | x | gradients |")
    make = "from robustbench_lpm.architectures import mymodel; import sys; sys.modules['mymodel'] = mymodel\n"
    weights = python(models, "-c", make + model["make_weights.py"], PYTHONPATH=str(tmp_path)).stdout
    for name in ("mymodel", "mynoisymodel"):
        add_card(
            models / f"{name}.toml", model, "architectures", f"| `{name}` | x | digits | beside the card |", weights
        )
    return tmp_path


def add_card(path: Path, example: dict[str, str], package: str, row: str, rest: str = "") -> None:
    card = example[path.name].replace('entry = "', f'entry = "robustbench_lpm.{package}.')
    path.write_text(card + rest)
    readme = path.parent / "README.md"
    head, line, tail = readme.read_text().partition("|---|\n")
    readme.write_text(f"{head}{line}{row}\n{tail}")


def python(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_contributions_pass_without_further_edits(checkout: Path) -> None:
    chosen = "myattack or row or every_attack or every_model"
    done = python(checkout, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-v", *OF_ALL, "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for test in (
        "test_fairness[myattack-0.9]",
        "test_every_registered_attack_spends_what_it_announces[stochastic-myattack]",
        "test_every_attack_takes_the_parameters_of_its_card",
        "test_every_model_builds_and_has_the_numbers_of_its_torchvision_weights",
        "test_the_stored_weights_of_every_model_load",
        "test_every_card_has_a_row[model-Models]",
    ):
        assert f"{test} PASSED" in done.stdout
