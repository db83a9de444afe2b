"""Image files become 8-bit grey or colour, or one line that names the file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_lpm.datasets.images import ImageSet, from_arrays, from_files, read_image, size_of_image
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import noise_image


@pytest.mark.parametrize(
    ("stored", "read"),
    [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGB")],
)
def test_every_8_bit_mode_is_read_as_grey_or_colour(tmp_path: Path, stored: str, read: str) -> None:
    noise_image(0, 5, 4).convert(stored).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mode == read


def test_cmyk_photographs_are_read(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.jpg")  # ImageNet has some of these
    assert read_image(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("L", "jpg"), ("P", "gif"), ("1", "bmp"), ("RGB", "webp")]
)
def test_the_header_tells_the_size_that_is_read(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn, which neither regards
    noise_image(0, 7, 5).convert(mode).save(path, exif=exif)
    images = from_files([path], [0], "a")
    assert images.sizes == (size_of_image(path),) == (images.read(0).size,) == ((7, 5),)


def test_sizes_of_a_set_are_the_shared_one_or_two_that_differ(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, width in zip(paths, (8, 8, 9), strict=False):
        noise_image(0, width, 6).save(path)
    paths[3].write_bytes(b"never opened: the first sizes that differ say enough")
    images = from_files(paths, [0] * 4, "a")
    assert images.sizes == ((8, 6), (9, 6))
    assert images.subset([1, 0]).sizes == ((8, 6),)
    with pytest.raises(LpmbenchError, match=r"3\.png is not an image"):
        assert images.subset([0, 3]).sizes
    assert from_arrays(np.zeros((2, 4, 6, 3), np.uint8), [0, 1], "ab").sizes == ((6, 4),)
    assert replace(images, size_of=None).sizes == ()


def test_pixels_of_a_colour_file_are_untouched(tmp_path: Path) -> None:
    image = noise_image(0, 7, 5)
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tobytes() == image.tobytes()


def test_palette_with_transparency_is_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    noise_image(0, 5, 4).convert("P").save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert read_image(tmp_path / "a.png").mode == "RGB"
    assert not recwarn.list


@pytest.mark.parametrize(("upright", "size"), [(False, (6, 4)), (True, (4, 6))])
def test_exif_orientation_counts_only_when_asked(tmp_path: Path, upright: bool, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    noise_image(0, 6, 4).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", upright=upright).size == size


def _truncated(path: Path, suffix: str) -> Path:
    path = path.with_suffix(suffix)
    noise_image(0, 64, 64).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _deep(path: Path) -> Path:
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(path)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: _truncated(path, ".png"), "cannot be read as an image"),
        (lambda path: _truncated(path, ".jpg"), "cannot be read as an image"),
        (lambda path: _truncated(path, ".bmp"), "cannot be read as an image"),
        (lambda path: _written(path, b"not an image"), "is not an image"),
        (lambda path: _written(path, b""), "is not an image"),
        (lambda path: _written(path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is not an image"),
        (lambda path: path, "There is no image"),
        (_deep, "deeper than 8 bits"),
        (_folder, "cannot be read as an image"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path: Path, make: Any, complaint: str) -> None:
    path = make(tmp_path / "broken.png")
    with pytest.raises(LpmbenchError, match=complaint) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_enormous_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_image(0, 30, 30).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LpmbenchError, match=r"huge\.png"):
        read_image(tmp_path / "huge.png")


def test_fingerprints_are_those_of_the_raw_content(tmp_path: Path) -> None:
    noise_image(0, 5, 4).save(tmp_path / "a.png")
    arrays = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    from_memory, from_disk = from_arrays(arrays, [0, 1], "ab"), from_files([tmp_path / "a.png"], [0], "a")
    assert from_memory.fingerprint(1) == hashlib.sha256(arrays[1].tobytes()).hexdigest()
    assert from_disk.fingerprint(0) == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()


def test_a_vanished_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match=r"gone\.png"):
        from_files([tmp_path / "gone.png"], [0], "a").fingerprint(0)


def test_a_subset_renumbers_everything_together() -> None:
    arrays = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
    images = from_arrays(arrays, range(5), "01234").subset([3, 1]).subset([1, 0])
    assert images.labels.tolist() == [1, 3]
    assert [images.read(position).getpixel((0, 0)) for position in range(2)] == [1, 3]
    assert images.fingerprint(0) == hashlib.sha256(b"\x01").hexdigest()


PIXELS = np.zeros((2, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: from_arrays(PIXELS[:0], [], "ab"), "no images"),
        (lambda: from_files([], [], "ab"), "no images"),
        (lambda: from_arrays(PIXELS, [0], "ab"), "2 images, but 1 labels"),
        (lambda: from_files([Path("a.png")], [0, 1], "ab"), "1 images, but 2 labels"),
        (lambda: from_arrays(PIXELS, [0, 2], "ab"), "2 classes, but also the label 2"),
        (lambda: from_arrays(PIXELS, [0, -1], "ab"), "whole numbers from 0"),
        (lambda: from_arrays(PIXELS, np.array([0.0, 1.0]), "ab"), "whole numbers from 0"),
        (lambda: from_arrays(PIXELS, [[0], [1]], "ab"), "whole numbers from 0"),
        (lambda: from_arrays(PIXELS / 255, [0, 1], "ab"), "must be uint8"),
        (lambda: from_arrays(PIXELS[0], [0, 1, 0, 1], "ab"), "must be uint8"),
    ],
)
def test_images_and_labels_must_fit(make: Any, complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=complaint):
        make()


def test_labels_become_int64_and_class_names_may_be_unknown() -> None:
    images = ImageSet(np.array([7], np.uint8), (), lambda position: Image.new("L", (1, 1)), str)  # type: ignore[arg-type]
    assert images.labels.dtype == np.int64
    assert len(images) == 1
