"""The worst rotation and translation of each image, by exhaustive search of a grid (Engstrom et al. 2019, arXiv
1712.02779, section 3).

Images are turned about the centre and moved as in `studies.invariance`. For each image the transformation of the grid
is chosen that is misclassified under most selection draws, at a tie that of the lowest mean margin; its accuracy is
read on other draws. So a choice that is lucky on its own draws gains nothing. For a deterministic model the search is
exact on the grid. The worst rotation alone, the worst translation alone and the worst of some random transformations
are chosen among those of the same grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, Noise, on_device
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.errors import Attempt, LpmbenchError
from robustbench_lpm.protocol.oracle import check_logits
from robustbench_lpm.randomness import Addresses, Purpose
from robustbench_lpm.registry.tasks import Data
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies.invariance import warped
from robustbench_lpm.studies.study import Row, Spent, Study, load_all, resolved

IMAGES_IN_A_BLOCK = 32  # each takes hundreds of passes, which an interruption loses
SEARCHED = ("random", "rotation", "translation", "grid")  # what is chosen among: see `Spatial.candidates`


@dataclass(frozen=True)
class Spatial(Study):
    """Accuracy of some models on images as they are, on average over the grid, and at worst."""

    name: ClassVar[str] = "spatial"
    averages_runs: ClassVar[bool] = False
    rotation: float = 30.0  # degrees, either way
    translation: float = 3.0  # pixels, to either side and up or down
    steps: tuple[int, int] = (31, 5)  # angles, and places in each direction
    random: int = 10  # transformations that a random search tries
    select: int = 10  # draws of a stochastic model on which transformations are compared

    @property
    def block_size(self) -> int:
        return min(self.chunk, IMAGES_IN_A_BLOCK)

    def varied(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rotation", "translation", "random", "select")} | {
            "steps": list(self.steps)
        }

    def words(self) -> list[str]:
        numbers = [f"--{name} {getattr(self, name):.12g}" for name in ("rotation", "translation", "random", "select")]
        return [*numbers, f"--steps {','.join(map(str, self.steps))}"]

    def grid(self) -> list[tuple[float, float, float]]:
        """Every transformation: degrees against the clock, and pixels to the right and down."""
        angles = _evenly(self.rotation, self.steps[0])
        places = _evenly(self.translation, self.steps[1])
        return [(angle, right, down) for angle in angles for right in places for down in places]

    def cells(self) -> list[Row]:
        angles, places = f"{self.rotation:g}°", f"{self.translation:g} pixels"
        return [
            {"searched": "none", "words": "as it is"},
            {"searched": "mean", "words": f"mean of the grid, up to {angles} and {places}"},
            {"searched": "random", "words": f"worst of {self.random} at random"},
            {"searched": "rotation", "words": f"worst rotation, up to {angles}"},
            {"searched": "translation", "words": f"worst translation, up to {places}"},
            {"searched": "grid", "words": f"worst of both, of {len(self.grid())}"},
        ]

    def compared(self, model: LoadedModel) -> int:
        """The draws on which transformations are compared."""
        return self.select if model.classifier.stochastic else 1

    def passes(self, model: LoadedModel) -> int:
        return self.compared(model) * len(self.grid()) + self.runs(model) * (1 + len(SEARCHED))

    def once(self, classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
        return classifier(images, noise)[None]

    def measured(
        self, model: LoadedModel, images: Tensor, labels: Tensor, indices: Sequence[int], spent: Spent
    ) -> Tensor:
        clean = super().measured(model, images, labels, indices, spent)
        right, margins = self._scores(model, images, labels, indices, spent)
        found = [clean, right.mean(0)[:, None, None]]
        grid, held_out = self.grid(), self._drawn(model, indices, "grade", self.runs(model))
        for candidates in self.candidates(indices).values():
            allowed = candidates.T.to(right.device)
            share = right.where(allowed, torch.inf)
            choice = margins.where(share == share.amin(0), torch.inf).argmin(0)
            moved = torch.cat([_moved(images[[i]], *grid[chosen]) for i, chosen in enumerate(choice.tolist())])
            found.append(self.share_right(model, moved, labels, held_out, spent))
        return torch.cat(found, dim=1)

    def candidates(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """By the name of a search, among which transformations of the grid it chooses: (B, grid), bool."""
        grid = np.array(self.grid())
        count = len(indices)
        still = np.stack([(grid[:, 1:] == 0).all(1), grid[:, 0] == 0])
        rotation, translation = torch.from_numpy(still)[:, None].expand(2, count, len(grid))
        tried = Addresses.of(self.seed, indices, "search").uniform("transformation", len(grid)).argsort(1)
        random = torch.zeros(count, len(grid), dtype=torch.bool).scatter_(1, tried[:, : self.random], True)
        return dict(zip(SEARCHED, (random, rotation, translation, torch.ones_like(random)), strict=True))

    def _scores(
        self, model: LoadedModel, images: Tensor, labels: Tensor, indices: Sequence[int], spent: Spent
    ) -> tuple[Tensor, Tensor]:
        """The share of selection draws that are right, and their mean margin, under each transformation: (grid, B)."""
        noises = self._drawn(model, indices, "select", self.compared(model))
        shares, margins = [], []
        for transformation in self.grid():
            moved = _moved(images, *transformation)
            logits = torch.stack([model.classifier(moved, noise) for noise in noises])
            check_logits(logits, self.classes or None)
            shares.append((logits.argmax(-1) == labels).double().mean(0))
            margins.append(objective("margin", logits, labels).double().mean(0))
            spent(len(images) * len(noises))
        return torch.stack(shares), torch.stack(margins)

    def _drawn(self, model: LoadedModel, indices: Sequence[int], purpose: Purpose, draws: int) -> list[Noise]:
        addresses = (Addresses.of(self.seed, indices, purpose, draw) for draw in range(draws))
        return [on_device(model.classifier.sample_noise(some), torch.device(self.device)) for some in addresses]


def _moved(images: Tensor, angle: float, right: float, down: float) -> Tensor:
    return warped(images, angle % 360, 1.0, right / images.shape[3], down / images.shape[2])


def _evenly(most: float, steps: int) -> list[float]:
    """So many numbers, which is odd, from -most to most; of one, 0."""
    half = steps // 2
    return [most * step / max(1, half) for step in range(-half, half + 1)]


def make_spatial(
    names: Sequence[str], data: Data, *, limit: int | None = None, device: str = "auto",
    checkpoint: Path | None = None, trust: bool = False, attempt: Attempt = nullcontext, **settings: Any,
) -> Spatial:  # fmt: skip
    """The study of registered models or cards.

    settings: `rotation`, `translation`, `steps`, `random`, `select`, `draws` (on which a stochastic model is graded),
    `seed` and `labels_fit`. attempt: the context in which each model is loaded and tried; one whose error it suppresses
    is left out.

    Raises LpmbenchError for numbers of steps that are not odd: the image as it is would not be on the grid.
    """
    models = load_all(names, checkpoint=checkpoint, trust=trust, device=device, attempt=attempt)
    return spatial(models, data, limit=limit, device=device, attempt=attempt, **settings)


def spatial(
    models: Sequence[LoadedModel], data: Data, *, limit: int | None = None, attempt: Attempt = nullcontext,
    **settings: Any,
) -> Spatial:  # fmt: skip
    """The study of loaded models; see `make_spatial`."""
    study = Spatial(tuple(models), data, **{"draws": 20} | settings)
    if any(number % 2 == 0 for number in study.steps):
        raise LpmbenchError("Both numbers of steps must be odd, so that the image as it is belongs to the grid.")
    return resolved(study, limit, attempt)
