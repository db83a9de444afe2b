"""What an attack may ask of the classifier that it attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Draws:
    """Noise for `count` draws over a batch of B images: each source is (count · B, ...), one draw after the other."""

    values: dict[str, Tensor]
    count: int


@dataclass(frozen=True)
class Cost:
    """Passes of the classifier that an attack needs for one image, at most."""

    forwards: int
    backwards: int = 0


class Oracle(Protocol):
    """A classifier as an attack sees it: noise as an argument, every pass counted, fixed pixels enforced.

    It belongs to one batch of B images; every method works on that batch, in its order.
    """

    @property
    def indices(self) -> list[int]:
        """The images' indices in the data set."""

    @property
    def classes(self) -> int:
        """The number of classes K."""

    @property
    def stochastic(self) -> bool:
        """Whether noise matters. If not, `noise` is empty and one draw is all there is."""

    @property
    def chunk(self) -> int:
        """Images that pass the network at once: a good size for the pieces of a large query."""

    @property
    def generators(self) -> list[torch.Generator]:
        """One generator for each image, for the attack's own choices (starts, directions)."""

    def noise(self, draws: int = 1, *, paired: bool = False) -> Draws:
        """Fresh attack noise. With paired=True, 2·draws of which draw i and draw i + draws are the same.

        For a deterministic classifier the draws would all be alike: ask for one (see `stochastic`).
        """

    def __call__(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K) of images (B, C, H, W), or of other images in each draw, (draws, B, C, H, W)."""

    def rows(self, keep: Tensor) -> Oracle:
        """The oracle of some of the images: keep is a tensor of positions, or a mask (B,)."""

    def choose(self, candidates: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """For each image the strongest of the candidates (each (B, C, H, W)), judged on noise kept for selection."""

    def view(self) -> nn.Module:
        """A module from images to logits for code that knows no noise: it draws fresh attack noise at every call.

        It takes the whole batch, or, when the oracle belongs to one image, any number of versions of it.
        """
