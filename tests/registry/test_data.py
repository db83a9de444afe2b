"""What a dataset says of itself: the size that was chosen, its classes and label set, and its notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import Data, resolve_attack, resolve_data, resolve_model

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes one image of each size, (width, height), into class folders, and returns their root."""

    def write(*sizes: tuple[int, int], names: tuple[str, ...] = ("ant", "bee"), mode: str = "RGB") -> Path:
        for number, size in enumerate(sizes):
            place = tmp_path / "images" / names[number % len(names)]
            place.mkdir(parents=True, exist_ok=True)
            Image.new(mode, size, 1 if mode == "L" else (1,) * len(mode)).save(place / f"{number}.png")
        return tmp_path / "images"

    return write


def shapes(data: Data) -> set[tuple[int, ...]]:
    return {tuple(image.shape) for image in data.read(range(len(data))).images}


@pytest.mark.parametrize(
    ("sizes", "asked", "size", "sides", "notes"),
    [
        ([(32, 32)] * 3, None, "original", {32}, ()),
        ([(32, 32)] * 3, "32", "32", {32}, ()),
        ([(32, 32)] * 3, "224", "224", {224}, ("images of 32x32 -> 256 -> crop 224",)),
        ([(224, 224)], None, "original", {224}, ()),
        ([(40, 30)] * 2, None, "original", {40}, ("images of 40x30 -> padded with black to 40x40",)),
        ([(40, 30), (32, 32)], None, "224", {224}, ("images of several sizes -> shorter side 256 -> crop 224",)),
        ([(40, 30), (32, 32)], "original", "original", {40, 32}, ()),
    ],
)
def test_images_that_share_one_size_are_not_resized_unasked(
    folder: Folder, sizes: list[tuple[int, int]], asked: str | None, size: str, sides: set[int], notes: tuple[str, ...]
) -> None:
    root = folder(*sizes)
    data = resolve_data("imagefolder", data=root, size=asked)
    assert data.identity["size"] == size
    assert shapes(data) == {(3, side, side) for side in sides}
    assert data.notes == notes
    again = resolve_data("imagefolder", data=root, size=data.identity["size"])  # as the command of a record asks
    assert again.identity == data.identity


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_alpha_and_grey_make_no_other_size(folder: Folder, mode: str) -> None:
    assert shapes(resolve_data("imagefolder", data=folder((32, 32), (32, 32), mode=mode))) == {(3, 32, 32)}


def test_a_file_whose_size_cannot_be_read_is_named(folder: Folder) -> None:
    root = folder((32, 32), (32, 32))
    (root / "ant" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(LpmbenchError, match=r"ant.broken\.png") as error:
        resolve_data("imagefolder", data=root)
    assert "\n" not in str(error.value)


def test_the_command_of_a_run_repeats_the_size_that_was_chosen(folder: Folder) -> None:
    model = resolve_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2)))
    data = resolve_data("imagefolder", data=folder((32, 32), (32, 32)))
    assert "size='original'" in make_plan(model, resolve_attack("noise"), data, Options(eps=0.1)).command()


def test_photographs_of_imagenet_keep_the_standard_protocol(folder: Folder) -> None:
    root = folder((256, 256), names=("n01440764",))
    (root / "class_index.json").write_text('{"n01440764": 0}')
    data = resolve_data("imagenet", data=root)
    assert (data.identity["size"], data.notes) == ("224", ("images of 256x256 -> crop 224",))


@pytest.mark.parametrize(
    ("name", "class_count", "notes"),
    [
        ("digits", 10, ()),
        ("panda", 1000, ("images of 420x360 -> shorter side 256 -> crop 224",)),
    ],
)
def test_cards_say_their_classes(name: str, class_count: int, notes: tuple[str, ...]) -> None:
    data = resolve_data(name)
    assert (data.class_count, data.notes) == (class_count, notes)


def test_the_labels_of_a_folder_are_its_owners(folder: Folder) -> None:
    data = resolve_data("imagefolder", data=folder((32, 32), (32, 32), names=("10", "9")))
    assert (data.class_count, data.classes) == (2, ("10", "9"))
    assert "'10' is label 0, '9' is label 1" in data.notes[0]


def test_tensors_say_nothing_of_their_classes() -> None:
    data = data_from_tensors(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))
    assert (data.class_count, data.notes) == (None, ())
