"""Who works on what, among processes that share an output folder: locks that die with the process that holds them.

Each run in progress has one file, and each lock is that of one byte of it (POSIX record locks). The system gives a lock
up when its process ends, however it ends, so that nothing is left to clean up after a kill. Within one process such
locks exclude nothing. A file system without locks grants every claim: work may then be done twice, but as files are
written as a whole it is never mixed.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

FILE = "claims"
IN_USE, WRITING, FIRST_BLOCK = 0, 1, 2  # bytes of the file
TAKEN = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Claims:
    """The locks of the run whose folder is given; the folder is made when it is entered. All raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._file: BinaryIO | None = None

    def enter(self) -> bool:
        """Use the folder, which stays as long as someone does.

        Returns whether this process is the only one: then it has the folder for itself until `share`.
        """
        while True:
            file = self._opened()
            alone = _lock(file, IN_USE, exclusive=True)
            if not alone:  # this waits for one that has it for itself
                _lock(file, IN_USE, exclusive=False, wait=True)
            if self._is_in_place(file):
                self._file = file
                return alone
            file.close()  # another process has removed the folder in between

    def share(self) -> None:
        """Let others use the folder too."""
        _lock(self._held(), IN_USE, exclusive=False)

    def alone(self) -> bool:
        """Have the folder for oneself, if nobody else uses it."""
        return _lock(self._held(), IN_USE, exclusive=True)

    def claim(self, block: int) -> bool:
        """Take a block, if no other process has."""
        return _lock(self._held(), FIRST_BLOCK + block, exclusive=True)

    def release(self, block: int) -> None:
        """Give a block up."""
        _unlock(self._held(), FIRST_BLOCK + block)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written of the run as a whole, one process after the other."""
        file = self._held()
        _lock(file, WRITING, exclusive=True, wait=True)
        try:
            yield
        finally:
            if not file.closed:
                _unlock(file, WRITING)

    def leave(self) -> None:
        """Give everything up."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return self._path.open("a+b", buffering=0)
            except FileNotFoundError:  # the folder was removed at this very moment
                continue

    def _is_in_place(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _held(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("nothing can be claimed in a folder that was not entered")
        return self._file


def _lock(file: BinaryIO, byte: int, *, exclusive: bool, wait: bool = False) -> bool:
    """Lock a byte; False where another process has it and there is no waiting."""
    if sys.platform == "win32":
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.lockf(file, kind if wait else kind | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        if error.errno in TAKEN and not wait:
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True


def _unlock(file: BinaryIO, byte: int) -> None:
    if sys.platform != "win32":
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)
