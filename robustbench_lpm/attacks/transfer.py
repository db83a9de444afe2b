"""A transfer attack: adversarial examples of other models (Dong et al. 2018, arXiv 1710.06081)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import Loss, objective
from robustbench_lpm.norms import Norm, per_image, project, stepped


# The passes go to the surrogates. The run knows their number, and so what the choice among them costs.
@Declaration(cost=lambda: Cost(0))
def transfer(
    oracle: Oracle, images: Tensor, labels: Tensor, *, surrogates: Sequence[Oracle], norm: Norm, eps: float,
    targets: Tensor | None = None,
    steps: PositiveInt = 20, eot: PositiveInt = 5, loss: Loss = "margin", momentum: NonNegativeFloat = 1.0,
) -> Tensor:  # fmt: skip
    """The momentum iterative method on every surrogate; the strongest result is chosen for each image.

    Only that choice, on selection noise, queries the classifier under attack.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        surrogates: oracles of other classifiers for the same batch; the run gives them.
        steps: of length eps / steps, from the image itself.
        eot: draws of noise over which a stochastic surrogate's gradient is averaged.
        momentum: the decay factor mu of the paper's equation 6.
    """
    losses = partial(objective, loss, labels=labels, targets=targets)

    def descend(surrogate: Oracle) -> Tensor:  # algorithm 1, MI-FGSM
        found, velocity = images.clone(), torch.zeros_like(images)
        for _ in range(steps):
            noise = surrogate.noise(eot)
            gradients, _, _ = surrogate.gradient(found, noise, losses)
            size = gradients.flatten(1).abs().mean(1).clamp_min(torch.finfo(gradients.dtype).tiny)
            velocity = momentum * velocity + gradients / per_image(size, gradients)
            found = project(stepped(found, velocity, norm, eps / steps), images, norm, eps)
        return found

    return oracle.choose([descend(surrogate) for surrogate in surrogates], labels, targets)
