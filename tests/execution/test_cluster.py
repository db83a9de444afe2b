"""Blocks that Ray's workers compute have the bits of those that are computed here, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.execution.cluster import RayWorkers, threads_for
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.execution.runner import run
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry.tasks import resolve_attack, worst_case_over
from tests.execution.test_failing_blocks import failed_run, planned
from tests.execution.test_journal import plan_of, written


@pytest.mark.parametrize("words", ["--workers 2", "--ray auto"])
def test_without_ray_one_line_says_how_to_install_it(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert lpmbench(["run", "demo", *words.split()]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("need Ray, which is not installed: pip install 'robustbench-lpm[ray]'")


def test_threads_are_shared_out() -> None:
    cores = os.cpu_count() or 1
    assert threads_for(1) == cores
    assert threads_for(10 * cores) == 1


@pytest.fixture(scope="module")
def workers() -> Iterator[RayWorkers]:
    pytest.importorskip("ray")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with RayWorkers(2) as pool:
        yield pool
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "attack", "parameters"),
    [
        ("ramlpm", "pgd", {"steps": 2, "eot": 2}),
        ("ram", "transfer", {"steps": 2}),
    ],
    ids=lambda value: str(value),
)
def test_the_same_bits(
    model: str, attack: str, parameters: dict[str, Any], workers: RayWorkers, tmp_path: Path
) -> None:
    plan = plan_of(model, attack, parameters, limit=10)
    straight = run(plan, tmp_path / "here")
    assert written(run(plan, tmp_path / "there", workers=workers.job).path) == written(straight.path)
    assert not (tmp_path / "there" / PROGRESS).exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_inside_a_block_loses_nothing(workers: RayWorkers, tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    def deadly(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        offsets = oracle.choices().uniform("offset", *images.shape[1:])
        if oracle.indices[0] == 4 and not killed.exists() and os.getpid() != ours:
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return images + eps * (2 * offsets - 1)

    ours = os.getpid()
    plan = planned(worst_case_over([resolve_attack("noise"), resolve_attack(deadly)]))
    record = run(plan, tmp_path / "there", workers=workers.job)
    assert killed.exists()
    straight = run(plan, tmp_path / "here")
    assert written(record.path) == written(straight.path)


@pytest.mark.slow
def test_what_fails_in_a_worker_is_recorded(workers: RayWorkers) -> None:
    def picky(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        if 5 in oracle.indices:
            raise RuntimeError("no")
        return images

    record = failed_run(planned(picky), workers=workers.job)
    assert record.failures == [{"block": 1, "indices": [4, 5, 6, 7], "error": "RuntimeError: no"}]


SUITE = """
name = "tiny"
summary = "several runs at the same time"
[[part]]
dataset = "digits"
models = ["cnn", "ram"]
attacks = ["noise", "pgd"]
eps = ["0.1", "0.2"]
limit = 70
draws = 2
gradient_modes = ["detached"]
[part.parameters]
pgd = { steps = 2, eot = 1, restarts = 1 }
"""


@pytest.mark.slow
def test_a_suite_on_workers_writes_the_same_records(tmp_path: Path) -> None:
    """In processes of their own: a cluster belongs to one process."""
    (tmp_path / "tiny.toml").write_text(SUITE)
    for out, words in {"here": [], "there": ["--workers", "2"]}.items():
        command = [sys.executable, "-m", "robustbench_lpm", "run", "tiny.toml", "--threads", "1", "--out", out, *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    here, there = ({r.id: r for r in records.read_all(tmp_path / out)} for out in ("here", "there"))
    assert here.keys() == there.keys()
    assert len(here) == 8
    for run_id, record in here.items():
        assert written(record.path) == written(there[run_id].path)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "nowhere"])
def test_no_cluster_at_the_address(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "robustbench_lpm", "run", "demo", "--ray", address]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith(f"lpmbench: Ray does not answer at '{address}'")
