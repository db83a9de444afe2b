"""Anyone's images, in one folder per class."""

from __future__ import annotations

from pathlib import Path

from robustbench_lpm.datasets.class_folders import class_folders, read_class_folders, split_folders
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.splits import check_split
from robustbench_lpm.errors import LpmbenchError


def imagefolder(*, data: Path | None, split: str, folder: Path) -> ImageSet:
    """The images in DIR/<class>/, which are the test split, or in DIR/train, DIR/val and DIR/test/<class>/.

    Labels count the class names in sorted order; when DIR is parted, the names of all its parts together, so that a
    class that is missing from one part does not shift the labels of the others.
    """
    if data is None:
        raise LpmbenchError("Data set 'imagefolder' needs --data DIR, a folder that holds one folder for each class.")
    parts = split_folders(data) or {"test": data}
    check_split("imagefolder", split, list(parts))
    names = sorted({path.name for part in parts.values() for path in class_folders(part)})
    return read_class_folders(parts[split], {name: label for label, name in enumerate(names)}, names)
