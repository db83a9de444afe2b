"""What a person sees: what is about to run, bars with the time left, results."""

from __future__ import annotations

import shlex
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TimeRemainingColumn
from rich.table import Table

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.execution.progress import ImageBar, Move, RunBar, bar_of, bars_of

if TYPE_CHECKING:
    from robustbench_lpm.execution.matrix import Cell
    from robustbench_lpm.execution.runner import Watcher
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord

console = Console(highlight=False, markup=False, emoji=False)
LONG = 10.0  # seconds; a run that takes longer says so beforehand
TOO_LONG = 300.0  # seconds; of a longer run is said what makes it shorter
FEW = 64  # images of a shorter run
WINDOW = 30.0  # seconds over which queries are counted
DONE_SHOWN = 4  # finished runs of a matrix that a terminal still shows


@contextmanager
def bar(task: str, total: float, *columns: str | ProgressColumn, **fields: Any) -> Iterator[Move]:
    """A bar with the time left; columns beside it say how far it is."""
    with bars_of(console, "{task.description}", BarColumn(), *columns, TimeRemainingColumn()) as bars:
        yield partial(bars.update, bars.add_task(task, total=total, **fields))


def counting_bar(task: str, total: int, things: str) -> AbstractContextManager[Move]:
    """A bar that counts things: 3/10 epochs."""
    return bar(task, total, MofNCompleteColumn(), things)


class ConsoleWatcher(RunBar):
    """Prints what runs cost, a bar while they are computed one after the other, and their results.

    shorter: before the first long run, which options of the command make it shorter.
    """

    def __init__(self, *, shorter: bool = False) -> None:
        super().__init__(console)
        self._shorter = shorter

    def begin(self, plan: Plan) -> ImageBar:
        """Announce a run, and show a bar."""
        from robustbench_lpm.execution.estimates import estimate_seconds

        seconds = estimate_seconds(plan)
        announce(plan, seconds)
        if self._shorter and (seconds or 0.0) > TOO_LONG:
            say(f"  {told_shorter(plan, seconds or 0.0)}")
            self._shorter = False
        return super().begin(plan)

    def tell(self, plan: Plan, line: str) -> None:
        """Print a line about a run."""
        say(f"{titled(plan)}: {line}")

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        """Print the result of a run."""
        super().end(plan, record, read=read)
        if read:
            announce(plan, None)
            say("  already run (--force runs it again)")
        print_result(record, plan.notes)


@contextmanager
def shown(cells: Sequence[Cell]) -> Iterator[Watcher]:
    """Show the progress of a matrix, with queries per second and the time left: a live table on a terminal, plain lines
    elsewhere. Several threads may call the watcher."""
    with bars_of(
        console, "{task.description}", "{task.completed:.0f}/{task.total:.0f}", "{task.fields[state]}"
    ) as bars:
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
            with self._lock:
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
            self._bars.update(task, state=result_in_words(record))
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
            say(f"{titled(plan)}: {line}")

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


def shown_eps(plan: Plan) -> str:
    """The budget of a run, such as "linf 8/255", and the patch if there is one."""
    found = plan.options
    place = f" at {found.patch_at}" if found.patch_at else ""
    patch = f" in a patch of {100 * found.patch:g} %{place}" if found.patch else ""
    return f"{found.norm} {format_eps(found.eps)}{patch}"


def titled(plan: Plan) -> str:
    """The model, attack and budget of a run."""
    return f"{plan.model.name} · {plan.attack.name} · {shown_eps(plan)}"


def announce(plan: Plan, seconds: float | None) -> None:
    """Print what is about to run, its highest cost and time, its notes, and its sources of noise."""
    from robustbench_lpm.protocol.noise_control import sources_of
    from robustbench_lpm.protocol.plan import told_noise

    images = len(plan.indices)
    head = f"{titled(plan)} · {images} image(s) on {plan.options.device}"
    if (cost := plan.cost()) is not None:
        head += f" · up to {cost.forwards * images:,} forwards and {cost.backwards * images:,} backwards"
        if images > 1 and cost.forwards:
            head += f" ({cost.forwards:,} and {cost.backwards:,} for each image)"
        head += f", {plan.grading_passes() * images:,} forwards to grade"
        head += about(seconds or 0.0)
    say(head)
    for note in plan.notes:
        say(f"  {note}")
    found_out = any(note.startswith("stochastic: ") for note in plan.notes)
    noise = told_noise(plan.options.draws, sorted(sources_of(plan.classifier))) if plan.stochastic else ""
    if noise and not found_out:
        say(f"  {noise}")


def told_shorter(plan: Plan, seconds: float) -> str:
    """The options that make a run shorter, those that it has, and how long it takes on few images."""
    parameters, images = plan.attack.parameters, len(plan.indices)
    has = {
        "--steps": any(name in parameters for name in plan.attack.declaration.steps),
        "--eot": plan.stochastic and "eot" in parameters,
        "--gradient-mode detached": len(plan.gradient_modes) > 1 and "detached" in plan.gradient_modes,
        "--draws": plan.stochastic,
    }
    few = f" ({FEW} takes about {duration(seconds * FEW / images)})" if images > FEW else ""
    return f"Shorter with {', '.join(['--limit' + few, *(name for name, there in has.items() if there)])}."


def show_plan(cells: Sequence[Cell]) -> None:
    """Print the runs of a matrix as a table: what each costs at most, and the total."""
    right = ("Images", "Forwards", "Backwards", "To grade", "Time")
    table = grid("Model", "Attack", "eps", *right, "", right=right, overflow="fold")
    counts = {cell.plan.id: (cell.images, *cell.passes, cell.plan.grading_passes() * cell.images) for cell in cells}
    for cell in cells:
        numbers = ["?" if count is None else f"{count:,}" for count in counts[cell.plan.id]]
        numbers.append("?" if cell.seconds is None else duration(cell.seconds))
        table.add_row(*_names(cell.plan), *numbers, _state(cell))
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
        # A run on a GPU goes on in the blocks that it started with, which may be others than this plan's.
        return f"{cell.blocks} of {'?' if cell.plan.measured else len(cell.plan.blocks)} blocks are done"
    return "" if cell.listed else "for the audit"


def about(seconds: float) -> str:
    """ ", about 5 min" for what takes long, else nothing."""
    return f", about {duration(seconds)}" if seconds >= LONG else ""


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes / 60:.1f} h" if minutes < 72 * 60 else f"{minutes / 60 / 24:.1f} days"


def result_in_words(record: RunRecord) -> str:
    """What came of a run, in one line."""
    seconds = record.timing.get("seconds")
    took = f" in {duration(float(seconds))}" if seconds is not None else ""
    failed = sum(len(failure["indices"]) for failure in record.failures)
    lost = f"; {failed} example(s) FAILED: {record.failures[0]['error']}" if failed else ""
    if len(record.outcomes) == 0:
        return f"nothing could be computed{lost}"
    clean, robust = record.clean_accuracy, record.robust_accuracy
    tries = record.robust_attempts
    again = f" ({100 * tries[-1]:.1f} % after {len(tries)} attempts)" if len(tries) > 1 else ""
    return f"clean {100 * clean.value:.1f} %, under attack {100 * robust.value:.1f} %{again}{took}{lost}"


def print_result(record: RunRecord, announced: Sequence[str]) -> None:
    """One line at the end of a run, and one for each of its notes that was not announced."""
    if record.attack.endswith("-kiritani2020") and len(record.outcomes):
        counts = " : ".join(map(str, record.reference_counts))
        say(f"  success : failure : incorrect, as the paper's script counts single passes: {counts}")
    for line in (result_in_words(record), *(note for note in record.notes if note not in announced)):
        say(f"  {line}")


def grid(*headings: str, right: Sequence[str] = (), **column: Any) -> Table:
    """An empty table without lines; `right` are the headings of the columns that are aligned there."""
    found = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        found.add_column(heading, justify="right" if heading in right else "left", **column)
    return found


def show_wide(table: Table) -> None:
    """Print a table; a file or a pipe has room for wide ones."""
    wide = console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=200)
    wide.print(table)


def say(text: str) -> None:
    """Print a line."""
    console.print(text, soft_wrap=not console.is_terminal)  # a pipe or a file wraps nothing


def quoted_path(path: Path) -> str:
    """A path as a word of a command that can be pasted."""
    return shlex.quote(shown_path(path))


def shown_path(path: Path) -> str:
    """A path, relative to the working directory where it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
