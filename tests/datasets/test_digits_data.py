"""The digits never change: their order, their splits and their pixels are pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from robustbench_lpm.datasets.digits import digits, pinned_order
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.errors import LpmbenchError


def load(split: str) -> ImageSet:
    return digits(data=None, split=split, folder=Path())


def names(images: ImageSet) -> list[str]:
    return [images.fingerprint(position) for position in range(len(images))]


# The sha256 over the fingerprints and labels of a split in order. A change here unpublishes every number on digits.
PINS = {
    "test": (500, "817f3d1b6cbf7fb51120f12cf11f99fb24b8cb94ce584b264ff34a5d7e5120fb"),
    "validation": (250, "1d881b7cd72accdb5fe2d4f42823d20474d0f9b3856c289ac5cf73dc941d02c2"),
    "train": (1047, "011a98da1ae97f26d58c7d952e65d516f2045c25d67332ef7f92657d50c36640"),
}


@pytest.mark.parametrize("split", PINS)
def test_the_order_of_every_split_is_pinned(split: str) -> None:
    images = load(split)
    text = "".join(f"{name} {label}\n" for name, label in zip(names(images), images.labels, strict=True))
    assert (len(images), hashlib.sha256(text.encode()).hexdigest()) == PINS[split]


def test_the_splits_part_the_whole() -> None:
    everything = sorted(row.astype(np.uint8).tobytes() for row in np.round(load_digits().images * 255 / 16))
    found = sorted(name for split in PINS for name in names(load(split)))
    assert found == sorted(hashlib.sha256(pixels).hexdigest() for pixels in everything)
    assert len(set(pinned_order())) == 1797


def test_images_are_grey_and_32_pixels_wide() -> None:
    images = load("test")
    image = images.read(0)
    assert (image.mode, image.size) == ("L", (32, 32))
    assert images.classes == tuple("0123456789")


def test_every_label_belongs_to_its_image() -> None:
    found, images, order = load_digits(), load("validation"), pinned_order()[500:750]
    assert images.labels.tolist() == found.target[order].tolist()
    for position in (0, 249):
        # enlarging keeps the mean of each quarter of the picture, so the small original is recognised in it
        quarters = np.asarray(images.read(position), float).reshape(2, 16, 2, 16).mean((1, 3))
        small = found.images[order[position]].reshape(2, 4, 2, 4).mean((1, 3)) * 255 / 16
        assert np.abs(quarters - small).max() < 12


def test_a_short_prefix_holds_all_classes() -> None:
    assert len(set(load("test").labels[:40].tolist())) == 10


def test_an_unknown_split_is_told() -> None:
    with pytest.raises(LpmbenchError, match="no split 'tset'; it has: train, validation, test"):
        load("tset")
