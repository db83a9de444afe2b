"""One picture with one label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.panda import panda
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import noise_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise_image(0, 9, 7).save(tmp_path / "panda.png")
    return tmp_path


def load(folder: Path, **parameters: Any) -> ImageSet:
    return panda(data=None, split="test", folder=folder, **parameters)


def test_the_picture_lies_beside_the_card(folder: Path) -> None:
    images = load(folder)
    assert (len(images), images.labels.tolist(), images.classes[388]) == (1, [388], "giant panda")
    assert images.read(0).tobytes() == noise_image(0, 9, 7).tobytes()


@pytest.mark.parametrize("label", [0, 999, "0", "999", "388"])
def test_any_picture_and_label_may_be_given(folder: Path, tmp_path: Path, label: int | str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8  # taken with the camera on its side
    noise_image(1, 6, 4).save(tmp_path / "photo.jpg", exif=exif)
    images = load(folder, image=str(tmp_path / "photo.jpg"), label=label)
    assert images.labels.tolist() == [int(label)]
    assert images.read(0).size == (4, 6)


@pytest.mark.parametrize("label", [-1, 1000, "1000", "panda", "3.5", "", True, "１２"])
def test_other_labels_are_refused(folder: Path, label: Any) -> None:
    with pytest.raises(LpmbenchError, match="must be an ImageNet class: a whole number from 0 to 999"):
        load(folder, label=label)


def test_mistakes_in_the_picture_show_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(LpmbenchError, match=r"text\.jpg is not an image"):
        load(folder, image=tmp_path / "text.jpg")
    with pytest.raises(LpmbenchError, match=r"There is no image at .*gone\.jpg"):
        load(folder, image=tmp_path / "gone.jpg")


def test_there_is_nothing_to_train_on(folder: Path) -> None:
    with pytest.raises(LpmbenchError, match="no split 'train'; it has: test"):
        panda(data=None, split="train", folder=folder)
