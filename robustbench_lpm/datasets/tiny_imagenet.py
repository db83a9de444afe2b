"""Tiny ImageNet: photographs of 200 of ImageNet's classes, 64 x 64, in the layout of its archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from robustbench_lpm.datasets.class_folders import in_pinned_order, subfolders
from robustbench_lpm.datasets.imagenet import imagenet_classes
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.splits import check_split, data_root, hold_out
from robustbench_lpm.errors import LpmbenchError

NUMBERS = "tiny-imagenet.json"  # WordNet id -> number among ImageNet's 1000 classes, beside the card
FOLDER, ANNOTATIONS = "tiny-imagenet-200", "val_annotations.txt"


def tiny_imagenet(
    *,
    data: Path | None,
    split: str,
    folder: Path,
    validation: float = 0.05,
    numbers: Literal["own", "imagenet"] = "own",
) -> ImageSet:
    """test: the images in DIR/val/images. train, validation: those in DIR/train/<wnid>/images.

    The archive's own test images have no labels, so its validation images are the usual test set. Choices made during
    training are made on a share `validation` of train/, never on those.

    numbers: labels are 0 to 199, in the order of the WordNet ids ("own"), or those of ImageNet's 1000 classes.
    Source: Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015.
    """
    check_split("tiny-imagenet", split)
    root = data_root(data)
    root = next((place for place in (root / FOLDER, root) if (place / "val").is_dir()), root)
    if not root.joinpath("val" if split == "test" else "train").is_dir():
        raise LpmbenchError(
            f"Dataset 'tiny-imagenet': there is no folder {root / ('val' if split == 'test' else 'train')}. Give the "
            f"folder of the unpacked archive, {FOLDER}, with --data DIR."
        )
    number_of: dict[str, int] = json.loads((folder / NUMBERS).read_bytes())
    names, wnids = imagenet_classes(), sorted(number_of)
    if numbers == "own":
        names, number_of = tuple(names[number_of[wnid]] for wnid in wnids), {w: n for n, w in enumerate(wnids)}
    wnid_of = _annotated(root / "val") if split == "test" else _in_folders(root / "train")
    if strangers := sorted(set(wnid_of.values()) - number_of.keys()):
        raise LpmbenchError(f"Dataset 'tiny-imagenet': {root} holds '{strangers[0]}', which is none of its classes.")
    part = root / "val" if split == "test" else root / "train"
    images = in_pinned_order(part, {path: number_of[wnid] for path, wnid in wnid_of.items()}, names)
    return images if split == "test" else hold_out("tiny-imagenet", images, split, round(validation * len(images)))


def _in_folders(train: Path) -> dict[Path, str]:
    """Each training image and the WordNet id of its class."""
    return {path: own.name for own in subfolders(train) for path in own.glob("images/*.JPEG")}


def _annotated(val: Path) -> dict[Path, str]:
    """Each validation image and the WordNet id of its class, from lines of the file, the id and a box, between tabs."""
    path = val / ANNOTATIONS
    try:
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise LpmbenchError(f"{path} cannot be read: {error}.") from None
    if broken := next((line for line in lines if len(line) < 2 or Path(line[0]).name != line[0]), None):
        raise LpmbenchError(f"{path}: '{' '.join(broken)[:80]}' does not name an image and its class.")
    return {val / "images" / name: wnid for name, wnid, *_ in lines}
