"""A user's own images, in one directory per class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robustbench_lpm.datasets.class_folders import (
    class_folders,
    find_class_index,
    read_class_folders,
    read_class_index,
    split_folders,
    text_order_note,
)
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.splits import check_split
from robustbench_lpm.errors import LpmbenchError


def imagefolder(*, data: Path | None, split: str, folder: Path) -> ImageSet:
    """The images in DIR/<class>/, which are the test split, or in DIR/train, DIR/val and DIR/test/<class>/.

    class_index.json in DIR, or in a part of it, says which folder has which label. Without it, labels count the class
    names in text order, as torchvision's ImageFolder does; if DIR has parts, the names of all its parts together, so
    that a class that is missing from one part does not shift the labels of the others.
    """
    if data is None:
        raise LpmbenchError("Dataset 'imagefolder' needs --data DIR, a folder that holds one folder for each class.")
    parts = split_folders(data) or {"test": data}
    check_split("imagefolder", split, list(parts))
    part = parts[split]
    # Parts of one dataset share their labels: an index in one part is used for a part that has none.
    if path := find_class_index(part, data, *parts.values()):
        label_of, classes = read_class_index(path, [folder.name for folder in class_folders(part)])
        unnamed = [label for label, name in enumerate(classes) if name == f"class {label}"]
        whole = set(unnamed) <= set(label_of.values())
        return replace(read_class_folders(part, label_of, classes), all_classes=whole)
    names = sorted({path.name for part in parts.values() for path in class_folders(part)})
    note = text_order_note(names)
    return read_class_folders(part, {name: label for label, name in enumerate(names)}, names, [note] if note else [])
