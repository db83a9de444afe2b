"""CIFAR-10 reads alike from both versions of its files, and runs no code from a stranger's."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from robustbench_lpm.datasets.cifar10 import CLASSES, cifar10
from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import noise_image

PER_BATCH = 3
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
RNG = np.random.default_rng(0)
PLANES = {name: RNG.integers(0, 256, (PER_BATCH, 3, 32, 32), dtype=np.uint8) for name in NAMES}
LABELS = {name: RNG.integers(0, 10, PER_BATCH, dtype=np.uint8) for name in NAMES}


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in NAMES:
        records = np.concatenate([LABELS[name][:, None], PLANES[name].reshape(PER_BATCH, -1)], axis=1)
        records.tofile(folder / f"{name}.bin")


def write_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    for name in NAMES:
        entry = {"data": PLANES[name].reshape(PER_BATCH, -1), "labels": LABELS[name].tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in NAMES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})


def contents(images: ImageSet) -> list[tuple[bytes, str, int]]:
    return [(images.read(i).tobytes(), images.fingerprint(i), int(images.labels[i])) for i in range(len(images))]


@pytest.mark.parametrize(("split", "count"), [("train", 11), ("validation", 4), ("test", 3)])
def test_both_versions_give_the_same_images_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, count: int
) -> None:
    write_binary(tmp_path / "binary" / "cifar-10-batches-bin")
    write_pickles(tmp_path / "python" / "cifar-10-batches-py", monkeypatch)
    binary, python = (
        cifar10(data=tmp_path / version, split=split, folder=Path(), validation=4) for version in ("binary", "python")
    )
    assert len(binary) == count
    assert contents(binary) == contents(python)


def test_pixels_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    images = cifar10(data=tmp_path, split="test", folder=Path())
    assert images.labels.tolist() == LABELS["test_batch"].tolist()
    np.testing.assert_array_equal(np.asarray(images.read(2)), PLANES["test_batch"][2].transpose(1, 2, 0))


@pytest.mark.parametrize("version", ["cifar-10-batches-bin", "cifar-10-batches-py"])
def test_the_inner_folder_may_be_named_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    folder = tmp_path / version
    if version.endswith("bin"):
        write_binary(folder)
    else:
        write_pickles(folder, monkeypatch)
    assert len(cifar10(data=folder, split="test", folder=Path())) == PER_BATCH
    monkeypatch.chdir(folder)
    assert len(cifar10(data=Path(), split="test", folder=Path())) == PER_BATCH


def write_images(folder: Path, images: list[Image.Image]) -> None:
    records = [b"\3" + np.asarray(image).transpose(2, 0, 1).tobytes() for image in images]
    (folder / "test_batch.bin").write_bytes(b"".join(records))


def photograph(seed: int) -> Image.Image:
    """Grey that varies slowly, and a little noise on every pixel."""
    slow = np.asarray(noise_image(seed, 4, 4, "L").resize((32, 32), Image.Resampling.BICUBIC).convert("RGB"))
    noise = np.random.default_rng(seed).integers(0, 25, slow.shape)
    return Image.fromarray((52 + slow // 2 + noise).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return Image.open(file)


@pytest.mark.parametrize(("copies", "others", "named"), [(9, 1, True), (0, 10, False), (2, 8, False)])
def test_jpeg_copies_are_called_so(tmp_path: Path, copies: int, others: int, named: bool) -> None:
    images = [photograph(seed) for seed in range(copies + others)]
    write_images(tmp_path, [as_jpeg(image) for image in images[:copies]] + images[copies:])
    notes = cifar10(data=tmp_path, split="test", folder=Path()).notes
    assert any("CIFAR-10 (JPEG copies)" in note for note in notes) == named


def test_a_part_of_the_test_images_is_called_so(tmp_path: Path) -> None:
    write_images(tmp_path, [photograph(0)] * 2)
    assert cifar10(data=tmp_path, split="test", folder=Path()).notes == ("CIFAR-10: 2 of its 10000 images",)
    write_images(tmp_path, [photograph(0)] * 10_000)
    assert cifar10(data=tmp_path, split="test", folder=Path()).notes == ()


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("target", ["test_batch", "data_batch_3", "batches.meta"])
def test_an_altered_pickle_is_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    folder, marker = tmp_path / "cifar-10-batches-py", tmp_path / "marker"
    write_pickles(folder, monkeypatch)
    (folder / target).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(LpmbenchError, match=f"{target} is missing or not the authors' file"):
        cifar10(data=tmp_path, split="test", folder=Path())
    assert not marker.exists()
    pickle.loads((folder / target).read_bytes())
    assert marker.exists()  # so it would have gone off


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\x0a" + b"\0" * 3072], ids=["empty", "short", "label 10"])
def test_a_broken_binary_batch_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(LpmbenchError, match=r"test_batch\.bin is not a CIFAR-10 batch"):
        cifar10(data=tmp_path, split="test", folder=Path())


def test_missing_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match=r"found no data_batch_1 or data_batch_1\.bin in .*CIFAR10 as D") as error:
        cifar10(data=tmp_path, split="train", folder=Path())
    assert "\n" not in str(error.value)
