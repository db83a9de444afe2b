"""What TensorBoard reads is the log: every row once, however often the training was resumed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robustbench_lpm.errors import LpmbenchError
from tests.training.conftest import Trainer
from tests.training.test_training import stop_at


def scalars(out: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, as TensorBoard reads them; a step that comes twice is an error."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"), purge_orphaned_data=False)
    found.Reload()
    tags = {}
    for tag in found.Tags()["scalars"]:
        steps = [event.step for event in found.Scalars(tag)]
        assert len(set(steps)) == len(steps), (tag, steps)
        tags[tag] = {event.step: event.value for event in found.Scalars(tag)}
    return tags


def test_every_row_is_there_once_after_a_break(tiny_train: Trainer, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        tiny_train("ramlpm", "reinforce", tmp_path, progress=stop_at(3), tensorboard=True)
    assert set(scalars(tmp_path)["accuracy/train"]) == {1, 2}
    result = tiny_train("ramlpm", "reinforce", tmp_path, resume=True, tensorboard=True)
    found = scalars(tmp_path)
    for row in result.rows:
        epoch = int(row["epoch"])
        assert found["accuracy/validation"][epoch] == pytest.approx(row["validation_accuracy"])
        assert found["loss/train"][epoch] == pytest.approx(row["train_loss"])
        assert found["learning_rate/where"][epoch] == pytest.approx(row["learning_rate_where"])
    assert {len(steps) for steps in found.values()} == {4}
    assert len(found) == len(result.rows[0]) - 1  # every column but the epoch


def test_it_may_be_asked_for_in_the_middle(tiny_train: Trainer, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", tmp_path, progress=stop_at(2))
    assert not (tmp_path / "tensorboard").exists()
    tiny_train("cnn", "clean", tmp_path, resume=True, tensorboard=True)
    assert set(scalars(tmp_path)["learning_rate"]) == {1, 2, 3, 4}


def test_without_the_package_one_line_says_what_to_install(
    tiny_train: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard" or "utils.tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what Python itself uses for a module that cannot be had
    with pytest.raises(LpmbenchError, match=r"pip install 'robustbench-lpm\[tensorboard\]'") as caught:
        tiny_train("cnn", "clean", tmp_path / "out", tensorboard=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
