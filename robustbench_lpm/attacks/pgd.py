"""Gradient attacks of one step and of many."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import Loss, objective, succeeded
from robustbench_lpm.norms import Norm, per_image, project, steepest, uniform_in_ball


@Declaration(cost=lambda eot: Cost(eot, eot))
def fgsm(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    eot: PositiveInt = 1, loss: Loss = "cross-entropy",
) -> Tensor:  # fmt: skip
    """The fast gradient (sign) method: one step of length eps (Goodfellow et al. 2015, section 4).

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        eot: draws of noise over which the gradient of a stochastic classifier is averaged.
    """
    noise = oracle.noise(eot)
    gradients, _, _ = oracle.gradient(images, noise, lambda logits: objective(loss, logits, labels, targets))
    return project(images - eps * steepest(gradients, norm), images, norm, eps)


@Declaration(cost=lambda steps, restarts, eot: Cost(steps * restarts * eot, steps * restarts * eot, restarts))
def pgd(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 40, step_size: PositiveFloat | None = None, restarts: PositiveInt = 1, eot: PositiveInt = 1,
    loss: Loss = "cross-entropy", random_start: bool = True, early_stop: bool = True,
) -> Tensor:  # fmt: skip
    """Projected gradient descent from a random point of the ball (Madry et al. 2018, section 2.1).

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        step_size: length of a step in the norm; by default 2.5 eps / steps, as in the paper's section 5.
        restarts: independent starts; the strongest result is chosen for each image on selection noise.
        eot: draws of noise over which every gradient of a stochastic classifier is averaged (Athalye et al. 2018).
        early_stop: a misclassified image is left alone, with a deterministic classifier only: there that is final.
    """
    starts = [
        uniform_in_ball(images, norm, eps, oracle.choices()) if random_start else images.clone()
        for _ in range(restarts)
    ]
    length = 2.5 * eps / steps if step_size is None else step_size
    stop = early_stop and not oracle.stochastic

    def descend(start: Tensor) -> Tensor:
        # Misclassified images stay as they are and leave the batch when the oracle looks; `active` are the positions
        # (b,) of the others, `current` their iterates.
        state = {"result": start.clone(), "current": start, "active": torch.arange(len(images), device=images.device)}
        for step in oracle.resumable(range(steps), state):
            active, current = state["active"], state["current"]
            here, label = oracle.rows(active), labels[active]
            target = targets[active] if targets is not None else None
            losses = partial(objective, loss, labels=label, targets=target)
            gradients, _, logits = here.gradient(current, here.noise(eot), losses)
            moved = project(current - length * steepest(gradients, norm), images[active], norm, eps)
            if stop:
                wrong = succeeded(logits, label, target)[0]
                if look := oracle.looks(step):
                    wrong = here.confirmed(current, wrong, label, target)
                moved = torch.where(per_image(wrong, moved), current, moved)
                if look and len(remaining := here.remaining(wrong)) < len(active):
                    state["result"][active] = moved
                    active, moved = active[remaining], moved[remaining]
            state |= {"active": active, "current": moved}
            if len(active) == 0:
                break
        state["result"][state["active"]] = state["current"]
        return state["result"]

    return oracle.choose([descend(start) for start in starts], labels, targets)
