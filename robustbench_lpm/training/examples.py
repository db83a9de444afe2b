"""Training data: labelled images by position, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from robustbench_lpm import zoo
from robustbench_lpm.datasets.examples import read_examples
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import generator
from robustbench_lpm.training.plans import Plan


class LabelledImages(Protocol):
    """What training asks of its data; what reads from a disk can fetch ahead behind the same two methods."""

    def __len__(self) -> int: ...

    def take(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and labels (B,) at these positions of the pinned order."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A split that fits into memory as one tensor (N, C, H, W), with labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copies of the images and labels at these positions."""
        chosen = torch.tensor(positions, dtype=torch.long)
        return self.images[chosen], self.labels[chosen]


def load_split(plan: Plan, data: Path | None, split: str) -> InMemory:
    """A split of the plan's data set. Raises LpmbenchError when its images cannot be stacked into one tensor."""
    found = zoo.load_images(plan.dataset, data=data, split=split, trust=plan.trust)
    examples = read_examples(found, range(len(found)), plan.size, plan.dataset.crop, plan.dataset.channels)
    if len({image.shape for image in examples.images}) > 1:
        raise LpmbenchError(
            f"Data set '{plan.dataset.name}' has images of unequal size; its recipe needs one, as in: size = \"224\"."
        )
    if int(examples.labels.max()) >= plan.card.classes:
        raise LpmbenchError(f"'{plan.dataset.name}' has more than the {plan.card.classes} classes of {plan.card.name}.")
    return InMemory(torch.stack(examples.images), examples.labels)


def shuffled_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every position once, in an order keyed by (seed, epoch), in batches of at most batch_size.

    Batches are as equal as can be: a small rest would have its own, noisy batch statistics.
    """
    order = torch.randperm(count, generator=generator(seed, "order", epoch))
    return [part.tolist() for part in order.tensor_split(-(-count // batch_size))]
