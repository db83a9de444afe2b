"""The first digits of each split: enough to train for a second."""

from pathlib import Path

from robustbench_lpm.datasets.digits import digits
from robustbench_lpm.datasets.images import ImageSet


def tiny_digits(*, data: Path | None, split: str, folder: Path, count: int) -> ImageSet:
    return digits(data=data, split=split, folder=folder).subset(range(count))
