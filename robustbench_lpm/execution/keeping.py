"""Write what shall survive, and say in one line why that was not possible: a full disk, a folder that is not ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import write_atomically

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotKept(LpmbenchError):
    """Something could not be written. What was finished before is kept."""


@contextmanager
def kept_below(folder: Path) -> Iterator[None]:
    """Turn a failure to write below a folder into NotKept."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            text = f"There is no room left to write in {folder}: {error.strerror}. Make room"
        else:
            text = f"{folder} cannot be written: {error.strerror or error}. Mend that"
        message = f"{text}, and the same command goes on from there: what was finished is kept."
        raise NotKept(message) from None


def keep(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all. Raises NotKept."""
    with kept_below(path.parent):
        write_atomically(path, content)
