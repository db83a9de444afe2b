"""Auto-PGD: projected gradient descent that sets its own step size (Croce and Hein 2020, arXiv 2003.01690).

In L1 that of Croce and Hein 2021 (arXiv 2103.01208): steps along few pixels, in balls that shrink to eps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import Loss, objective, succeeded
from robustbench_lpm.attacks.pgd import ASKED, towards_likeliest
from robustbench_lpm.norms import Norm, per_image, project, sparse, steepest, uniform_in_ball

# Section 3.1: the share of a step that is new (the rest is momentum), and when the step size is checked.
ALPHA = 0.75
FIRST_PERIOD, SHORTER_BY, SHORTEST_PERIOD = 0.22, 0.03, 0.06
RESULTS = 2  # of one run: the iterate of lowest loss, and the last one
# In L1: the share of the steps after which the ball's radius is 3, 2 and 1 eps; the share of a radius's steps between
# checkpoints; the factor of sparsity and step size; how few more pixels mean progress; the smallest step size in radii.
RADII, L1_PERIOD, FACTOR, SPARSER, SMALLEST = {0.0: 3.0, 0.3: 2.0, 0.6: 1.0}, 0.04, 1.5, 0.95, 0.1


def _cost(steps: int, restarts: int, eot: int, classes: int, stochastic: bool) -> Cost:
    passes = steps * restarts * max(1, classes) * eot
    between = (
        (ASKED if stochastic else 1 + classes * RESULTS * restarts) if classes else 0
    )  # ranking the classes; who stays
    return Cost(passes + between, passes, RESULTS * restarts * max(1, classes))


@Declaration(cost=_cost)
def apgd(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 100, restarts: PositiveInt = 1, eot: PositiveInt = 5, loss: Loss = "cross-entropy",
    rho: PositiveFloat = 0.75, classes: NonNegativeInt = 0, early_stop: bool = True,
) -> Tensor:  # fmt: skip
    """Auto-PGD (algorithm 1) from random points of the ball.

    Two results of every run are compared on selection noise: the iterate of lowest loss, which with a stochastic
    classifier is partly chance, and the last one. With a deterministic classifier an image keeps its first
    misclassified iterate. In L1 the radius of the ball is 3 eps, 2 eps and eps in turn.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        steps: gradients of one run.
        restarts: independent starts.
        eot: draws of noise over which a stochastic classifier's loss and gradient are averaged.
        rho: the step size is halved when fewer than this share of the steps since the last checkpoint were
        improvements.
        classes: instead of runs away from the label, runs towards each of so many of the likeliest other classes (the
            paper's targeted version, with nine). With targets the runs are towards them.
        early_stop: a misclassified image is left alone, with a deterministic classifier only: there that is final.
    """
    run = _Run(norm, eps, steps, eot, loss, rho, early_stop)
    count = min(classes, oracle.classes - 1) if targets is None else 0

    def from_starts(here: Oracle, originals: Tensor, label: Tensor, aimed: Tensor | None = None) -> list[Tensor]:
        found: list[Tensor] = []
        for _ in range(restarts):
            if norm == "l1":
                drawn = here.choices().normal("start", *originals.shape[1:], device=originals.device)
                start = originals + to_device(drawn, originals.device)
            else:
                start = uniform_in_ball(originals, norm, eps, here.choices())
            found += run(here, originals, label, start, targets, aimed=aimed)
        return found

    if not count:
        return oracle.choose(from_starts(oracle, images, labels), labels, targets)
    found = towards_likeliest(
        oracle, images, labels, count, from_starts, results=RESULTS * restarts, early_stop=early_stop
    )
    return oracle.choose(found, labels)


class _Run(NamedTuple):
    """One run of algorithm 1; the fields are parameters of `apgd`."""

    norm: Norm
    eps: float
    steps: int
    eot: int
    loss: Loss
    rho: float
    early_stop: bool

    def __call__(
        self, oracle: Oracle, images: Tensor, labels: Tensor, start: Tensor, targets: Tensor | None = None, *,
        aimed: Tensor | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """The iterate of lowest loss and the last one, or the first misclassified one; aimed: see `Descent`."""
        stop = self.early_stop and not oracle.stochastic
        radii = {int(share * self.steps): times * self.eps for share, times in RADII.items()}
        radii = radii if self.norm == "l1" else {0: self.eps}
        periods = sparse_checkpoints([*radii, self.steps]) if self.norm == "l1" else checkpoints(self.steps)
        towards = targets if aimed is None else aimed
        everyone = torch.arange(len(images), device=images.device)
        wrong = torch.zeros_like(everyone, dtype=torch.bool)
        # Of all B images; `active` are the positions (b,) of those under attack.
        found = {"best": start.clone(), "last": start.clone(), "misclassified": wrong, "active": everyone}
        memory, radius = (_Sparse if self.norm == "l1" else _Memory).at(start, 2 * self.eps), self.eps
        for step in oracle.resumable(range(self.steps), found, vars(memory)):
            active, wrong, look = found["active"], found["misclassified"], oracle.looks(step)
            here = oracle.rows(active)
            radius = next(radii[first] for first in reversed(radii) if first <= step)
            if step in radii:
                memory.begin(images[active], radius)
                found["last"][active] = memory.current
            target, aim = (classes[active] if classes is not None else None for classes in (targets, towards))
            losses = partial(objective, self.loss, labels=labels[active], targets=aim)
            gradients, values, logits = here.gradient(memory.current, here.noise(self.eot), losses)
            values = values.mean(0)
            if stop:  # no later iterate replaces the first misclassified one
                values = values.masked_fill(wrong[active], torch.inf)
            memory.note(gradients, values, first=step in radii)
            found["best"][active] = memory.best
            if not oracle.stochastic and radius == self.eps:
                wrong[active] |= succeeded(logits, labels[active], target)[0]
                if look:
                    wrong[active] = here.confirmed(found["last"][active], wrong[active], labels[active], target)
            if stop and look and len(remaining := here.remaining(wrong[active])) < len(active):
                active, gradients = active[remaining], gradients[remaining]
                memory.keep(remaining)
                if len(active) == 0:
                    break
            if step in periods:
                before = max((period for period in periods if period < step), default=0)
                stuck = per_image(memory.look(step - before, self.rho, images[active], radius), gradients)
                memory.current = torch.where(stuck, memory.best, memory.current)
                gradients = torch.where(stuck, memory.best_gradient, gradients)
            memory.move(gradients, images[active], self.norm, radius, ALPHA if step else 1.0)
            last = torch.where(per_image(wrong[active], memory.current), found["last"][active], memory.current)
            found["last"][active], found["active"] = last, active
        return [found["best"], found["last"]]


def checkpoints(steps: int) -> list[int]:
    """The iterations at which the step size is checked: periods of 0.22 of the steps, then shorter ones."""
    shares = [0.0, FIRST_PERIOD]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - SHORTER_BY, SHORTEST_PERIOD))
    # Rounded first, for 0.41 · 100 must not become 42.
    return sorted({math.ceil(round(share * steps, 9)) for share in shares[1:-1]})


def sparse_checkpoints(bounds: Sequence[int]) -> list[int]:
    """Those of L1, between the first steps of one radius and the next: periods of 0.04 of the steps in between."""
    found: list[int] = []
    for first, end in itertools.pairwise(bounds):
        period = max(1, int(L1_PERIOD * (end - first)))
        found += range(first + period, end, period)
    return found


@dataclass
class _Memory:
    """The state of a run for each of the b images under attack; `keep` drops the others."""

    current: Tensor  # x_k, (b, C, H, W)
    previous: Tensor  # x_{k-1}
    best: Tensor  # x_max, the iterate of lowest loss
    best_gradient: Tensor  # of the loss there
    best_loss: Tensor  # (b,)
    last_loss: Tensor  # (b,), of x_{k-1}
    step_size: Tensor  # (b,)
    improvements: Tensor  # (b,), steps that lowered the loss since the last checkpoint
    halved: Tensor  # (b,), whether the step size was halved at the last checkpoint
    best_then: Tensor  # (b,), the lowest loss at the last checkpoint

    @classmethod
    def at(cls, start: Tensor, step_size: float) -> _Memory:
        worst, zero = start.new_full((len(start),), torch.inf), start.new_zeros(len(start))
        return cls(
            start.clone(), start.clone(), start.clone(), torch.zeros_like(start), worst, worst.clone(),
            zero + step_size, zero, zero.bool(), worst.clone(),
        )  # fmt: skip

    def keep(self, rows: Tensor) -> None:
        for name, values in vars(self).items():
            setattr(self, name, values[rows])

    def note(self, gradients: Tensor, losses: Tensor, *, first: bool) -> None:
        """Take in the loss and its gradient at the current iterate; the first one is the checkpoint w_0 = 0."""
        if first:
            self.last_loss, self.best_then = losses, losses.clone()
        self.improvements += losses < self.last_loss
        self.last_loss = losses
        better = losses < self.best_loss
        self.best = torch.where(per_image(better, self.best), self.current, self.best)
        self.best_gradient = torch.where(per_image(better, gradients), gradients, self.best_gradient)
        self.best_loss = torch.where(better, losses, self.best_loss)

    def begin(self, originals: Tensor, radius: float) -> None:
        """Go on in a ball of another radius, as L1 does."""

    def look(self, period: int, rho: float, originals: Tensor, radius: float) -> Tensor:
        """Halve the step size of images that make no progress (conditions 1 and 2); returns which, (b,)."""
        halve = (self.improvements < rho * period) | (~self.halved & (self.best_then <= self.best_loss))
        self.step_size = torch.where(halve, self.step_size / 2, self.step_size)
        self.halved, self.best_then = halve, self.best_loss.clone()
        self.improvements = torch.zeros_like(self.improvements)
        return halve

    def move(self, gradients: Tensor, originals: Tensor, norm: Norm, eps: float, alpha: float) -> None:
        """A gradient step with momentum (equation 3)."""
        length = per_image(self.step_size, self.current)
        target = project(self.current - length * steepest(gradients, norm), originals, norm, eps)
        moved = self.current + alpha * (target - self.current) + (1 - alpha) * (self.current - self.previous)
        self.previous, self.current = self.current, project(moved, originals, norm, eps)


@dataclass
class _Sparse(_Memory):
    """The same in L1 (Croce and Hein 2021, algorithm 1): steps along a share of the pixels, without momentum."""

    share: Tensor  # (b,), of the pixels, that a step moves
    pixels: Tensor  # (b,), that the best iterate had changed at the last checkpoint

    @classmethod
    def at(cls, start: Tensor, step_size: float) -> _Sparse:
        zero = start.new_zeros(len(start))
        return cls(**vars(_Memory.at(start, step_size)), share=zero, pixels=zero.clone())

    def begin(self, originals: Tensor, radius: float) -> None:
        """Start from the best iterate, or the first one, projected onto the new ball."""
        self.best = self.current = project(self.best, originals, "l1", radius)
        self.best_loss = torch.full_like(self.best_loss, torch.inf)
        self.step_size = torch.full_like(self.step_size, radius)
        self._sparsify(originals)

    def look(self, period: int, rho: float, originals: Tensor, radius: float) -> Tensor:
        """Shorten the steps; where the best iterate became sparser, go back to it, with long steps. Returns where."""
        before = self.pixels
        self._sparsify(originals)
        sparser = self.pixels < SPARSER * before
        self.step_size = torch.where(sparser, radius, self.step_size / FACTOR).clamp_min(SMALLEST * radius)
        return sparser

    def move(self, gradients: Tensor, originals: Tensor, norm: Norm, eps: float, alpha: float) -> None:
        length = per_image(self.step_size, self.current)
        moved = self.current - length * sparse(gradients, self.share)
        self.previous, self.current = self.current, project(moved, originals, norm, eps)

    def _sparsify(self, originals: Tensor) -> None:
        self.pixels = (self.best != originals).flatten(1).sum(1).to(self.share)
        self.share = self.pixels / (FACTOR * originals[0].numel())
