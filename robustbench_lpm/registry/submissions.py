"""Read adversarial images made by others, to be graded like our own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of_image, sha256_of_value
from robustbench_lpm.norms import Norm, distance
from robustbench_lpm.records.runs import ADVERSARIALS, DISTANCE_TOLERANCE
from robustbench_lpm.registry.tasks import Attack, Data

Pixels = dict[int, NDArray[np.float32]]  # by index: (C, H, W) in [0, 1]


def as_attack(images: Pixels, name: str = "submitted") -> Attack:
    """An attack that returns these images and does not query the classifier."""
    digest = sha256_of_value([[index, sha256_of_image(pixels)] for index, pixels in sorted(images.items())])
    parameters = {"sha256": digest}
    identity = {"name": name, "entry": "submission", "knowledge": "white-box", "parameters": parameters}

    @Declaration(cost=lambda: Cost(0))
    def submitted(oracle: Oracle, originals: Tensor, labels: Tensor, *, norm: Norm, eps: float) -> Tensor:
        return torch.from_numpy(np.stack([images[index] for index in oracle.indices])).to(originals)

    return Attack(
        name, submitted, {}, identity, "white-box", targeted=False, command="grade",
        arguments=f"--adversarials DIR --name {shlex.quote(name)}",
    )  # fmt: skip


def check_budget(images: Pixels, source: Data, norm: Norm, eps: float, indices: Sequence[int]) -> None:
    """Raise LpmbenchError for the first image that is not within eps of its original: none is projected."""
    for index in indices:
        original, found = source.read([index]).images[0], torch.from_numpy(images[index])
        if original.shape != found.shape:
            raise LpmbenchError(
                f"Image {index} has shape {tuple(found.shape)}, its original {tuple(original.shape)}; see --size."
            )
        reached = float(distance(found[None], original[None], norm))
        if reached > eps + DISTANCE_TOLERANCE:
            raise LpmbenchError(f"Image {index} is at {norm} distance {reached:.6g}, beyond eps {eps:.6g}.")


def read_submission(folder: Path, source: Data) -> Pixels:
    """The images in a directory, by index: adversarials.npz, adversarials.safetensors, or PNG files named by index.

    Raises LpmbenchError for anything that is not images in [0, 1] of examples that exist.
    """
    if (folder / "adversarials.npz").is_file():
        images = _from_npz(folder / "adversarials.npz")
    elif (folder / ADVERSARIALS).is_file():
        images = _from_safetensors(folder / ADVERSARIALS)
    else:
        images = _from_pngs(folder)
    for index, pixels in images.items():
        if not 0 <= index < len(source):
            raise LpmbenchError(f"{folder}: there is no example {index} in '{source.name}'.")
        if pixels.ndim != 3 or not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise LpmbenchError(f"{folder}: image {index} is not (C, H, W) with pixels in [0, 1].")
    return images


def _from_npz(path: Path) -> Pixels:
    try:
        with np.load(path, allow_pickle=False) as content:
            index, adversarial = content["index"], content["adversarial"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise LpmbenchError(f"{path} must hold arrays `index` and `adversarial`: {error}.") from None
    if index.ndim != 1 or index.dtype.kind not in "iu" or adversarial.ndim != 4 or len(index) != len(adversarial):
        raise LpmbenchError(f"{path}: `index` must be (N,) whole numbers and `adversarial` (N, C, H, W).")
    return _unique(path, list(zip(index.tolist(), adversarial, strict=True)))


def _from_safetensors(path: Path) -> Pixels:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise LpmbenchError(f"{path} cannot be read: {error}.") from None
    found = []
    for name in arrays:
        if name.startswith("index."):
            images = arrays.get(name.replace("index.", "adversarial.", 1))
            if images is None or len(images) != len(arrays[name]):
                raise LpmbenchError(f"{path}: '{name}' has no adversarial images of the same number.")
            found += list(zip(arrays[name].tolist(), images.astype(np.float32), strict=True))
    return _unique(path, found)


def _from_pngs(folder: Path) -> Pixels:
    files = sorted(path for path in folder.glob("*.png") if path.stem.isdigit()) if folder.is_dir() else []
    return _unique(folder, [(int(path.stem), _read_png(path)) for path in files])


def _read_png(path: Path) -> NDArray[np.float32]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            if image.mode not in ("L", "RGB"):
                raise LpmbenchError(f"{path} must be an 8-bit grey or RGB picture, not mode {image.mode}.")
            pixels = np.asarray(image).astype(np.float32) / np.float32(255)
    except (OSError, SyntaxError, ValueError) as error:
        raise LpmbenchError(f"{path} is no picture that can be read: {error}.") from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _unique(path: Path, found: list[tuple[int, NDArray[np.float32]]]) -> Pixels:
    images = dict(found)
    if not images:
        raise LpmbenchError(f"{path} holds no adversarials.npz, no {ADVERSARIALS} and no PNG files named by index.")
    if len(images) != len(found):
        raise LpmbenchError(f"{path} holds more than one image for the same index.")
    return images
