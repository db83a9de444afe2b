"""Gradient attacks of one step and of many."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Oracle
from robustbench_lpm.attacks.losses import Loss, objective
from robustbench_lpm.norms import Norm, project, steepest, uniform_in_ball


def fgsm(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    targets: Tensor | None = None,
    eot: PositiveInt = 1,
    loss: Loss = "cross-entropy",
) -> Tensor:
    """The fast gradient (sign) method: one step of length eps (Goodfellow et al. 2015, section 4).

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        eot: draws of noise over which the gradient of a stochastic classifier is averaged.
    """
    noise = oracle.noise(eot)
    gradients, _, _ = oracle.gradient(images, noise, lambda logits: objective(loss, logits, labels, targets))
    return project(images - eps * steepest(gradients, norm), images, norm, eps)


def fgsm_cost(*, eot: int = 1, **_: object) -> Cost:
    """One pass each way for every draw."""
    return Cost(eot, eot)


def pgd(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    targets: Tensor | None = None,
    steps: PositiveInt = 40,
    step_size: PositiveFloat | None = None,
    restarts: PositiveInt = 1,
    eot: PositiveInt = 1,
    loss: Loss = "cross-entropy",
    random_start: bool = True,
    early_stop: bool = True,
) -> Tensor:
    """Projected gradient descent from a random point of the ball (Madry et al. 2018, section 2.1).

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        step_size: length of a step in the norm; by default 2.5 eps / steps, as in the paper's section 5.
        restarts: independent starts; the strongest result is chosen for each image on selection noise.
        eot: draws of noise over which every gradient of a stochastic classifier is averaged (Athalye et al. 2018).
        early_stop: leave an image alone once it has fallen. Only where that is final: with a deterministic classifier.
    """
    starts = [
        uniform_in_ball(images, norm, eps, oracle.choices()) if random_start else images.clone()
        for _ in range(restarts)
    ]
    length = 2.5 * eps / steps if step_size is None else step_size
    stop = early_stop and not oracle.stochastic
    found = [_descend(oracle, images, s, labels, targets, norm, eps, steps, length, eot, loss, stop) for s in starts]
    return oracle.choose(found, labels, targets)


def pgd_cost(*, steps: int = 40, restarts: int = 1, eot: int = 1, **_: object) -> Cost:
    """A pass each way for every step, draw and restart."""
    return Cost(steps * restarts * eot, steps * restarts * eot, choices=restarts)


@dataclass
class _Descent:
    """What one step hands to the next."""

    result: Tensor  # (B, C, H, W), of images that have fallen
    current: Tensor  # iterates (b, C, H, W) of those that stand
    active: Tensor  # their positions (b,)


def _descend(
    oracle: Oracle,
    images: Tensor,
    start: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    norm: Norm,
    eps: float,
    steps: int,
    step_size: float,
    eot: int,
    loss: str,
    stop: bool,
) -> Tensor:
    """One run from one start; images that have fallen leave the batch."""
    descent = _Descent(start.clone(), start, torch.arange(len(images), device=images.device))
    for _ in oracle.resumable(range(steps), vars(descent)):
        active, here, current = descent.active, oracle.rows(descent.active), descent.current
        label, target = labels[active], targets[active] if targets is not None else None
        losses = partial(objective, loss, labels=label, targets=target)
        gradients, _, logits = here.gradient(current, here.noise(eot), losses)
        moved = project(current - step_size * steepest(gradients, norm), images[active], norm, eps)
        if stop and (fallen := here.fallen(current, logits, label, target)).any():
            descent.result[active[fallen]] = current[fallen]
            descent.active, moved = active[~fallen], moved[~fallen]
            if len(descent.active) == 0:
                return descent.result
        descent.current = moved
    descent.result[descent.active] = descent.current
    return descent.result
