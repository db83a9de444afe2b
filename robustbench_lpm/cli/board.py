"""What a person sees of a matrix of runs: the plan before it starts, and each run's progress while it is computed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from robustbench_lpm.cli.console import (
    ImageBar,
    announce,
    bar_of,
    console,
    duration,
    grid,
    result_line,
    say,
    show_wide,
    shown_eps,
)  # fmt: skip

if TYPE_CHECKING:
    from robustbench_lpm.execution.matrix import Cell
    from robustbench_lpm.execution.runner import Watcher
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord

WINDOW = 30.0  # seconds over which queries are counted
DONE_SHOWN, LEAST_ROWS = 4, 6  # of the live table; the terminal's height decides how many more


def show_plan(cells: Sequence[Cell]) -> None:
    """Print the runs of a matrix as a table: what each costs at most, and the total."""
    table = _grid("Forwards", "Backwards", "To grade", "Time")
    for cell in cells:
        table.add_row(*_names(cell.plan), str(cell.images), *_costs(cell), _state(cell))
    left = [cell for cell in cells if not cell.finished]
    forwards, backwards = (sum(cell.passes[way] or 0 for cell in left) for way in (0, 1))
    counts = [sum(cell.images for cell in left), forwards, backwards, sum(map(_grading, left))]
    seconds = sum(cell.seconds or 0.0 for cell in left)
    table.add_section()
    table.add_row(
        Text("Total to run"), f"{len(left)} runs", "", *(f"{count:,}" for count in counts), duration(seconds), ""
    )
    show_wide(table)
    say("Forwards and backwards of the attacks, and so the time, are the most that they may take; nothing was run.")
    if unknown := sorted({cell.plan.attack.name for cell in left if cell.seconds is None}):
        say(f"Not counted, for they do not say what they cost: {', '.join(unknown)}.")


def _grid(*numbers: str) -> Table:
    """An empty table of runs, with columns for these numbers and a last one without a heading."""
    table = grid("Model", "Attack", "eps", overflow="fold")
    for heading in ("Images", *numbers):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    return table


def _names(plan: Plan) -> list[Text]:
    mode = f" ({plan.options.gradient_mode})" if plan.options.gradient_mode else ""
    runs = f", M = {plan.options.mc}" if plan.options.mc > 1 else ""
    return [Text(f"{plan.model.name}{runs}"), Text(f"{plan.attack.name}{mode}"), Text(shown_eps(plan))]


def _grading(cell: Cell) -> int:
    return cell.plan.grading_passes() * cell.images


def _costs(cell: Cell) -> list[str]:
    counts = ["?" if count is None else f"{count:,}" for count in cell.passes]
    return [*counts, f"{_grading(cell):,}", "?" if cell.seconds is None else duration(cell.seconds)]


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
    board = _Board(cells)
    if not console.is_terminal:
        yield board
        return
    with Live(get_renderable=board.table, console=console, refresh_per_second=4, transient=True):
        yield board


@dataclass
class _Row:
    """One cell as it is shown."""

    cell: Cell
    examples: float = 0.0
    running: bool = False
    record: RunRecord | None = None
    read: bool = False  # it was finished before

    @property
    def seconds(self) -> float:
        """What it was thought to take at most."""
        return self.cell.seconds or 0.0

    @property
    def share(self) -> float:
        """How much of it is done, in [0, 1]."""
        return 1.0 if self.record is not None else self.examples / len(self.cell.plan.indices)


class _Board:
    """The progress of every cell."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._rows = {cell.plan.id: _Row(cell) for cell in cells}
        self._lock = threading.RLock()
        self._passes: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()

    def begin(self, plan: Plan) -> ImageBar:
        with self._lock:
            row = self._rows[plan.id]
            row.running = True
            if not console.is_terminal:
                announce(plan, row.cell.seconds)
        return bar_of(plan, partial(self._reached, row), self._spent)

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        with self._lock:
            row = self._rows[plan.id]
            row.running, row.record, row.read = False, record, read
            if not (read or console.is_terminal):
                result_line(record, plan.notes)
                say(f"  {self._footer()}")

    def leave(self, plan: Plan) -> None:
        with self._lock:
            self._rows[plan.id].running = False

    def tell(self, plan: Plan, line: str) -> None:
        with self._lock:
            say(f"{plan.model.name} · {plan.attack.name} · {shown_eps(plan)}: {line}")

    def _spent(self, passes: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._passes.append((now, passes))
            while self._passes[0][0] < now - WINDOW:
                self._passes.popleft()

    def _reached(self, row: _Row, *, completed: float, **_: object) -> None:
        row.examples = completed

    def _footer(self) -> str:
        """Runs done, queries per second of late, and the time left: the estimates, corrected by what is done."""
        now = time.monotonic()
        rate = sum(count for _, count in self._passes) / max(now - max(self._started, now - WINDOW), 1e-3)
        rows = [row for row in self._rows.values() if not row.read and not row.cell.finished]
        done = sum(row.seconds * row.share for row in rows)
        left = sum(row.seconds * (1 - row.share) for row in rows)
        left *= (now - self._started) / done if done else 1.0
        finished = sum(row.record is not None for row in self._rows.values())
        return (
            f"{finished} of {len(self._rows)} runs done · {rate:,.0f} queries per second · about {duration(left)} left"
        )

    def table(self) -> Group:
        """The live table: the last runs that are done, those under way, and as many of the next as have room."""
        with self._lock:
            table = _grid("Clean, %", "Robust, %")
            rows = list(self._rows.values())
            done = [row for row in rows if row.record is not None and not row.read]
            running = [row for row in rows if row.running]
            waiting = [row for row in rows if row.record is None and not row.running]
            room = max(LEAST_ROWS, console.height - 5)
            listed = [*done[-DONE_SHOWN:], *running][-room:]
            for row in [*listed, *waiting[: room - len(listed)]]:
                table.add_row(*_progress(row), style="" if row.running else "dim")
            more = len(waiting) - max(0, room - len(listed))
            ends = [Text(f"and {more} more", style="dim")] if more > 0 else []
            return Group(table, *ends, Text(f"{self._footer()} · Ctrl-C stops and keeps what is done"))


def _progress(row: _Row) -> list[str | Text]:
    """A row of the live table."""
    plan, record = row.cell.plan, row.record
    rates = ["", ""]
    if record is not None and len(record.outcomes):
        rates = [f"{100 * rate.value:.1f}" for rate in (record.clean_accuracy, record.robust_accuracy)]
    state = Text("running" if row.running else "", style="green")
    if record is not None and record.failures:
        state = Text("examples failed", style="bold red")
    return [*_names(plan), f"{int(row.share * len(plan.indices))}/{len(plan.indices)}", *rates, state]
