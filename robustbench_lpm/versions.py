"""The versions of this package and of others, also where this one lies on the path and was never installed."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

__version__ = "0.2.0"
OURS = "robustbench-lpm"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, in their order, without those that are not installed; ours is the code's own."""
    found = {}
    for package in packages:
        try:
            found[package] = __version__ if package == OURS else importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


PACKAGES = (
    OURS, "torch", "torchvision", "numpy", "adversarial-robustness-toolbox", "cleverhans", "pyautoattack",
)  # fmt: skip


def versions() -> dict[str, str]:
    """What may change the bits of a result."""
    return {"python": platform.python_version()} | versions_of(PACKAGES)
