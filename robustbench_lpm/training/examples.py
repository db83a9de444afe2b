"""Training data: labelled images by position, in memory or read ahead from the disk, and the batches of an epoch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustbench_lpm.allocator import to_device
from robustbench_lpm.datasets.preprocessing import as_bytes, as_shares, choose_size, pad_to_square
from robustbench_lpm.devices import free_memory
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import generator
from robustbench_lpm.registry import zoo
from robustbench_lpm.training.plans import TrainingPlan

LARGEST_IN_MEMORY = 2 * 2**30  # bytes, of 8-bit pixels; a larger split stays on the disk
LARGEST_SHARE = 1 / 4  # of a GPU's free memory for the pixels of a split
CPU = torch.device("cpu")
MOST_WORKERS = 8  # by default
Labelled = tuple[Tensor, Tensor]  # images (B, C, H, W) in [0, 1] and labels (B,)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A split of a dataset. The same positions give the same bits, in memory and on the disk.

    read: the images (B, C, H, W) at some positions, uint8, or float in [0, 1]. labels: (N,). shape: (C, H, W).
    workers: processes that read the next batches ahead; with 0 this process reads them.
    notes: what a reader of results must know about the images, one line each.
    kept: all pixels (N, C, H, W), where they are in memory.
    """

    read: Callable[[Sequence[int]], Tensor]
    labels: Tensor
    shape: torch.Size
    workers: int = 0
    notes: tuple[str, ...] = ()
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: torch.device) -> LabelledImages:
        """The split with its pixels on the device, if they are in memory and small enough for it; else as it is."""
        if self.kept is None or self.kept.nbytes > _room(device):
            return self
        return in_memory(self.kept.to(device), self.labels.to(device), self.notes)

    def take(self, positions: Sequence[int]) -> Labelled:
        """Copies of the images and labels at these positions of the pinned order."""
        return self._labelled(self.read(positions), positions, CPU)

    def stream(self, batches: Iterable[Sequence[int]], device: torch.device = CPU) -> Iterator[Labelled]:
        """What `take` gives for each of these batches, in their order, on a device, which need not wait for the copies.

        Raises LpmbenchError if a worker ends.
        """
        listed = [list(batch) for batch in batches]
        for batch, pixels in zip(listed, self._ahead(listed, device), strict=True):
            yield self._labelled(pixels, batch, device)

    def _labelled(self, pixels: Tensor, positions: Sequence[int], device: torch.device) -> Labelled:
        pixels = to_device(pixels, device)  # as bytes, a quarter of the size
        labels = to_device(_rows(self.labels, positions), device)
        return as_shares(pixels) if pixels.dtype == torch.uint8 else pixels, labels

    def _ahead(self, batches: list[list[int]], device: torch.device) -> Iterator[Tensor]:
        """The pixels of each batch, read by the workers."""
        if not self.workers or len(batches) < 2:
            yield from map(self.read, batches)
            return
        # Loaders of datasets are often closures: forked processes need not pickle them.
        forked = "fork" in multiprocessing.get_all_start_methods()
        loader: DataLoader[Any] = DataLoader(
            batches,  # type: ignore[arg-type]
            batch_size=None,  # an item is a whole batch
            collate_fn=self._read_or_error,
            num_workers=min(self.workers, len(batches)),
            multiprocessing_context="fork" if forked else None,
            generator=torch.Generator(),  # else it would draw from the global one
            pin_memory=device.type == "cuda",  # by a thread, for `to_device`
        )
        try:
            with _workers_of(loader) as read_ahead:
                for found in read_ahead:
                    if isinstance(found, str):
                        raise LpmbenchError(found)
                    yield found
        # A worker was killed, or /dev/shm is full. A connection to the dead may fail before that is noticed.
        except (RuntimeError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LpmbenchError(f"A process that reads images ended: {reason}. Try --workers 0.") from None

    def _read_or_error(self, positions: list[int]) -> Tensor | str:
        """A batch as a worker reads it: an error comes as its message, without a traceback."""
        try:
            return self.read(positions)
        except LpmbenchError as error:
            return str(error)


@contextmanager
def _workers_of(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """What the loader gives. Within it a killed worker is an error of the loader's next batch, a few seconds later.

    Left alone, torch raises it from a handler of SIGCHLD, wherever the process is: in the step that uses a batch, say.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield iter(loader)  # torch sets no handler then
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)  # starts the workers and sets the handler
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield iterator
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def in_memory(images: Tensor, labels: Tensor, notes: tuple[str, ...] = ()) -> LabelledImages:
    """A split as one tensor (N, C, H, W), float in [0, 1] or uint8 of a quarter of the size, with labels (N,)."""
    return LabelledImages(partial(_rows, images), labels, images.shape[1:], notes=notes, kept=images)


def _rows(table: Tensor, positions: Sequence[int]) -> Tensor:
    return table[to_device(torch.tensor(positions, dtype=torch.long), table.device)]


def _room(device: torch.device) -> float:
    """Bytes that the pixels of a split may take on a device; 0 on the CPU, where they are already."""
    if device.type == "cuda":
        return min(LARGEST_IN_MEMORY, LARGEST_SHARE * free_memory(str(device)))
    return 0 if device.type == "cpu" else LARGEST_IN_MEMORY


def load_split(plan: TrainingPlan, data: Path | None, split: str, workers: int | None = None) -> LabelledImages:
    """A split of the plan's dataset, in memory unless it takes more than LARGEST_IN_MEMORY.

    workers: see LabelledImages; None for as many as there are processors to spare, at most MOST_WORKERS.
    Raises LpmbenchError for more classes than the model has, for a file that cannot be read, and for images of unequal
    size (of a split on the disk, when the first one is met).
    """
    card = plan.dataset
    source = zoo.load_images(card, data=data, split=split, trust=plan.trust)
    if int(source.labels.max()) >= plan.card.classes:
        raise LpmbenchError(f"'{card.name}' has more than the {plan.card.classes} classes of {plan.card.name}.")
    size = choose_size(source, plan.recipe.size, card.size, keep_shared=card.keep_shared_size)

    def pixels(position: int) -> Tensor:
        return pad_to_square(as_bytes(source.read(position), size, card.crop, card.channels, plan.recipe.fit))[0]

    shape = pixels(0).shape

    def read(positions: Sequence[int]) -> Tensor:
        images = torch.empty((len(positions), *shape), dtype=torch.uint8)
        for row, position in enumerate(positions):
            found = pixels(position)
            if found.shape != shape:
                raise LpmbenchError(
                    f"Dataset '{card.name}' has images of unequal size; its recipe needs one, as in: size = \"224\"."
                )
            images[row] = found
        return images

    labels = torch.from_numpy(source.labels)
    if len(labels) * shape.numel() <= LARGEST_IN_MEMORY:
        return in_memory(read(range(len(labels))), labels, source.notes)
    spare = min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else MOST_WORKERS
    return LabelledImages(read, labels, shape, spare if workers is None else workers, source.notes)


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every position once, in an order keyed by (seed, epoch), in batches of at most batch_size.

    Batches are as equal as can be: a small rest would have its own, noisy batch statistics.
    """
    order = torch.randperm(count, generator=generator(seed, "order", epoch))
    return [part.tolist() for part in order.tensor_split(-(-count // batch_size))]
