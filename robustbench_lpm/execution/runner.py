"""Run a plan block by block, so that an interrupted run resumes, and write its record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.blocks import Block, BlockStore
from robustbench_lpm.execution.computing import compute
from robustbench_lpm.execution.journal import Journal
from robustbench_lpm.execution.machine import code_sha256
from robustbench_lpm.execution.recording import (
    PROGRESS,
    Tell,
    empty_record,
    fill,
    finished_run,
    remove_progress,
    write_record,
)  # fmt: skip
from robustbench_lpm.protocol.attacking import Made, Progress, images_kept
from robustbench_lpm.protocol.plan import Plan
from robustbench_lpm.records.runs import RunRecord

COSTS = ("forwards", "backwards", "glimpses")
PATIENCE = 0.2  # seconds between two looks at what others are computing


class Watcher(Protocol):
    """Receives the events of runs."""

    def begin(self, plan: Plan) -> Progress:
        """A run is going to be computed; returns what receives its progress."""

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        """A run is finished; read: it was before."""

    def leave(self, plan: Plan) -> None:
        """This process works on a run no more, whether or not it is finished."""

    def tell(self, plan: Plan, line: str) -> None:
        """Something unexpected has happened to a run."""


class Silent(Watcher, Progress):
    """Ignores events and progress."""

    def begin(self, plan: Plan) -> Progress:
        return self

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None: ...
    def leave(self, plan: Plan) -> None: ...
    def tell(self, plan: Plan, line: str) -> None: ...
    def spent(self, passes: int) -> None: ...
    def finished(self, examples: int) -> None: ...


SILENT = Silent()


def run(
    plan: Plan, out: Path | None = None, watcher: Watcher = SILENT, *, again: bool = False,
    workers: Workers | None = None, wait: bool = True,
) -> RunRecord:  # fmt: skip
    """The record of a plan: the finished one in `out`, or one that is computed now, block by block.

    With `out`, an interrupted run resumes and the record is written; it is the same, byte by byte, however often the
    run was interrupted. Members of a worst case run first, each with a record of its own. Processes that run the same
    plan in the same `out` share its blocks.

    Args:
        again: compute it whether or not a finished record is in `out`; finished members are read.
        workers: compute the blocks; None computes them in this process, one after the other.
        wait: whether to wait for blocks that other processes are computing.

    Returns:
        The record. Its `failures` name the examples that could not be computed; the next call tries them again.

    Raises:
        TakenByOthers: without `wait`, where other processes are computing all that is left.
        NotKept: where something could not be written, as on a full disk.
    """
    if not again and out is not None and (found := finished_run(plan, out, partial(watcher.tell, plan))) is not None:
        remove_progress(plan, out)
        watcher.end(plan, found, read=True)
        return found
    made = _made_by_members(plan, out, watcher, workers, wait)
    try:
        return _computed(plan, out, watcher, made, again=again, workers=workers, wait=wait)
    finally:
        watcher.leave(plan)


def _computed(
    plan: Plan, out: Path | None, watcher: Watcher, made: Mapping[str, Made], *, again: bool,
    workers: Workers | None, wait: bool,
) -> RunRecord:  # fmt: skip
    """The record of a plan whose members are made; read where another process has finished it just now."""
    record = empty_record(plan)
    store = BlockStore(out / PROGRESS / record.folder_name if out is not None else None, partial(watcher.tell, plan))
    with _one_thread_for(store.directory):
        used = store.open(_manifest(plan, record, made), measured=plan.measured)["execution"]["chunk"]
        if used != plan.chunk:
            plan = replace(plan, chunk=used)
            record = empty_record(plan)
        try:
            if not again and out is not None and (found := finished_run(plan, out)) is not None:
                store.close()
                watcher.end(plan, found, read=True)
                return found
            progress = watcher.begin(plan)
            job = (workers or Job)(plan, made, progress)
            fill(record, plan, _blocks(plan, store, job, progress, partial(watcher.tell, plan), wait))
            with store.writing():
                write_record(record, plan, out)
                if not record.failures:
                    store.close()
        finally:
            store.leave()
    watcher.end(plan, record, read=False)
    return record


_locks: dict[Path, threading.Lock] = {}


@contextmanager
def _one_thread_for(directory: Path | None) -> Iterator[None]:
    """Two threads of one process run the same plan one after the other: locks on files do not separate them."""
    with _locks.setdefault(directory.absolute(), threading.Lock()) if directory is not None else nullcontext():
        yield


def _manifest(plan: Plan, record: RunRecord, made: Mapping[str, Made]) -> dict[str, Any]:
    """What decides the bits of a run's blocks: where any of it differs, old blocks are not used."""
    manifest: dict[str, Any] = {
        "id": record.id, "execution": record.execution, "versions": record.versions, "stored": images_kept(plan),
        "code": {"package": code_sha256(), **plan.code},
    }  # fmt: skip
    if plan.surrogates:
        manifest["surrogates"] = {surrogate.name: surrogate.identity for surrogate in plan.surrogates}
    if made:  # the same runs may have been computed again, elsewhere, to other bits
        manifest["members"] = {name: member.sha256() for name, member in made.items()}
    return manifest


def _blocks(plan: Plan, store: BlockStore, job: Job, progress: Progress, tell: Tell, wait: bool) -> list[Block]:
    """Every block of a plan: read, computed, or waited for where another process has taken it."""
    waiting = dict(enumerate(plan.blocks))
    found: dict[int, Block] = {}
    working: set[int] = set()
    noted = False

    def finish(number: int, block: Block) -> None:
        found[number] = block
        progress.finished(sum(len(plan.blocks[other]) for other in found))

    try:
        while waiting or working:
            before = len(waiting) + len(working), len(working)
            for number, indices in list(waiting.items()):
                block = store.read(number)
                if block is None and job.free() and store.claim(number):
                    block = store.read(number)  # another process may have finished it just now
                    if block is None:
                        working.add(number)
                        job.start(number, indices, store.journal(number))
                    else:
                        store.release(number)
                if block is not None:
                    finish(number, block)
                if block is not None or number in working:
                    del waiting[number]
                if working and not job.free():  # the rest can wait until there is room
                    break
            for number, block, journal in job.finished():
                store.write(number, block)
                journal.remove()
                store.release(number)
                working.remove(number)
                finish(number, block)
            if (len(waiting) + len(working), len(working)) == before:
                taken = bool(waiting) and not working and job.free()
                if taken and not wait:
                    raise TakenByOthers(plan, len(waiting))
                if taken and not noted:
                    noted = True
                    tell(f"waiting for {len(waiting)} block(s) that another process is computing")
                time.sleep(PATIENCE)
    finally:
        job.end()
    return [found[number] for number in sorted(found)]


class Job:
    """Computes the blocks of one plan: here in this process, one after the other."""

    def __init__(self, plan: Plan, made: Mapping[str, Made], progress: Progress) -> None:
        self.plan, self.made, self.progress = plan, made, progress
        self._done: list[tuple[int, Block, Journal]] = []

    def free(self) -> bool:
        """Whether another block can be started."""
        return not self._done

    def start(self, number: int, indices: Sequence[int], journal: Journal) -> None:
        """Compute a block, here or elsewhere."""
        try:
            block = compute(self.plan, number, indices, self.progress, made=self.made, journal=journal)
        except KeyboardInterrupt:
            journal.write()
            raise
        self._done.append((number, block, journal))

    def finished(self) -> list[tuple[int, Block, Journal]]:
        """The blocks that have been finished since the last call."""
        done, self._done = self._done, []
        return done

    def end(self) -> None:
        """Stop; unfinished blocks are dropped."""


Workers = Callable[[Plan, Mapping[str, Made], Progress], Job]


class TakenByOthers(LpmbenchError):
    """Other processes are computing all that is left of a run."""

    def __init__(self, plan: Plan, blocks: int) -> None:
        super().__init__(f"{plan.attack.name} on {plan.model.name}: another process is computing {blocks} block(s).")


def told_failures(record: RunRecord) -> str:
    """How many examples of a run failed, and the first reason, in one line without its full stop."""
    failed = sum(len(failure["indices"]) for failure in record.failures)
    reason = str(record.failures[0]["error"]).rstrip(".")
    total = len(record.configuration["dataset"]["indices"])
    return f"{record.model} under {record.attack}: {failed} of {total} example(s) failed: {reason}"


def _made_by_members(
    plan: Plan, out: Path | None, watcher: Watcher, workers: Workers | None, wait: bool
) -> dict[str, Made]:
    """The images of the members of a worst case, by name; finished members are read without an event."""
    made = {}
    for member in plan.members:
        record = finished_run(member, out) if out is not None else None
        record = record or run(member, out, watcher, workers=workers, wait=wait)
        costs = record.outcomes[["index", *COSTS]].to_numpy()
        made[member.attack.name] = Made(
            images={picture.index: picture.adversarial for picture in record.pictures()},
            spent={int(index): tuple(map(int, spent)) for index, *spent in costs},
        )
    return made
