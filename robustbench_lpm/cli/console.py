"""What a person sees while waiting: what is about to happen, bars with the time left, where the results lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord

console = Console(highlight=False, markup=False)
LONG = 10.0  # seconds; a run that takes longer says so beforehand
Move = Callable[..., None]  # given completed= or advance=, and the fields that a bar's columns show


@contextmanager
def bar(task: str, total: float, *columns: ProgressColumn, **fields: Any) -> Iterator[Move]:
    """A bar with the time left, none where the output is no terminal; columns beside it say how far it is."""
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield partial(bars.update, bars.add_task(task, total=total, **fields))


def counting_bar(task: str, total: int, things: str) -> AbstractContextManager[Move]:
    """A bar that counts things: 3/10 epochs."""
    return bar(task, total, MofNCompleteColumn(), TextColumn(things))


class AttackBar:
    """Progress of one run, counted in passes of the network, the attack's and the grader's."""

    def __init__(self, move: Move, plan: Plan, on_spent: Callable[[int], None] = lambda _: None) -> None:
        self._move, self._on_spent = move, on_spent
        cost = plan.cost()
        self._per_example = cost.forwards + cost.backwards + plan.grading_passes() if cost else 0
        self._examples, self._done, self._spent = len(plan.indices), 0, 0

    def spent(self, passes: int) -> None:
        """Move by passes, but never past the examples of the block that is being worked on."""
        self._spent += passes
        self._on_spent(passes)
        if self._per_example:
            self._show(min(self._done + self._spent / self._per_example, self._examples - 1e-3))

    def finished(self, examples: int) -> None:
        """Early stopping makes blocks end before their passes are spent."""
        self._done, self._spent = examples, 0
        self._show(examples)

    def _show(self, examples: float) -> None:
        self._move(completed=examples, shown=int(examples))


class ConsoleWatcher:
    """Tells of runs as they are computed one after the other: what each costs, a bar, what came of it."""

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._news: list[str] = []

    def begin(self, plan: Plan) -> AttackBar:
        """Announce a run, and show a bar."""
        from robustbench_lpm.execution.estimates import estimate_seconds

        self._announce(plan, estimate_seconds(plan))
        column = TextColumn("{task.fields[shown]}/{task.total:.0f} images")
        move = self._bar.enter_context(bar(f"  {plan.attack.name}", len(plan.indices), column, shown=0))
        return AttackBar(move, plan)

    def tell(self, plan: Plan, line: str) -> None:
        """Say it below the announcement of the run."""
        self._news.append(f"  {line}")

    def leave(self, plan: Plan) -> None:
        """Take the bar away."""
        self._bar.close()

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        """Say what came of a run."""
        self._bar.close()
        if read:
            self._announce(plan, None)
            say("  already run (--force runs it again)")
        self._tell_news()
        result_line(record, plan.notes)

    def _announce(self, plan: Plan, seconds: float | None) -> None:
        announce(plan, seconds)
        self._tell_news()

    def _tell_news(self) -> None:
        for line in self._news:
            say(line)
        self._news.clear()


def shown_eps(plan: Plan) -> str:
    """The budget of a run, such as "linf 8/255"."""
    from robustbench_lpm.budgets import format_eps

    return f"{plan.options.norm} {format_eps(plan.options.eps)}"


def announce(plan: Plan, seconds: float | None) -> None:
    """What is about to run, what it costs at most, and how long that takes."""
    images = len(plan.indices)
    head = f"{plan.model.name} · {plan.attack.name} · {shown_eps(plan)} · {images} image(s)"
    cost = plan.cost()
    if cost is None:
        say(head)
        _tell_notes(plan)
        return
    passes = f"up to {cost.forwards * images:,} forwards and {cost.backwards * images:,} backwards"
    if images > 1 and cost.forwards:
        passes += f" ({cost.forwards:,} and {cost.backwards:,} for each image)"
    grading = f"{plan.grading_passes() * images:,} forwards to grade"
    about = f", about {duration(seconds)}" if seconds is not None and seconds >= LONG else ""
    say(f"{head} · {passes}, {grading}{about}")
    _tell_notes(plan)


def _tell_notes(plan: Plan) -> None:
    """What a reader of the result must know, and where the noise of a stochastic model comes from."""
    from robustbench_lpm.protocol.noise_control import sources_of
    from robustbench_lpm.protocol.plan import told_noise

    noise = told_noise(plan.options.draws, sorted(sources_of(plan.classifier))) if plan.stochastic else ""
    found_out = any(note.startswith("stochastic: ") for note in plan.notes)
    for note in (*plan.notes, *([noise] if noise and not found_out else [])):
        say(f"  {note}")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes / 60:.1f} h" if minutes < 72 * 60 else f"{minutes / 60 / 24:.1f} days"


def result_line(record: RunRecord, told: Sequence[str] = ()) -> None:
    """One line at the end of a run, and one for each of its notes that was not told before."""
    seconds = record.timing.get("seconds")
    took = f" in {duration(float(seconds))}" if seconds is not None else ""
    failed = sum(len(failure["indices"]) for failure in record.failures)
    lost = f"; {failed} example(s) FAILED: {record.failures[0]['error']}" if failed else ""
    if len(record.outcomes) == 0:
        say(f"  nothing could be computed{lost}")
        return
    clean, robust = record.clean_accuracy, record.robust_accuracy
    say(f"  clean {100 * clean.value:.1f} %, under attack {100 * robust.value:.1f} %{took}{lost}")
    for note in record.notes:
        if note not in told:
            say(f"  {note}")


def say(text: str) -> None:
    """A line for the reader."""
    console.print(text, soft_wrap=not console.is_terminal)  # a pipe or a file wraps nothing


def shown_path(path: Path) -> str:
    """A path as short as it can be from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
