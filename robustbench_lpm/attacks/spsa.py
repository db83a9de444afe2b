"""SPSA: gradients from pairs of queries (Uesato et al. 2018, arXiv 1802.05666, section 4; Spall 1992)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.attacks.contract import Cost, Declaration, Draws, Oracle
from robustbench_lpm.attacks.losses import objective, succeeded
from robustbench_lpm.norms import Norm, per_image, project

# Adam's constants (Kingma and Ba 2015), as the paper leaves them.
BETA_1, BETA_2, ADAM_EPS = 0.9, 0.999, 1e-8


# Both points of every pair, and one query of the iterate in each iteration where that may end the attack.
@Declaration(cost=lambda iterations, pairs, early_stop, stochastic: Cost(
    iterations * (2 * pairs + (early_stop and not stochastic))
))  # fmt: skip
def spsa(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    iterations: PositiveInt = 40, pairs: PositiveInt = 64, delta: PositiveFloat = 0.01,
    learning_rate: PositiveFloat = 0.01, early_stop: bool = True,
) -> Tensor:  # fmt: skip
    """Minimise the margin by Adam on gradients estimated from antithetic pairs of queries.

    One iteration draws `pairs` Rademacher directions v for each image and queries at x + delta v and x - delta v; both
    points of a pair share their noise, and every pair has its own, so that the estimate averages over both.
    Probes may leave the ball and the box; the iterate does not. In l2 Adam's second moment is shared by all pixels of
    an image: scaled pixel by pixel, steps would approach the sign of the gradient, which is steepest in linf only.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        iterations, pairs: the budget is iterations · (2 pairs + 1) forward evaluations for each image.
        delta, learning_rate: in units of pixel values.
        early_stop: a misclassified image is left alone, with a deterministic classifier only: there that is final.
    """
    zeros, everyone = torch.zeros_like(images), torch.arange(len(images), device=images.device)
    # The iterates and the moments of their gradients (B, C, H, W); positions of the images under attack (b,).
    state = {"result": images.clone(), "mean": zeros, "square": zeros.clone(), "active": everyone}
    for iteration in oracle.resumable(range(1, iterations + 1), state):
        result, means, squares, active = state.values()
        here = oracle.rows(active)
        target = targets[active] if targets is not None else None
        wrong = torch.zeros_like(active, dtype=torch.bool)
        if early_stop and not oracle.stochastic:
            with torch.no_grad():
                wrong = succeeded(here(result[active], here.noise()), labels[active], target)[0]
            if oracle.looks(iteration) and len(remaining := here.remaining(wrong)) < len(active):
                active, wrong = active[remaining], wrong[remaining]
                here, target = oracle.rows(active), target[remaining] if target is not None else None
            if len(active) == 0:
                break
        gradients = estimate(here, result[active], labels[active], target, pairs=pairs, delta=delta)
        mean = BETA_1 * means[active] + (1 - BETA_1) * gradients
        square = BETA_2 * squares[active] + (1 - BETA_2) * _squares(gradients, norm)
        scale = (square / (1 - BETA_2**iteration)).sqrt() + ADAM_EPS
        moved = result[active] - learning_rate * (mean / (1 - BETA_1**iteration)) / scale
        means[active], squares[active], state["active"] = mean, square, active
        moved = project(moved, images[active], norm, eps)
        result[active] = torch.where(per_image(wrong, moved), result[active], moved)
    return state["result"]


def _squares(gradients: Tensor, norm: Norm) -> Tensor:
    if norm == "linf":
        return gradients**2
    return per_image((gradients**2).flatten(1).mean(1), gradients).expand_as(gradients)


@torch.no_grad()
def estimate(
    oracle: Oracle, images: Tensor, labels: Tensor, targets: Tensor | None, *, pairs: int, delta: float
) -> Tensor:
    """The SPSA estimate (B, C, H, W) of the margin's gradient: mean over v of [f(x + δv) - f(x - δv)] / 2δ · v.

    Directions are drawn for a few pairs at a time, so that memory does not grow with the number of pairs.
    """
    numbers, batch = images[0].numel(), len(images)
    noise, directions = oracle.noise(pairs, paired=True), oracle.choices(pairs)
    state, table = {"total": torch.zeros_like(images).flatten(1)}, _signs_of_bytes(images)
    at_once = max(1, oracle.chunk // (2 * batch))
    for start in oracle.resumable(range(0, pairs, at_once), state):
        part = slice(start, min(start + at_once, pairs))
        rows = directions.rows(slice(part.start * batch, part.stop * batch))
        bits = to_device(rows.bytes("direction", -(-numbers // 8)), images.device)  # packed, for a faster copy
        signs = table[bits.int()].flatten(-2)[..., :numbers].unflatten(0, (-1, batch))
        steps = (delta * signs).unflatten(-1, images.shape[1:])
        probes = images.new_empty(2 * len(steps), *images.shape)
        torch.add(images, steps, out=probes[: len(steps)])
        torch.sub(images, steps, out=probes[len(steps) :])
        logits = oracle.probe(probes, _pairs(noise, part, pairs, batch) if oracle.stochastic else noise)
        plus, minus = objective("margin", logits, labels, targets).chunk(2)
        state["total"] += torch.einsum("pb,pbn->bn", plus - minus, signs)
    return (state["total"] / (2 * delta * pairs)).reshape(images.shape)


def _signs_of_bytes(like: Tensor) -> Tensor:
    """The eight signs of every byte, (256, 8), lowest bit first."""
    values, bits = torch.arange(256, device=like.device), torch.arange(8, device=like.device)
    return ((values[:, None] >> bits) & 1).to(like.dtype) * 2 - 1


def _pairs(noise: Draws, part: slice, pairs: int, batch: int) -> Draws:
    """Some of the pairs of paired noise, again with all plus points before all minus points."""
    count = part.stop - part.start
    values = {}
    for source, tensor in noise.values.items():
        per_draw = tensor.unflatten(0, (2 * pairs, batch))
        both = torch.cat([per_draw[part], per_draw[pairs + part.start : pairs + part.stop]])
        values[source] = both.flatten(0, 1)
    return Draws(values, 2 * count)
