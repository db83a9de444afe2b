"""Checkpoints of attack loops, so that an interrupted block resumes at its last checkpoint, with bit-identical results.

An attack's loop over `Oracle.resumable` hands over what passes from one step to the next. With the ledger, whose counts
are the addresses of the noise to come, that decides everything which follows. Loops may be nested and follow one
another; each has a path such as "CALL@0/0@17/1": of the attack CALL the first loop, in its step 17 the second loop.

Snapshots are taken in memory about every second and written about every half minute, so that short blocks write
nothing. The file of a block is removed when the block is finished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_lpm.attacks.contract import Step
from robustbench_lpm.execution.keeping import keep, packed, unpacked
from robustbench_lpm.protocol.oracle import Ledger, Loops

State = dict[str, Tensor]
# A loop at the beginning of one of its steps, or, at position = number of steps, at its end: its position, and the
# tensors of its states and the ledger by "NUMBER.NAME".
Snapshot = tuple[int, State]

WRITE_EVERY = 30.0  # seconds; 0 writes at every step
SNAPSHOTS_PER_WRITE = 30
LAYOUT = 4  # of the file: one with another number is not read


class Journal:
    """The snapshots of one block, by the paths of its loops.

    Args:
        path: of their file; None keeps nothing.
        run: what names the run, its manifest included, and the block: a file of another one is not used.
    """

    def __init__(self, path: Path | None, run: str = "") -> None:
        self.path, self._run = path, run
        self._started = self._written = time.monotonic()
        self._seconds, self.snapshots = _read(path, run) if path is not None else (0.0, {})

    @property
    def seconds(self) -> float:
        """Seconds of work on the block, those before an interruption included."""
        return self._seconds + time.monotonic() - self._started

    def loops(self, call: str, ledger: Ledger) -> Loops:
        """The loops of one attack on one batch. call: names the attack; ledger: restored with the states of a loop."""
        return _ResumableLoops(self, call, ledger)

    def note(self, path: str, snapshot: Snapshot) -> None:
        """Keep a snapshot of a loop; those of the loops inside its earlier steps are of no more use."""
        inside, now = f"{path}@", f"{path}@{snapshot[0]}/"
        for other in [other for other in self.snapshots if other.startswith(inside) and not other.startswith(now)]:
            del self.snapshots[other]
        self.snapshots[path] = snapshot
        if time.monotonic() - self._written >= WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write all snapshots. Raises NotKept."""
        if self.path is None or not self.snapshots:
            return
        tensors = {f"{path}|{name}": t for path, (_, state) in self.snapshots.items() for name, t in state.items()}
        positions = {path: position for path, (position, _) in self.snapshots.items()}
        about = {"layout": LAYOUT, "run": self._run, "seconds": self.seconds, "positions": positions}
        keep(self.path, packed(tensors, about))
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file of a finished block."""
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


class _ResumableLoops:
    """See `protocol.oracle.Loops`."""

    def __init__(self, journal: Journal, call: str, ledger: Ledger) -> None:
        self.journal, self.call, self.ledger = journal, call, ledger
        self._running: list[_Running] = []
        self._outermost = 0

    def over(self, steps: Sequence[Step], states: Sequence[State]) -> Iterator[Step]:
        loop = self._enter()
        try:
            loop.position = self._restore(loop, len(steps), states)
            while loop.position < len(steps):
                loop.inner = 0
                self._snapshot(loop, states)
                yield steps[loop.position]
                loop.position += 1
            self._snapshot(loop, states, last=True)
        finally:  # also where the loop is left early: its iterator is closed at once
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
        """Keep this step if it is time, and if the steps of the loops around it are kept, or it is of no use."""
        now = time.monotonic()
        due = last or now - loop.snapshot_at >= WRITE_EVERY / SNAPSHOTS_PER_WRITE
        loop.covered = due and all(outer.covered for outer in self._running[:-1])
        if not loop.covered:
            return
        self.ledger.check()
        tensors = {
            f"{number}.{name}": tensor.detach().clone()
            for number, state in enumerate(states)
            for name, tensor in state.items()
        }
        tensors["counts"] = torch.stack(self.ledger.columns)
        tensors["notes"] = torch.tensor(list(json.dumps(self.ledger.notes).encode()), dtype=torch.uint8)
        self.journal.note(loop.path, (loop.position, tensors))
        loop.snapshot_at = now

    def _restore(self, loop: _Running, steps: int, states: Sequence[State]) -> int:
        """Set the states and the ledger to the last snapshot of this loop, if it fits; its position, or 0."""
        position, kept = self.journal.snapshots.get(loop.path, (-1, {}))
        names = {f"{number}.{name}" for number, state in enumerate(states) for name in state} | {"counts", "notes"}
        ledger = self.ledger
        fits = set(kept) == names and kept["counts"].shape == torch.stack(ledger.columns).shape
        if not (fits and 0 <= position <= steps):
            return 0
        for number, state in enumerate(states):  # to the device of the present tensor, in the order of memory kept
            state |= {name: kept[f"{number}.{name}"].clone().to(tensor.device) for name, tensor in state.items()}
        before = ledger.passes
        for column, counts in zip(ledger.columns, kept["counts"], strict=True):
            column.copy_(counts)
        ledger.on_spent(ledger.passes - before)
        ledger.notes |= json.loads(bytes(kept["notes"].tolist()))
        return position


def _read(path: Path, run: str) -> tuple[float, dict[str, Snapshot]]:
    """The seconds and snapshots in a file; none where it is of another run, damaged, or absent."""
    found = unpacked(path.read_bytes(), layout=LAYOUT, run=run) if path.is_file() else None
    if found is None:
        return 0.0, {}
    tensors, about = found
    snapshots: dict[str, Snapshot] = {loop: (position, {}) for loop, position in about["positions"].items()}
    for name, tensor in tensors.items():
        loop, _, inner = name.rpartition("|")
        snapshots[loop][1][inner] = tensor
    return float(about["seconds"]), snapshots
