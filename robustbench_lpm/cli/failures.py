"""Failures in a command that does several things: each is one line on stderr, and the other things are still done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from robustbench_lpm.errors import Interrupted, LpmbenchError, Stopped, in_one_line

log = logging.getLogger(__name__)
DEBUG = "LPMBENCH_DEBUG"  # in the environment: show tracebacks, too


class Failures:
    """Collects failures. alone: the command does only one thing, so that a failure ends it."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._told: dict[str, set[str]] = {}  # the reasons, by the name of what failed

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Note any error inside as a failure of this model, run or audit; what ends the whole command is raised."""
        from robustbench_lpm.execution.keeping import NotKept
        from robustbench_lpm.execution.runner import TakenByOthers

        try:
            yield
        except (NotKept, TakenByOthers, Interrupted, Stopped, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except Exception as error:
            self.note(name, error)

    def note(self, name: str, error: Exception) -> None:
        """Print a failure, or raise it where the command does only one thing."""
        foreseen = isinstance(error, LpmbenchError)
        log.debug("%s failed", name, exc_info=error)
        reason = str(error) if foreseen else f"{in_one_line(error)} ({DEBUG}=1 shows where)."
        if self._alone:
            raise error if foreseen else LpmbenchError(f"{name}: {reason}") from error
        told = self._told.setdefault(name, set())
        if reason not in told:  # it is the same at every budget
            told.add(reason)
            click.echo(f"lpmbench: {name}: {' '.join(reason.split())}", err=True)

    def complain(self, fate: str, among: str = "") -> None:
        """Raise LpmbenchError where something failed: `fate` says what could not be done with it, "attacked"."""
        if self._told:
            raise LpmbenchError(f"{len(self._told)}{among} could not be {fate}: {', '.join(self._told)}.")
