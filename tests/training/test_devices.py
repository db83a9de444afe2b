"""One training on several devices: two processes on the CPU, started as the command starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards, weight_files
from robustbench_lpm.registry.cards import ModelCard
from robustbench_lpm.training.devices import start

pytestmark = pytest.mark.slow

CARDS = Path(__file__).parent / "cards"
MODEL = """
name = "bare"
summary = "A network without dropout and batch norm: nothing depends on the company an image keeps"
entry = "robustbench_lpm.architectures.cnn:Cnn"
labels = "{labels}"
classes = 10

[input]
channels = 1

[parameters]
width = 4
hidden = 8
"""
RECIPE = """
name = "bare"
summary = "Cross-entropy, and nothing random but the order"
dataset = "{dataset}"
size = "32"
objective = "robustbench_lpm.training.objectives:cross_entropy"
epochs = 2
batch_size = 25
optimiser = "sgd"
learning_rate = 1e-2
"""


def lpmbench(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robustbench_lpm", *map(str, words), "--threads", "1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def written(folder: Path, dataset: str = "digits", labels: str = "digits") -> tuple[Path, Path]:
    model, recipe = folder / "model.toml", folder / "recipe.toml"
    model.write_text(MODEL.format(labels=labels))
    recipe.write_text(RECIPE.format(dataset=dataset))
    return model, recipe


def test_two_devices_take_the_same_steps_as_one(tmp_path: Path) -> None:
    model, recipe = written(tmp_path)
    for devices in (1, 2):
        done = lpmbench(tmp_path, "train", model, "--recipe", recipe, "--devices", devices, "--out", f"on{devices}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1  # the first process alone speaks
    logs = [pd.read_csv(tmp_path / f"on{devices}/log.csv").drop(columns="seconds") for devices in (1, 2)]
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-3)
    states = [weight_files.read(tmp_path / f"on{devices}/best.safetensors") for devices in (1, 2)]
    for name, tensor in states[0].items():
        np.testing.assert_allclose(tensor, states[1][name], atol=1e-4, err_msg=name)
    trained = cards.read(tmp_path / "on2/card.toml", ModelCard).trained
    assert trained is not None
    assert "--devices 2" in trained.command


def test_a_glimpsing_network_trains_on_two_devices_and_goes_on(tmp_path: Path) -> None:
    words = ["train", CARDS / "tiny-ramlpm.toml", "--recipe", CARDS / "tiny-reinforce.toml", "--dataset", "digits",
             "--devices", 2, "--trust", "--out", "out"]  # fmt: skip
    assert lpmbench(tmp_path, *words, "--epochs", 2).returncode == 0
    log = pd.read_csv(tmp_path / "out/log.csv")
    assert np.isfinite(log.to_numpy()).all()
    (tmp_path / "out/card.toml").unlink()
    done = lpmbench(tmp_path, *words, "--epochs", 2, "--resume")  # nothing is left but to measure
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/card.toml").is_file()


def test_what_one_process_cannot_read_ends_all_of_them_in_one_line(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in range(10):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("L", (32, 32), 20 * label + number).save(folder / f"{number}.png")
    broken = tmp_path / "data/train/class7/1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = tmp_path / "data.toml"
    text = cards.dataset("imagefolder").path.read_text()
    dataset.write_text(text.replace("channels = 3", "channels = 1").replace('"imagefolder"', '"small"', 1))
    model, recipe = written(tmp_path, str(dataset), "imagefolder")
    done = lpmbench(
        tmp_path, "train", model, "--recipe", recipe, "--data", tmp_path / "data", "--devices", 2, "--out", "out"
    )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("lpmbench:")]
    assert len(told) == 1
    assert "1.png" in told[0]
    assert "Traceback" not in done.stderr


def test_one_device_by_number_is_not_several() -> None:
    with pytest.raises(LpmbenchError, match="is one device"):
        start("cuda:1", 2)
