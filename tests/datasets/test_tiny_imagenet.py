"""Tiny ImageNet, in the layout of its archive: labels by WordNet id, and the archive's validation images as test."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from robustbench_lpm.datasets.imagenet import imagenet_classes
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.tasks import resolve_data
from tests.datasets.image_samples import noise_image

NUMBERS: dict[str, int] = json.loads((cards.root() / "datasets" / "tiny-imagenet.json").read_text())
CHOSEN = {"n12267677": 3, "n01443537": 3, "n02124075": 4}  # how many validation images of each
EACH = 10  # training images


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The unpacked archive with three of its classes; images are as grey as 40 times the place of their class."""
    root, lines, drawn = tmp_path / "tiny-imagenet-200", [], 0
    (root / "val" / "images").mkdir(parents=True)
    for place, (wnid, count) in enumerate(CHOSEN.items()):
        image = noise_image(0, 64, 64).point(lambda _, value=40 * place: value)
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(EACH):
            image.save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
        for _ in range(count):
            image.save(root / "val" / "images" / f"val_{drawn}.JPEG")
            lines.append(f"val_{drawn}.JPEG\t{wnid}\t0\t0\t63\t63\n")
            drawn += 1
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def load(root: Path, split: str = "test", **parameters: object) -> object:
    return zoo.load_images(cards.dataset("tiny-imagenet"), data=root, split=split, **parameters)


def own(wnid: str) -> int:
    return sorted(NUMBERS).index(wnid)


def test_labels_are_those_of_the_annotations(archive: Path) -> None:
    images = load(archive)
    assert len(images) == sum(CHOSEN.values())
    for position, label in enumerate(images.labels.tolist()):
        place = round(float(np.asarray(images.read(position)).mean()) / 40)
        assert label == own(list(CHOSEN)[place])
    assert images.classes[own("n02124075")] == "Egyptian cat"
    assert len(images.classes) == 200


def test_a_share_of_the_training_images_is_held_out(archive: Path) -> None:
    train, validation = load(archive, "train", validation=0.2), load(archive, "validation", validation=0.2)
    assert (len(train), len(validation)) == (24, 6)
    together = Counter([*train.labels.tolist(), *validation.labels.tolist()])
    assert together == {own(wnid): EACH for wnid in CHOSEN}


@pytest.mark.parametrize("inner", [True, False])
def test_the_folder_of_the_archive_or_the_one_around_it(archive: Path, inner: bool) -> None:
    assert len(load(archive if inner else archive.parent)) == 10


def test_the_order_depends_on_names_alone(archive: Path) -> None:
    before = load(archive, "train").labels.tolist()
    wnid = next(iter(CHOSEN))
    (archive / "train" / wnid).rename(archive / "moved")
    (archive / "moved").rename(archive / "train" / wnid)
    assert load(archive, "train").labels.tolist() == before != sorted(before)


def test_a_class_keeps_its_number_in_imagenet(archive: Path) -> None:
    plain, thousand = (resolve_data(f"tiny-imagenet{suffix}", data=archive) for suffix in ("", "-1000"))
    assert [NUMBERS[sorted(NUMBERS)[label]] for label in plain.labels] == thousand.labels.tolist()
    assert thousand.labels.max() == NUMBERS["n12267677"] == 988  # acorn
    assert thousand.classes == imagenet_classes()
    assert plain.read([0]).images[0].shape == (3, 64, 64)
    assert thousand.read([0]).images[0].shape == (3, 224, 224)


def test_the_numbers_of_the_classes_are_those_of_their_names() -> None:
    known = {"n01443537": "goldfish", "n02123045": "tabby", "n02124075": "Egyptian cat", "n12267677": "acorn"}
    assert {wnid: imagenet_classes()[NUMBERS[wnid]] for wnid in known} == known
    # ImageNet numbers its classes in the order of their ids.
    assert [NUMBERS[wnid] for wnid in sorted(NUMBERS)] == sorted(set(NUMBERS.values()))
    assert len(NUMBERS) == 200


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("val_0.JPEG\tn99999999\t0\t0\t1\t1", "holds 'n99999999', which is none of its classes"),
        ("val_0.JPEG", "'val_0.JPEG' does not name an image and its class"),
        ("../../secret.JPEG\tn02124075", "does not name an image and its class"),
    ],
)
def test_wrong_annotations_are_told(archive: Path, line: str, complaint: str) -> None:
    (archive / "val" / "val_annotations.txt").write_text(line + "\n")
    with pytest.raises(LpmbenchError, match=complaint) as error:
        load(archive)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("split", "folder"), [("test", "val"), ("train", "train")])
def test_missing_data_are_told(tmp_path: Path, split: str, folder: str) -> None:
    with pytest.raises(LpmbenchError, match=f"there is no folder .*{folder}. Give the folder of the unpacked archive"):
        load(tmp_path, split)
