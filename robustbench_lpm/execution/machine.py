"""What a run ran on: the versions that may change its bits, and the hardware that explains its seconds."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def code_sha256() -> str:
    """A hash of this package's code: between two releases the same version may compute something else."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def hardware(device: str) -> dict[str, Any]:
    """What the run ran on, for the reader of its seconds; "cuda" is the first of the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    machine = {"processor": _processor(), "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}
    return {"device": device, **machine}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
