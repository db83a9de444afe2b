"""Directories with one directory of image files per class, listed in an order that does not depend on the disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from robustbench_lpm.datasets.images import EXTENSIONS, ImageSet, from_files
from robustbench_lpm.errors import LpmbenchError

SPLIT_OF_FOLDER = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
INDEX_FILE = "class_index.json"
INDEX_FORMS = '{"n01440764": 0, ...} or {"0": ["n01440764", "tench"], ...}'
MOST_CLASSES = 1_000_000  # a larger label is a typing error, and would need as many names


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
    """Split -> directory, for a root with train/, val/ and test/; {} when its directories are classes."""
    found = [path for path in subfolders(root) if path.name in SPLIT_OF_FOLDER and subfolders(path)]
    return {SPLIT_OF_FOLDER[path.name]: path for path in found}


def find_class_index(*folders: Path) -> Path | None:
    """The class_index.json in the first of these folders that has one."""
    return next((folder / INDEX_FILE for folder in folders if (folder / INDEX_FILE).is_file()), None)


def read_class_index(
    path: Path, folders: Iterable[str], count: int = MOST_CLASSES
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each of these class folders, by an index in either of INDEX_FORMS; and the names by label.

    The index may name other folders too. A label without a name is called "class 2". Raises LpmbenchError unless every
    folder has a label of its own from 0 to count - 1.
    """
    found: dict[str, tuple[Any, str]] = {}
    for folder, label, name in _entries(path):
        if folder in found:
            raise LpmbenchError(f"{path} names class folder '{folder}' twice; keep one of its labels.")
        found[folder] = label, name
    label_of: dict[str, int] = {}
    names = {label: name for label, name in found.values() if type(label) is int and 0 <= label < count}
    folder_of: dict[int, str] = {}
    for folder in folders:
        label, name = found.get(folder, (None, ""))
        if type(label) is not int or not 0 <= label < count:  # a bool is no label
            instead = f", not {json.dumps(label)[:80]}" if folder in found else ""
            raise LpmbenchError(f"{path}: class folder '{folder}' needs a label from 0 to {count - 1}{instead}.")
        if label in folder_of:
            both = f"'{folder_of[label]}' and '{folder}'"
            raise LpmbenchError(f"{path} gives the same label to two class folders: {label} to {both}.")
        label_of[folder], folder_of[label], names[label] = label, folder, name
    return label_of, tuple(names.get(label, f"class {label}") for label in range(max(names) + 1))


def _entries(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Folder, label and class name of each entry, in either of INDEX_FORMS (the second is Keras')."""
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: _object(path, pairs))
    except OSError as error:
        raise LpmbenchError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise LpmbenchError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(index, dict):
        raise LpmbenchError(f"{path} must look like {INDEX_FORMS}.")
    for key, value in index.items():
        if re.fullmatch(r"[0-9]{1,9}", key) and isinstance(value, list) and value and isinstance(value[0], str):
            yield value[0], int(key), value[1] if len(value) > 1 and isinstance(value[1], str) else value[0]
        else:
            yield key, value, key


def _object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises LpmbenchError for two equal keys, of which Python would keep the last."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise LpmbenchError(f"{path} names '{twice}' twice; keep one of the two.")
    return dict(pairs)


def text_order_note(names: Sequence[str]) -> str:
    """A note on classes that are labelled in the text order of their names; "" if the order is the expected one.

    The order is unexpected where names are numbers but not their own labels, and where text order is not that of the
    numbers in the names: "class10" comes before "class2".
    """
    numbers = all(re.fullmatch("[0-9]+", name) for name in names)
    order = sorted(names, key=_by_numbers)
    expected = [int(name) if numbers else order.index(name) for name in names]
    moved = [label for label, meant in enumerate(expected) if label != meant][:3]
    if not moved:
        return ""
    labels = ", ".join(f"'{names[label]}' is label {label}" for label in moved)
    return (
        f"class folders are labelled in the text order of their names: {labels}{', ...' * (len(moved) == 3)}; "
        f'to say otherwise, put the label of each into DIR/{INDEX_FILE}: {{"{names[moved[0]]}": LABEL, ...}}'
    )


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A sort key that compares numbers in names as numbers: class2 before class10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_class_folders(
    root: Path, label_of: Mapping[str, int], classes: Sequence[str], notes: Sequence[str] = ()
) -> ImageSet:
    """The images in the class folders of `root`, sorted by the sha256 of their path relative to it.

    That order is the same on every disk, and every prefix of it mixes the classes. A class folder without images keeps
    its label, with a note. Raises LpmbenchError where all are empty, and for a file that is no image by its name.
    """
    files = {folder.name: _image_files(folder) for folder in class_folders(root)}
    empty = [f"'{name}' (label {label_of[name]})" for name, found in files.items() if not found]
    if len(empty) == len(files):
        raise LpmbenchError(f"The class folders in {root} hold no images, such as {root / min(files) / 'photo.jpg'}.")
    if empty:
        listed = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        notes = [*notes, f"class folders without images keep their labels: {listed}"]
    labelled = {path: label_of[name] for name, found in files.items() for path in found}
    return replace(in_pinned_order(root, labelled, classes), notes=tuple(notes))


def in_pinned_order(root: Path, label_of: Mapping[Path, int], classes: Sequence[str]) -> ImageSet:
    """The images in these files below `root`, sorted by the sha256 of their path relative to it."""
    paths = sorted(label_of, key=lambda path: sha256(os.fsencode(path.relative_to(root).as_posix())).digest())
    return from_files(paths, [label_of[path] for path in paths], classes)


def _image_files(folder: Path) -> list[Path]:
    """All files below a class folder but hidden ones. Raises LpmbenchError for one that is no image by its name."""
    found = []
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.suffix.lower() not in EXTENSIONS:
            raise LpmbenchError(f"{path} is not an image by its name; move it out of the class folder.")
        found.append(path)
    return found
