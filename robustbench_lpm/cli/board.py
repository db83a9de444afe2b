"""What a person sees of a matrix of runs: the plan before it starts, and each run's progress while it is computed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID

from robustbench_lpm.cli.console import (
    ImageBar,
    announce,
    bar_of,
    bars_of,
    console,
    duration,
    grid,
    print_result,
    say,
    show_wide,
    shown_eps,
    told_result,
)

if TYPE_CHECKING:
    from robustbench_lpm.execution.matrix import Cell
    from robustbench_lpm.execution.runner import Watcher
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord

WINDOW = 30.0  # seconds over which queries are counted
DONE_SHOWN = 4  # finished runs that a terminal still shows


def show_plan(cells: Sequence[Cell]) -> None:
    """Print the runs of a matrix as a table: what each costs at most, and the total."""
    right = ("Images", "Forwards", "Backwards", "To grade", "Time")
    table = grid("Model", "Attack", "eps", *right, "", right=right, overflow="fold")
    counts = {cell.plan.id: (cell.images, *cell.passes, cell.plan.grading_passes() * cell.images) for cell in cells}
    for cell in cells:
        told = ["?" if count is None else f"{count:,}" for count in counts[cell.plan.id]]
        table.add_row(*_names(cell.plan), *told, "?" if cell.seconds is None else duration(cell.seconds), _state(cell))
    left = [cell for cell in cells if not cell.finished]
    totals = [f"{sum(counts[cell.plan.id][column] or 0 for cell in left):,}" for column in range(4)]
    table.add_section()
    seconds = sum(cell.seconds or 0.0 for cell in left)
    table.add_row("Total to run", f"{len(left)} runs", "", *totals, duration(seconds), "")
    show_wide(table)
    say("Forwards and backwards of the attacks, and so the time, are the most that they may take; nothing was run.")
    if unknown := sorted({cell.plan.attack.name for cell in left if cell.seconds is None}):
        say(f"Not counted, for they do not say what they cost: {', '.join(unknown)}.")


def _names(plan: Plan) -> list[str]:
    mode = f" ({plan.options.gradient_mode})" if plan.options.gradient_mode else ""
    runs = f", M = {plan.options.mc}" if plan.options.mc > 1 else ""
    return [f"{plan.model.name}{runs}", f"{plan.attack.name}{mode}", shown_eps(plan)]


def _state(cell: Cell) -> str:
    if cell.finished:
        return "finished"
    if cell.blocks:
        return f"{cell.blocks} of {len(cell.plan.blocks)} blocks are done"
    return "" if cell.listed else "for the audit"


@contextmanager
def shown(cells: Sequence[Cell]) -> Iterator[Watcher]:
    """Show the progress of a matrix, with queries per second and the time left: a live table on a terminal, plain lines
    elsewhere. Several threads may call the watcher."""
    with bars_of("{task.description}", "{task.completed:.0f}/{task.total:.0f}", "{task.fields[state]}") as bars:
        yield _Board(cells, bars)


class _Board:
    """The progress of every cell."""

    def __init__(self, cells: Sequence[Cell], bars: Progress) -> None:
        self._seconds = {cell.plan.id: cell.seconds or 0.0 for cell in cells}  # what each is estimated to take at most
        self._shares = {cell.plan.id: 0.0 for cell in cells if not cell.finished}  # of each, how much is computed
        self._bars, self._all = bars, bars.add_task("runs done", total=len(cells), state="")
        self._finished: set[str] = set()
        self._running: dict[str, TaskID] = {}
        self._done: deque[TaskID] = deque()
        self._passes: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self._lock = threading.RLock()

    def begin(self, plan: Plan) -> ImageBar:
        images = len(plan.indices)
        with self._lock:
            name = " · ".join(_names(plan))
            self._running[plan.id] = task = self._bars.add_task(name, total=images, state="running")
            if not console.is_terminal:
                announce(plan, self._seconds[plan.id])

        def move(*, completed: float, **_: object) -> None:
            self._shares[plan.id] = completed / images
            self._bars.update(task, completed=completed)

        return bar_of(plan, move, self._spent)

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        with self._lock:
            if plan.id in self._finished:  # a member of a worst case is read again
                return
            self._finished.add(plan.id)
            self._bars.advance(self._all)
            if read:
                self._shares.pop(plan.id, None)
                return
            self._shares[plan.id] = 1.0
            task = self._running.pop(plan.id)
            self._bars.update(task, state=told_result(record))
            self._done.append(task)
            if len(self._done) > DONE_SHOWN:
                self._bars.remove_task(self._done.popleft())
            if not console.is_terminal:
                print_result(record, plan.notes)
                say(f"  {len(self._finished)} of {len(self._seconds)} runs done · {self._speed()}")

    def leave(self, plan: Plan) -> None:
        with self._lock:
            if plan.id in self._running:
                self._bars.remove_task(self._running.pop(plan.id))

    def tell(self, plan: Plan, line: str) -> None:
        with self._lock:
            say(f"{' · '.join(_names(plan))}: {line}")

    def _spent(self, passes: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._passes.append((now, passes))
            while self._passes[0][0] < now - WINDOW:
                self._passes.popleft()
            self._bars.update(self._all, state=f"{self._speed()} · Ctrl-C stops and keeps what is done")

    def _speed(self) -> str:
        """Queries per second of late, and the time left: the estimates, corrected by what is done."""
        now = time.monotonic()
        rate = sum(count for _, count in self._passes) / max(now - max(self._started, now - WINDOW), 1e-3)
        done = sum(self._seconds[run] * share for run, share in self._shares.items())
        left = sum(self._seconds[run] * (1 - share) for run, share in self._shares.items())
        left *= (now - self._started) / done if done else 1.0
        return f"{rate:,.0f} queries per second · about {duration(left)} left"
