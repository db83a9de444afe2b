"""Several processes on one output folder share the work: nothing is done twice, nothing mixed, none waits in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.blocks import BlockStore
from robustbench_lpm.execution.claims import Claims
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.execution.runner import run
from robustbench_lpm.records import runs as records
from tests.execution.sharing import CHUNK, IMAGES, plan_of

ROOT = Path(__file__).parent.parent.parent
BLOCKS = IMAGES // CHUNK


def start(out: Path, log: Path, worst: bool = False, seconds: float = 0.3) -> subprocess.Popen[str]:
    words = [str(out), str(log), "worst" if worst else "one", str(seconds)]
    code = "from tests.execution.sharing import take_part; take_part()"
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:  # they start to work at the same moment, however long their imports took
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged(log: Path) -> list[tuple[int, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def everything(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name != records.TIMING)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.parametrize("worst", [False, True], ids=["one attack", "a worst case"])
def test_two_processes_share_the_blocks(worst: bool, tmp_path: Path) -> None:
    out, log = tmp_path / "shared", tmp_path / "log"
    both = [start(out, log, worst) for _ in range(2)]
    go(*both)
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    blocks = [block for _, block in logged(log)]
    assert sorted(blocks) == list(range(0, IMAGES, CHUNK))  # each once
    assert len({process for process, _ in logged(log)}) == 2  # and each process did some
    run(plan_of(None, worst=worst), tmp_path / "straight")
    assert everything(out) == everything(tmp_path / "straight")
    assert not (out / PROGRESS).exists()


def test_what_a_killed_process_had_taken_is_free_again(tmp_path: Path) -> None:
    out, log = tmp_path / "shared", tmp_path / "log"
    doomed, other = start(out, log, seconds=30), start(out, log, seconds=0.1)
    go(doomed)
    wait_for(lambda: len(logged(log)) == 1, doomed)  # it holds the first block, and would for half a minute
    go(other)
    wait_for(lambda: len(logged(log)) == BLOCKS, other)  # all others are done
    assert other.stdout is not None
    assert other.stdout.readline() == "waiting for 1 block(s) that another process is computing\n"
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.wait()
    assert other.wait(timeout=60) == 0
    assert [entry for entry in logged(log) if entry[1] == 0] == [(doomed.pid, 0), (other.pid, 0)]
    assert len(logged(log)) == BLOCKS + 1
    run(plan_of(None), tmp_path / "straight")
    assert everything(out) == everything(tmp_path / "straight")
    assert not (out / PROGRESS).exists()


def test_who_will_not_wait_does_what_is_free_and_is_told_of_the_rest(tmp_path: Path) -> None:
    out, log = tmp_path / "shared", tmp_path / "log"
    holder = start(out, log, seconds=30)
    go(holder)
    wait_for(lambda: len(logged(log)) == 1, holder)  # it holds the first block
    # The plan must be the holder's, with its code: so in a process like its own.
    code = (
        "import sys; from pathlib import Path; from tests.execution.sharing import plan_of;"
        "from robustbench_lpm.execution.runner import TakenByOthers, run\n"
        "try: run(plan_of(Path(sys.argv[2])), Path(sys.argv[1]), wait=False)\n"
        "except TakenByOthers as error: print(error)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(out), str(log)], cwd=ROOT, text=True, capture_output=True, timeout=120
    )
    assert other.stdout == "logged on NoisyLinear: another process is computing 1 block(s).\n", other.stderr
    assert len(logged(log)) == BLOCKS  # all others are done and kept
    holder.kill()
    holder.wait()
    run(plan_of(None), tmp_path / "straight")
    run(plan_of(log), out, wait=False)  # nobody holds anything now
    assert everything(out) == everything(tmp_path / "straight")


HOLD = """
import sys, time
from pathlib import Path
from robustbench_lpm.execution.blocks import BlockStore
store = BlockStore(Path(sys.argv[1]))
store.open({"threads": 1, "versions": {"torch": "1"}})
store.claim(3)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that uses the folder "run", holding its block 3."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_a_folder_in_use_is_neither_taken_over_nor_removed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "run")
    same = {"threads": 1, "versions": {"torch": "1"}}
    with pytest.raises(LpmbenchError, match="at work on the same run with other threads, torch") as caught:
        store.open({"threads": 2, "versions": {"torch": "2"}})
    assert "\n" not in str(caught.value)
    store.open(same)
    assert not store.claim(3)
    assert store.claim(4)
    store.close()
    assert (tmp_path / "run" / "manifest.json").is_file()
    end(holder)
    store = BlockStore(tmp_path / "run")
    store.open(same)
    assert store.claim(3)
    store.close()
    assert not (tmp_path / "run").exists()


def test_the_last_one_removes_the_folder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    BlockStore(tmp_path / "run").close()
    assert (tmp_path / "run").is_dir()
    end(holder)
    BlockStore(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()
    BlockStore(tmp_path / "run").close()  # nothing lies there


def test_nothing_is_claimed_in_a_folder_that_was_not_entered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not entered"):
        Claims(tmp_path).claim(0)
