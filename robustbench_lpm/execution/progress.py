"""Bars: how far a run is, counted in images, which move with the passes of the network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord

Move = Callable[..., None]  # given completed= or advance=, and the fields that a bar's columns show


def bars_of(console: Console, *columns: str | ProgressColumn) -> Progress:
    """Bars with these columns, text or others; none where the console is neither a terminal nor a notebook."""
    shown = [TextColumn(column, markup=False) if isinstance(column, str) else column for column in columns]
    seen = console.is_terminal or console.is_jupyter
    return Progress(*shown, console=console, transient=True, disable=not seen)


class ImageBar:
    """Progress over images, in passes of the network. passes: for each image; 0 where they are not known."""

    def __init__(self, move: Move, images: int, passes: int, on_spent: Callable[[int], None] = lambda _: None) -> None:
        self._move, self._on_spent = move, on_spent
        self.images, self._passes = images, passes
        self.done, self._spent = 0, 0

    def spent(self, passes: int) -> None:
        """Move by passes, but never past the last image."""
        self._spent += passes
        self._on_spent(passes)
        if self._passes:
            self._show(min(self.done + self._spent / self._passes, self.images - 1e-3))

    def finished(self, examples: int) -> None:
        """So many images are done; their passes may be fewer than expected."""
        self.done, self._spent = examples, 0
        self._show(examples)

    def _show(self, images: float) -> None:
        self._move(completed=images, shown=int(images))


def bar_of(plan: Plan, move: Move, on_spent: Callable[[int], None] = lambda _: None) -> ImageBar:
    """Progress of one run, counted in the passes of the attack and of the grader."""
    cost = plan.cost()
    passes = cost.forwards + cost.backwards + plan.grading_passes() if cost else 0
    return ImageBar(move, len(plan.indices), passes, on_spent)


class RunBar:
    """Watches runs made one after the other: a bar with the time left while one is computed, and nothing else."""

    def __init__(self, console: Console) -> None:
        self._console, self._shown = console, ExitStack()

    def begin(self, plan: Plan) -> ImageBar:
        """Show the bar of a run, under the name of its attack."""
        columns = ("  {task.description}", BarColumn(), "{task.fields[shown]}/{task.total:.0f} images")
        bars = self._shown.enter_context(bars_of(self._console, *columns, TimeRemainingColumn()))
        task = bars.add_task(plan.attack.name, total=len(plan.indices), shown=0)
        return bar_of(plan, partial(bars.update, task))

    def leave(self, plan: Plan) -> None:
        """Remove the bar."""
        self._shown.close()

    def end(self, plan: Plan, record: RunRecord, *, read: bool) -> None:
        """Remove the bar."""
        self._shown.close()

    def tell(self, plan: Plan, line: str) -> None:
        """Print a line about a run."""
        self._console.print(f"{plan.model.name} under {plan.attack.name}: {line}", markup=False, highlight=False)
