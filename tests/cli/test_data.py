"""lpmbench data sim2mnist, on a few digits of our own: MNIST itself does not come along."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_lpm.cli import run
from robustbench_lpm.datasets import mnist, sim2mnist
from robustbench_lpm.datasets.sim2mnist import Recipe, hashes

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    monkeypatch.setattr(mnist, "read_all_digits", lambda data: (pixels, np.arange(40) % 10))
    monkeypatch.setattr(sim2mnist, "Recipe", partial(Recipe, train=12, validation=4, test=8))
    monkeypatch.setenv("LPMBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def test_the_file_the_sheet_and_the_recipe_are_written(tmp_path: Path, capsys: Capture) -> None:
    assert run(["data", "sim2mnist", "--out", "here"]) == 0
    with np.load(tmp_path / "here/sim2mnist.npz") as file:
        arrays = {name: file[name] for name in file.files}
    told = json.loads((tmp_path / "here/sim2mnist.json").read_text())
    assert told["sha256"] == hashes(arrays)
    assert told["recipe"]["train"] == len(arrays["x_train"]) == 12
    assert told["command"] == "lpmbench data sim2mnist --seed 0"
    with Image.open(tmp_path / "here/sim2mnist.png") as sheet:
        assert np.array_equal(np.asarray(sheet)[4:100, 104:200], arrays["x_train"][1])
    assert "--data here" in capsys.readouterr().out


def test_without_out_it_goes_where_the_data_set_looks(tmp_path: Path) -> None:
    assert run(["data", "sim2mnist"]) == 0
    assert len(sim2mnist.sim2mnist(data=None, split="test", folder=tmp_path)) == 8


def test_a_file_is_not_made_twice_and_never_written_over(tmp_path: Path, capsys: Capture) -> None:
    assert run(["data", "sim2mnist", "--out", "here"]) == 0
    path = tmp_path / "here/sim2mnist.npz"
    before = path.stat().st_mtime_ns
    assert run(["data", "sim2mnist", "--out", "here"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert run(["data", "sim2mnist", "--out", "here", "--seed", "1"]) == 1
    assert "was made otherwise; --force" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == before
    assert run(["data", "sim2mnist", "--out", "here", "--seed", "1", "--force"]) == 0
    assert json.loads((tmp_path / "here/sim2mnist.json").read_text())["recipe"]["seed"] == 1


def test_missing_digits_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run(["data", "sim2mnist", "--data", str(tmp_path), "--out", "here"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lpmbench: Dataset 'mnist': found no train-images-idx3-ubyte")
    assert error.count("\n") == 1
