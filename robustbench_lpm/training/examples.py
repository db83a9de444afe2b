"""Training data: labelled images by position, in memory or read ahead from the disk, and the batches of an epoch."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.preprocessing import Fit, Size, as_bytes, as_shares, choose_size, pad_to_square
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import generator
from robustbench_lpm.registry import zoo
from robustbench_lpm.training.plans import Plan

LARGEST_IN_MEMORY = 2 * 2**30  # bytes, of 8-bit pixels; a larger split stays on the disk
MOST_WORKERS = 8  # by default
Labelled = tuple[Tensor, Tensor]


class LabelledImages(Protocol):
    """What training asks of its data. The same positions give the same bits, wherever the images lie."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> torch.Size:
        """That of one image, (C, H, W)."""

    def take(self, positions: Sequence[int]) -> Labelled:
        """Images (B, C, H, W) in [0, 1] and labels (B,) at these positions of the pinned order."""

    def stream(self, batches: Iterable[Sequence[int]]) -> Iterator[Labelled]:
        """What `take` gives for each of these batches, in their order."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A split as one tensor (N, C, H, W), float in [0, 1] or uint8 of a quarter of the size, with labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> torch.Size:
        return self.images.shape[1:]

    def take(self, positions: Sequence[int]) -> Labelled:
        """Copies of the images and labels at these positions."""
        chosen = torch.tensor(positions, dtype=torch.long)
        pixels = self.images[chosen]
        return as_shares(pixels) if pixels.dtype == torch.uint8 else pixels, self.labels[chosen]

    def stream(self, batches: Iterable[Sequence[int]]) -> Iterator[Labelled]:
        return (self.take(batch) for batch in batches)


@dataclass(frozen=True, eq=False)
class OnDisk:
    """A split of which an image is read when it is asked for, prepared as the plan says.

    workers: processes that read the coming batches while the current one is worked on; 0 reads in this one.
    """

    source: ImageSet
    name: str  # of the data set
    size: Size
    crop: float
    channels: int
    fit: Fit
    workers: int

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> Tensor:
        """(N,)."""
        return torch.from_numpy(self.source.labels)

    @property
    def shape(self) -> torch.Size:
        return self.pixels(0).shape

    def pixels(self, position: int) -> Tensor:
        """One image (C, H, W), uint8. Raises LpmbenchError naming a file that cannot be read."""
        found = as_bytes(self.source.read(position), self.size, self.crop, self.channels, self.fit)
        return pad_to_square(found)[0]

    def bytes_of(self, positions: Iterable[int], out: Tensor) -> Tensor:
        """The images at these positions written into `out` (B, C, H, W), uint8, which is returned."""
        for row, position in enumerate(positions):
            pixels = self.pixels(position)
            if pixels.shape != out.shape[1:]:
                raise LpmbenchError(
                    f"Data set '{self.name}' has images of unequal size; its recipe needs one, as in: size = \"224\"."
                )
            out[row] = pixels
        return out

    def take(self, positions: Sequence[int]) -> Labelled:
        """Read the images at these positions."""
        return self._labelled(self._read(positions), positions)

    def stream(self, batches: Iterable[Sequence[int]]) -> Iterator[Labelled]:
        listed = [list(batch) for batch in batches]
        for batch, pixels in zip(listed, self._ahead(listed), strict=True):
            yield self._labelled(pixels, batch)

    def _ahead(self, batches: list[list[int]]) -> Iterator[Tensor]:
        """The pixels of each batch, read by the workers."""
        if not self.workers or len(batches) < 2:
            yield from map(self._read, batches)
            return
        # Loaders of data sets are closures more often than not: processes that are forked need not pickle them.
        forked = "fork" in multiprocessing.get_all_start_methods()
        loader = DataLoader(
            _Batches(self),
            sampler=batches,
            batch_size=None,  # an item is a whole batch
            num_workers=min(self.workers, len(batches)),
            multiprocessing_context="fork" if forked else None,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        try:
            for found in loader:
                if isinstance(found, str):
                    raise LpmbenchError(found)
                yield found
        except RuntimeError as error:  # a worker was killed, or /dev/shm is full
            reason = " ".join(str(error).split())[:200]
            raise LpmbenchError(f"A process that reads images ended: {reason}. Try --workers 0.") from None

    def _read(self, positions: Sequence[int]) -> Tensor:
        first = self.pixels(positions[0])
        return self.bytes_of(positions, torch.empty((len(positions), *first.shape), dtype=torch.uint8))

    def _labelled(self, pixels: Tensor, positions: Sequence[int]) -> Labelled:
        return as_shares(pixels), self.labels[list(positions)]


class _Batches(Dataset[Tensor | str]):
    """Batches by their positions, as a worker reads them: an error comes as its words, without a traceback."""

    def __init__(self, images: OnDisk) -> None:
        self._images = images

    def __getitem__(self, positions: list[int]) -> Tensor | str:
        try:
            return self._images._read(positions)
        except LpmbenchError as error:
            return str(error)


def load_split(plan: Plan, data: Path | None, split: str, workers: int | None = None) -> InMemory | OnDisk:
    """A split of the plan's data set, in memory unless it takes more than LARGEST_IN_MEMORY.

    workers: see OnDisk; None for as many as there are processors to spare, at most MOST_WORKERS.
    Raises LpmbenchError for more classes than the model has, and for images of unequal size (of a split on the disk,
    when the first one is met).
    """
    card = plan.dataset
    source = zoo.load_images(card, data=data, split=split, trust=plan.trust)
    if int(source.labels.max()) >= plan.card.classes:
        raise LpmbenchError(f"'{card.name}' has more than the {plan.card.classes} classes of {plan.card.name}.")
    spare = min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else MOST_WORKERS
    ahead = spare if workers is None else workers
    size = choose_size(source, plan.recipe.size, card.size, keep_shared=card.keep_shared_size)
    images = OnDisk(source, card.name, size, card.crop, card.channels, plan.recipe.fit, ahead)
    everything = (len(images), *images.shape)
    if torch.Size(everything).numel() > LARGEST_IN_MEMORY:
        return images
    pixels = images.bytes_of(range(len(images)), torch.empty(everything, dtype=torch.uint8))
    return InMemory(pixels, images.labels)


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every position once, in an order keyed by (seed, epoch), in batches of at most batch_size.

    Batches are as equal as can be: a small rest would have its own, noisy batch statistics.
    """
    order = torch.randperm(count, generator=generator(seed, "order", epoch))
    return [part.tolist() for part in order.tensor_split(-(-count // batch_size))]
