"""Grading: checks that images keep to the budget, and predicts them on noise that no attack has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, on_device
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import Norm, distance, project
from robustbench_lpm.protocol.noise_control import NoiseControl
from robustbench_lpm.protocol.oracle import check_largest, largest_of
from robustbench_lpm.protocol.plan import Plan
from robustbench_lpm.randomness import Purpose
from robustbench_lpm.records.runs import DISTANCE_TOLERANCE


def within_budget(found: Tensor, originals: Tensor, norm: Norm, eps: float, mask: Tensor | None) -> Tensor:
    """The images that an attack returned, with fixed pixels restored, projected on ball and box, and checked.

    The attack may overshoot eps by rounding, so they are projected; anything else that is wrong raises LpmbenchError.
    """
    if found.shape != originals.shape:
        raise LpmbenchError(f"The attack returned shape {tuple(found.shape)}, not {tuple(originals.shape)}.")
    if not torch.isfinite(found).all():
        raise LpmbenchError("The attack returned pixels that are not finite numbers.")
    found = found.detach().to(originals)
    if mask is not None:
        found = torch.where(mask, found, originals)
    found = project(found, originals, norm, eps)
    worst = float(distance(found, originals, norm).max())
    if worst > eps + DISTANCE_TOLERANCE or found.min() < 0 or found.max() > 1:
        raise LpmbenchError(f"A projected image is at {norm} distance {worst:.6g} of eps {eps:.6g}: this is a bug.")
    return found


@torch.no_grad()
def predict(
    classifier: Classifier,
    images: Tensor,
    indices: Sequence[int],
    *,
    seed: int,
    purpose: Purpose,
    draws: int,
    chunk: int,
    classes: int | None = None,
    noise_control: NoiseControl = NoiseControl(),  # noqa: B008 (immutable)
) -> Tensor:
    """Predicted labels (B, draws) of images (B, C, H, W) in full precision; draw k is on noise keyed by (purpose, k).

    Of a deterministic classifier, or where all noise is frozen, one draw: (B, 1).
    """
    draws = draws if noise_control.leaves_noise(classifier) else 1
    step = max(1, chunk // classifier.passes)
    together = max(1, step // len(images))  # draws
    columns, largest = [], []
    for draw in range(0, draws, together):
        count, predictions = min(together, draws - draw), []
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            drawn = noise_control.sample(classifier, seed, indices[part], purpose, draw, count)
            logits = classifier(images[part], on_device(drawn, images.device)).unflatten(0, (count, -1))
            largest.append(largest_of(logits, classes).flatten())
            predictions.append(logits.argmax(-1))
        columns.append(torch.cat(predictions, dim=1))
    check_largest(torch.cat(largest))
    return torch.cat(columns).T.cpu()


def grade(plan: Plan, images: Tensor, indices: Sequence[int], purpose: Purpose) -> Tensor:
    """Predicted labels (B, draws) of images (B, C, H, W) of a plan, under its noise control; see `predict`."""
    options = plan.options
    return predict(
        plan.classifier, images, indices, seed=options.seed, purpose=purpose, draws=options.draws, chunk=plan.chunk,
        classes=plan.classes, noise_control=plan.noise_control,
    )  # fmt: skip
