"""A user's own images and labels (tensors, numpy arrays, lists, a torch Dataset or DataLoader) as `Data`.

Images are floats (N, C, H, W) in [0, 1]. Two conversions are made with a note: 8-bit pixels are divided by 255, and
channels that come last are moved. Everything else is refused in one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from robustbench_lpm.datasets.examples import Examples
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of_image
from robustbench_lpm.randomness import isolated_globals
from robustbench_lpm.registry.tasks import Data

OwnData = tuple[Any, Any] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]

# Keys in examples and batches that are dicts.
IMAGE_KEYS = ("pixel_values", "image", "images", "img", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
COLOURS = (1, 3)  # channels of an image where they may come last
ROUNDING = 0.01  # a resize may leave [0, 1] by this much


def data_of_ones_own(given: object, limit: int | None = None) -> Data:
    """A user's own labelled images.

    given: a pair (images, labels) as `data_from_tensors` takes them, a dict of both, a Dataset whose examples are such
    pairs or dicts, or a DataLoader. The last two are read once, under a fixed seed, so that a loader that shuffles
    gives one order. limit: only the first N are read.

    Raises LpmbenchError for anything but labelled images in [0, 1].
    """
    if limit is not None and limit < 1:
        raise LpmbenchError(f"limit must be at least 1, not {limit}.")
    if isinstance(given, tuple) and len(given) != 2:
        raise LpmbenchError(f"Data are a pair (images, labels), not a tuple of {len(given)}.")
    if _is_pair(given) or isinstance(given, Mapping):
        images, labels = _pair(given)
        return data_from_tensors(_first(images, limit), _first(labels, limit))
    notes = []
    if isinstance(given, DataLoader) and not (
        isinstance(given.dataset, IterableDataset) or isinstance(given.sampler, SequentialSampler)
    ):
        notes.append("the DataLoader shuffles: its images are in the order that it gives under seed 0")
    with _under_one_seed(given):
        examples = list(islice(_examples(given), limit))
    if not examples:
        raise LpmbenchError("There are no images in the data handed over.")
    return data_from_tensors([image for image, _ in examples], [label for _, label in examples], notes=notes)


def data_from_tensors(images: Any, labels: Any, name: str = "custom", *, notes: Sequence[str] = ()) -> Data:
    """Images and labels of a user's own, as data of that name.

    images: (N, C, H, W) floats in [0, 1] of any precision and device, uint8, or a list of (C, H, W), whose shapes may
    differ. labels: (N,) whole numbers from 0. Raises LpmbenchError for anything else.
    """
    wanted, told = _labels(labels), list(notes)
    pixels = _pixels(images, len(wanted), told)
    if len(pixels) != len(wanted):
        raise LpmbenchError(f"There are {len(pixels)} images and {len(wanted)} labels; each image needs its label.")

    def fingerprint(index: int) -> str:
        return sha256_of_image(pixels[index].numpy())

    def read(indices: Sequence[int]) -> Examples:
        chosen = list(indices)
        return Examples(
            images=[pixels[index] for index in chosen],
            labels=wanted[chosen],
            masks=[None] * len(chosen),
            indices=chosen,
            fingerprints=[fingerprint(index) for index in chosen],
            classes=(),
        )

    identity = {"name": name, "entry": "tensors", "size": "original", "split": "custom"}
    return Data(name, identity, wanted.numpy(), (), read, fingerprint, notes=tuple(told))


def _is_pair(given: object) -> bool:
    """Whether it is (images, labels); a list may also hold two examples (image, label)."""
    if isinstance(given, list) and len(given) == 2:
        return not all(isinstance(part, tuple | Mapping) for part in given)
    return isinstance(given, tuple)


def _first(given: Any, limit: int | None) -> Any:
    sliceable = isinstance(given, list | tuple) or getattr(given, "ndim", 0) > 0
    return given[:limit] if limit is not None and sliceable else given


def _pair(example: object) -> tuple[Any, Any]:
    """The image and the label of an example, or the images and labels of a batch."""
    if isinstance(example, Mapping):
        image, label = (next((key for key in keys if key in example), None) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if image is None or label is None:
            missing, keys = ("images", IMAGE_KEYS) if image is None else ("labels", LABEL_KEYS)
            raise LpmbenchError(
                f"A dict of data holds no {missing} under {', '.join(keys)}; it has {', '.join(map(str, example))}."
            )
        return example[image], example[label]
    if not isinstance(example, tuple | list) or len(example) < 2:
        kind = type(example).__name__
        raise LpmbenchError(f"Data are pairs of images and labels, but {kind} is none; give (images, labels).")
    return example[0], example[1]


def _examples(given: Any) -> Iterator[tuple[Any, Any]]:
    """Every (image, label) of a Dataset, a DataLoader or any other iterable."""
    if isinstance(given, DataLoader):
        for images, labels in map(_pair, given):
            if getattr(images, "ndim", None) == 3 and not getattr(labels, "ndim", 0):  # batch_size=None: no batch
                yield images, labels
            elif len(images) != len(labels):
                raise LpmbenchError(f"A batch of the DataLoader holds {len(images)} images and {len(labels)} labels.")
            else:
                yield from zip(images, labels, strict=True)
    elif isinstance(given, str | bytes | Tensor | np.ndarray) or not (
        isinstance(given, Iterable) or hasattr(given, "__getitem__")
    ):
        raise LpmbenchError(
            f"Data cannot be {type(given).__name__}; give a name, a pair (images, labels), a Dataset or a DataLoader."
        )
    elif hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, IterableDataset):
        for index in range(len(given)):
            yield _pair(given[index])
    else:
        yield from map(_pair, given)


@contextmanager
def _under_one_seed(given: object) -> Iterator[None]:
    """Make the random numbers of a dataset the same every time, and restore the caller's generators."""
    generator = (given.generator if isinstance(given, DataLoader) else None) or torch.Generator()
    state = generator.get_state()
    try:
        with isolated_globals(0):
            generator.manual_seed(0)
            yield
    except (LpmbenchError, OSError):
        raise
    except Exception as error:
        raise LpmbenchError(f"The data handed over cannot be read: {type(error).__name__}: {error}") from error
    finally:
        generator.set_state(state)


def _tensor(given: Any, what: str) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().cpu()
    try:
        return torch.from_numpy(np.array(given, order="C"))
    except (TypeError, ValueError):
        called = f"a list of {type(given[0]).__name__}" if isinstance(given, list) and given else type(given).__name__
        raise LpmbenchError(f"The {what} are no array of numbers but {called}.") from None


def _pixels(given: Any, labels: int, notes: list[str]) -> list[Tensor]:
    """Each image as float32 (C, H, W) in [0, 1]."""
    several = isinstance(given, list | tuple) and given and isinstance(given[0], Tensor | np.ndarray | Image.Image)
    parts = list(given) if several else [given]
    if any(isinstance(part, Image.Image) for part in parts):
        raise LpmbenchError(
            "The images are PIL pictures; make tensors of them: transform=torchvision.transforms.ToTensor()."
        )
    arrays = [_tensor(part, "images") for part in parts]
    if not several:
        _check_shape(arrays[0], labels)
        arrays = list(arrays[0])
    if not arrays or not all(array.numel() for array in arrays):
        raise LpmbenchError("There are no images in the data handed over.")
    for array in arrays:
        if array.dim() != 3:
            hint = "; a grey one needs its channel: image[None]" if array.dim() == 2 else ""
            raise LpmbenchError(f"An image is {tuple(array.shape)}; need (C, H, W) each{hint}.")
    dtypes = {array.dtype for array in arrays}
    eight_bits = dtypes == {torch.uint8}
    if not eight_bits and not all(dtype.is_floating_point for dtype in dtypes):
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise LpmbenchError(f"Images are {kinds}; need floats in [0, 1], or uint8 from 0 to 255.")
    # Tensors of floats have their channels first by custom; in other arrays they often come last.
    unsure = eight_bits or not any(isinstance(part, Tensor) for part in parts)
    if unsure and all(array.shape[2] in COLOURS and array.shape[0] not in COLOURS for array in arrays):
        notes.append(f"channels come last in images {tuple(arrays[0].shape)}: they were moved to (C, H, W)")
        arrays = [array.permute(2, 0, 1) for array in arrays]
    if eight_bits:
        notes.append("images are uint8: their pixels were divided by 255")
    found = [array.float() / 255 if eight_bits else array.float() for array in arrays]
    _check_range(found)
    return [image.contiguous() for image in found]


def _check_shape(images: Tensor, labels: int) -> None:
    shape = tuple(images.shape)
    if images.dim() == 3 and shape[0] != labels:
        raise LpmbenchError(f"Images are {shape}, a single one; need (N, C, H, W): images[None].")
    if images.dim() == 3:
        raise LpmbenchError(f"Images are {shape} without channels; need (N, C, H, W): images[:, None].")
    if images.dim() != 4:
        raise LpmbenchError(f"Images are {shape}; need (N, C, H, W).")


def _check_range(images: Sequence[Tensor]) -> None:
    ends = [image.aminmax() for image in images]
    for index, (low, high) in enumerate(ends):
        if not bool(low.isfinite() & high.isfinite()):
            raise LpmbenchError(f"Image {index} holds NaN or infinite pixels; pixels must be in [0, 1].")
    least, most = min(float(low) for low, _ in ends), max(float(high) for _, high in ends)
    if least >= 0 and most <= 1:
        return
    if least >= -ROUNDING and most <= 1 + ROUNDING:
        hint = "images.clamp(0, 1) takes off what a resize has left"
    elif least >= 0 and 2 < most <= 255:
        hint = "divide by 255"
    else:
        hint = "normalisation belongs inside the model"
    raise LpmbenchError(f"Pixels are in [{least:.4g}, {most:.4g}] and must be in [0, 1]: {hint}.")


def _labels(given: Any) -> Tensor:
    """Labels (N,) as int64."""
    if isinstance(given, list | tuple) and any(isinstance(label, Tensor | np.ndarray) for label in given):
        parts = [_tensor(label, "labels") for label in given]
        if len({part.shape for part in parts}) > 1:
            raise LpmbenchError("Labels differ in shape from image to image; need one whole number for each image.")
        labels = torch.stack([part if part.is_complex() else part.double() for part in parts])
    else:
        labels = _tensor(given, "labels")
    if labels.is_complex():
        raise LpmbenchError("Labels are complex numbers; need whole numbers from 0.")
    if labels.dim() == 2 and labels.shape[1] > 1:
        rows = labels.double()
        hot = bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) == 1).all())
        kind = "one-hot" if hot else "soft (or logits, or several for each image)"
        raise LpmbenchError(f"Labels are {kind}, {tuple(labels.shape)}; pass labels.argmax(1), one for each image.")
    if labels.dim() != 1:
        hint = ": labels.squeeze(1)" if labels.dim() == 2 else ": labels[None]" if labels.dim() == 0 else ""
        raise LpmbenchError(f"Labels are {tuple(labels.shape)}; need (N,), one for each image{hint}.")
    if labels.is_floating_point():
        for index, label in enumerate(labels.tolist()):
            if not float(label).is_integer():
                kind = (
                    "NaN." if label != label else f"{label:g}, a soft one or a regression's; need whole numbers from 0."
                )
                raise LpmbenchError(f"The label of image {index} is {kind}")
    for index, label in enumerate(labels.long().tolist()):
        if label < 0:
            raise LpmbenchError(
                f"The label of image {index} is {label}; labels count from 0. Leave out what has no label."
            )
    return labels.long()
