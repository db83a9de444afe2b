"""Memory: what a pass frees stays with the process for the next pass, by the C allocator's thresholds; running out.

glibc gives blocks of 32 MiB and more back to the system as soon as they are free. A network's maps are such blocks, so
every pass takes its memory anew, page by page: measured here, that is up to half of the time of a large batch.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h. Only both together help: a trim threshold alone switches off glibc's own adaptation.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed memory stay with this process; whether that was possible.

    It is for a process of ours, whose work is to repeat passes: commands call it, and the library does not. Nothing
    happens without glibc, or where the environment sets MALLOC_ variables or LPMBENCH_ALLOCATOR=system.
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
    words = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_cpu")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words))
    )
