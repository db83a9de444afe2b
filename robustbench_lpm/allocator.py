"""Memory: keep freed memory for the next pass, copy to a device, and recognise when memory ran out.

glibc returns free blocks of 32 MiB and more to the system at once. A network's feature maps are such blocks, so every
pass allocates its memory again, page by page, which costs up to half of the time of a large batch.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# From glibc's malloc.h. Only both together help: a trim threshold alone switches off glibc's own adaptation.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory with this process; whether that was possible.

    For processes that repeat passes: commands call it, the library does not. Nothing happens without glibc, or where
    the environment sets MALLOC_ variables or LPMBENCH_ALLOCATOR=system.
    """
    wanted = os.environ.get("LPMBENCH_ALLOCATOR") != "system"
    if not wanted or not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_MAX, 0))


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in any of the ways in which Python and torch say so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_cpu")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for its copy there; one that is there already is returned itself."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy of other memory waits
    # Values that come to the CPU are read at once; and MPS may read a copy before it is whole.
    return tensor.to(device, non_blocking=device.type not in ("cpu", "mps"))
