"""An attack on the fixations of a glimpsing classifier: it moves them off the object and never reads a logit."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.norms import Norm, project, stepped, uniform_in_ball


@Declaration(cost=lambda steps, restarts, eot: Cost(steps * restarts * eot, steps * restarts * eot, restarts))
def gaze(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 20, step_size: PositiveFloat | None = None, restarts: PositiveInt = 1, eot: PositiveInt = 5,
) -> Tensor:  # fmt: skip
    """Maximise the distance of the fixation means mu_t from the object's centre c: the mean of ||mu_t - c||², by PGD.

    The mean is taken over glimpses and over draws of noise. Labels serve only to choose among restarts.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        step_size: length of a step in the norm; by default 2.5 eps / steps.
        restarts: independent random starts; the strongest result is chosen for each image on selection noise.
        eot: draws of noise over which a gradient is averaged.

    Raises:
        LpmbenchError: for a classifier that does not glimpse.
    """
    length = 2.5 * eps / steps if step_size is None else step_size
    centres, found = centre_of(images)[:, None], []

    def away(means: Tensor) -> Tensor:
        return (means - centres).square().sum(-1).mean(-1)

    for _ in range(restarts):
        current = uniform_in_ball(images, norm, eps, oracle.choices())
        for _ in range(steps):
            gradients = oracle.gaze_gradient(current, oracle.noise(eot), away)
            current = project(stepped(current, -gradients, norm, length), images, norm, eps)
        found.append(current)
    return oracle.choose(found, labels, targets)


def centre_of(images: Tensor) -> Tensor:
    """The centre of the object in each image, (B, 2) as (x, y) in [-1, 1], x right and y down.

    It is the centroid of contrast: each pixel weighs |x - median(x)|, the median that of its channel in this image,
    averaged over channels. The middle of an image without contrast.
    """
    background = images.flatten(2).median(2).values[..., None, None]
    weights = (images - background).abs().mean(1)
    total = weights.sum((1, 2)).clamp_min(torch.finfo(images.dtype).tiny)
    # The middles of the pixels of a row and of a column, between -1 and 1.
    across, down = (
        (2 * torch.arange(pixels, device=images.device) + 1) / pixels - 1
        for pixels in (images.shape[-1], images.shape[-2])
    )
    x = (weights.sum(1) * across).sum(1) / total
    y = (weights.sum(2) * down).sum(1) / total
    return torch.stack([x, y], dim=1)
