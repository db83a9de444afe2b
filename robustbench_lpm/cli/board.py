"""What a person sees of a matrix of runs: the plan before it starts, and each cell's progress while it runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from robustbench_lpm.cli.console import AttackBar, announce, console, duration, result_line, say, shown_eps

if TYPE_CHECKING:
    from robustbench_lpm.execution.matrix import Cell
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord

WINDOW = 30.0  # seconds over which queries are counted
DONE_SHOWN, LEAST_ROWS = 4, 6  # of the live table; the terminal's height decides how many more


def show_plan(cells: Sequence[Cell]) -> None:
    """The runs of a matrix as a table: what each costs at most, in total too."""
    grid = _grid("Model", "Attack", "eps", "Images", "Forwards", "Backwards", "To grade", "Time", "")
    for cell in cells:
        grid.add_row(*_names(cell.plan), str(cell.images), *_costs(cell), _state(cell))
    left = [cell for cell in cells if not cell.finished]
    seconds = sum(cell.seconds or 0.0 for cell in left)
    forwards, backwards = (sum(cell.passes[way] or 0 for cell in left) for way in (0, 1))
    grid.add_section()
    grid.add_row(
        Text("Total to run"), f"{len(left)} runs", "", f"{sum(cell.images for cell in left):,}", f"{forwards:,}",
        f"{backwards:,}", f"{sum(_grading(cell) for cell in left):,}", duration(seconds), "",
    )  # fmt: skip
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file or a pipe has room
    console.print(grid)
    say("Forwards and backwards of the attacks, and so the time, are the most that they may take; nothing was run.")
    if unknown := sorted({cell.plan.attack.name for cell in left if cell.seconds is None}):
        say(f"Not counted, for they do not say what they cost: {', '.join(unknown)}.")


def _grid(*headings: str) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        text = heading in ("Model", "Attack", "eps", "")
        grid.add_column(heading, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    return grid


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


@dataclass
class _Row:
    """One cell as it is shown."""

    cell: Cell
    examples: float = 0.0
    running: bool = False
    record: RunRecord | None = None
    started: float = 0.0
    read: bool = False  # not computed now: it lay there

    @property
    def seconds(self) -> float:
        """What it was thought to take at most."""
        return self.cell.seconds or 0.0

    @property
    def share(self) -> float:
        """How much of it is done, in [0, 1]."""
        return 1.0 if self.record is not None else self.examples / len(self.cell.plan.indices)


class Board:
    """Progress of a matrix, cell by cell, with queries per second and the time left: a live table on a terminal, plain
    lines elsewhere. Threads may tell it."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._rows = {cell.plan.id: _Row(cell) for cell in cells}
        self._lock = threading.RLock()
        self._passes: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Board:
        self._started = time.monotonic()
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if console.is_terminal:
            self._live.stop()

    @property
    def finished(self) -> int:
        """Cells that are done."""
        return sum(row.record is not None for row in self._rows.values())

    def begin(self, plan: Plan) -> AttackBar:
        """A cell is being worked on; what it gives is told about it."""
        with self._lock:
            row = self._rows[plan.id]
            row.running, row.started = True, time.monotonic()
            if not console.is_terminal:
                announce(plan, row.cell.seconds)
        return AttackBar(partial(self._reached, plan), plan, self._spent)

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        """A cell is done, or was before."""
        with self._lock:
            row = self._rows[plan.id]
            row.running, row.record, row.read = False, record, read
            if read or console.is_terminal:
                return
            result_line(record, plan.notes)
            say(f"  {self._footer()}")

    def leave(self, plan: Plan) -> None:
        """Nobody is at a cell any more, whether it is done or not."""
        with self._lock:
            self._rows[plan.id].running = False

    def postpone(self, plan: Plan) -> None:
        """A cell comes again later: other processes are at it."""
        with self._lock:
            if not console.is_terminal:
                say("  another process is at it; later again")

    def tell(self, plan: Plan, line: str) -> None:
        """A line about a cell."""
        with self._lock:
            say(f"{plan.model.name} · {plan.attack.name} · {shown_eps(plan)}: {line}")

    def _spent(self, passes: int) -> None:
        """Networks have been passed so many times more."""
        with self._lock:
            now = time.monotonic()
            self._passes.append((now, passes))
            while self._passes[0][0] < now - WINDOW:
                self._passes.popleft()

    def _reached(self, plan: Plan, *, completed: float, **_: object) -> None:
        """So many images of a cell are done, about."""
        self._rows[plan.id].examples = completed

    def _rate(self) -> float:
        """Queries per second of late."""
        since = max(self._started, time.monotonic() - WINDOW)
        return sum(count for _, count in self._passes) / max(time.monotonic() - since, 1e-3)

    def _seconds_left(self) -> float:
        """The estimates of what is left, mended by how those of what is done came out."""
        rows = [row for row in self._rows.values() if not row.read and not row.cell.finished]
        done = sum(row.seconds * row.share for row in rows)
        left = sum(row.seconds * (1 - row.share) for row in rows)
        return left * ((time.monotonic() - self._started) / done if done else 1.0)

    def _footer(self) -> str:
        done = f"{self.finished} of {len(self._rows)} runs done"
        return f"{done} · {self._rate():,.0f} queries per second · about {duration(self._seconds_left())} left"

    def _table(self) -> Group:
        with self._lock:
            grid = _grid("Model", "Attack", "eps", "Images", "Clean, %", "Robust, %", "")
            rows = list(self._rows.values())
            done = [row for row in rows if row.record is not None and not row.read]
            running = [row for row in rows if row.running]
            waiting = [row for row in rows if row.record is None and not row.running]
            room = max(LEAST_ROWS, console.height - 5)
            shown = [*done[-DONE_SHOWN:], *running][-room:]
            for row in [*shown, *waiting[: room - len(shown)]]:
                plan, record = row.cell.plan, row.record
                images = f"{int(row.share * len(plan.indices))}/{len(plan.indices)}"
                rates = ["", ""]
                if record is not None and len(record.outcomes):
                    rates = [f"{100 * rate.value:.1f}" for rate in (record.clean_accuracy, record.robust_accuracy)]
                state = Text("running" if row.running else "", style="green")
                if record is not None and record.failures:
                    state = Text("examples failed", style="bold red")
                grid.add_row(*_names(plan), images, *rates, state, style="" if row.running else "dim")
            more = len(waiting) - max(0, room - len(shown))
            ends = [Text(f"and {more} more", style="dim")] if more > 0 else []
            return Group(grid, *ends, Text(f"{self._footer()} · Ctrl-C stops and keeps what is done"))
