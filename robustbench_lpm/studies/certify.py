"""Certificates by randomised smoothing (Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, section 3.2).

The smoothed classifier answers with the class that a model gives most often to an image under Gaussian noise. A first
set of passes selects a class, other passes estimate how probable it is: with confidence 1 - alpha at least p. If p is
above 1/2, no perturbation of an L2 norm below sigma · Φ⁻¹(p) changes the answer; otherwise the classifier abstains.

The model may be stochastic: its own noise is drawn anew in every pass. The proof asks only for the probability of each
class at each input, so that it covers the noise of the image and that of the model together. What is certified is the
most frequent answer over both, not one pass of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_lpm import statistics
from robustbench_lpm.architectures.classifier import Classifier, Noise, on_device
from robustbench_lpm.errors import Attempt, LpmbenchError
from robustbench_lpm.protocol.oracle import check_logits
from robustbench_lpm.randomness import Addresses, Purpose
from robustbench_lpm.registry.tasks import Data
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies.study import Row, Shares, Spent, Study, load_all, resolved

IMAGES_IN_A_BLOCK = 8  # each takes thousands of passes, which an interruption loses


@dataclass(frozen=True)
class Certificates(Study):
    """The certified radius of each image, for models that are smoothed with `sigma`."""

    name: ClassVar[str] = "certify"
    averages_runs: ClassVar[bool] = False
    sigma: float = 0.25  # in pixel values of [0, 1]
    samples: int = 10_000  # of the estimate
    select: int = 100  # samples that select the class
    alpha: float = 0.001  # the probability that a certificate is wrong

    @property
    def block_size(self) -> int:
        return min(self.chunk, IMAGES_IN_A_BLOCK)

    def varied(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("sigma", "samples", "select", "alpha")}

    def words(self) -> list[str]:
        return [f"--{name} {value:.12g}" for name, value in self.varied().items()]

    def cells(self) -> list[Row]:
        return [{"measured": name} for name in ("natural", "selected", "votes")]

    def runs(self, model: LoadedModel) -> int:
        """Passes without noise on the image."""
        return self.draws if model.classifier.smoothed(0).stochastic else 1

    def passes(self, model: LoadedModel) -> int:
        return self.runs(model) + self.select + self.samples

    def once(self, classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
        return classifier(images, noise)[None]

    def measured(
        self, model: LoadedModel, images: Tensor, labels: Tensor, indices: Sequence[int], spent: Spent
    ) -> Tensor:
        """For each image, (B, 3, 1): accuracy without smoothing, the class that was selected, and how often the passes
        of the estimate gave it."""
        alone = replace(model, classifier=model.classifier.smoothed(0))
        natural = super().measured(alone, images, labels, indices, spent)[:, 0, 0]
        selected = self._votes(model, images, indices, "select", self.select, spent).argmax(1)
        votes = self._votes(model, images, indices, "grade", self.samples, spent)
        chosen = votes.gather(1, selected[:, None])[:, 0]
        return torch.stack([natural, selected.double(), chosen.double()], dim=1)[..., None]

    def _votes(
        self, model: LoadedModel, images: Tensor, indices: Sequence[int], purpose: Purpose, samples: int, spent: Spent
    ) -> Tensor:
        """How often each image was given each class, (B, K), in so many passes on noise of a purpose."""
        votes, together = torch.zeros(0), max(1, self.chunk // len(images))
        for first in range(0, samples, together):
            count = min(together, samples - first)
            addresses = Addresses.of(self.seed, indices, purpose, first).draws(count)
            noise = on_device(model.classifier.sample_noise(addresses), images.device)
            logits = model.classifier(images, noise)
            check_logits(logits, self.classes or None)
            if not first:
                votes = torch.zeros(len(images), logits.shape[1], dtype=torch.int64, device=images.device)
            answers = logits.argmax(1).unflatten(0, (count, -1)).T
            votes.scatter_add_(1, answers, torch.ones_like(answers))
            spent(len(logits))
        return votes

    def rows(self, found: Sequence[Shares]) -> list[Row]:
        """A row for each model and image: its certificate. `prediction` is -1 where the classifier abstains."""
        rows = []
        for model, per_image in zip(self.models, found, strict=True):
            natural, selected, votes = per_image[..., 0].T
            lower = statistics.lower_bound(votes.astype(np.int64), self.samples, self.alpha)
            for index, (share, label, count, least) in enumerate(zip(natural, selected, votes, lower, strict=True)):
                certain = bool(least > 0.5)
                rows.append({
                    "model": model.name, "dataset": self.data.name, "size": self.data.identity["size"],
                    "index": index, "label": int(self.data.labels[index]), "natural": float(share),
                    "prediction": int(label) if certain else -1,
                    "radius": statistics.certified_radius(float(least), self.sigma) if certain else 0.0,
                    "selected": int(label), "votes": int(count), "samples": self.samples, "lower": float(least),
                    "sigma": self.sigma, "alpha": self.alpha, "seed": self.seed,
                })  # fmt: skip
        return rows


def make_certificates(
    names: Sequence[str], data: Data, sigma: float | None = None, *, limit: int | None = None, device: str = "auto",
    checkpoint: Path | None = None, trust: bool = False, attempt: Attempt = nullcontext, **settings: Any,
) -> Certificates:  # fmt: skip
    """The certificates of registered models or cards.

    sigma: of the noise; None is the `smoothing` of the cards, which must agree. settings: `samples`, `select`, `alpha`,
    `draws` (passes of a stochastic model for its accuracy without smoothing), `seed` and `labels_fit`. attempt: the
    context in which each model is loaded and tried; one whose error it suppresses is left out.

    Raises LpmbenchError without a sigma above 0, and for settings out of range.
    """
    models = load_all(names, checkpoint=checkpoint, trust=trust, device=device, attempt=attempt)
    return certificates(models, data, sigma, limit=limit, device=device, attempt=attempt, **settings)


def certificates(
    models: Sequence[LoadedModel], data: Data, sigma: float | None = None, *, limit: int | None = None,
    attempt: Attempt = nullcontext, **settings: Any,
) -> Certificates:  # fmt: skip
    """The certificates of loaded models; see `make_certificates`."""
    if sigma is None:
        named = {model.classifier.smoothing for model in models} - {0.0}
        if len(named) != 1:
            raise LpmbenchError("Give the standard deviation of the noise with --sigma, such as --sigma 0.25.")
        (sigma,) = named
    smoothed = tuple(
        replace(m, classifier=m.classifier.smoothed(sigma), identity=m.identity | {"smoothing": sigma}) for m in models
    )
    study = Certificates(smoothed, data, sigma=sigma, **{"draws": 4} | settings)
    if not (study.sigma > 0 and 0 < study.alpha < 0.5 and study.samples > 0 and study.select > 0):
        raise LpmbenchError("Certificates need sigma above 0, alpha between 0 and 0.5, and samples.")
    return resolved(study, limit, attempt)
