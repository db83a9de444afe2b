"""Images that stay on the disk give the bits of images in memory, whoever reads them ahead."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustbench_lpm.cli import run
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.cards import ModelCard, Validation
from robustbench_lpm.training import TrainingResult, examples, train, validation
from robustbench_lpm.training.examples import LabelledImages, load_split, shuffled_batches
from robustbench_lpm.training.plans import TrainingPlan, make_plan
from robustbench_lpm.training.validation import final_accuracy, validate
from tests.training.conftest import CARDS, tiny_recipe
from tests.training.test_epochs_and_measures import CPU
from tests.training.test_objectives import cross_entropy
from tests.training.test_training import last, rows, stop_at, tensors

CLASSES = ("cat", "cow", "dog")
PER_CLASS = {"train": 8, "val": 4, "test": 4}
Tree = Path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """train/, val/ and test/ of JPEGs of unequal shapes, in three classes told apart by their colour."""
    random = np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (30 + 2 * number, 40 + label, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return tmp_path / "images"


def test_notes_on_the_images_are_on_the_card(tree: Tree, tmp_path: Path) -> None:
    assert _trained(train_photos(tree, tmp_path / "named")).notes == []
    for split in PER_CLASS:
        for old, new in zip(CLASSES, ("1", "2", "10"), strict=True):
            (tree / split / old).rename(tree / split / new)
    (note,) = _trained(train_photos(tree, tmp_path / "numbered")).notes
    assert note.startswith("class folders are labelled in the text order of their names")


def _trained(result: TrainingResult) -> Any:
    return cards.read(result.card_path, ModelCard).trained


def photo_plan(**changes: Any) -> TrainingPlan:
    recipe = tiny_recipe("clean", **{"dataset": "imagefolder", "size": "24", "fit": "pad", "batch_size": 5} | changes)
    model = str(CARDS / "tiny-photos.toml")
    return make_plan(model, recipe=recipe, dataset=None, epochs=2, seed=0, command=None, trust=True)


def train_photos(tree: Tree, out: Path, changes: dict[str, Any] | None = None, **options: Any) -> TrainingResult:
    recipe = photo_plan(**changes or {}).recipe
    model = str(CARDS / "tiny-photos.toml")
    return train(model, recipe=recipe, data=tree, out=out, epochs=2, trust=True, **options)


@pytest.fixture
def _on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No split is small enough for the memory."""
    monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", 0)


def both(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, workers: int = 0, **changes: Any
) -> tuple[LabelledImages, LabelledImages]:
    """A split in memory, and the same where it takes a byte too much."""
    plan, size = photo_plan(**changes), 24 * 3 * 24 * 24
    monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", size)
    kept = load_split(plan, tree, "train", workers)
    monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", size - 1)
    return kept, load_split(plan, tree, "train", workers)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_same_batches_in_the_same_order(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, workers: int, fit: str
) -> None:
    kept, lazy = both(tree, monkeypatch, workers, fit=fit)
    assert len(kept) == len(lazy) == 24
    assert kept.shape == lazy.shape == (3, 24, 24)
    batches = shuffled_batches(24, 5, seed=0, epoch=1)
    before = torch.get_rng_state()
    pairs = list(zip(kept.stream(batches), lazy.stream(batches), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pairs) == 5
    for batch, ((images, labels), (read, read_labels)) in zip(batches, pairs, strict=True):
        assert torch.equal(images, read)
        assert images.dtype == read.dtype == torch.float32
        assert torch.equal(labels, read_labels)
        assert torch.equal(lazy.take(batch)[0], images)


def test_a_split_in_memory_needs_no_files_and_is_kept_as_bytes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, lazy = both(tree, monkeypatch, workers=2)
    assert (kept.workers, lazy.workers) == (0, 2)
    shutil.rmtree(tree)
    assert kept.read([3]).dtype == torch.uint8
    with pytest.raises(LpmbenchError):
        lazy.read([3])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_from_the_disk_ends_in_the_same_bits(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    kept = train_photos(tree, tmp_path / "memory")
    monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", 0)
    with pytest.raises(KeyboardInterrupt):
        train_photos(tree, tmp_path / "disk", workers=workers, progress=stop_at(2))
    read = train_photos(tree, tmp_path / "disk", workers=2 - workers, resume=True)
    expected, found = tensors(last(tmp_path / "memory")), tensors(last(tmp_path / "disk"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert rows(tmp_path / "memory") == rows(tmp_path / "disk")
    assert kept.weights.read_bytes() == read.weights.read_bytes()
    assert kept.accuracy == read.accuracy


def test_chunks_of_large_images_are_small(monkeypatch: pytest.MonkeyPatch, tree: Tree) -> None:
    """Validation and the final measurement see every image once, however they are cut."""
    kept, lazy = both(tree, monkeypatch, workers=2)
    card = cards.model(str(CARDS / "tiny-photos.toml"))
    classifier = zoo.wrap(zoo.build(card), card)
    whole = final_accuracy(classifier, kept, 0, "clean", CPU), validate(classifier, cross_entropy, kept, 0, CPU)
    monkeypatch.setattr(validation, "CHUNK_BYTES", 7 * 4 * 3 * 24 * 24)
    sizes = [len(indices) for indices, _, _ in validation._chunks(lazy, CPU, None)]
    assert sizes == [7, 7, 7, 3]
    cut = final_accuracy(classifier, lazy, 0, "clean", CPU), validate(classifier, cross_entropy, lazy, 0, CPU)
    assert cut[0] == whole[0]
    assert cut[1] == pytest.approx(whole[1], abs=1e-5)
    limited = validate(classifier, cross_entropy, lazy, 0, CPU, Validation(limit=9))
    assert limited == pytest.approx(validate(classifier, cross_entropy, kept, 0, CPU, Validation(limit=9)), abs=1e-5)


def test_images_of_unequal_size_are_refused(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = photo_plan(size="original")
    with pytest.raises(LpmbenchError, match="images of unequal size"):
        load_split(plan, tree, "train")
    monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", 0)
    with pytest.raises(LpmbenchError, match="images of unequal size"):
        list(load_split(plan, tree, "train", 2).stream(shuffled_batches(24, 5, 0, 1)))


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("_on_disk")
def test_an_image_that_was_cut_short_ends_a_training_in_one_line_and_can_be_mended(
    tree: Tree, tmp_path: Path, workers: int
) -> None:
    path = tree / "train" / "dog" / "3.jpg"
    whole, broken = path.read_bytes(), tmp_path / "broken"

    def damage(done: float, row: dict[str, float] | None) -> None:
        if row and done == 1:
            cut_short(path)

    with pytest.raises(LpmbenchError) as caught:
        train_photos(tree, broken, workers=workers, progress=damage)
    assert str(caught.value).startswith(f"{path} cannot be read as an image: ")
    assert "\n" not in str(caught.value)
    assert len(last(broken)["rows"]) == 1

    path.write_bytes(whole)
    mended = train_photos(tree, broken, workers=workers, resume=True)
    straight = train_photos(tree, tmp_path / "straight", workers=workers)
    assert mended.weights.read_bytes() == straight.weights.read_bytes()
    assert rows(broken) == rows(tmp_path / "straight")


def test_in_memory_an_image_that_was_cut_short_is_found_before_training(tree: Tree, tmp_path: Path) -> None:
    cut_short(tree / "val" / "cat" / "0.jpg")
    with pytest.raises(LpmbenchError, match=r"0\.jpg cannot be read as an image"):
        train_photos(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_class_folder_changes_no_label_and_is_told(
    tree: Tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_split(photo_plan(), tree, "train").labels
    (tree / "train" / "eel").mkdir()
    assert torch.equal(load_split(photo_plan(), tree, "train").labels, before)
    for path in tree.rglob("*.jpg"):
        Image.new("RGB", (24, 24)).save(path)
    model, recipe = CARDS / "tiny-photos.toml", CARDS / "tiny-clean.toml"
    words = [model, "--recipe", recipe, "--dataset", "imagefolder", "--data", tree, "--epochs", 1, "--trust"]
    assert run(["train", *map(str, [*words, "--out", tmp_path / "out"])]) == 0
    assert capsys.readouterr().out.count("class folders without images keep their labels: 'eel'") == 1


@pytest.mark.parametrize(("asked", "side"), [(None, 32), ("24", 24)])
def test_photographs_that_share_one_size_keep_it_unless_the_recipe_says_another(
    tree: Tree, asked: str | None, side: int
) -> None:
    for path in tree.rglob("*.jpg"):
        Image.new("RGB", (32, 32)).save(path)
    assert load_split(photo_plan(size=asked), tree, "train").shape == (3, side, side)


def test_more_classes_than_the_model_has_are_refused(tree: Tree, tmp_path: Path) -> None:
    for split in PER_CLASS:
        (tree / split / "eel").mkdir()
        Image.new("RGB", (30, 30)).save(tree / split / "eel" / "0.png")
    with pytest.raises(LpmbenchError, match="more than the 3 classes of tiny-photos"):
        train_photos(tree, tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_told_in_one_line(workers: int) -> None:
    """Also where it dies while its batches wait and a step is under way: torch would raise in the middle of that."""

    def read(positions: Sequence[int]) -> Tensor:
        if 7 in positions:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(len(positions), 1, 4, 4)

    before = signal.getsignal(signal.SIGCHLD)
    deadly = LabelledImages(read, torch.zeros(12), torch.Size((1, 4, 4)), workers=workers)
    batches = deadly.stream([list(range(start, start + 3)) for start in range(0, 12, 3)])
    with pytest.raises(LpmbenchError, match=r"reads images ended: .*--workers 0") as caught:  # noqa: PT012
        while True:
            next(batches)
            _step_of(0.3)
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGCHLD) == before


def _step_of(seconds: float) -> None:
    try:
        time.sleep(seconds)
    except RuntimeError:
        pytest.fail("told in the middle of a step")
