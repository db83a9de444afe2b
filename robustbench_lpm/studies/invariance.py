"""Clean accuracy of models on images that are rotated, scaled or translated, by how much.

Images are warped as the tensor in [0, 1] that the models see: bilinearly, with zeros from outside. The unchanged image
and quarter turns of a square are not resampled. All models and all warps meet the same images and, draw by draw, the
same noise (see `studies.study`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.errors import Attempt, LpmbenchError
from robustbench_lpm.registry.tasks import Data
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies.study import Row, Spent, Study, load_all, resolved

Warp = tuple[float, float, float, float]  # the arguments of `warped`: angle, scale, right, down
# For each transformation the warps of a magnitude, each of which gives an image of its own.
TRANSFORMATIONS: dict[str, Callable[[float], tuple[Warp, ...]]] = {
    "rotate": lambda degrees: ((degrees % 360, 1, 0, 0),),
    "scale": lambda factor: ((0, factor, 0, 0),),
    "translate": lambda share: ((0, 1, share, 0), (0, 1, 0, share)),
}


def warped(images: Tensor, angle: float = 0.0, scale: float = 1.0, right: float = 0.0, down: float = 0.0) -> Tensor:
    """Images (B, C, H, W) in [0, 1], turned and magnified about the centre, then moved; in the same shape and range.

    angle: degrees, counter-clockwise. right, down: shares of the image's width and height.
    """
    height, width = images.shape[-2:]
    if (scale, right, down) == (1, 0, 0):
        if angle == 0:
            return images
        if angle % 90 == 0 and height == width:
            return images.rot90(int(angle // 90), dims=(2, 3))
    radians = math.radians(angle)
    cos, sin = math.cos(radians) / scale, math.sin(radians) / scale
    # From a pixel of the result back to where it came from; lengths in pixels, so that a turn is one on oblong images.
    back = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    half = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    moved = torch.tensor([right * width, down * height], dtype=torch.float64)
    # affine_grid counts from the centre, in halves of the sides.
    affine = torch.cat([back * half / half[:, None], (-(back @ moved) / half)[:, None]], dim=1).to(images)
    grid = F.affine_grid(affine.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    # Rounding may leave [0, 1] by the last bit.
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)


@dataclass(frozen=True)
class Invariance(Study):
    """Accuracy of some models on warped images; `values` are the magnitudes by transformation."""

    name: ClassVar[str] = "invariance"
    values: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def varied(self) -> dict[str, Any]:
        return {"transformations": {name: list(values) for name, values in self.values}}

    def words(self) -> list[str]:
        return [f"--{name} {','.join(f'{value:.12g}' for value in values)}" for name, values in self.values]

    def cells(self) -> list[Row]:
        return [{"transformation": name, "value": value} for name, values in self.values for value in values]

    def warps(self) -> list[tuple[Warp, ...]]:
        """For each cell the warps whose mean it is."""
        return [TRANSFORMATIONS[name](value) for name, values in self.values for value in values]

    def passes(self, model: LoadedModel) -> int:
        return self.runs(model) * len({warp for warps in self.warps() for warp in warps})

    def once(self, classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
        return classifier(images, noise)[None]

    def share_right(
        self, model: LoadedModel, images: Tensor, labels: Tensor, noises: Sequence[Noise], spent: Spent
    ) -> Tensor:
        found: dict[Warp, Tensor] = {}
        for warp in {warp: None for warps in self.warps() for warp in warps}:  # each once: all have the unchanged image
            found[warp] = super().share_right(model, warped(images, *warp), labels, noises, spent)
        return torch.cat([torch.stack([found[warp] for warp in warps]).mean(0) for warps in self.warps()], dim=1)


def make_invariance(
    names: Sequence[str], data: Data, values: Mapping[str, Sequence[float]], *, mc: Sequence[int] = (1,),
    limit: int | None = None, device: str = "auto", checkpoint: Path | None = None, trust: bool = False,
    attempt: Attempt = nullcontext, **settings: Any,
) -> Invariance:  # fmt: skip
    """The study of registered models or cards; `values` are the magnitudes by name of a transformation.

    mc: the values of M; 1 is always among them. settings: `draws` (K, of the average of max M runs), `seed` and
    `labels_fit`. attempt: the context in which each model is loaded and tried; one whose error it suppresses is left
    out.

    Raises LpmbenchError for models that answer in other labels than the dataset's, for those without weights, and for
    a scale that is not above 0.
    """
    if any(value <= 0 for value in values.get("scale", ())):
        raise LpmbenchError("A scale is a factor above 0.")
    models = load_all(names, checkpoint=checkpoint, trust=trust, device=device, attempt=attempt)
    chosen = tuple((name, tuple(sorted(set(values[name])))) for name in TRANSFORMATIONS if values.get(name))
    averages = tuple(sorted({1, *mc}))
    study = Invariance(models, data, mc=averages, device=device, values=chosen, **{"draws": 4} | settings)
    return resolved(study, limit, attempt)
