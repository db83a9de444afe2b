"""Gradient attacks of one step and of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import Loss, objective, succeeded
from robustbench_lpm.norms import Norm, lowest, per_image, project, stepped, uniform_in_ball

# Of the momentum method: the first and the last length of its steps, in shares of eps; the classes towards which it
# leads a deterministic classifier (at 100 to 400 steps three found more than two, four or nine on most networks); and
# the draws by which the classes of a stochastic one are ranked.
FIRST_LENGTH, LAST_LENGTH, TOWARDS, ASKED = 1 / 4, 1 / 100, 3, 10


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
    return lowest(images, gradients, norm, eps)


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
    descent = Descent(norm, eps, [2.5 * eps / steps if step_size is None else step_size] * steps, eot, loss, early_stop)
    return oracle.choose([descent(oracle, images, labels, start, targets) for start in starts], labels, targets)


def _momentum_cost(steps: int, eot: int, classes: int | None, stochastic: bool) -> Cost:
    count = _descents(classes, stochastic)
    if not count:
        return Cost(steps * eot, steps * eot)
    passes = max(1, steps // count) * count * eot
    return Cost(passes + (ASKED if stochastic else 1 + count), passes, count)


@Declaration(cost=_momentum_cost)
def momentum(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 200, eot: PositiveInt = 1, decay: NonNegativeFloat = 0.9,
    classes: NonNegativeInt | None = None, loss: Loss = "margin", early_stop: bool = True,
) -> Tensor:  # fmt: skip
    """Descent along a running mean of gradients, with steps that shrink (Dong et al. 2018, arXiv 1710.06081).

    A stochastic classifier needs one long descent: the mean averages its gradients over steps, which at equal passes
    finds more than an average over draws in every step. A deterministic one needs several: a descent away from the
    label ends where the class that was nearest cannot be reached, so the steps are shared by descents towards each of
    the likeliest other classes. Lengths follow a cosine from eps / 4 to eps / 100 (Loshchilov and Hutter 2017).

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        steps: of all descents together.
        eot: draws of noise for each gradient.
        decay: of the running mean.
        classes: descents towards so many classes, the strongest of which is chosen for each image on selection noise; 0
            for one descent away from the label; by default 3, or 0 for a stochastic classifier. With targets there is
            one descent, towards them.
        early_stop: a misclassified image is left alone, with a deterministic classifier only: there that is final.
    """
    count = min(_descents(classes, oracle.stochastic), oracle.classes - 1) if targets is None else 0
    each = max(1, steps // max(1, count))
    shares = [(1 + math.cos(math.pi * step / each)) / 2 for step in range(each)]
    lengths = [eps * (LAST_LENGTH + share * (FIRST_LENGTH - LAST_LENGTH)) for share in shares]
    descent = Descent(norm, eps, lengths, eot, loss, early_stop, decay)
    if not count:
        return descent(oracle, images, labels, images.clone(), targets)

    def descend(here: Oracle, originals: Tensor, label: Tensor, aimed: Tensor) -> list[Tensor]:
        return [descent(here, originals, label, originals.clone(), aimed=aimed)]

    found = towards_likeliest(oracle, images, labels, count, descend, early_stop=early_stop)
    return oracle.choose(found, labels)


def towards_likeliest(
    oracle: Oracle, images: Tensor, labels: Tensor, count: int,
    descend: Callable[[Oracle, Tensor, Tensor, Tensor], list[Tensor]], *, results: int = 1, early_stop: bool = True,
) -> list[Tensor]:  # fmt: skip
    """What runs towards each of the `count` likeliest other classes find: count · results candidates (B, C, H, W).

    descend: makes `results` candidates (b, C, H, W) from an oracle, images, labels and the classes aimed at, (b,).
    early_stop: an image that an earlier run led to be misclassified is left alone, with a deterministic classifier.
    """
    rivals = likeliest_others(oracle, images, labels, count)
    everyone = torch.arange(len(images), device=images.device)
    state = {"found": images.repeat(count * results, 1, 1, 1, 1), "active": everyone}
    for rank in oracle.resumable(range(count), state):
        active = state["active"]
        here = oracle.rows(active) if len(active) < len(images) else oracle
        label = labels[active]
        candidates = descend(here, images[active], label, rivals[active, rank])
        for place, candidate in enumerate(candidates):
            # Also of all later runs, which leave out what is misclassified.
            state["found"][rank * results + place :: results, active] = candidate
        if early_stop and not oracle.stochastic:
            with torch.no_grad():
                wrong = [succeeded(here(candidate, here.noise()), label)[0] for candidate in candidates]
            state["active"] = active[here.remaining(torch.stack(wrong).any(0))]
            if len(state["active"]) == 0:
                break
    return list(state["found"])


def _descents(classes: int | None, stochastic: bool) -> int:
    """The number of classes towards which the momentum method descends."""
    if classes is not None:
        return classes
    return 0 if stochastic else TOWARDS


@torch.no_grad()
def likeliest_others(oracle: Oracle, images: Tensor, labels: Tensor, count: int) -> Tensor:
    """The likeliest classes of the images beside their labels, (B, count), by mean log-probabilities."""
    scores = oracle(images, oracle.noise(ASKED)).log_softmax(-1).mean(0)
    return scores.scatter(1, labels[:, None], -torch.inf).topk(count).indices


class Descent(NamedTuple):
    """Projected descent with the direction that is steepest in the norm.

    lengths: of the steps. eot: draws of noise for each gradient. decay: of a running mean of gradients; 0 for none.
    early_stop: a misclassified image is left alone, with a deterministic classifier only: there that is final.
    """

    norm: Norm
    eps: float
    lengths: Sequence[float]
    eot: int
    loss: Loss
    early_stop: bool
    decay: float = 0.0

    def __call__(
        self, oracle: Oracle, images: Tensor, labels: Tensor, start: Tensor, targets: Tensor | None = None, *,
        aimed: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The last iterates (B, C, H, W) from `start`, or the first misclassified ones.

        aimed: the classes that the loss is towards where any other class than the label will do.
        """
        stop, everyone = self.early_stop and not oracle.stochastic, torch.arange(len(images), device=images.device)
        # Misclassified images stay as they are and leave the batch when the oracle looks; `active` are the positions
        # (b,) of the others, `current` their iterates.
        state = {"result": start.clone(), "current": start, "active": everyone}
        if self.decay:
            state["mean"] = torch.zeros_like(start)
        towards = targets if aimed is None else aimed
        for step in oracle.resumable(range(len(self.lengths)), state):
            active, current = state["active"], state["current"]
            here = oracle.rows(active) if len(active) < len(images) else oracle
            label, look = labels[active], oracle.looks(step)
            target, aim = (classes[active] if classes is not None else None for classes in (targets, towards))
            losses = partial(objective, self.loss, labels=label, targets=aim)
            gradients, _, logits = here.gradient(current, here.noise(self.eot), losses)
            if self.decay:
                gradients = self.decay * state["mean"] + gradients
                state["mean"] = gradients
            moved = stepped(current, gradients, self.norm, self.lengths[step])
            moved = project(moved, images[active], self.norm, self.eps)
            if stop:
                wrong = succeeded(logits, label, target)[0]
                if look:
                    wrong = here.confirmed(current, wrong, label, target)
                moved = torch.where(per_image(wrong, moved), current, moved)
                if look and len(remaining := here.remaining(wrong)) < len(active):
                    state["result"][active] = moved
                    active, moved = active[remaining], moved[remaining]
                    if self.decay:
                        state["mean"] = state["mean"][remaining]
            state |= {"active": active, "current": moved}
            if len(active) == 0:
                break
        state["result"][state["active"]] = state["current"]
        return state["result"]
