"""The versions of this package, installed or only on the path, and of others."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

__version__ = "0.2.0"
OURS = "robustbench-lpm"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each installed package, in their order; that of this package is the code's own."""
    found = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = __version__ if package == OURS else importlib.metadata.version(package)
    return found


PACKAGES = (
    OURS, "torch", "torchvision", "numpy", "adversarial-robustness-toolbox", "cleverhans", "pyautoattack",
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of what may change the bits of a result."""
    return {"python": platform.python_version()} | _installed()


@cache
def _installed() -> dict[str, str]:
    return versions_of(PACKAGES)
