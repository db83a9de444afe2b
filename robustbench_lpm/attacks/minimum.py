"""Attacks that look for the smallest perturbation: DDN, FMN, sigma-zero and DeepFool.

They do not use eps: they return the nearest adversarial example that they find, however far it is, and grading projects
it onto the ball as for every attack. With a deterministic classifier that is one which it misclassifies. With a
stochastic one it is one that at most half of its draws get right: the search follows losses averaged over draws, and
its last iterate is moved along the ray from the image to where at most half of the selection draws are right. In L0,
where a ray has the same distance all along, the smallest changes are taken back instead.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import Loss, finite, lead, objective, succeeded
from robustbench_lpm.attacks.pgd import ASKED, likeliest_others
from robustbench_lpm.norms import Norm, distance, largest, per_image, project, steepest, thresholded

# On the ray: points that are asked about; as long as none is adversarial, each is so much farther than the last one.
POINTS, FARTHER = 12, 1.25
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}  # l0 has none
TINY = 1e-12  # the least slope that divides
SEEN = 20  # iterates of sigma-zero on a stochastic classifier that selection draws look at
BEYOND = 1e-4  # DeepFool steps so much farther than to the boundary, in the norm


@Declaration(cost=lambda steps, eot: Cost(steps * eot, steps * eot, POINTS), nearest=True)
def ddn(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 100, eot: PositiveInt = 1, radius: PositiveFloat = 1.0, gamma: PositiveFloat = 0.05,
    loss: Loss = "cross-entropy",
) -> Tensor:  # fmt: skip
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600, algorithm 1), for L2.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        steps: gradients.
        eot: draws of noise for each gradient of a stochastic classifier.
        radius: the first distance; it shrinks by a share gamma after each adversarial iterate, and else grows by it.
    """
    state = _start(images, radius)
    limit = _farthest(images, norm)
    for step in oracle.resumable(range(steps), state):
        losses = partial(objective, loss, labels=labels, targets=targets)
        gradients, _, logits = oracle.gradient(state["current"], oracle.noise(eot), losses)
        wrong = _note(state, images, logits, labels, targets, norm)
        offsets = state["current"] - images - _annealed(step, steps, 1.0, 0.01) * steepest(gradients, norm)
        state["radius"] = (state["radius"] * torch.where(wrong, 1 - gamma, 1 + gamma)).minimum(limit)
        state["current"] = (images + per_image(state["radius"].to(images), images) * steepest(offsets, norm)).clamp(
            0, 1
        )
    return nearest_on_ray(oracle, images, _candidate(oracle, state), labels, targets)


@Declaration(cost=lambda steps, eot: Cost(steps * eot, steps * eot, POINTS), nearest=True)
def fmn(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 100, eot: PositiveInt = 1, step_size: PositiveFloat = 1.0, gamma: PositiveFloat = 0.05,
) -> Tensor:  # fmt: skip
    """Fast minimum-norm (Pintor et al. 2021, arXiv 2102.12827, algorithm 1): descent in a ball whose radius adapts.

    Before the first adversarial iterate the radius is the distance at which the margin would be 0 if it were linear.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        steps: gradients.
        eot: draws of noise for each gradient of a stochastic classifier.
        step_size: length in L2 of the first step; the last one is a hundredth of it.
        gamma: the share by which the radius shrinks after an adversarial iterate, and else grows; 0.001 at the end.
    """
    state = _start(images, math.inf)
    limit = _farthest(images, norm)
    for step in oracle.resumable(range(steps), state):
        losses = partial(objective, "margin", labels=labels, targets=targets)
        gradients, values, logits = oracle.gradient(state["current"], oracle.noise(eot), losses)
        size = distance(state["current"], images, norm)
        wrong = _note(state, images, logits, labels, targets, norm)
        change = _annealed(step, steps, gamma, 0.001)
        ahead = size + values.mean(0).double().abs() / _slope(gradients, norm)
        radius = torch.where(state["nearest"].isfinite(), state["radius"] * (1 + change), ahead)
        shrunk = state["radius"] * (1 - change)
        # Of a stochastic classifier the nearest one may be adversarial by chance.
        shrunk = torch.where(shrunk.isinf(), ahead, shrunk) if oracle.stochastic else shrunk.minimum(state["nearest"])
        state["radius"] = torch.where(wrong, shrunk, radius).minimum(limit)
        moved = state["current"] - _annealed(step, steps, step_size, step_size / 100) * steepest(gradients, "l2")
        state["current"] = _drawn_in(moved, images, norm, state["radius"])
    return nearest_on_ray(oracle, images, _candidate(oracle, state), labels, targets)


def _sigma_zero_cost(steps: int, eot: int, stochastic: bool) -> Cost:
    passes, seen = steps * eot + max(eot, ASKED if stochastic else 1), 2 * SEEN if stochastic else 0
    return Cost(passes, passes, 2 * POINTS + 2 + min(steps, seen))


@Declaration(cost=_sigma_zero_cost, nearest=True)
def sigma_zero(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 1000, eot: PositiveInt = 1, step_size: PositiveFloat = 1.0, sigma: PositiveFloat = 0.001,
    threshold: PositiveFloat = 0.3, pace: PositiveFloat = 0.01,
) -> Tensor:  # fmt: skip
    """Sigma-zero (Cina et al. 2024, arXiv 2402.01879, algorithm 1): as few changed values as possible, for L0.

    It descends the margin, until that is below 0, and a smooth count of changes, the mean of d² / (d² + sigma), along
    gradients of largest value 1, with Adam; changes below a threshold are taken back, which grows while the iterate is
    adversarial, and else shrinks. At the end we take back the smallest changes as far as they are not needed. The same
    with changes to the end of the box, in the order of one more gradient, is better where the network is nearly linear.

    With a stochastic classifier the sparsest of the iterates that selection draws have found adversarial counts.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        steps: gradients.
        eot: draws of noise for each gradient of a stochastic classifier.
        step_size: the first; it falls to a tenth of that along a cosine.
        threshold: the first; pace: by how much it changes, in step sizes.
    """
    state = _start(images, math.inf)
    state |= {"mean": torch.zeros_like(images), "square": torch.zeros_like(images)}
    state["radius"] = torch.full_like(state["radius"], threshold)  # under which changes are taken back
    every = max(1, steps // SEEN)
    for step in oracle.resumable(range(steps), state):
        gradients, _, logits = oracle.gradient(state["current"], oracle.noise(eot), partial(_hinge, labels, targets))
        if oracle.stochastic:
            hits = succeeded(logits, labels, targets)
            wrong = hits.sum(0) * 2 >= len(hits)
            if (step + 1) % every == 0:
                _keep(state, images, oracle.outvoted(state["current"], labels, targets), norm)
        else:
            wrong = _note(state, images, logits, labels, targets, norm)
        change = state["current"] - images
        descent = gradients + 2 * sigma * change / (change.square() + sigma).square() / images[0].numel()
        descent = descent / per_image(descent.flatten(1).abs().amax(1).clamp_min(TINY), images)
        length = _annealed(max(0, step - 1), steps, step_size, step_size / 10)
        state["current"] = (state["current"] - length * _adam(state, descent, step)).clamp(0, 1)
        pace_now = pace * _annealed(step, steps, step_size, step_size / 10)
        state["radius"] = (state["radius"] + torch.where(wrong, pace_now, -pace_now)).clamp(0, 1)
        small = (state["current"] - images).abs() < per_image(state["radius"].to(images), images)
        state["current"] = torch.where(small, images, state["current"])
    found = torch.where(per_image(state["nearest"].isinf(), images), state["current"], state["found"])
    gradients = oracle.gradient(found, oracle.noise(max(eot, ASKED)), partial(_margin, labels, targets))[0]
    pushed = torch.where(found == images, images, torch.where(gradients == 0, found, (gradients < 0).to(images)))
    best = nearest_on_ray(oracle, images, found, labels, targets, (found - images).abs())
    other = nearest_on_ray(oracle, images, pushed, labels, targets, (pushed - images).abs() * gradients.abs())
    sparser = distance(other, images, norm) < distance(best, images, norm)
    sparser &= oracle.outvoted(other, labels, targets) | ~oracle.outvoted(best, labels, targets)
    return torch.where(per_image(sparser, images), other, best)


def _margin(labels: Tensor, targets: Tensor | None, logits: Tensor) -> Tensor:
    return objective("margin", logits, labels, targets)


def _hinge(labels: Tensor, targets: Tensor | None, logits: Tensor) -> Tensor:
    return _margin(labels, targets, logits).clamp_min(0)


def _adam(state: dict[str, Tensor], gradients: Tensor, step: int) -> Tensor:
    """The direction of Adam (Kingma and Ba 2015, algorithm 1) with its usual constants."""
    state["mean"] = 0.9 * state["mean"] + 0.1 * gradients
    state["square"] = 0.999 * state["square"] + 0.001 * gradients.square()
    root = (state["square"] / (1 - 0.999 ** (step + 1))).sqrt()
    return state["mean"] / (1 - 0.9 ** (step + 1)) / (root + 1e-8)


def _deepfool_cost(steps: int, eot: int, classes: int, stochastic: bool) -> Cost:
    passes = steps * classes * eot
    return Cost(passes + (ASKED if stochastic else 1), passes, POINTS)


@Declaration(cost=_deepfool_cost, nearest=True)
def deepfool(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 50, eot: PositiveInt = 5, classes: PositiveInt = 9, overshoot: NonNegativeFloat = 0.02,
) -> Tensor:  # fmt: skip
    """DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2): steps to the nearest linear boundary.

    With a deterministic classifier an image is done once it is misclassified.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        steps: at most; each takes a gradient for every class.
        eot: draws of noise for each gradient of a stochastic classifier.
        classes: the boundaries to so many of the likeliest other classes are compared.
        overshoot: how much farther than to the boundary each step goes, as a share.
    """
    count = min(classes, oracle.classes - 1)
    rivals = targets[:, None] if targets is not None else likeliest_others(oracle, images, labels, count)
    everyone = torch.arange(len(images), device=images.device)
    state = {"found": images.clone(), "current": images.clone(), "active": everyone}
    for step in oracle.resumable(range(steps), state):
        active, current = state["active"], state["current"]
        here = oracle.rows(active) if len(active) < len(images) else oracle
        noise, label = here.noise(eot), labels[active]
        target = targets[active] if targets is not None else None
        best = torch.full((len(active),), torch.inf, dtype=torch.float64, device=images.device)
        move = torch.zeros_like(current)
        for rival in rivals[active].T:
            losses = partial(_lead_of, labels=label, others=rival)
            gradients, values, logits = here.gradient(current, noise, losses)
            margin = values.mean(0).double()
            # Of classes that the model rules out the label itself is no less likely.
            far = (margin.abs() / _slope(gradients, norm)).masked_fill(rival == label, torch.inf)
            # A stochastic classifier's boundary is approached from both sides.
            length = (far + BEYOND) * (1 + overshoot) * (margin.sign() if oracle.stochastic else 1)
            toward = per_image(length.to(images), current) * steepest(gradients, norm)
            move = torch.where(per_image(far < best, current), toward, move)
            best = best.minimum(far)
        moved = (current - move).clamp(0, 1)
        if not oracle.stochastic:
            wrong, look = succeeded(logits, label, target)[0], oracle.looks(step)
            if look:
                wrong = here.confirmed(current, wrong, label, target)
            moved = torch.where(per_image(wrong, moved), current, moved)
            if look and len(remaining := here.remaining(wrong)) < len(active):
                state["found"][active] = moved
                active, moved = active[remaining], moved[remaining]
        state |= {"active": active, "current": moved}
        if len(active) == 0:
            break
    state["found"][state["active"]] = state["current"]
    return nearest_on_ray(oracle, images, state["found"], labels, targets)


def nearest_on_ray(
    oracle: Oracle, images: Tensor, candidates: Tensor, labels: Tensor, targets: Tensor | None,
    worth: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The nearest point found on the ray from each image through its candidate that most selection draws misclassify.

    The candidate and points beyond it are tried until one is adversarial, then the segment before it is bisected. Where
    none is, the farthest point tried. With the worth (B, C, H, W) of each change, the points are the candidate with a
    share of its changes, those of the greatest worth.
    """
    changes = distance(candidates, images, "l0")
    zero = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    state = {"candidates": candidates.detach(), "low": zero, "high": zero + torch.inf}

    def point(share: Tensor) -> Tensor:
        if worth is not None:
            return torch.where(largest(worth, (share * changes).round()), state["candidates"], images)
        return (images + per_image(share.to(images), images) * (state["candidates"] - images)).clamp(0, 1)

    for _ in oracle.resumable(range(POINTS), state):
        low, high = state["low"], state["high"]
        share = torch.where(high.isinf(), (low * FARTHER).clamp_min(1), (low + high) / 2)
        wrong = oracle.outvoted(point(share), labels, targets)
        state |= {"low": torch.where(wrong, low, share), "high": torch.where(wrong, share, high)}
    return point(torch.where(state["high"].isinf(), state["low"], state["high"]))


def _start(images: Tensor, radius: float) -> dict[str, Tensor]:
    """The state of a search: its iterates, their radii, the nearest adversarial iterates and their distances."""
    far = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    return {
        "current": images.clone(), "radius": torch.full_like(far, radius), "found": images.clone(), "nearest": far,
    }  # fmt: skip


def _note(
    state: dict[str, Tensor], images: Tensor, logits: Tensor, labels: Tensor, targets: Tensor | None, norm: Norm
) -> Tensor:
    """Keep the current iterates that are adversarial, by `_keep`; returns which they are, (B,)."""
    hits = succeeded(logits, labels, targets)
    wrong = hits.sum(0) * 2 >= len(hits)
    _keep(state, images, wrong, norm)
    return wrong


def _keep(state: dict[str, Tensor], images: Tensor, wrong: Tensor, norm: Norm) -> None:
    """Keep the current iterates that are wrong and nearer than before; until one is, the current iterate."""
    far = distance(state["current"], images, norm)
    nearer = wrong & (far < state["nearest"])
    kept = per_image(nearer | state["nearest"].isinf(), images)
    state["found"] = torch.where(kept, state["current"], state["found"])
    state["nearest"] = torch.where(nearer, far, state["nearest"])


def _candidate(oracle: Oracle, state: dict[str, Tensor]) -> Tensor:
    """The nearest adversarial iterate, or the last one of a stochastic classifier, where chance would choose."""
    return state["current"] if oracle.stochastic else state["found"]


def _drawn_in(moved: Tensor, images: Tensor, norm: Norm, radius: Tensor) -> Tensor:
    """Into the ball and then into the box; in L2 onto the sphere, from where fewer steps are wasted inside."""
    if norm == "l1":  # the exact projection onto both finds no nearer ones
        moved = (images + thresholded(moved - images, radius)).to(images)
    if norm == "l2":
        moved = images + per_image(radius.to(images), images) * steepest(moved - images, norm)
    return project(moved, images, norm, radius)


def _lead_of(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    return lead(finite(logits), labels, others)


def _slope(gradients: Tensor, norm: Norm) -> Tensor:
    """How fast the loss changes along the steepest direction: the dual norm of its gradients, (B,)."""
    return distance(gradients, torch.zeros_like(gradients), DUAL[norm]).clamp_min(TINY)


def _farthest(images: Tensor, norm: Norm) -> Tensor:
    """The distance to the farthest corner of the box, (B,)."""
    return distance((images < 0.5).to(images), images, norm)


def _annealed(step: int, steps: int, first: float, last: float) -> float:
    """From the first value to the last along a cosine (Loshchilov and Hutter 2017)."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
