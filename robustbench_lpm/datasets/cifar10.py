"""CIFAR-10, from the binary version of its files or from the Python version that torchvision downloads."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustbench_lpm.datasets.images import ImageSet, from_arrays
from robustbench_lpm.datasets.splits import check_split, data_root, hold_out, missing, torchvision_command
from robustbench_lpm.errors import LpmbenchError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, CHANNELS = 32, 3
RECORD = 1 + CHANNELS * SIDE * SIDE  # bytes: the label, then the red, green and blue planes
TRAINING, TEST = 50_000, 10_000  # images of the authors' files
BINARY_FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
Arrays = tuple[NDArray[np.uint8], list[int]]


def cifar10(*, data: Path | None, split: str, folder: Path, validation: int = 5000) -> ImageSet:
    """32 x 32 colour images in file order; validation is the last 5000 of the 50000 training images.

    Files with fewer images, or with JPEG copies of them, are read as well, and named as such in the notes.
    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    check_split("cifar10", split)
    pixels, labels = _read(data_root(data), train=split != "test")
    images = from_arrays(pixels, labels, CLASSES)
    images = replace(images, notes=_notes(images, TEST if split == "test" else TRAINING))
    return images if split == "test" else hold_out("cifar10", images, split, validation)


def _notes(images: ImageSet, whole: int) -> tuple[str, ...]:
    """In what the images of a split differ from the authors', who have `whole` of them."""
    notes = ["CIFAR-10 (JPEG copies): the pixels of JPEG files, not the original ones"] if _were_jpeg(images) else []
    notes += [f"CIFAR-10: {len(images)} of its {whole} images"] if len(images) != whole else []
    return tuple(notes)


def _were_jpeg(images: ImageSet, sample: int = 100, least: float = 0.5) -> bool:
    """Whether images were stored as JPEG of the usual quality, 75, once.

    Most of such do not change at all when they are stored so again; others change by 3 to 13 levels of 255 on average.
    """
    changes = []
    for position in range(min(sample, len(images))):
        image, file = images.read(position), io.BytesIO()
        image.save(file, "JPEG", quality=75)
        again = np.asarray(Image.open(file), np.int16)
        changes.append(np.abs(again - np.asarray(image)).mean())
    return bool(np.median(changes) < least)


def _read(root: Path, *, train: bool) -> Arrays:
    names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    for place in (root / BINARY_FOLDER, root):
        files = [place / f"{name}.bin" for name in names]
        if all(file.is_file() for file in files):
            return _read_binary(files)
    above = root.absolute().parent if root.absolute().name == PYTHON_FOLDER else root  # torchvision's own root
    if all((above / PYTHON_FOLDER / name).is_file() for name in names):
        return _read_python(above, train=train)
    raise missing(
        "cifar10",
        f"{names[0]} or {names[0]}.bin",
        [root / PYTHON_FOLDER, root / BINARY_FOLDER, root],
        [torchvision_command("CIFAR10", root)],
    )


def _read_binary(files: list[Path]) -> Arrays:
    """The batches of the binary version: plain bytes."""
    batches = [np.fromfile(file, np.uint8) for file in files]
    for file, batch in zip(files, batches, strict=True):
        if not batch.size or batch.size % RECORD or batch[::RECORD].max() >= len(CLASSES):
            raise LpmbenchError(f"{file} is not a CIFAR-10 batch: records of a label and {RECORD - 1} bytes of pixels.")
    records = np.concatenate(batches).reshape(-1, RECORD)
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), [int(label) for label in records[:, 0]]


def _read_python(root: Path, *, train: bool) -> Arrays:
    """The batches of the Python version: pickles, which can run code.

    Only files whose md5 is that of the authors' are opened; no known attack makes another file with a given md5.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list, meta):
        if not check_integrity(root / PYTHON_FOLDER / name, md5):
            raise LpmbenchError(
                f"{root / PYTHON_FOLDER / name} is missing or not the authors' file (its md5 differs), so it was not "
                f"opened. Get it again with: {torchvision_command('CIFAR10', root)}"
            )
    found = CIFAR10(root=root, train=train)
    return found.data, found.targets
