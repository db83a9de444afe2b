"""The exception for users: a mistake that they can correct, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

NEAREST = 3  # names that an error offers instead of an unknown one
LISTED = 12  # names that an error lists, where none is near
# A context, by name, for one of several tasks; one that catches the task's failure lets the others run.
Attempt = Callable[[str], AbstractContextManager[object]]


class LpmbenchError(Exception):
    """What went wrong and what to type next, in one line. The command line prints it without a traceback."""

    status = 1  # what the command line ends with


class Stopped(LpmbenchError):
    """The work was cancelled from outside, without an error."""


class Interrupted(LpmbenchError):
    """Ctrl-C, with the command that resumes."""

    status = 130


def in_one_line(error: BaseException) -> str:
    """An error in one line without its full stop; one that is no LpmbenchError comes with its class."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, LpmbenchError) else f"{type(error).__name__}: {text[:300]}"


def unknown(kind: str, name: str, known: Iterable[str], *, most: int = 1) -> LpmbenchError:
    """The error for a name that does not exist, with the nearest ones that do.

    Of those that are nearly the same at most so many; else up to three that are near. Where none is, a few known names
    are listed whole.
    """
    choices = sorted(known)
    near = get_close_matches(name, choices, most, 0.8) or get_close_matches(name, choices, NEAREST, 0.5)
    if near:
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    elif len(choices) <= LISTED:
        hint = f"Known: {', '.join(choices) or 'none'}."
    else:
        hint = f"The nearest of {len(choices)}: {', '.join(get_close_matches(name, choices, NEAREST, 0.0))}."
    return LpmbenchError(f"Unknown {kind} '{name}'. {hint}")


def explained(error: ValidationError) -> str:
    """What pydantic found wrong first, in one line that names the key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if message.startswith("Unknown key '"):
        return message.replace("'", f"'{where}." if where else "'", 1)
    if first["type"] == "missing":
        return f"key '{where}' is missing."
    return f"key '{where}': {message}." if where else f"{message}."
