"""Read IDX files, the format of MNIST: big-endian sizes, then unsigned bytes; gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm.errors import LpmbenchError

UNSIGNED_BYTE = 8


def find_idx(folder: Path, name: str) -> Path | None:
    """`name` or `name`.gz in the folder."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes. Raises LpmbenchError naming a file that is none, or is cut short."""
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise LpmbenchError(f"{path} is not an IDX file of unsigned bytes.")
    start = 4 + 4 * content[3]  # the fourth byte counts the dimensions
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) != start + prod(shape):
        raise LpmbenchError(f"{path} is cut short or too long: its header promises an array of {shape}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise LpmbenchError(f"{path} cannot be read: {error}") from None
