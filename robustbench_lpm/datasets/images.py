"""Labelled images in a fixed order, in memory or in files. Knows nothing about torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of

# Only formats that hold plain pixels: opening some others, such as EPS, starts a program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Pillow reports broken content in more ways than its documentation names; PNG alone raises SyntaxError.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels; the position of an image is its identity and never changes.

    labels: (N,) int64, from 0. classes: their names by label, () when unknown.
    read: position -> 8-bit image in mode "L" or "RGB".
    fingerprint: position -> sha256 of the raw content (the bytes of the file, or of the array).
    notes: what a reader of results must know about the images or their labels, one line each.
    all_classes: whether `classes` is complete; labels with gaps may be some of a larger set's.
    size_of: position -> (width, height) in pixels, where it is known without decoding the image.
    Raises LpmbenchError for no images at all, or labels that do not fit.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    read: Callable[[int], Image.Image]
    fingerprint: Callable[[int], str]
    notes: tuple[str, ...] = ()
    all_classes: bool = True
    size_of: Callable[[int], tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if not labels.size:
            raise LpmbenchError("The dataset holds no images.")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise LpmbenchError("The labels of a dataset are a list of whole numbers from 0.")
        if self.classes and labels.max() >= len(self.classes):
            raise LpmbenchError(f"The dataset has {len(self.classes)} classes, but also the label {labels.max()}.")
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height): the one that all images share, or two that differ; () if only decoding would show it.

        Raises LpmbenchError naming a file whose header cannot be read.
        """
        if self.size_of is None:
            return ()
        first = self.size_of(0)
        other = next((size for size in map(self.size_of, range(1, len(self))) if size != first), None)
        return (first,) if other is None else (first, other)

    def subset(self, positions: Sequence[int] | NDArray[np.intp]) -> ImageSet:
        """The images at these positions, renumbered from 0 in the order given."""
        origin = [int(position) for position in positions]
        size_of = self.size_of
        return replace(
            self,
            labels=self.labels[origin],
            read=lambda position: self.read(origin[position]),
            fingerprint=lambda position: self.fingerprint(origin[position]),
            size_of=size_of and (lambda position: size_of(origin[position])),
        )


def from_arrays(pixels: NDArray[np.uint8], labels: NDArray[Any] | Sequence[int], classes: Iterable[str]) -> ImageSet:
    """A dataset in memory: `pixels` is (N, H, W) or (N, H, W, 3), 0 to 255."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (3,)):
        raise LpmbenchError(f"Pixels must be uint8 (N, H, W) or (N, H, W, 3), not {pixels.dtype} {pixels.shape}.")
    if len(pixels) != len(labels):
        raise LpmbenchError(f"There are {len(pixels)} images, but {len(labels)} labels.")
    return ImageSet(
        labels=np.asarray(labels),
        classes=tuple(classes),
        read=lambda position: Image.fromarray(pixels[position]),
        fingerprint=lambda position: hashlib.sha256(pixels[position].tobytes()).hexdigest(),
        size_of=lambda _: (pixels.shape[2], pixels.shape[1]),
    )


def from_files(paths: Sequence[Path], labels: NDArray[Any] | Sequence[int], classes: Iterable[str]) -> ImageSet:
    """A dataset of image files, in the order given. A file is opened when its image is asked for."""
    if len(paths) != len(labels):
        raise LpmbenchError(f"There are {len(paths)} images, but {len(labels)} labels.")
    return ImageSet(
        labels=np.asarray(labels),
        classes=tuple(classes),
        read=lambda position: read_image(paths[position]),
        fingerprint=lambda position: _sha256_of_file(paths[position]),
        size_of=lambda position: size_of_image(paths[position]),
    )


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """The image in a file, in mode "L" or "RGB", its alpha dropped.

    upright: turn it by its EXIF orientation, which torchvision and the published results on ImageNet do not.
    Raises LpmbenchError naming the file if it is missing, no image, cut short, or deeper than 8 bits.
    """
    with _opened(path) as image:
        image.load()  # opening reads the header only; a file that was cut short shows here
        return _eight_bit(ImageOps.exif_transpose(image) if upright else image, path)


def size_of_image(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, from the header of a file. Raises LpmbenchError naming a file without one."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file, not decoded yet; errors, then or later, become one line."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise LpmbenchError(f"There is no image at {path}.") from None
    except UnidentifiedImageError:
        raise LpmbenchError(f"{path} is not an image ({', '.join(FORMATS)}).") from None
    except BROKEN_IMAGE as error:
        raise LpmbenchError(f"{path} cannot be read as an image: {error}") from None


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """The image in mode "L" or "RGB". Refuses deeper pixels, which Pillow would clip to white."""
    if image.mode in DEEP_MODES:
        raise LpmbenchError(f"{path} has pixels in mode '{image.mode}', deeper than 8 bits; save it as 8-bit first.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def _sha256_of_file(path: Path) -> str:
    """The sha256 of a file's bytes. Raises LpmbenchError naming a file that cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise LpmbenchError(f"{path} cannot be read: {error.strerror}.") from None
