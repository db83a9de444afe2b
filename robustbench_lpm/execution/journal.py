"""What an unfinished block has come to, so that a long attack that is interrupted goes on in its middle.

An attack's loop over `Oracle.resumable` tells here what passes from one step to the next. With the ledger, whose counts
are the addresses of the noise to come, that decides everything which follows: a run that goes on from there ends in the
same bits. Loops may stand inside one another and come one after the other; each has a path such as "CALL@0/0@17/1": of
the attack CALL the first loop, in its step 17 the second loop.

Snapshots are taken in memory about every second and written about every half minute, so that short blocks write
nothing. The file of a block goes when the block is finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_lpm.execution.keeping import keep, packed, unpacked
from robustbench_lpm.protocol.oracle import Ledger

Step = TypeVar("Step")
State = dict[str, Tensor]

WRITE_EVERY = 30.0  # seconds; 0 writes at every step
SNAPSHOTS_PER_WRITE = 30
LAYOUT = 4  # of the file: another number, and what was written is not read


@dataclass(frozen=True)
class Snapshot:
    """A loop at the beginning of one of its steps, or at its end."""

    position: int  # of the step; the number of steps at the end
    tensors: State  # by "NUMBER.NAME": of the loop's states and the ledger


class Journal:
    """The snapshots of one block.

    Args:
        path: where they are kept; None keeps nothing.
        run: what names the run, its manifest included, and the block: a file of another one is not used.
    """

    def __init__(self, path: Path | None, run: str = "") -> None:
        self.path, self._run = path, run
        self._started = self._written = time.monotonic()
        self._seconds, self.snapshots = _read(path, run) if path is not None else (0.0, {})

    @property
    def seconds(self) -> float:
        """How long the block has been worked on, also before it was interrupted."""
        return self._seconds + time.monotonic() - self._started

    def loops(self, call: str, ledger: Ledger) -> ResumableLoops:
        """The loops of an attack that is called `call` and writes into a ledger."""
        return ResumableLoops(self, call, ledger)

    def note(self, path: str, snapshot: Snapshot) -> None:
        """Keep a snapshot of a loop; those of the loops inside its earlier steps have no more use."""
        inside, now = f"{path}@", f"{path}@{snapshot.position}/"
        for other in [other for other in self.snapshots if other.startswith(inside) and not other.startswith(now)]:
            del self.snapshots[other]
        self.snapshots[path] = snapshot
        if time.monotonic() - self._written >= WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write what there is. Raises NotKept."""
        if self.path is None or not self.snapshots:
            return
        tensors = {f"{path}|{name}": t for path, found in self.snapshots.items() for name, t in found.tensors.items()}
        positions = {path: found.position for path, found in self.snapshots.items()}
        about = {"layout": LAYOUT, "run": self._run, "seconds": self.seconds, "positions": positions}
        keep(self.path, packed(tensors, about))
        self._written = time.monotonic()

    def remove(self) -> None:
        """The block is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass
class _Running:
    """A loop that is being run."""

    path: str
    position: int = 0
    inner: int = 0  # loops that were entered in this step
    covered: bool = False  # whether the journal holds this very step
    snapshot_at: float = -1e9


class ResumableLoops:
    """The loops of one attack on one batch, with checkpoints in a journal; see `protocol.oracle.Loops`.

    Args:
        call: what tells this attack from the others of the block.
        ledger: restored with the states of a loop.
    """

    def __init__(self, journal: Journal, call: str, ledger: Ledger) -> None:
        self.journal, self.call, self.ledger = journal, call, ledger
        self._running: list[_Running] = []
        self._outermost = 0

    def over(self, steps: Sequence[Step], states: Sequence[State]) -> Iterator[Step]:
        """The steps from where an interrupted run had come to; see `Oracle.resumable`."""
        loop = self._enter()
        try:
            loop.position = self._restore(loop, steps, states)
            while loop.position < len(steps):
                loop.inner = 0
                self._snapshot(loop, states)
                yield steps[loop.position]
                loop.position += 1
            self._snapshot(loop, states, last=True)
        finally:  # also where the loop is left early: its iterator goes at once
            self._running.remove(loop)

    def _enter(self) -> _Running:
        if self._running:
            outer = self._running[-1]
            loop = _Running(f"{outer.path}@{outer.position}/{outer.inner}")
            outer.inner += 1
        else:
            loop = _Running(f"{self.call}/{self._outermost}")
            self._outermost += 1
        self._running.append(loop)
        return loop

    def _snapshot(self, loop: _Running, states: Sequence[State], *, last: bool = False) -> None:
        """Keep this step if it is time, and if those of the loops around it are kept, without which it says nothing."""
        now = time.monotonic()
        due = last or now - loop.snapshot_at >= WRITE_EVERY / SNAPSHOTS_PER_WRITE
        loop.covered = due and all(outer.covered for outer in self._running[:-1])
        if not loop.covered:
            return
        tensors = {
            f"{number}.{name}": tensor.detach().clone()
            for number, state in enumerate(states)
            for name, tensor in state.items()
        }
        tensors["counts"] = torch.stack(self.ledger.columns)
        tensors["notes"] = torch.tensor(list(json.dumps(self.ledger.notes).encode()), dtype=torch.uint8)
        self.journal.note(loop.path, Snapshot(loop.position, tensors))
        loop.snapshot_at = now

    def _restore(self, loop: _Running, steps: Sequence[Step], states: Sequence[State]) -> int:
        """Set the states and the ledger to what was kept of this loop; the position it had come to."""
        found = self.journal.snapshots.get(loop.path)
        if found is None or not self._fits(found, len(steps), states):
            return 0
        for number, state in enumerate(states):
            state |= {name: _like(found.tensors[f"{number}.{name}"], tensor) for name, tensor in state.items()}
        before = _passes(self.ledger)
        for column, kept in zip(self.ledger.columns, found.tensors["counts"], strict=True):
            column.copy_(kept)
        self.ledger.on_spent(_passes(self.ledger) - before)
        self.ledger.notes |= json.loads(bytes(found.tensors["notes"].tolist()))
        return found.position

    def _fits(self, snapshot: Snapshot, steps: int, states: Sequence[State]) -> bool:
        """Whether it can be of this loop: the same states, as many steps and images."""
        names = {f"{number}.{name}" for number, state in enumerate(states) for name in state}
        kept = snapshot.tensors
        return (
            set(kept) == names | {"counts", "notes"}
            and 0 <= snapshot.position <= steps
            and kept["counts"].shape == torch.stack(self.ledger.columns).shape
        )


def _like(kept: Tensor, present: Tensor) -> Tensor:
    """A copy of what was kept, where the present tensor lies and in the order of memory that was kept."""
    return kept.clone().to(present.device)


def _passes(ledger: Ledger) -> int:
    return int(ledger.forwards.sum() + ledger.backwards.sum())


def _read(path: Path, run: str) -> tuple[float, dict[str, Snapshot]]:
    """The seconds and snapshots in a file; none where it is of another run, damaged, or not there."""
    found = unpacked(path.read_bytes(), layout=LAYOUT, run=run) if path.is_file() else None
    if found is None:
        return 0.0, {}  # the work is done again, as if nothing had been kept
    tensors, about = found
    parts: dict[str, State] = {loop: {} for loop in about["positions"]}
    for name, tensor in tensors.items():
        owner, _, inner = name.rpartition("|")
        parts[owner][inner] = tensor
    return float(about["seconds"]), {loop: Snapshot(at, parts[loop]) for loop, at in about["positions"].items()}
