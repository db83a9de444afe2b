"""The default dataset: 1797 real handwritten digits included in scikit-learn, 8 x 8, enlarged to 32 x 32."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from robustbench_lpm.datasets.images import ImageSet, from_arrays
from robustbench_lpm.datasets.splits import check_split
from robustbench_lpm.errors import LpmbenchError

COUNT, BRIGHTEST, SIZE = 1797, 16, 32
# Parts of the fixed order. Changing these, or the order, makes every published number on digits wrong.
PARTS = {"test": slice(0, 500), "validation": slice(500, 750), "train": slice(750, COUNT)}


def pinned_order() -> list[int]:
    """scikit-learn's 1797 rows, sorted by the sha256 of "digits-0", "digits-1", ...: fixed and well mixed."""
    return sorted(range(COUNT), key=lambda row: sha256(f"digits-{row}".encode()).digest())


def digits(*, data: Path | None, split: str, folder: Path) -> ImageSet:
    """Grey 32 x 32 images of the digits 0 to 9: 500 test, 250 validation, 1047 train. `data` is not needed.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (the test part), 1998.
    """
    check_split("digits", split)
    rows = np.loadtxt(_table(), delimiter=",")  # 64 pixels and a label each
    pixels = np.round(rows[:, :-1].reshape(-1, 8, 8) * 255 / BRIGHTEST).astype(np.uint8)
    small = from_arrays(pixels, rows[:, -1].astype(int), "0123456789").subset(pinned_order()[PARTS[split]])
    # the fingerprint stays that of the 8 x 8 original
    return replace(small, read=lambda position: _enlarged(small.read(position)), size_of=lambda _: (SIZE, SIZE))


def _table() -> Path:
    """The file that sklearn.datasets.load_digits reads, found without importing scikit-learn, which takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise LpmbenchError("Dataset 'digits' is a file of scikit-learn: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)  # smooth strokes, unlike nearest neighbours
