"""The splits train, validation and test, and the directories that are searched for data."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.errors import LpmbenchError

SPLITS = ("train", "validation", "test")


def check_split(dataset: str, split: str, known: Sequence[str] = SPLITS) -> None:
    """Raises LpmbenchError unless the dataset has that split."""
    if split not in known:
        raise LpmbenchError(f"Dataset '{dataset}' has no split '{split}'; it has: {', '.join(known)}.")


def hold_out(dataset: str, images: ImageSet, split: str, validation: int) -> ImageSet:
    """The split "validation" of training images, the last `validation` ones, or "train", those before them."""
    if not 0 < validation < len(images):
        raise LpmbenchError(
            f"Dataset '{dataset}': validation = {validation} cannot be held out from {len(images)} training images."
        )
    cut = len(images) - validation
    return images.subset(range(cut, len(images)) if split == "validation" else range(cut))


def data_root(data: Path | None) -> Path:
    """--data, else $LPMBENCH_DATA, else ~/.cache/lpmbench/data."""
    if data is not None:
        return data
    named = os.environ.get("LPMBENCH_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lpmbench" / "data"


def missing(dataset: str, files: str, places: Sequence[Path], commands: Sequence[str]) -> LpmbenchError:
    """The error for missing data: what was searched, where, and the commands that get it."""
    looked_in = ", ".join(str(place) for place in places)
    return LpmbenchError(
        f"Dataset '{dataset}': found no {files} in {looked_in}. "
        f"Give their folder with --data DIR, or get them with: {' or: '.join(commands)}"
    )


def torchvision_command(class_name: str, root: Path) -> str:
    """The shell command by which torchvision downloads a dataset."""
    code = f"from torchvision.datasets import {class_name} as D; D({json.dumps(str(root))}, download=True)"
    return f"python -c {shlex.quote(code)}"
