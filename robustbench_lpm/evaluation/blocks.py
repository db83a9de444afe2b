"""Finished blocks of a run on disk, so that what was computed is not lost when the rest is interrupted.

A run in progress keeps `manifest.json` (what decides its bits beyond the configuration: block and chunk size, threads,
device, versions), one file for each finished block, and what the block that is being worked on has come to (`journal`).
Another manifest makes the old files worthless: they go.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from robustbench_lpm.evaluation.journal import Journal
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.records import write_atomically

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class BlockStore:
    """The folder of one run in progress; None keeps nothing."""

    folder: Path | None

    def open(self, manifest: dict[str, Any]) -> None:
        """Start, or go on with the blocks of an equal manifest."""
        if self.folder is None:
            return
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        path = self._manifest(self.folder)
        if path.is_file() and path.read_bytes() != content:
            shutil.rmtree(self.folder)
        write_atomically(path, content)

    @staticmethod
    def _manifest(folder: Path) -> Path:
        return folder / "manifest.json"

    def journal(self, block: int) -> Journal:
        """What an unfinished block has come to; it belongs to this manifest and this block alone."""
        if self.folder is None:
            return Journal(None)
        run = f"{sha256_of(self._manifest(self.folder))}, block {block}"
        return Journal(self.folder / f"journal-{block:06d}.safetensors", run)

    def _path(self, block: int) -> Path | None:
        return self.folder / f"block-{block:06d}.safetensors" if self.folder else None

    def load(self, block: int) -> Arrays | None:
        """A finished block, or None."""
        from safetensors.numpy import load

        path = self._path(block)
        return load(path.read_bytes()) if path is not None and path.is_file() else None

    def save(self, block: int, arrays: Arrays) -> None:
        """Keep a finished block."""
        from safetensors.numpy import save

        if path := self._path(block):
            write_atomically(path, save(arrays))

    def close(self) -> None:
        """Everything has gone into a record; the blocks go."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            parent = self.folder.parent
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
