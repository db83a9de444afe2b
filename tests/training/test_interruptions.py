"""What a kill, a full disk or Ctrl-C leaves: files that are whole, and a training that goes on to the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.training import TrainingResult
from tests.training.conftest import Finished, Trainer, tiny_recipe
from tests.training.test_training import last, rows, stop_at, tensors

REPOSITORY = Path(__file__).parents[2]
BEGIN = """
import resource, signal, sys, os
from pathlib import Path
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.training import train
from tests.training.conftest import CARDS, tiny_recipe
import torch
torch.set_num_threads(1)
out, model, recipe = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def run(progress, **options):
    train(str(CARDS / f"tiny-{model}.toml"), recipe=tiny_recipe(recipe), out=out, trust=True, progress=progress,
          **options)
"""
KILLED = """
def killer(done, row):
    if done > 1.6:  # after the second of three batches
        print("matplotlib" in sys.modules, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

run(killer, save_every=1e-9)
"""
# Python ignores SIGXFSZ: a file that grows past the limit makes its write fail, as on a disk that is full.
FULL = """
def filler(done, row):
    if done == 2 and row:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))

try:
    run(filler)
except LpmbenchError as error:
    print(error)
    sys.exit(error.status)
"""


def script(code: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code, str(out), *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def assert_same(whole: TrainingResult, broken: Path) -> None:
    """Networks, optimisers, schedules and logs, to the bit."""
    straight = whole.card_path.parent
    expected, found = tensors(last(straight)), tensors(last(broken))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert rows(straight) == rows(broken)
    assert (straight / "best.safetensors").read_bytes() == (broken / "best.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("model", "recipe"), [pytest.param("cnn", "clean", marks=pytest.mark.slow), ("ramlpm", "reinforce")]
)
def test_a_kill_after_a_save_within_an_epoch_costs_no_bit(
    tiny_train: Trainer, finished: Finished, tmp_path: Path, model: str, recipe: str
) -> None:
    broken = tmp_path / "broken"
    ended = script(KILLED, broken, model, recipe)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout == "False\n"  # matplotlib waits until something is drawn
    batches, totals, _ = last(broken)["unfinished"]
    assert (len(last(broken)["rows"]), batches) == (1, 1)  # the second batch was not saved yet
    assert set(totals) >= {"loss", "accuracy"}
    resumed = tiny_train(model, recipe, broken, resume=True)
    whole = finished(model, recipe)
    assert_same(whole, broken)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.accuracy == whole.accuracy


def test_without_save_every_nothing_is_saved_within_an_epoch(tiny_train: Trainer, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", tmp_path, progress=stop_at(2))
    assert last(tmp_path)["unfinished"] == (0, {}, 0.0)


# best.safetensors, which is written first, or last.ckpt, the largest of all.
LIMITS = [("best.safetensors", 10), ("last.ckpt", 40_000)]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "limit"), LIMITS)
def test_a_full_disk_ends_in_one_line_and_keeps_the_last_good_epoch(
    tiny_train: Trainer, finished: Finished, tmp_path: Path, file: str, limit: int
) -> None:
    broken = tmp_path / "broken"
    ended = script(FULL, broken, "cnn", "clean", str(limit))
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert "cannot be written: File too large" in line
    assert "--resume" in line
    assert f"{broken / file} cannot" in line or f"{broken / 'log.csv'} cannot" in line  # not every epoch is a best one
    assert len(last(broken)["rows"]) == 2
    assert [path.name for path in broken.iterdir() if path.name.startswith(".")] == []  # no half of a file is left

    tiny_train("cnn", "clean", broken, resume=True)
    assert_same(finished("cnn", "clean"), broken)


def test_a_folder_that_takes_no_files_is_told(tiny_train: Trainer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LpmbenchError, match=r"last\.ckpt cannot be written: (File exists|Not a directory)"):
        tiny_train("cnn", "clean", tmp_path / "file")


def test_a_checkpoint_from_before_a_key_was_added_resumes(
    tiny_train: Trainer, finished: Finished, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", old, progress=stop_at(2))
    content: dict[str, Any] = last(old)
    del content["plan"]["recipe"]["fit"]
    del content["plan"]["recipe"]["augmentation"]["flip"]
    torch.save(content, old / "last.ckpt")
    with pytest.raises(LpmbenchError, match=r"recipe\.fit was 'crop', now it is 'pad'"):
        tiny_train("cnn", "clean", old, {"fit": "pad"}, resume=True)
    flipping = tiny_recipe("clean").augmentation.model_copy(update={"flip": 0.5})
    with pytest.raises(LpmbenchError, match=r"recipe\.augmentation\.flip was 0\.0, now it is 0\.5"):
        tiny_train("cnn", "clean", old, {"augmentation": flipping}, resume=True)
    tiny_train("cnn", "clean", old, resume=True)
    assert_same(finished("cnn", "clean"), old)


def test_a_checkpoint_of_a_gpu_goes_on_with_this_device_s_optimiser(
    tiny_train: Trainer, finished: Finished, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_train("cnn", "clean", tmp_path, progress=stop_at(2))
    content: dict[str, Any] = last(tmp_path)
    for group in content["optimiser"]["param_groups"]:
        group["fused"] = True  # as a GPU trains
    torch.save(content, tmp_path / "last.ckpt")
    tiny_train("cnn", "clean", tmp_path, resume=True)
    assert last(tmp_path)["optimiser"]["param_groups"][0]["fused"] is None
    assert_same(finished("cnn", "clean"), tmp_path)
