"""Finished blocks of a run on disk, so that what was computed is not lost when the rest is interrupted.

A run in progress keeps `manifest.json` (what decides its bits beyond the configuration: block and chunk size, threads,
device, versions, code), one file for each finished block, what each block that is being worked on has come to
(`journal`), and the locks of the processes that work on it (`claims`). Another manifest makes the old files worthless:
they go, unless a process is still at work on them. A block that is not what was written is not used.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.claims import FILE as CLAIMS
from robustbench_lpm.execution.claims import Claims
from robustbench_lpm.execution.journal import Journal
from robustbench_lpm.execution.keeping import keep, kept_below, packed, unpacked
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.protocol.attacking import Arrays

LAYOUT = 3  # of a block's file: one with another number is computed again
MANIFEST = "manifest.json"
PATIENCE = 0.05  # seconds between two looks at a manifest that someone else is about to write


@dataclass(frozen=True)
class Block:
    """What came of a block: arrays of rows and pictures, and what must be said of it.

    failures: {"block", "indices", "error"} of examples that could not be computed. halved: whether memory ran out, so
    that its bits may differ from those of a block that was computed as a whole. notes: what an attack had to say, by
    its subject.
    """

    arrays: Arrays
    failures: tuple[dict[str, Any], ...] = ()
    halved: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


class BlockStore:
    """The folder of one run in progress; None keeps nothing.

    Args:
        tell: given a line for the reader where something unexpected was found.
    """

    def __init__(self, folder: Path | None, tell: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self._tell = folder, tell
        self._claims = Claims(folder) if folder is not None else None
        self._entered = False
        self._refused: dict[int, int] = {}  # blocks that are not used, by the time of their writing
        self._run = ""

    def open(self, manifest: dict[str, Any]) -> None:
        """Start, or go on with the blocks of an equal manifest.

        Blocks of which a part failed are not taken as they are: they are tried again. Raises LpmbenchError where
        another process is at work under another manifest, NotKept where nothing can be written.
        """
        if self.folder is None or self._claims is None:
            return
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        path = self.folder / MANIFEST
        with kept_below(self.folder):
            while True:
                if self._claims.enter():
                    if not path.is_file() or path.read_bytes() != content:
                        self._forget(_read_manifest(path), manifest)
                        keep(path, content)
                    self._claims.share()
                    break
                if path.is_file():
                    if path.read_bytes() == content:
                        break
                    self._claims.leave()
                    differing = differences(_read_manifest(path), manifest)
                    raise LpmbenchError(
                        f"Another process is at work on the same run with other {differing or 'settings'}, in "
                        f"{self.folder}: wait for it, or give another folder with --out."
                    )
                self._claims.leave()  # one that was about to write it has ended
                time.sleep(PATIENCE)
            self._entered = True
        self._run = sha256_of(path)
        for number in self._numbers():
            block = self.read(number)
            if block is not None and block.failures:
                self._refused[number] = _written(self._path(number))
                indices = [index for failure in block.failures for index in failure["indices"]]
                self._tell(
                    f"{len(indices)} example(s) failed before ({block.failures[0]['error']}); they are tried again"
                )

    def _forget(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Remove what another manifest has left."""
        assert self.folder is not None
        if blocks := self._numbers():
            self._tell(
                f"{len(blocks)} finished block(s) were computed with other {differences(old, new) or 'settings'}: "
                "they are computed again"
            )
        for path in self.folder.iterdir():
            if path.name != CLAIMS:
                path.unlink()

    def _numbers(self) -> list[int]:
        assert self.folder is not None
        names = [path.stem.removeprefix("block-") for path in self.folder.glob("block-*.safetensors")]
        return sorted(int(name) for name in names if name.isdigit())

    def journal(self, block: int) -> Journal:
        """What an unfinished block has come to; it belongs to this manifest and this block alone."""
        if self.folder is None:
            return Journal(None)
        return Journal(self.folder / f"journal-{block:06d}.safetensors", f"{self._run}, block {block}")

    def _path(self, block: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{block:06d}.safetensors"

    def claim(self, block: int) -> bool:
        """Take a block, so that no other process computes it; False where one has it."""
        return self._claims is None or self._claims.claim(block)

    def release(self, block: int) -> None:
        """Let others have the block."""
        if self._claims is not None:
            self._claims.release(block)

    def load(self, block: int) -> Arrays | None:
        """The arrays of a finished block, or None."""
        found = self.read(block)
        return found.arrays if found is not None else None

    def read(self, block: int) -> Block | None:
        """A finished block, or None where there is none, or one that shall be or must be computed again."""
        if self.folder is None:
            return None
        path = self._path(block)
        try:
            written, content = _written(path), path.read_bytes()
        except FileNotFoundError:
            return None
        if self._refused.get(block) == written:
            return None
        found = unpacked(content, layout=LAYOUT, owner=self._owner(block))
        if found is None:
            self._refused[block] = written
            self._tell(f"{path.name} is not what was written: it was altered or damaged, and is computed again")
            return None
        tensors, about = found
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Block(arrays, tuple(about["failures"]), about["halved"], about["notes"])

    def save(self, block: int, arrays: Arrays) -> None:
        """Keep a finished block. Raises NotKept."""
        self.write(block, Block(arrays))

    def write(self, number: int, block: Block) -> None:
        """Keep a finished block and what must be said of it. Raises NotKept."""
        if self.folder is not None:
            tensors = {name: torch.from_numpy(np.asarray(array, order="C")) for name, array in block.arrays.items()}
            about = {"layout": LAYOUT, "owner": self._owner(number), "failures": list(block.failures)}
            about |= {"halved": block.halved, "notes": dict(block.notes)}
            keep(self._path(number), packed(tensors, about))

    def _owner(self, block: int) -> str:
        """What names the run, its manifest included, and the block: the file of another one is not used."""
        return f"{self._run}, block {block}"

    def writing(self) -> AbstractContextManager[None]:
        """What is written of the run as a whole, one process after the other."""
        return self._claims.writing() if self._claims is not None and self._entered else nullcontext()

    def leave(self) -> None:
        """Let go of the folder and of all claims; what lies there stays."""
        if self._claims is not None:
            self._claims.leave()
            self._entered = False

    def close(self) -> None:
        """Everything has been written elsewhere; the blocks go, with the last process that uses them."""
        if self.folder is None or self._claims is None:
            return
        if not self._entered:
            if not self.folder.is_dir():
                return
            alone = self._claims.enter()
        else:
            alone = self._claims.alone()
        try:
            if alone:
                self._remove(self.folder)
        finally:
            self.leave()

    @staticmethod
    def _remove(folder: Path) -> None:
        """The claims last: whoever waits for them finds the folder gone, and makes a new one."""
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != CLAIMS:
                path.unlink(missing_ok=True)
        (folder / CLAIMS).unlink(missing_ok=True)
        for emptied in (folder, folder.parent):
            try:
                emptied.rmdir()
            except OSError:  # somebody has put something in
                return


def _written(path: Path) -> int:
    """When a file was written, in nanoseconds: a file that took its place was written later."""
    return path.stat().st_mtime_ns


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In which entries two manifests differ, by name, those of the inner tables by theirs."""
    found = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        elif one != other:
            found.append(key)
    return ", ".join(found[:4])
