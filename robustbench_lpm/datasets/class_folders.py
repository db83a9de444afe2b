"""Folders that hold one folder of image files per class, listed in an order that does not depend on the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from robustbench_lpm.datasets.images import EXTENSIONS, ImageSet, from_files
from robustbench_lpm.errors import LpmbenchError

SPLIT_OF_FOLDER = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def subfolders(root: Path) -> list[Path]:
    """The folders in `root` by name, hidden ones left out. Raises LpmbenchError when there is no such folder."""
    if not root.is_dir():
        raise LpmbenchError(f"There is no folder {root}.")
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_folders(root: Path) -> list[Path]:
    """The folders of the classes, by name; at least one."""
    found = subfolders(root)
    if not found:
        raise LpmbenchError(f"{root} holds no class folders; images belong into one folder for each class.")
    return found


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, for a root that is parted into train/, val/ and test/; {} when its folders are classes."""
    return {
        SPLIT_OF_FOLDER[path.name]: path
        for path in subfolders(root)
        if path.name in SPLIT_OF_FOLDER and subfolders(path)
    }


def read_class_folders(root: Path, label_of: Mapping[str, int], classes: Sequence[str]) -> ImageSet:
    """The images in the class folders of `root`, sorted by the sha256 of their path relative to it.

    That order is the same on every disk, and every prefix of it is a fair mix of the classes.
    Raises LpmbenchError naming an empty class folder, or a file that is no image by its name.
    """
    listed = [
        (sha256(os.fsencode(path.relative_to(root).as_posix())).digest(), path, label_of[folder.name])
        for folder in class_folders(root)
        for path in _image_files(folder)
    ]
    listed.sort(key=lambda entry: entry[0])
    return from_files([path for _, path, _ in listed], [label for _, _, label in listed], classes)


def _image_files(folder: Path) -> list[Path]:
    """All files below a class folder; hidden ones are left out, others must be images, so that none goes unseen."""
    found = []
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.suffix.lower() not in EXTENSIONS:
            raise LpmbenchError(f"{path} is not an image by its name; move it out of the class folder.")
        found.append(path)
    if not found:
        raise LpmbenchError(f"Class folder {folder} holds no images; fill or remove it.")
    return found
