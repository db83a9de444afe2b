"""What is attacked: registered networks as a peer would meet them or as we lay them out, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.architectures.precision import lay_out
from robustbench_lpm.randomness import generator
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import Data, resolve_data, resolve_model
from robustbench_lpm.registry.zoo import LoadedModel

Layout = Literal["system", "ours"]  # of a worker: plain as networks come, or as our commands set it up
PANDA = 388


@dataclass(frozen=True)
class Place:
    """Where a worker works."""

    layout: Layout
    device: str

    @cache  # noqa: B019 (one place for a whole process)
    def model(self, name: str, *, untrained: bool = False) -> LoadedModel:
        """A registered model with its weights, or with random ones."""
        given = self.untrained(name) if untrained else name
        model = resolve_model(given, device=self.device, name=name)
        self.restore(model.classifier)
        return model

    def restore(self, classifier: Classifier) -> None:
        """Put a classifier back as it was: some peers leave modes and gradients behind.

        A peer meets weights that want gradients, in torch's own order of memory, as a user's network has them.
        """
        plain = self.layout == "system"
        if plain:
            classifier.to(memory_format=torch.contiguous_format)
        classifier.eval().requires_grad_(plain).zero_grad(set_to_none=True)

    def untrained(self, name: str) -> Classifier:
        """The network of a card with random weights, the same ones in every process."""
        card = cards.model(name)
        torch.manual_seed(0)
        classifier = zoo.wrap(zoo.build(card), card).to(self.device).eval().requires_grad_(False)
        return classifier if self.layout == "system" else lay_out(classifier, self.device)


@cache
def data(dataset: str, folder: str | None = None) -> Data:
    """Images to attack; "panda" stands for eight views of the registered picture, "noise" for 128 random images."""
    if dataset == "noise":
        pixels = torch.rand(128, 3, 224, 224, generator=generator("noise"))
        return data_from_tensors(pixels, torch.arange(len(pixels)), name="noise")
    if dataset == "panda":
        return data_from_tensors(*_views_of_the_panda(), name="panda, 8 views")
    return resolve_data(dataset, data=Path(folder) if folder else None)


def images_of(source: Data, count: int, device: str) -> tuple[Tensor, Tensor]:
    """The first images (count, C, H, W) and their labels (count,)."""
    examples = source.read(range(count))
    return torch.stack(examples.images).to(device), examples.labels.to(device)


def _views_of_the_panda() -> tuple[Tensor, Tensor]:
    """The four corners of 224 pixels of the picture at 256 pixels, and their mirror images."""
    (picture,) = resolve_data("panda", size="256").read([0]).images
    corners = [picture[:, top : top + 224, left : left + 224] for top in (0, 32) for left in (0, 32)]
    views = torch.stack([*corners, *[corner.flip(-1) for corner in corners]])
    return views, torch.full((len(views),), PANDA)
