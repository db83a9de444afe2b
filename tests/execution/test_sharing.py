"""Several processes on one output directory share the work: nothing is done twice or mixed, none waits in vain."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.blocks import BlockStore
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.execution.runner import run
from robustbench_lpm.records import runs as records
from tests.execution.sharing import CHUNK, IMAGES, hold, plan_of, take_part

BLOCKS = IMAGES // CHUNK
# Each process is one of its own, forked from a server that has imported what they all need.
FROM_SERVER = multiprocessing.get_context("forkserver")
FROM_SERVER.set_forkserver_preload(["tests.execution.sharing"])


def started(do: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """A process that does something, and our end of the connection that it is given."""
    ours, theirs = FROM_SERVER.Pipe()
    process = FROM_SERVER.Process(target=do, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def start(
    out: Path, log: Path, worst: bool = False, seconds: float = 0.3, wait: bool = True
) -> tuple[BaseProcess, Connection]:
    return started(take_part, out, log, worst, seconds, wait)


def told(connection: Connection) -> str:
    assert connection.poll(120)
    return connection.recv()


def go(*connections: Connection) -> None:
    assert {told(connection) for connection in connections} == {"ready"}
    for connection in connections:  # they start to work at the same moment
        connection.send("go")


def ended(process: BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


def end(process: BaseProcess) -> None:
    process.kill()
    process.join()


def wait_for(what: Callable[[], bool], process: BaseProcess) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.is_alive(), "it ended too early"
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
    go(*(connection for _, connection in both))
    assert [ended(process) for process, _ in both] == [0, 0]
    blocks = [block for _, block in logged(log)]
    assert sorted(blocks) == list(range(0, IMAGES, CHUNK))  # each once
    assert len({process for process, _ in logged(log)}) == 2  # and each process did some
    run(plan_of(None, worst=worst), tmp_path / "straight")
    assert everything(out) == everything(tmp_path / "straight")
    assert not (out / PROGRESS).exists()


def test_what_a_killed_process_had_taken_is_free_again(tmp_path: Path) -> None:
    out, log = tmp_path / "shared", tmp_path / "log"
    (doomed, to_doomed), (other, to_other) = start(out, log, seconds=60), start(out, log, seconds=0.05)
    go(to_doomed)
    wait_for(lambda: len(logged(log)) == 1, doomed)  # it holds the first block, and would for a minute
    go(to_other)
    wait_for(lambda: len(logged(log)) == BLOCKS, other)  # all others are done
    assert told(to_other) == "waiting for 1 block(s) that another process is computing"
    end(doomed)
    assert ended(other) == 0
    assert [entry for entry in logged(log) if entry[1] == 0] == [(doomed.pid, 0), (other.pid, 0)]
    assert len(logged(log)) == BLOCKS + 1
    run(plan_of(None), tmp_path / "straight")
    assert everything(out) == everything(tmp_path / "straight")
    assert not (out / PROGRESS).exists()


def test_who_will_not_wait_does_what_is_free_and_is_told_of_the_rest(tmp_path: Path) -> None:
    out, log = tmp_path / "shared", tmp_path / "log"
    holder, to_holder = start(out, log, seconds=60)
    go(to_holder)
    wait_for(lambda: len(logged(log)) == 1, holder)  # it holds the first block
    other, to_other = start(out, log, seconds=0, wait=False)
    go(to_other)
    assert told(to_other) == "logged on NoisyLinear: another process is computing 1 block(s)."
    assert ended(other) == 0
    assert len(logged(log)) == BLOCKS  # all others are done and kept
    end(holder)
    run(plan_of(None), tmp_path / "straight")
    run(plan_of(log), out, wait=False)  # nobody holds anything now
    assert everything(out) == everything(tmp_path / "straight")


MANIFEST = {"threads": 1, "versions": {"torch": "1"}}


@pytest.fixture
def holder(tmp_path: Path) -> BaseProcess:
    """A process that uses the folder "run", holding its block 3."""
    process, connection = started(hold, tmp_path / "run", MANIFEST, 3)
    assert told(connection) == "held"
    return process


def test_a_folder_in_use_is_neither_taken_over_nor_removed(holder: BaseProcess, tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "run")
    with pytest.raises(LpmbenchError, match="works on the same run with other threads, torch") as caught:
        store.open({"threads": 2, "versions": {"torch": "2"}})
    assert "\n" not in str(caught.value)
    store.open(MANIFEST)
    assert not store.claim(3)
    assert store.claim(4)
    store.close()
    assert (tmp_path / "run" / "manifest.json").is_file()
    end(holder)
    store = BlockStore(tmp_path / "run")
    store.open(MANIFEST)
    assert store.claim(3)
    store.close()
    assert not (tmp_path / "run").exists()


def test_the_last_one_removes_the_folder(holder: BaseProcess, tmp_path: Path) -> None:
    BlockStore(tmp_path / "run").close()
    assert (tmp_path / "run").is_dir()
    end(holder)
    BlockStore(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()
    BlockStore(tmp_path / "run").close()  # nothing lies there


def test_nothing_is_claimed_in_a_directory_that_was_not_entered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not entered"):
        BlockStore(tmp_path).claim(0)
