"""Finished blocks of a run on disk, so that an interrupted run resumes after them.

The directory of an unfinished run holds `manifest.json` (what decides its bits beyond the configuration: block and
chunk size, threads, device, versions, code), a file for each finished block, the checkpoints of the blocks in progress
(`journal`), and the locks of the processes that work on it. Files of another manifest are removed, unless a process
still works on them. Sizes that were measured on a GPU are taken from the manifest that is there. A block that is
damaged is computed again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.journal import Journal
from robustbench_lpm.execution.keeping import keep, kept_below, packed, unpacked
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.protocol.attacking import Arrays

if sys.platform != "win32":
    import fcntl

LAYOUT = 3  # of a block's file: one with another number is computed again
MANIFEST, CLAIMS = "manifest.json", "claims"
SIZES = ("block_size", "chunk")  # of a manifest's `execution`
IN_USE, WRITING, FIRST_BLOCK = 0, 1, 2  # bytes of the file of locks
TAKEN = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
PATIENCE = 0.05  # seconds between two looks at a manifest that another process is about to write


@dataclass(frozen=True)
class Block:
    """The result of a block: arrays of rows and pictures, and what the record must say of it.

    failures: {"block", "indices", "error"} of examples that could not be computed. halved: whether memory ran out, so
    that its bits may differ from those of a block that was computed as a whole. notes: of the attack, by subject.
    """

    arrays: Arrays
    failures: tuple[dict[str, Any], ...] = ()
    halved: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


class BlockStore:
    """The directory of one unfinished run; None keeps nothing.

    Args:
        tell: called with a line for the reader where something unexpected was found.
    """

    def __init__(self, directory: Path | None, tell: Callable[[str], None] = lambda _: None) -> None:
        self.directory, self._tell = directory, tell
        self._locks = _Locks(directory) if directory is not None else None
        self._refused: dict[int, int] = {}  # blocks that are not used, by when they were written
        self._run = ""

    def open(self, manifest: dict[str, Any], *, measured: bool = False) -> dict[str, Any]:
        """Start, or resume with the blocks of an equal manifest; returns it.

        measured: its SIZES depend on what memory was free: where nothing else differs, those that are there are used.

        Blocks of which a part failed are not used: they are tried again. Raises LpmbenchError where another process
        works under another manifest, NotKept where nothing can be written.
        """
        if self.directory is None:
            return manifest
        with kept_below(self.directory):
            while (used := self._entered(manifest, measured)) is None:
                time.sleep(PATIENCE)
        self._run = sha256_of(self.directory / MANIFEST)
        for number in self._numbers():
            block = self.read(number)
            if block is not None and block.failures:
                self._refused[number] = _written(self._path(number))
                failed = sum(len(failure["indices"]) for failure in block.failures)
                self._tell(f"{failed} example(s) failed before ({block.failures[0]['error']}); they are tried again")
        return used

    def _entered(self, manifest: dict[str, Any], measured: bool) -> dict[str, Any] | None:
        """The manifest under which the directory is used; None while another process is about to write its own."""
        assert self.directory is not None
        assert self._locks is not None
        path = self.directory / MANIFEST
        alone = self._locks.enter()
        found = path.read_bytes() if path.is_file() else None
        if measured and _content(resized := _with_sizes(manifest, _parsed(found))) == found:
            manifest = resized
        content = _content(manifest)
        if alone:
            if found != content:
                self._forget(_parsed(found), manifest)
                keep(path, content)
            self._locks.take(IN_USE, exclusive=False)
        elif found != content:
            self._locks.leave()
            if found is not None:
                raise LpmbenchError(
                    f"Another process works on the same run with other {differences(_parsed(found), manifest)}, in "
                    f"{self.directory}: wait for it, or give another directory with --out."
                )
        return manifest if alone or found == content else None

    def _forget(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Remove the files of another manifest."""
        assert self.directory is not None
        if blocks := self._numbers():
            self._tell(
                f"{len(blocks)} finished block(s) were computed with other {differences(old, new)}: "
                "they are computed again"
            )
        for path in self.directory.iterdir():
            if path.name != CLAIMS:
                path.unlink()

    def _numbers(self) -> list[int]:
        assert self.directory is not None
        names = [path.stem.removeprefix("block-") for path in self.directory.glob("block-*.safetensors")]
        return sorted(int(name) for name in names if name.isdigit())

    def journal(self, block: int) -> Journal:
        """The checkpoints of an unfinished block, of this manifest only."""
        if self.directory is None:
            return Journal(None)
        return Journal(self.directory / f"journal-{block:06d}.safetensors", self._owner(block))

    def _path(self, block: int) -> Path:
        assert self.directory is not None
        return self.directory / f"block-{block:06d}.safetensors"

    def _owner(self, block: int) -> str:
        """Names the run, its manifest included, and the block: files of another one are not used."""
        return f"{self._run}, block {block}"

    def claim(self, block: int) -> bool:
        """Take a block, so that no other process computes it; False where one has it."""
        return self._locks is None or self._locks.take(FIRST_BLOCK + block)

    def release(self, block: int) -> None:
        """Let other processes take the block."""
        if self._locks is not None:
            self._locks.give_up(FIRST_BLOCK + block)

    def read(self, number: int) -> Block | None:
        """A finished block, or None where it must be computed (again)."""
        if self.directory is None:
            return None
        path = self._path(number)
        try:
            written, content = _written(path), path.read_bytes()
        except FileNotFoundError:
            return None
        if self._refused.get(number) == written:
            return None
        found = unpacked(content, layout=LAYOUT, owner=self._owner(number))
        if found is None:
            self._refused[number] = written
            self._tell(f"{path.name} is not what was written: it was altered or damaged, and is computed again")
            return None
        tensors, about = found
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Block(arrays, tuple(about["failures"]), about["halved"], about["notes"])

    def write(self, number: int, block: Block) -> None:
        """Keep a finished block. Raises NotKept."""
        if self.directory is not None:
            tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in block.arrays.items()}
            about = {"layout": LAYOUT, "owner": self._owner(number), "failures": list(block.failures)}
            about |= {"halved": block.halved, "notes": dict(block.notes)}
            keep(self._path(number), packed(tensors, about))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write files of the run as a whole; one process at a time does."""
        locks = self._locks if self._locks is not None and self._locks.entered else None
        if locks is not None:
            locks.take(WRITING, wait=True)
        try:
            yield
        finally:
            if locks is not None and locks.entered:
                locks.give_up(WRITING)

    def leave(self) -> None:
        """Release all claims; the files stay."""
        if self._locks is not None:
            self._locks.leave()

    def close(self) -> None:
        """Remove the blocks, once all is written elsewhere and no other process uses them."""
        if self.directory is None or self._locks is None or not self.directory.is_dir():
            return
        try:
            if self._locks.take(IN_USE) if self._locks.entered else self._locks.enter():
                _remove(self.directory)
        finally:
            self.leave()


class _Locks:
    """Locks of the processes that share the directory of a run. All methods raise OSError.

    Each is the lock of one byte of the file `claims` (POSIX record locks). The system releases it when its process
    ends, however it ends, so that nothing is left to clean up after a kill. Within one process such locks exclude
    nothing. A file system without locks grants every lock: work may then be done twice, but it is never mixed, as files
    are written as a whole.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / CLAIMS
        self._file: BinaryIO | None = None

    @property
    def entered(self) -> bool:
        return self._file is not None

    def enter(self) -> bool:
        """Use the directory, which is made, and stays as long as a process uses it.

        Returns whether this process is the only one: then no other enters until it shares the lock IN_USE.
        """
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = self._path.open("a+b", buffering=0)
                alone = self.take(IN_USE)
                if not alone:  # this waits for a process that has it alone
                    self.take(IN_USE, exclusive=False, wait=True)
                if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                    return alone
            except FileNotFoundError:
                pass
            self.leave()  # another process has removed the directory in between

    def take(self, byte: int, *, exclusive: bool = True, wait: bool = False) -> bool:
        """Take a lock; False where another process has it and this one does not wait."""
        if self._file is None:
            raise ValueError("nothing can be claimed in a directory that was not entered")
        if sys.platform == "win32":
            return True
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.lockf(self._file, kind if wait else kind | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in TAKEN and not wait:
                return False
            if error.errno not in NO_LOCKS:
                raise
        return True

    def give_up(self, byte: int) -> None:
        """Release a lock."""
        if self._file is not None and sys.platform != "win32":
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def leave(self) -> None:
        """Release all locks."""
        file, self._file = self._file, None  # first, for Ctrl-C may come while it is being closed
        if file is not None:
            file.close()


def _remove(directory: Path) -> None:
    """Remove the directory of a run, the file of locks last: processes that wait for it then make a new one."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != CLAIMS:
            path.unlink(missing_ok=True)
    (directory / CLAIMS).unlink(missing_ok=True)
    for emptied in (directory, directory.parent):
        try:
            emptied.rmdir()
        except OSError:  # it has other files
            return


def _written(path: Path) -> int:
    """When a file was written, in nanoseconds: a file that took its place was written later."""
    return path.stat().st_mtime_ns


def _content(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _with_sizes(manifest: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the sizes of another one."""
    sizes = {name: size for name, size in other.get("execution", {}).items() if name in SIZES}
    return manifest | {"execution": manifest["execution"] | sizes}


def _parsed(manifest: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(manifest or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The names of the entries in which two manifests differ, a few of them; of inner tables the names inside."""
    found = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        elif one != other:
            found.append(key)
    return ", ".join(found[:4]) or "settings"
