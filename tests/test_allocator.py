"""Freed memory stays with a process that asks for it, and only with such a one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from robustbench_lpm.allocator import keep_freed_memory

GLIBC = sys.platform.startswith("linux") and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="the thresholds are glibc's")

PROGRAM = """
import ctypes, sys
from pathlib import Path
from robustbench_lpm.allocator import keep_freed_memory
print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
block = libc.malloc(2**28)
ctypes.memset(block, 1, 2**28)
libc.free(block)
resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
print(resident > 2**28)
"""


def answers(**environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LPMBENCH_"))}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    return ran.stdout.split()


@needs_glibc
def test_freed_memory_stays() -> None:
    assert answers() == ["True", "True"]


@needs_glibc
@pytest.mark.parametrize("environment", [{"LPMBENCH_ALLOCATOR": "system"}, {"MALLOC_ARENA_MAX": "2"}])
def test_whoever_sets_the_allocator_up_has_the_last_word(environment: dict[str, str]) -> None:
    assert answers(**environment) == ["False", "False"]


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
