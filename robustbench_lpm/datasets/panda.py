"""One picture, by default a giant panda: the smallest dataset for an ImageNet model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from robustbench_lpm.datasets.imagenet import COUNT, imagenet_classes
from robustbench_lpm.datasets.images import ImageSet, from_files, read_image
from robustbench_lpm.datasets.splits import check_split
from robustbench_lpm.errors import LpmbenchError

PICTURE, GIANT_PANDA = "panda.png", 388


def panda(
    *, data: Path | None, split: str, folder: Path, image: str | Path | None = None, label: int | str = GIANT_PANDA
) -> ImageSet:
    """The picture at `image`, or panda.png in the card's folder, with its ImageNet label. `data` is not needed.

    It is read at once, so that a wrong path is reported early, and rotated by its EXIF orientation.
    """
    check_split("panda", split, ["test"])
    path = folder / PICTURE if image is None else Path(image).expanduser()
    picture = read_image(path, upright=True)
    images = from_files([path], [_label(label)], imagenet_classes())
    return replace(images, read=lambda _: picture, size_of=lambda _: picture.size)


def _label(text: int | str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", str(text)):
        raise LpmbenchError(f"Label '{text}' must be an ImageNet class: a whole number from 0 to {COUNT - 1}.")
    return int(text)
