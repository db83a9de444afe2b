"""SIM2MNIST: MNIST digits rotated, scaled, moved and cluttered (Esteves et al., Polar Transformer Networks, ICLR 2018).

In the paper a digit on 96 x 96 pixels is rotated by any angle, magnified 1 to 2.4 times, placed anywhere and cluttered;
its generator and its clutter were never published. `draw_split` is a recipe of our own, "SIM2MNIST (regenerated)". The
same loader reads the original file, sim2mnist.npz.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robustbench_lpm.datasets.images import ImageSet, from_arrays
from robustbench_lpm.datasets.splits import SPLITS, check_split, data_root
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import generator

FILE = "sim2mnist.npz"
CLASSES = tuple("0123456789")
Report = Callable[[int], object]  # called from time to time with the number of images done
COMMAND = "lpmbench data sim2mnist --data DIR-OF-MNIST"


@dataclass(frozen=True)
class Recipe:
    """How the regenerated SIM2MNIST is drawn.

    All 70,000 digits of MNIST, shuffled by the seed, go to the splits in turn: no digit is in two of them. Each is
    rotated by an angle uniform on [0, 360) degrees, magnified by a factor uniform on [smallest, largest] and resampled
    bilinearly; its centre is uniform over the places that keep the rotated digit on the canvas. Clutter: `patches`
    squares of `patch` pixels cut at random from other digits of the split, rotated by quarter turns, at random places;
    digit and clutter join by the maximum. Eight squares of 8 x 8 are the clutter of Mnih et al. 2014 (arXiv 1406.6247)
    on their canvas of 100 x 100.
    """

    seed: int = 0
    side: int = 96
    train: int = 10_000
    validation: int = 5_000
    test: int = 50_000
    smallest: float = 1.0
    largest: float = 2.4
    patches: int = 8
    patch: int = 8

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def draw_split(
    recipe: Recipe, digits: NDArray[np.uint8], labels: NDArray[Any], split: str, report: Report = lambda done: None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, side, side), 0 to 255, and labels (N,) of a split.

    digits, labels: all of MNIST, (70000, 28, 28) and (70000,), training images first.
    Raises LpmbenchError when there are fewer digits than the recipe asks for.
    """
    sizes = list(recipe.sizes.values())
    if sum(sizes) > len(digits):
        raise LpmbenchError(f"SIM2MNIST needs {sum(sizes)} digits, but there are {len(digits)}.")
    order = torch.randperm(len(digits), generator=generator("sim2mnist", recipe.seed, "order")).numpy()
    start = sum(sizes[: SPLITS.index(split)])
    own = order[start : start + recipe.sizes[split]]
    sources = torch.from_numpy(digits[own]).float() / 255
    images = np.empty((len(own), recipe.side, recipe.side), dtype=np.uint8)
    for position in range(len(own)):
        keyed = generator("sim2mnist", recipe.seed, split, position)
        canvas = torch.maximum(_placed(recipe, sources[position], keyed), _clutter(recipe, sources, position, keyed))
        images[position] = (canvas * 255).round().byte().numpy()
        if position % 100 == 99 or position + 1 == len(own):
            report(position + 1)
    return images, labels[own].astype(np.int64)


def _placed(recipe: Recipe, digit: Tensor, keyed: torch.Generator) -> Tensor:
    """One digit (28, 28) on an empty canvas."""
    share = torch.rand(4, generator=keyed, dtype=torch.float64)
    angle = 2 * math.pi * float(share[0])
    scale = recipe.smallest + float(share[1]) * (recipe.largest - recipe.smallest)
    forward = scale * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    # The extent of the digit around its centre after rotation and magnification; pixels, half a pixel of margin.
    rows, columns = digit.nonzero(as_tuple=True)
    middle = (len(digit) - 1) / 2
    ink = torch.stack([columns - middle, rows - middle]).double()
    spread = forward @ ink
    low, high = spread.amin(1) - scale / 2, spread.amax(1) + scale / 2
    room = (recipe.side - (high - low)).clamp(min=0)
    centre = share[2:] * room - low - 0.5  # pixel coordinates of the digit's centre
    # From canvas pixels back to the digit's: the inverse map, in the coordinates of grid_sample.
    pixels = torch.arange(recipe.side, dtype=torch.float64)
    y, x = torch.meshgrid(pixels - centre[1], pixels - centre[0], indexing="ij")
    back = torch.stack([x, y], dim=-1) @ forward.inverse().T
    grid = (back / (len(digit) / 2)).float()
    return F.grid_sample(digit[None, None], grid[None], padding_mode="zeros", align_corners=False)[0, 0].clamp(0, 1)


def _clutter(recipe: Recipe, sources: Tensor, own: int, keyed: torch.Generator) -> Tensor:
    """Squares cut from other digits, on an empty canvas."""
    canvas = torch.zeros(recipe.side, recipe.side)
    free, inside = recipe.side - recipe.patch + 1, sources.shape[-1] - recipe.patch + 1
    for _ in range(recipe.patches):
        limits = [max(1, len(sources) - 1), inside, inside, 4, free, free]
        other, top, left, turns, row, column = (int(torch.randint(n, (1,), generator=keyed)) for n in limits)
        other += other >= own  # never the digit itself
        piece = sources[other % len(sources), top : top + recipe.patch, left : left + recipe.patch].rot90(turns)
        place = canvas[row : row + recipe.patch, column : column + recipe.patch]
        torch.maximum(place, piece, out=place)
    return canvas


def sim2mnist(*, data: Path | None, split: str, folder: Path) -> ImageSet:
    """96 x 96 digits, rotated, scaled, moved and cluttered, in the order of the file: 10k / 5k / 50k.

    data: the folder of sim2mnist.npz, the original or what `lpmbench data sim2mnist` makes; or the file itself.
    Source: Esteves, Allen-Blanchette, Zhou and Daniilidis, Polar Transformer Networks, ICLR 2018.
    """
    check_split("sim2mnist", split)
    pixels, labels = _read_file(_find_file(data), split)
    return from_arrays(pixels, labels, CLASSES)


def _find_file(data: Path | None) -> Path:
    """The path of sim2mnist.npz. Raises LpmbenchError if there is none."""
    if data is not None and data.suffix == ".npz":
        if not data.is_file():
            raise LpmbenchError(f"There is no file {data}.")
        return data
    root = data_root(data)
    places = [root / FILE, root / "sim2mnist" / FILE]
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise LpmbenchError(
        f"SIM2MNIST is not in {' or '.join(str(place) for place in places)}. "
        f"Make it from MNIST: {COMMAND}; then give its folder with --data."
    )


def _read_file(path: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 96, 96), 0 to 255, and labels (N,) of a split of the file.

    The original's images may be flat, have an axis for their one channel, or be floats in [0, 1]; its labels are
    one-hot. Raises LpmbenchError naming the file when it holds anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file[f"x_{split}"], file[f"y_{split}"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LpmbenchError(f"{path} is not a file of SIM2MNIST: {' '.join(str(error).split())[:200]}.") from None
    side = math.isqrt(images[0].size) if len(images) else 0
    if not side or images[0].size != side * side or len(images) != len(labels):
        raise LpmbenchError(f"{path}: x_{split} {images.shape} and y_{split} {labels.shape} are no labelled images.")
    images = images.reshape(len(images), side, side)
    if images.dtype != np.uint8:  # floats in [0, 1], or the same numbers from 0 to 255
        largest = float(images.max())
        images = (images.astype(np.float64) * (255 if largest <= 1 else 1)).round().clip(0, 255).astype(np.uint8)
    labels = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(len(labels))
    return images, labels.astype(np.int64)


def regenerate(
    recipe: Recipe, digits: NDArray[np.uint8], labels: NDArray[Any], report: Report = lambda done: None
) -> dict[str, NDArray[np.uint8]]:
    """Every array of the file, under the names of the original: x_train (N, 96, 96), y_train (N, 10) one-hot, ..."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    done = 0
    for split, size in recipe.sizes.items():
        report_split = partial(lambda before, position: report(before + position), done)
        images, found = draw_split(recipe, digits, labels, split, report_split)
        arrays |= {f"x_{split}": images, f"y_{split}": np.eye(len(CLASSES), dtype=np.uint8)[found]}
        done += size
    return arrays


def hashes(arrays: dict[str, NDArray[np.uint8]]) -> dict[str, str]:
    """The sha256 of each array's bytes."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def packed(arrays: dict[str, NDArray[np.uint8]]) -> bytes:
    """The content of a compressed .npz with these arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
