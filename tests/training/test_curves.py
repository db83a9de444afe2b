"""curves.png shows the columns that the log has, and lies beside it however a training ends."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustbench_lpm.training import curves
from robustbench_lpm.training.checkpoints import Row
from tests.training.conftest import Trainer
from tests.training.test_training import StopAt

PLAIN: list[Row] = [
    {
        "epoch": epoch, "train_loss": 1 / epoch, "train_classification": 1 / epoch, "train_accuracy": 1 - 0.5 / epoch,
        "validation_loss": 1.1 / epoch, "validation_classification": 1.1 / epoch,
        "validation_accuracy": 1 - 0.6 / epoch, "learning_rate": 1e-3, "seconds": 1.0,
    }
    for epoch in (1, 2, 3)
]  # fmt: skip
GLIMPSING: list[Row] = [
    {
        "epoch": 1, "train_loss": -0.5, "train_classification": 1.0, "train_accuracy": 0.5,
        "learning_rate_where": 1e-4, "learning_rate_rest": 1e-3, "seconds": 1.0,
    },
    {
        "epoch": 2, "train_loss": -0.6, "train_classification": 0.9, "train_accuracy": 0.6,
        "validation_classification": 0.8, "validation_accuracy": 0.55, "validation_accuracy_m4": 0.65,
        "validation_accuracy_random": 0.3, "validation_accuracy_centre": 0.2,
        "learning_rate_where": 1e-4, "learning_rate_rest": 1e-3, "seconds": 1.0,
    },
]  # fmt: skip
ADVERSARIAL = [PLAIN[0] | {"train_clean_accuracy": 0.8, "validation_clean_accuracy": 0.7}]


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


def test_every_column_that_matters_has_a_line() -> None:
    assert [line.column for line in curves.loss_lines(PLAIN)] == ["train_loss", "validation_classification"]
    assert [line.column for line in curves.accuracy_lines(PLAIN)] == ["train_accuracy", "validation_accuracy"]
    assert [line.label for line in curves.rate_lines(PLAIN)] == [""]

    losses = [line.column for line in curves.loss_lines(GLIMPSING)]
    assert losses == ["train_loss", "train_classification", "validation_classification"]
    labels = {line.column: line.label for line in curves.accuracy_lines(GLIMPSING)}
    assert labels == {
        "train_accuracy": "training",
        "validation_accuracy": "validation, one run",
        "validation_accuracy_m4": "validation, mean of 4 runs",
        "validation_accuracy_random": "control: random fixations",
        "validation_accuracy_centre": "control: centre fixations",
    }
    assert [line.label for line in curves.rate_lines(GLIMPSING)] == ["where", "rest"]

    attacked = {line.column: line.label for line in curves.accuracy_lines(ADVERSARIAL)}
    assert attacked["validation_accuracy"] == "validation, attacked"
    assert attacked["validation_clean_accuracy"] == "validation, clean"


@pytest.mark.parametrize("rows", [PLAIN, PLAIN[:1], GLIMPSING, GLIMPSING[:1], ADVERSARIAL])
def test_the_lines_are_drawn_in_their_colours(rows: list[Row]) -> None:
    validated = "validation_accuracy" in rows[-1]
    found = pixels(curves.draw(rows, "costs $5 and $x_", best_epoch=len(rows) if validated else 0))
    drawn = {tuple(colour) for colour in found.reshape(-1, 3)}

    def rgb(colour: str) -> tuple[int, ...]:
        return tuple(bytes.fromhex(colour[1:]))

    assert rgb(curves.TRAINING) in drawn
    assert (rgb(curves.AVERAGED) in drawn) == ("validation_accuracy_m4" in rows[-1])
    assert (rgb(curves.CONTROL) in drawn) == ("validation_accuracy_random" in rows[-1])
    assert (rgb(curves.CLEAN) in drawn) == ("validation_clean_accuracy" in rows[-1])


@pytest.mark.slow
def test_matplotlib_waits_until_something_is_drawn() -> None:
    code = "import sys, robustbench_lpm.training; sys.exit('matplotlib' in sys.modules or 'seaborn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0


def test_an_interrupted_training_leaves_its_curves(tiny_train: Trainer, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", tmp_path, progress=StopAt(1))
    assert not (tmp_path / "curves.png").exists()  # there is nothing to show yet
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", tmp_path, resume=True, progress=StopAt(2))
    early = (tmp_path / "curves.png").read_bytes()
    tiny_train("cnn", "clean", tmp_path, resume=True)
    assert pixels(early).shape == pixels((tmp_path / "curves.png").read_bytes()).shape
    assert early != (tmp_path / "curves.png").read_bytes()


@pytest.mark.parametrize(("every", "expected"), [(600.0, [False, False]), (0.0, [True, True])])
def test_curves_are_drawn_now_and_then(
    tiny_train: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, expected: list[bool]
) -> None:
    there: list[bool] = []

    class Watcher(StopAt):
        def on_epoch(self, epoch: int, epochs: int, row: Row) -> None:
            there.append((tmp_path / "curves.png").exists())

    monkeypatch.setattr(curves, "EVERY", every)
    tiny_train("cnn", "clean", tmp_path, epochs=2, progress=Watcher(99))
    assert there == expected


def test_a_card_holds_some_epochs_up_to_the_last() -> None:
    rows: list[Row] = [PLAIN[0] | {"epoch": epoch, "train_loss": 1 / epoch} for epoch in range(1, 101)]
    found = curves.thinned(rows, most=20)
    assert list(found) == ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    assert found["epoch"] == list(range(5, 101, 5))
    assert found["train_loss"] == [pytest.approx(1 / epoch, rel=1e-3) for epoch in found["epoch"]]
    assert curves.thinned(rows[:7], most=20)["epoch"] == list(range(1, 8))


def test_a_card_holds_epochs_that_were_validated() -> None:
    found = curves.thinned(GLIMPSING)
    assert found["epoch"] == [2]
    assert found["validation_accuracy_m4"] == [0.65]
    assert "validation_accuracy_random" not in found  # a control, no measure of the training
    assert curves.thinned([GLIMPSING[0]])["train_accuracy"] == [0.5]
    assert curves.thinned([]) == {}


def test_the_curve_of_a_training_is_on_its_card(tiny_train: Trainer, tmp_path: Path) -> None:
    result = tiny_train("cnn", "clean", tmp_path, {"epochs": 3})
    assert result.card.trained is not None
    assert result.card.trained.curve == curves.thinned(result.rows)
    assert result.card.trained.curve["epoch"] == [1, 2, 3]
