"""Accuracy under the corruptions of `datasets.corruptions`, by severity, and the mean corruption error.

All models meet the same corrupted images and, draw by draw, the same noise (see `studies.study`). The random numbers of
a corruption are keyed by the image, so that they do not depend on how the images are split into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.datasets.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from robustbench_lpm.errors import Attempt, LpmbenchError
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.tasks import Data
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies.study import Row, Spent, Study, load_all, resolved

CLEAN = ("none", 0)


@dataclass(frozen=True)
class Corruptions(Study):
    """Accuracy of some models on corrupted images, and on the images as they are."""

    name: ClassVar[str] = "corruptions"
    kinds: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = SEVERITIES
    reference: str = ""  # the name of the model to whose errors those of the others are related

    def varied(self) -> dict[str, Any]:
        return {"corruptions": list(self.kinds), "severities": list(self.severities), "reference": self.reference}

    def words(self) -> list[str]:
        found = [] if self.kinds == tuple(CORRUPTIONS) else [f"--corruption {','.join(self.kinds)}"]
        found += [] if self.severities == SEVERITIES else [f"--severity {','.join(map(str, self.severities))}"]
        reference = [model.arguments.replace("--model", "--reference", 1) for model in self.related()]
        return found + reference

    def related(self) -> list[LoadedModel]:
        """The reference, if there is one."""
        return [model for model in self.models if model.name == self.reference]

    def points(self) -> list[tuple[str, int]]:
        """The corruptions and severities of the cells, the clean images first."""
        return [CLEAN, *((kind, severity) for kind in self.kinds for severity in self.severities)]

    def cells(self) -> list[Row]:
        return [{"corruption": kind, "severity": severity} for kind, severity in self.points()]

    def passes(self, model: LoadedModel) -> int:
        return self.runs(model) * len(self.points())

    def once(self, classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
        return classifier(images, noise)[None]

    def seen(self, images: Tensor, indices: Sequence[int], kind: str, severity: int) -> Tensor:
        """Images (B, C, H, W), those of `indices`, as the models see them in one cell."""
        if (kind, severity) == CLEAN:
            return images
        return corrupted(images, kind, severity, Addresses.of(self.seed, indices, "corrupt", stream=kind))

    def measured(
        self, model: LoadedModel, images: Tensor, labels: Tensor, indices: Sequence[int], spent: Spent
    ) -> Tensor:
        noises = self.noises(model, indices, self.runs(model))
        found = [
            self.share_right(model, self.seen(images, indices, *point), labels, noises, spent)
            for point in self.points()
        ]
        return torch.cat(found, dim=1)


def gallery(study: Corruptions) -> NDArray[np.float32]:
    """The first image under each corruption at each severity, (corruptions, severities, C, H, W) in [0, 1]."""
    images = study.data.read([0]).images[0][None]
    shown = [[study.seen(images, [0], kind, severity)[0] for severity in study.severities] for kind in study.kinds]
    return torch.stack([torch.stack(row) for row in shown]).numpy()


def make_corruptions(
    names: Sequence[str], data: Data, *, kinds: Sequence[str] = (), severities: Sequence[int] = SEVERITIES,
    reference: str | None = None, mc: Sequence[int] = (1,), limit: int | None = None, device: str = "auto",
    checkpoint: Path | None = None, trust: bool = False, attempt: Attempt = nullcontext, **settings: Any,
) -> Corruptions:  # fmt: skip
    """The study of registered models or cards; by default all corruptions at all severities.

    reference: one of the names, or another model's, which is studied too. mc, settings, attempt: as in
    `make_invariance`.

    Raises LpmbenchError for a severity that does not exist, and for a reference that cannot be studied.
    """
    if wrong := [severity for severity in severities if severity not in SEVERITIES]:
        raise LpmbenchError(f"A severity is a number from 1 to {len(SEVERITIES)}, not {wrong[0]}.")
    loading: dict[str, Any] = {"trust": trust, "device": device}
    models = load_all(names, checkpoint=checkpoint, attempt=attempt, **loading)
    if reference is not None and reference not in names:
        models = (*models, *load_all([reference], **loading))
    named = next((model.name for model in models if model.arguments.split() == ["--model", str(reference)]), "")
    chosen = tuple(kind for kind in CORRUPTIONS if kind in kinds) or tuple(CORRUPTIONS)
    study = Corruptions(
        models, data, mc=tuple(sorted({1, *mc})), device=device, kinds=chosen,
        severities=tuple(sorted(set(severities))), reference=named, **{"draws": 4} | settings,
    )  # fmt: skip
    return resolved(study, limit, attempt)
