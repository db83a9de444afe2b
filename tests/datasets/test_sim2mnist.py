"""SIM2MNIST and Rotated MNIST, regenerated: what is drawn, and what a file may look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustbench_lpm.datasets import rotated_mnist as rotated_module
from robustbench_lpm.datasets.rotated_mnist import rotated_mnist
from robustbench_lpm.datasets.sim2mnist import Recipe, draw_split, hashes, packed, regenerate, sim2mnist
from robustbench_lpm.errors import LpmbenchError

COUNT = 24


def digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bars, each of its own length and grey, so that every digit is known again by its brightness."""
    pixels = np.zeros((COUNT, 28, 28), dtype=np.uint8)
    for number in range(COUNT):
        pixels[number, 6 : 9 + number // 2, 12:17] = 100 + 6 * number
    return pixels, np.arange(COUNT, dtype=np.uint8) % 10


SMALL = Recipe(train=6, validation=4, test=10)
BARE = Recipe(train=6, validation=4, test=10, patches=0)


def test_the_same_seed_draws_the_same_images_and_another_one_others() -> None:
    first, again = regenerate(SMALL, *digits()), regenerate(SMALL, *digits())
    assert hashes(first) == hashes(again)
    other = regenerate(Recipe(seed=1, train=6, validation=4, test=10), *digits())
    assert hashes(first)["x_train"] != hashes(other)["x_train"]
    assert {name: array.shape for name, array in first.items()} == {
        "x_train": (6, 96, 96), "y_train": (6, 10), "x_validation": (4, 96, 96), "y_validation": (4, 10),
        "x_test": (10, 96, 96), "y_test": (10, 10),
    }  # fmt: skip


def test_no_digit_is_in_two_splits() -> None:
    # Bars know each other by their grey, which is the largest of their image where nothing else is drawn.
    greys = [draw_split(BARE, *digits(), split)[0].max((1, 2)).tolist() for split in ("train", "validation", "test")]
    found = [grey for part in greys for grey in part]
    assert len(set(found)) == len(found) == 20


def test_a_digit_is_magnified_and_lies_whole_on_the_canvas() -> None:
    pixels, labels = digits()
    images, found = draw_split(BARE, pixels, labels, "test")
    factors = []
    for image, label in zip(images, found, strict=True):
        source = next(p for p, of in zip(pixels, labels, strict=True) if of == label and p.max() == image.max())
        ratio = image.astype(float).sum() / source.astype(float).sum()
        factors.append(ratio**0.5)  # bilinear magnification by s spreads the brightness over s^2 times the area
    # Some of it would be missing had the ink left the canvas; resampling at the edges of small bars errs by a little.
    assert min(factors) > 0.93
    assert max(factors) < 2.5
    assert max(factors) - min(factors) > 0.5


def test_clutter_is_pieces_of_other_digits_of_the_split() -> None:
    plain, cluttered = (draw_split(recipe, *digits(), "test")[0].astype(int) for recipe in (BARE, SMALL))
    added = (cluttered != plain).sum((1, 2))
    assert (cluttered >= plain).all()  # joined by the maximum
    assert added.max() > 0
    assert added.max() <= 8 * 8 * 8


def test_too_few_digits_are_told() -> None:
    with pytest.raises(LpmbenchError, match="needs 65000 digits, but there are 24"):
        draw_split(Recipe(), *digits(), "train")


def write(folder: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(folder / "sim2mnist.npz", **arrays)  # type: ignore[arg-type]
    return folder


def test_what_was_made_is_read_back(tmp_path: Path) -> None:
    arrays = regenerate(SMALL, *digits())
    (tmp_path / "sim2mnist.npz").write_bytes(packed(arrays))
    images = sim2mnist(data=tmp_path, split="validation", folder=tmp_path)
    assert len(images) == 4
    assert np.array_equal(np.asarray(images.read(2)), arrays["x_validation"][2])
    assert images.labels.tolist() == arrays["y_validation"].argmax(1).tolist()


@pytest.mark.parametrize("form", ["flat floats", "channel", "0 to 255 floats", "labels as numbers"])
def test_the_forms_an_original_file_may_have(tmp_path: Path, form: str) -> None:
    arrays = regenerate(SMALL, *digits())
    x, y = arrays["x_test"], arrays["y_test"]
    given = {
        "flat floats": ((x / 255).astype(np.float32).reshape(10, -1), y.astype(np.float64)),
        "channel": (x[..., None], y),
        "0 to 255 floats": (x.astype(np.float32), y),
        "labels as numbers": (x, y.argmax(1)),
    }[form]
    write(tmp_path, x_test=given[0], y_test=given[1])
    images = sim2mnist(data=tmp_path / "sim2mnist.npz", split="test", folder=tmp_path)
    assert np.array_equal(np.asarray(images.read(3)), x[3])
    assert images.labels.tolist() == y.argmax(1).tolist()


def test_files_that_are_none_are_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="lpmbench data sim2mnist"):
        sim2mnist(data=tmp_path, split="test", folder=tmp_path)
    (tmp_path / "sim2mnist.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(LpmbenchError, match=r"sim2mnist\.npz is not a file of SIM2MNIST"):
        sim2mnist(data=tmp_path, split="test", folder=tmp_path)
    write(tmp_path, x_test=np.zeros((3, 4, 5)), y_test=np.zeros(3))
    with pytest.raises(LpmbenchError, match="are no labelled images"):
        sim2mnist(data=tmp_path, split="test", folder=tmp_path)
    write(tmp_path, x_test=np.array([{"a": 1}], dtype=object), y_test=np.zeros(1))
    with pytest.raises(LpmbenchError, match="is not a file of SIM2MNIST"):
        sim2mnist(data=tmp_path, split="test", folder=tmp_path)


def test_rotated_digits_are_turned_each_by_its_own_angle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = digits()
    monkeypatch.setattr(rotated_module, "read_all_digits", lambda data: (pixels, labels))
    parts = {
        split: rotated_mnist(data=None, split=split, folder=tmp_path, train=10, validation=4, test=10)
        for split in ("train", "validation", "test")
    }
    assert [len(part) for part in parts.values()] == [10, 4, 10]
    assert len({part.fingerprint(i) for part in parts.values() for i in range(len(part))}) == COUNT  # of upright digits
    images = np.stack([np.asarray(parts["test"].read(i)) for i in range(10)]).astype(float)
    y, x = np.mgrid[:28, :28] - 13.5
    angles = []
    for image in images:
        weight = image / image.sum()
        moments = [float((weight * a * b).sum() - (weight * a).sum() * (weight * b).sum()) for a, b in
                   ((x, x), (x, y), (y, y))]  # fmt: skip
        angles.append(0.5 * np.arctan2(2 * moments[1], moments[0] - moments[2]))
    assert np.std(angles) > 0.3  # a bar's axis, once upright in all of them
    fewer = rotated_mnist(data=None, split="test", folder=tmp_path, train=10, validation=4, test=1)
    assert fewer.labels.tolist() == parts["test"].labels[:1].tolist()
