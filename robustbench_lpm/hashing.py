"""The sha256 of files, images and values. Knows nothing about torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_value(value: Any) -> str:
    """The sha256 of a JSON value in its canonical form: equal values have equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


SEAL = "seal"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with, under `seal`, the hash of all else in it."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    return bare | {SEAL: sha256_of_value(bare)}


def seal_holds(content: dict[str, Any], *, required: bool) -> bool:
    """Whether a JSON object is unchanged since it was sealed; one without a seal passes if none is required.

    A seal shows accidental changes. It is not a signature: anyone can seal a changed object again.
    """
    if SEAL not in content:
        return not required
    try:
        return content == sealed(content)
    except ValueError:  # NaN, which nothing of ours writes
        return False


def sha256_of_image(image: NDArray[np.float32]) -> str:
    """The sha256 of an image's shape and float32 pixels, (C, H, W)."""
    pixels = np.ascontiguousarray(image, np.float32)
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
