"""MNIST's files: the format, the places where they are found, and the check that they are what they are called."""

from __future__ import annotations

import ast
import gzip
import hashlib
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustbench_lpm.datasets import mnist as module
from robustbench_lpm.datasets.mnist import FASHION_MNIST, MNIST, fashion_mnist, mnist
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import write_idx

RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (12, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": RNG.integers(0, 10, 12, dtype=np.uint8),
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 5, dtype=np.uint8),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes ARRAYS pass for both datasets, and writes them."""
    pins = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in ARRAYS.items()}
    monkeypatch.setattr(module, "MNIST", replace(MNIST, pins=pins))
    debian = tmp_path / "debian"
    monkeypatch.setattr(module, "FASHION_MNIST", replace(FASHION_MNIST, pins=pins, package_folder=debian))

    def write(folder: str, suffix: str = "") -> Path:
        for name, array in ARRAYS.items():
            write_idx(tmp_path / folder / f"{name}{suffix}", array)
        return tmp_path

    return write


def idx(name: str) -> bytes:
    """The content of one of the files."""
    array = ARRAYS[name]
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


LABELS = "t10k-labels-idx1-ubyte"
PACKED = gzip.compress(idx(LABELS), mtime=0)  # without the hour, which would be part of a test's name


@pytest.mark.parametrize(("name", "content", "complaint"), [
    (LABELS, b"", "or is damaged"),
    (LABELS, b"plain text, not an array", "or is damaged"),
    (LABELS, idx(LABELS)[:-1], "or is damaged"),
    (LABELS, idx(LABELS)[:6], "or is damaged"),
    (LABELS, idx(LABELS) + b"\0", "or is damaged"),
    (f"{LABELS}.gz", idx(LABELS), "cannot be read"),
    (f"{LABELS}.gz", PACKED[:-4], "cannot be read"),
    (f"{LABELS}.gz", PACKED[:10] + b"garbage garbage", "cannot be read"),
])  # fmt: skip
def test_damaged_files_are_named(small: Callable[..., Path], name: str, content: bytes, complaint: str) -> None:
    folder = small("")
    (folder / LABELS).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(LpmbenchError, match=complaint) as error:
        mnist(data=folder, split="test", folder=Path())
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(("folder", "suffix"), [("", ""), ("", ".gz"), ("MNIST/raw", ""), ("MNIST/raw", ".gz")])
def test_the_files_are_found_where_torchvision_or_a_user_put_them(
    small: Callable[..., Path], folder: str, suffix: str
) -> None:
    images = mnist(data=small(folder, suffix), split="test", folder=Path())
    assert images.labels.tolist() == ARRAYS["t10k-labels-idx1-ubyte"].tolist()
    assert (images.read(4).mode, images.read(4).tobytes()) == ("L", ARRAYS["t10k-images-idx3-ubyte"][4].tobytes())


def test_validation_is_the_end_of_the_training_file(small: Callable[..., Path]) -> None:
    data = small("")
    train, held_out = (mnist(data=data, split=split, folder=Path(), validation=4) for split in ("train", "validation"))
    assert [*train.labels, *held_out.labels] == ARRAYS["train-labels-idx1-ubyte"].tolist()
    assert (len(train), len(held_out)) == (8, 4)
    assert held_out.read(0).tobytes() == ARRAYS["train-images-idx3-ubyte"][8].tobytes()
    assert held_out.fingerprint(0) == hashlib.sha256(ARRAYS["train-images-idx3-ubyte"][8].tobytes()).hexdigest()


@pytest.mark.parametrize("validation", [0, -1, 12])
def test_a_hold_out_that_leaves_nothing_is_refused(small: Callable[..., Path], validation: int) -> None:
    with pytest.raises(LpmbenchError, match="cannot be held out from 12 training images"):
        mnist(data=small(""), split="train", folder=Path(), validation=validation)


def test_fashion_is_found_in_debians_package_unless_a_folder_is_named(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    small("debian", ".gz")
    assert fashion_mnist(data=None, split="test", folder=Path()).classes[9] == "ankle boot"
    with pytest.raises(LpmbenchError, match="found no"):
        fashion_mnist(data=tmp_path, split="test", folder=Path())


def test_loose_files_of_another_data_set_do_not_hide_debians_package(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small("debian", ".gz")
    for name, array in ARRAYS.items():
        write_idx(tmp_path / "mnist" / name, 255 - array)
    monkeypatch.setenv("LPMBENCH_DATA", str(tmp_path / "mnist"))
    assert len(fashion_mnist(data=None, split="test", folder=Path())) == 5


def test_the_default_folder_comes_from_the_environment(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPMBENCH_DATA", str(small("MNIST/raw")))
    assert len(mnist(data=None, split="test", folder=Path())) == 5


@pytest.mark.parametrize("entry", [mnist, fashion_mnist])
def test_files_of_another_data_set_are_refused(tmp_path: Path, entry: Callable[..., object]) -> None:
    for name, array in ARRAYS.items():
        write_idx(tmp_path / name, array)
    with pytest.raises(LpmbenchError, match=r"t10k-images-idx3-ubyte is not the file of dataset '.*mnist'"):
        entry(data=tmp_path, split="test", folder=Path())


def test_the_two_data_sets_are_told_apart_in_every_file() -> None:
    assert all(MNIST.pins[name] != FASHION_MNIST.pins[name] for name in ARRAYS)


def test_missing_data_are_told_with_a_command_that_gets_them(tmp_path: Path) -> None:
    root = tmp_path / "my data"
    with pytest.raises(LpmbenchError) as error:
        mnist(data=root, split="test", folder=Path())
    message = str(error.value)
    assert "t10k-images-idx3-ubyte" in message
    assert str(root / "MNIST" / "raw") in message
    assert "\n" not in message
    *_, code = shlex.split(message[message.index("python -c") :])
    assert repr(str(root)) in ast.unparse(ast.parse(code))


def test_missing_fashion_names_debians_package(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="apt install dataset-fashion-mnist"):
        fashion_mnist(data=tmp_path, split="train", folder=Path())
