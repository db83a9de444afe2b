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


def test_a_class_folder_without_images_keeps_its_label(class_tree: Callable[..., Path]) -> None:
    root = class_tree(["ant", "bee", "cat", "dog"])
    for file in (root / "bee").iterdir():
        file.unlink()
    (root / "bee" / ".DS_Store").write_bytes(b"x")
    images = load(imagefolder, root)
    assert images.classes == ("ant", "bee", "cat", "dog")
    assert sorted(set(images.labels.tolist())) == [0, 2, 3]
    assert [8 + label for label in images.labels] == widths(images)
    assert images.notes == ("class folders without images keep their labels: 'bee' (label 1)",)


def test_folders_that_are_all_empty_hold_no_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
    noise_image(0, 4, 4).save(tmp_path / "test" / "bee" / "a.png")
    assert load(imagefolder, tmp_path).labels.tolist() == [1]
    with pytest.raises(LpmbenchError, match=r"class folders in .*train hold no images, such as .*ant.photo\.jpg"):
        load(imagefolder, tmp_path, "train")


# Names in text order, and what is told of them; None where every label is the one to expect.
NAMES = [
    (["0", "1", "2"], None),
    (["1", "2", "3"], "'1' is label 0, '2' is label 1, '3' is label 2, ...;"),
    (["0", "1", "7"], "'7' is label 2;"),
    ([str(number) for number in sorted(range(12), key=str)], "'10' is label 2, '11' is label 3, '2' is label 4, ...;"),
    ([f"{number:02}" for number in range(12)], None),
    (["class1", "class10", "class2"], "'class10' is label 1, 'class2' is label 2;"),
    (["class01", "class02", "class10"], None),
    (["1_ant", "5_bee"], None),
    (["0", "10", "2", "ant"], "'10' is label 1, '2' is label 2;"),
    (["ant", "bee"], None),
    (WNIDS, None),
]


@pytest.mark.parametrize(("names", "told"), NAMES)
def test_the_order_of_numbers_in_class_names_is_told(
    class_tree: Callable[..., Path], names: list[str], told: str | None
) -> None:
    root = class_tree(names, count=1)
    images = load(imagefolder, root)
    assert images.classes == tuple(names)  # text order, whatever the names say
    assert [8 + label for label in images.labels] == widths(images)
    if told is None:
        assert images.notes == ()
    else:
        (note,) = images.notes
        assert f"in the text order of their names: {told} to say otherwise" in note
        assert "DIR/class_index.json" in note
        assert "\n" not in note
        write_index(root, {name: label for label, name in enumerate(names)})  # who says the order knows it
        assert load(imagefolder, root).notes == ()


INDEXES = [
    # what class_index.json says; the labels of ant, bee and cat; the names by label
    ({"ant": 2, "bee": 0, "cat": 1}, [2, 0, 1], ("bee", "cat", "ant")),
    ({"ant": 0, "bee": 3, "cat": 1}, [0, 3, 1], ("ant", "cat", "class 2", "bee")),
    ({"ant": 0, "bee": 1, "cat": 3, "dog": 4, "elk": 2}, [0, 1, 3], ("ant", "bee", "elk", "cat", "dog")),
    ({"ant": 0, "bee": 1, "cat": 2, "also cat": 2, "note": "x"}, [0, 1, 2], ("ant", "bee", "cat")),
    ({"1": ["ant", "Ant"], "0": ["bee", "Bee"], "2": ["cat"]}, [1, 0, 2], ("Bee", "Ant", "cat")),
    ({"1": ["ant", 5], "0": ["bee"], "cat": 2}, [1, 0, 2], ("bee", "ant", "cat")),
]


@pytest.mark.parametrize(("index", "labels", "classes"), INDEXES)
@pytest.mark.parametrize(("inner", "place"), [("", ""), ("test", ""), ("test", "test"), ("test", "train")])
def test_an_index_labels_any_folders(
    class_tree: Callable[..., Path], tmp_path: Path, index: Any, labels: list[int], classes: Any, inner: str, place: str
) -> None:
    root = tmp_path / "images"
    class_tree(["ant", "bee", "cat"], root=root / inner)
    if inner:
        class_tree(["ant", "zebra"], root=root / "train")
    write_index(root / place, index)
    images = load(imagefolder, root)
    assert images.labels.tolist() == [labels[width - 8] for width in widths(images)]
    assert (images.classes, images.notes) == (classes, ())


def test_folders_named_by_numbers_may_be_their_own_labels(class_tree: Callable[..., Path]) -> None:
    names = sorted(map(str, range(12)), key=str)
    root = class_tree(names, count=1)
    for index in ({name: int(name) for name in names}, {name: [name, "x"] for name in names}):
        write_index(root, index)
        images = load(imagefolder, root)
        assert images.labels.tolist() == [int(names[width - 8]) for width in widths(images)]


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


def _all_empty(root: Path) -> None:
    for name in WNIDS:
        (root / name / f"{name}_0.png").unlink()


def _no_image(root: Path) -> None:
    (root / WNIDS[1] / "notes.txt").write_text("x")


def _index(content: Any) -> Callable[[Path], None]:
    return lambda root: write_index(root, content)


LATIN = "\udcff".encode("utf-8", "surrogatepass").decode("latin1")
EVERY_FOLDER = [  # what is wrong with any folder of classes, whatever they are
    (_all_empty, "The class folders in .* hold no images"),
    (_no_image, r"notes\.txt is not an image by its name"),
    (_index("{"), r"class_index\.json cannot be read as JSON"),
    (_index("[" * 100_000), r"class_index\.json cannot be read as JSON"),
    (_index(LATIN), "JSON"),
    (_index(WNIDS), "must look like"),
    (_index({"n01440764": 0}), "class folder 'n02510455' needs a label"),
    (_index(dict.fromkeys(WNIDS, True)), "class folder 'n01440764' needs a label from 0 to .*, not true"),
    (_index(dict.fromkeys(WNIDS, "0")), 'needs a label from 0 to .*, not "0"'),
    (_index(dict.fromkeys(WNIDS, 1.0)), r"needs a label from 0 to .*, not 1\.0"),
    (_index(dict.fromkeys(WNIDS, -1)), "needs a label from 0 to .*, not -1"),
    (_index(dict.fromkeys(WNIDS, 10**12)), "needs a label from 0 to .*, not 10+"),
    (_index({"-1": [WNIDS[0]], "0": [WNIDS[1]], "1": [WNIDS[2]]}), "class folder 'n01440764' needs a label"),
    (_index(dict.fromkeys(WNIDS, 3)), "same label to two class folders: 3 to 'n01440764' and 'n02510455'"),
    (_index({"0": WNIDS[:1], "00": WNIDS[1:2], "1": WNIDS[2:]}), "same label to two class folders: 0 to"),
    (_index({str(label): [WNIDS[0]] for label in range(3)}), "class folder 'n01440764' twice"),
    (_index('{"n01440764": 0, "n01440764": 1}'), "names 'n01440764' twice"),
]


@pytest.mark.parametrize(
    ("entry", "spoil", "complaint"),
    [
        *((entry, *case) for entry in (imagefolder, imagenet) for case in EVERY_FOLDER),
        (imagenet, _index(dict.fromkeys(WNIDS, 1000)), "needs a label from 0 to 999, not 1000"),
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
