"""ImageNet (ILSVRC 2012), or any part of it, and ImageNet-A: folders named by WordNet id."""

from __future__ import annotations

import re
from pathlib import Path

from robustbench_lpm.datasets.class_folders import (
    INDEX_FILE,
    INDEX_FORMS,
    class_folders,
    find_class_index,
    read_class_folders,
    read_class_index,
    split_folders,
)
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.splits import check_split, data_root, hold_out
from robustbench_lpm.errors import LpmbenchError

COUNT = 1000
WORDNET_ID = re.compile(r"n\d{8}")


def imagenet(*, data: Path | None, split: str, folder: Path, validation: int = 10000) -> ImageSet:
    """test: the images in DIR/val/<wnid>/, or in DIR/<wnid>/. train, validation: those in DIR/train/<wnid>/.

    The labels of ImageNet's own test images are secret, so its validation directory is the usual test set. Choices
    made during training are made on `validation` images held out from train/, never on those.
    Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015.
    """
    check_split("imagenet", split)
    root = data if data is not None else data_root(data) / "imagenet"
    if not root.is_dir():
        raise LpmbenchError(
            f"Dataset 'imagenet': there is no folder {root}. Give one with --data DIR that holds a folder for each "
            f"class, named by its WordNet id (n01440764, ...), or such folders in DIR/val."
        )
    part = _part(root, split)
    images = read_class_folders(part, class_index(root, part), imagenet_classes())
    return images if split == "test" else hold_out("imagenet", images, split, validation)


def imagenet_a(*, data: Path | None, split: str, folder: Path) -> ImageSet:
    """The 7500 images of ImageNet-A, or any part of them, in DIR/<wnid>/; all are test.

    Labels are those of ImageNet's 1000 classes, as class_index.json in DIR says: 200 directories do not determine
    them. A model chooses among all 1000 classes, so accuracies are lower than by the authors' measure, which lets it
    choose among their 200 alone.
    Source: D. Hendrycks et al., Natural Adversarial Examples, CVPR 2021, arXiv 1907.07174.
    """
    check_split("imagenet-a", split, ["test"])
    root = data if data is not None else data_root(data) / "imagenet-a"
    if not root.is_dir():
        raise LpmbenchError(
            f"Dataset 'imagenet-a': there is no folder {root}. Give one with --data DIR that holds the class folders "
            f"of imagenet-a.tar, named by WordNet id (n01498041, ...), and {INDEX_FILE}."
        )
    return read_class_folders(root, class_index(root, root), imagenet_classes())


def _part(root: Path, split: str) -> Path:
    parts = split_folders(root) or {"validation": root}
    part, name = ("validation", "val") if split == "test" else ("train", "train")
    if part not in parts:
        raise LpmbenchError(f"Dataset 'imagenet': split '{split}' needs the class folders in {root / name}.")
    return parts[part]


def class_index(root: Path, part: Path) -> dict[str, int]:
    """WordNet id -> label: as class_index.json in `part` or `root` says, else the sorted order of all 1000 folders."""
    names = [path.name for path in class_folders(part)]
    if path := find_class_index(part, root):
        return read_class_index(path, names, COUNT)[0]
    strangers = [name for name in names if not WORDNET_ID.fullmatch(name)]
    if strangers:
        raise LpmbenchError(f"{part / strangers[0]} is not named by a WordNet id such as n01440764.")
    if len(names) != COUNT:
        raise LpmbenchError(
            f"{part} holds {len(names)} of the {COUNT} class folders; "
            f"say which they are in {root / INDEX_FILE}: {INDEX_FORMS}."
        )
    return {name: label for label, name in enumerate(names)}


def imagenet_classes() -> tuple[str, ...]:
    """The English names of the 1000 classes by label, or their numbers if torchvision no longer has them."""
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES as NAMES  # a private name: it may go at any time
    except ImportError:
        return tuple(str(label) for label in range(COUNT))
    return tuple(str(name) for name in NAMES)
