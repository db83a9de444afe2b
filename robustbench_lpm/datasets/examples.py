"""Examples for an attack: read at given positions, prepared, and grouped by shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.preprocessing import Size, prepare
from robustbench_lpm.errors import LpmbenchError


@dataclass(frozen=True, eq=False)
class Examples:
    """N prepared examples, in the order they were asked for.

    images: (C, H, W) float32 in [0, 1] each; shapes may differ. labels: (N,) int64.
    masks: (1, H, W) bool each, True where a pixel may change, or None where all may.
    indices: positions in the pinned order of the split. fingerprints: sha256 of the raw contents.
    classes: names by label, () when unknown.
    """

    images: list[Tensor]
    labels: Tensor
    masks: list[Tensor | None]
    indices: list[int]
    fingerprints: list[str]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one shape. positions: their places in the Examples they come from.

    images: (B, C, H, W). labels: (B,). masks: (B, 1, H, W), or None where every pixel may change.
    """

    positions: list[int]
    indices: list[int]
    images: Tensor
    labels: Tensor
    masks: Tensor | None

    def __len__(self) -> int:
        return len(self.positions)


def read_examples(image_set: ImageSet, indices: Sequence[int], size: Size, crop: float, channels: int) -> Examples:
    """The examples at these positions of the pinned order. Raises LpmbenchError for a position that does not exist."""
    for index in indices:
        if not 0 <= index < len(image_set):
            raise LpmbenchError(f"There is no example {index}: the split holds {len(image_set)}, counted from 0.")
    prepared = [prepare(image_set.read(index), size, crop, channels) for index in indices]
    return Examples(
        images=[pixels for pixels, _ in prepared],
        labels=torch.from_numpy(image_set.labels[list(indices)]),
        masks=[mask for _, mask in prepared],
        indices=list(indices),
        fingerprints=[image_set.fingerprint(index) for index in indices],
        classes=image_set.classes,
    )


def batches_by_shape(examples: Examples, batch_size: int | None = None) -> Iterator[Batch]:
    """Every example once, in batches of one shape: shapes by first appearance, examples in order.

    batch_size: the most examples in a batch.
    """
    positions_of: dict[torch.Size, list[int]] = {}
    for position, pixels in enumerate(examples.images):
        positions_of.setdefault(pixels.shape, []).append(position)
    for positions in positions_of.values():
        step = batch_size or len(positions)
        for start in range(0, len(positions), step):
            chosen = positions[start : start + step]
            masks = [examples.masks[position] for position in chosen]
            free = torch.ones(1, *examples.images[chosen[0]].shape[1:], dtype=torch.bool)
            yield Batch(
                positions=chosen,
                indices=[examples.indices[position] for position in chosen],
                images=torch.stack([examples.images[position] for position in chosen]),
                labels=examples.labels[chosen],
                masks=torch.stack([free if mask is None else mask for mask in masks])
                if any(mask is not None for mask in masks)
                else None,
            )
