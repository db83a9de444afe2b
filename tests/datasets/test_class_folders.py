"""Class folders: labels, order, parts, ImageNet's index, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_lpm.datasets import imagenet as imagenet_module
from robustbench_lpm.datasets.imagefolder import imagefolder
from robustbench_lpm.datasets.imagenet import imagenet, imagenet_a, imagenet_classes
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import noise_image

WNIDS = ["n01440764", "n02510455", "n15075141"]


def load(entry: Callable[..., ImageSet], data: Path, split: str = "test", **parameters: Any) -> ImageSet:
    return entry(data=data, split=split, folder=Path(), **parameters)


def widths(images: ImageSet) -> list[int]:
    """class_tree draws the images of class k with a width of 8 + k."""
    return [images.read(position).width for position in range(len(images))]


def test_labels_follow_the_sorted_class_names(class_tree: Callable[..., Path]) -> None:
    images = load(imagefolder, class_tree(["ant", "bee", "cat"]))
    assert images.classes == ("ant", "bee", "cat")
    assert [8 + label for label in images.labels] == widths(images)


def test_the_order_is_pinned_and_does_not_depend_on_where_the_folder_lies(
    class_tree: Callable[..., Path], tmp_path: Path
) -> None:
    here, there = (load(imagefolder, class_tree("abc", root=tmp_path / name)) for name in ("here", "there/deeper"))
    assert here.labels.tolist() == there.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert [here.fingerprint(i) for i in range(6)] == [there.fingerprint(i) for i in range(6)]


def test_a_prefix_mixes_the_classes(class_tree: Callable[..., Path]) -> None:
    images = load(imagefolder, class_tree("abcde", count=10))
    assert set(images.labels[:15].tolist()) == set(range(5))


def test_files_in_deeper_folders_count_and_hidden_ones_do_not(class_tree: Callable[..., Path]) -> None:
    root = class_tree("ab", count=1)
    (root / "a" / "inner").mkdir()
    noise_image(0, 8, 8).save(root / "a" / "inner" / "x.PNG")
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / ".cache").mkdir()
    (root / "README.txt").write_text("not a class")
    assert sorted(load(imagefolder, root).labels.tolist()) == [0, 0, 1]


def test_parts_are_splits_and_share_their_labels(class_tree: Callable[..., Path], tmp_path: Path) -> None:
    class_tree(["ant", "bee", "cat"], root=tmp_path / "images" / "train")
    class_tree(["ant", "cat"], root=tmp_path / "images" / "test")
    train, test = (load(imagefolder, tmp_path / "images", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert sorted(test.labels.tolist()) == [0, 0, 2, 2]
    with pytest.raises(LpmbenchError, match="no split 'validation'; it has: test, train"):
        load(imagefolder, tmp_path / "images", "validation")


def write_index(root: Path, content: Any) -> None:
    (root / "class_index.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("inner", ["", "val"])
def test_a_part_of_imagenet_is_labelled_by_its_index(
    class_tree: Callable[..., Path], tmp_path: Path, inner: str
) -> None:
    class_tree(WNIDS, root=tmp_path / "images" / inner)
    write_index(tmp_path / "images", {"n01440764": 0, "n02510455": 388, "n15075141": 999, "n00000001": 5})
    images = load(imagenet, tmp_path / "images")
    label_of_width = {8: 0, 9: 388, 10: 999}
    assert images.labels.tolist() == [label_of_width[width] for width in widths(images)]
    assert images.classes[388] == "giant panda"
    assert len(images.classes) == 1000


def test_an_index_by_label_says_the_same(class_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = class_tree(WNIDS, root=tmp_path / "images")
    write_index(root, {"0": ["n01440764", "tench"], "388": ["n02510455", "giant_panda"], "999": ["n15075141", "paper"]})
    images = load(imagenet, root)
    assert images.labels.tolist() == [{8: 0, 9: 388, 10: 999}[width] for width in widths(images)]


def test_imagenet_a_has_the_labels_of_the_thousand_classes(class_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = class_tree(WNIDS, root=tmp_path / "images")
    (root / "README.txt").write_text("as the archive has it")
    with pytest.raises(LpmbenchError, match=r"holds 3 of the 1000 class folders; say .*class_index\.json"):
        load(imagenet_a, root)
    write_index(root, {"n01440764": 0, "n02510455": 388, "n15075141": 999, "n00000001": 5})
    images = load(imagenet_a, root)
    assert images.labels.tolist() == [{8: 0, 9: 388, 10: 999}[width] for width in widths(images)]
    assert images.classes[388] == "giant panda"
    with pytest.raises(LpmbenchError, match="no split 'train'"):
        load(imagenet_a, root, "train")


def test_all_folders_of_imagenet_are_labelled_in_sorted_order(
    class_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet_module, "COUNT", len(WNIDS))
    images = load(imagenet, class_tree(WNIDS))
    assert [8 + label for label in images.labels] == widths(images)


def test_imagenet_holds_validation_out_from_train(class_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = tmp_path / "images"
    for part in ("train", "val"):
        class_tree(WNIDS, count=3, root=root / part)
    write_index(root, dict(zip(WNIDS, (0, 1, 2), strict=True)))
    train, held_out = (load(imagenet, root, split, validation=2) for split in ("train", "validation"))
    assert (len(train), len(held_out), len(load(imagenet, root))) == (7, 2, 9)
    chosen = [{images.fingerprint(i) for i in range(len(images))} for images in (train, held_out)]
    assert not chosen[0] & chosen[1]
    with pytest.raises(LpmbenchError, match="cannot be held out from 9"):
        load(imagenet, root, "train")


def test_class_names_fall_back_to_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models._meta", None)
    assert imagenet_classes()[388] == "388"


def _empty_class(root: Path) -> None:
    (root / WNIDS[1] / f"{WNIDS[1]}_0.png").unlink()


def _no_image(root: Path) -> None:
    (root / WNIDS[1] / "notes.txt").write_text("x")


@pytest.mark.parametrize(
    ("entry", "spoil", "complaint"),
    [
        (imagefolder, _empty_class, "Class folder .*n02510455 holds no images"),
        (imagefolder, _no_image, r"notes\.txt is not an image by its name"),
        (imagenet, _empty_class, "Class folder .*n02510455 holds no images"),
        (imagenet, _no_image, r"notes\.txt is not an image by its name"),
        (imagenet, lambda root: write_index(root, "{"), r"class_index\.json cannot be read as JSON"),
        (imagenet, lambda root: write_index(root, "\udcff".encode("utf-8", "surrogatepass").decode("latin1")), "JSON"),
        (imagenet, lambda root: write_index(root, WNIDS), "must look like"),
        (imagenet, lambda root: write_index(root, {"n01440764": 0}), "class folder 'n02510455' needs a label"),
        (imagenet, lambda root: write_index(root, dict.fromkeys(WNIDS, 1000)), "needs a label from 0 to 999"),
        (imagenet, lambda root: write_index(root, dict.fromkeys(WNIDS, True)), "needs a label from 0 to 999"),
        (imagenet, lambda root: write_index(root, dict.fromkeys(WNIDS, 3)), "same label to two class folders"),
        (imagenet, lambda root: (root / "class_index.json").unlink(), "holds 3 of the 1000 class folders; say which"),
    ],
)
def test_broken_folders_are_told_in_one_line(
    class_tree: Callable[..., Path], entry: Callable[..., ImageSet], spoil: Callable[[Path], None], complaint: str
) -> None:
    root = class_tree(WNIDS, count=1)
    write_index(root, dict(zip(WNIDS, range(3), strict=True)))
    spoil(root)
    with pytest.raises(LpmbenchError, match=complaint) as error:
        load(entry, root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", [imagefolder, imagenet, imagenet_a])
def test_folders_without_classes_or_not_there_are_told(entry: Callable[..., ImageSet], tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match=r"no folder .*gone"):
        load(entry, tmp_path / "gone")
    noise_image(0, 4, 4).save(tmp_path / "loose.png")
    with pytest.raises(LpmbenchError, match="holds no class folders"):
        load(entry, tmp_path)


def test_folders_that_are_not_named_by_wordnet_id_are_told(class_tree: Callable[..., Path]) -> None:
    with pytest.raises(LpmbenchError, match="tench is not named by a WordNet id"):
        load(imagenet, class_tree([*WNIDS, "tench"]))


def test_missing_parts_of_imagenet_are_told(class_tree: Callable[..., Path], tmp_path: Path) -> None:
    class_tree(WNIDS, root=tmp_path / "images" / "val")
    with pytest.raises(LpmbenchError, match=r"split 'train' needs the class folders in .*train\."):
        load(imagenet, tmp_path / "images", "train")


def test_data_that_were_not_named_are_asked_for() -> None:
    with pytest.raises(LpmbenchError, match="needs --data DIR"):
        imagefolder(data=None, split="test", folder=Path())
    for entry in (imagenet, imagenet_a):
        with pytest.raises(LpmbenchError, match="--data DIR"):
            entry(data=None, split="test", folder=Path())
