"""Files of unfinished work: written as a whole or not at all, and read only where their sha256 is right."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import write_atomically

DIGEST = 32  # bytes of a sha256
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NotKept(LpmbenchError):
    """Something could not be written. What was finished before is kept."""


@contextmanager
def kept_below(directory: Path) -> Iterator[None]:
    """Turn a failure to write below a directory into NotKept."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            text = f"There is no room left to write in {directory}: {error.strerror}. Make room"
        else:
            text = f"{directory} cannot be written: {error.strerror or error}. Mend that"
        raise NotKept(f"{text}, and the same command resumes from there: what was finished is kept.") from None


def keep(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all. Raises NotKept."""
    with kept_below(path.parent):
        write_atomically(path, content)


def packed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Tensors, their memory order included, and JSON about them, as a safetensors file with its sha256 at the end."""
    from safetensors.torch import save

    strides = {name: tensor.stride() for name, tensor in tensors.items() if not tensor.is_contiguous()}
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata={"about": json.dumps({**about, "strides": strides}, sort_keys=True)})
    return content + hashlib.sha256(content).digest()


def unpacked(content: bytes, **expected: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What was packed, or None where the bytes are not what was written, or `about` is not as expected."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content, digest = content[:-DIGEST], content[-DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about: dict[str, Any] = json.loads(header["__metadata__"]["about"])
        if any(about.get(name) != value for name, value in expected.items()):
            return None
        tensors = load(content)
        for name, strides in about["strides"].items():
            plain = tensors[name]
            tensors[name] = torch.empty_strided(plain.shape, strides, dtype=plain.dtype).copy_(plain)
        return tensors, about
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None  # another program's file
