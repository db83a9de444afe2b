"""RayS: a search along rays that needs predicted labels only (Chen and Gu 2020, arXiv 2006.12792)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import succeeded
from robustbench_lpm.norms import Norm, per_image


@Declaration(cost=lambda queries, votes: Cost(queries * votes))
@torch.no_grad()
def rays(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    queries: PositiveInt = 1000, votes: PositiveInt = 5, tolerance: PositiveFloat = 1e-3,
) -> Tensor:  # fmt: skip
    """Find the direction of signs along which an adversarial example is nearest (algorithms 1 to 3).

    Halves, quarters, ... of the direction are flipped in turn. A flip is tried at the best radius so far (one
    decision), and its own radius is bisected only if that point is misclassified. Until any direction succeeds, random
    ones are tried after the first, at the radius that spans the box.

    A stochastic classifier's decision is a vote: a point is adversarial when every one of some draws misclassifies it.
    With a majority, an image that most draws misclassify without a perturbation would have a radius of zero, and the
    search no direction. The same draws vote on all points (common random numbers): with fresh ones a single chance vote
    would make a radius too small for good. A deterministic classifier needs one draw, and an image is done once its
    radius is within eps.

    Args:
        images: (B, C, H, W) in [0, 1]. labels, targets: (B,).
        queries: decisions on each image.
        votes: draws of noise that vote on a decision about a stochastic classifier.
        tolerance: radii are bisected to this precision, in units of pixel values.

    Returns:
        The point at a distance of eps along the best direction (nearer where a deterministic classifier is known
        to misclassify it before), clipped to the box.
    """
    scale = 1.0 if norm == "linf" else images[0].numel() ** -0.5  # signs times this have norm 1
    search, noise = _Search.of(images, 1 / scale), oracle.noise(votes)
    active, lost = torch.arange(len(images), device=images.device), True
    for number in range(queries):
        if oracle.looks(number):
            # As long as any image has no direction, random ones are drawn for all.
            lost = lost and bool(search.radius.isinf().any())
            if not oracle.stochastic and len(remaining := (search.radius > eps).nonzero()[:, 0]) < len(active):
                active = remaining
        if len(active) == 0:
            break
        state, here = search.rows(active), oracle.rows(active)
        directions = state.proposals(here if lost and number else None)
        lengths = per_image(state.asked_at() * scale, images)
        points = (images[active] + lengths * directions.reshape(-1, *images.shape[1:])).clamp(0, 1)
        target = targets[active] if targets is not None else None
        succeeds = succeeded(here(points, noise), labels[active], target).all(0)
        finished = (state.radius <= eps) & (not oracle.stochastic)
        state.learn(directions, succeeds, tolerance / scale)
        search.put(active, state, finished)
    radius = torch.full_like(search.radius, eps) if oracle.stochastic else search.radius.clamp(max=eps)
    best = search.best.reshape(images.shape)
    return (images + per_image(radius * scale, images) * best).clamp(0, 1)


@dataclass
class _Search:
    """The state of the search of each image. Radii are in the norm."""

    best: Tensor  # the best direction so far, signs (b, n)
    radius: Tensor  # (b,), at which it is misclassified; infinite before any direction is
    farthest: Tensor  # (b,), a radius that spans the box
    level: Tensor  # (b,), the direction is flipped in 2^level blocks
    block: Tensor  # (b,), the one whose turn it is; -1, none, until the first direction has its radius
    bisecting: Tensor  # (b,), whether the radius of the best direction is being bisected; else a flip is tried
    low: Tensor  # (b,), a radius at which the direction under bisection is classified right
    fresh: Tensor  # (b,), whether nothing was tried yet

    @classmethod
    def of(cls, images: Tensor, farthest: float) -> _Search:
        zeros, signs = torch.zeros(len(images), device=images.device), torch.ones_like(images).flatten(1)
        numbers, no = zeros.long(), zeros.bool()
        return cls(signs, zeros + torch.inf, zeros + farthest, numbers + 1, numbers - 1, no, zeros.clone(), ~no)

    def rows(self, keep: Tensor) -> _Search:
        return _Search(**{name: values[keep] for name, values in vars(self).items()})

    def put(self, rows: Tensor, part: _Search, finished: Tensor) -> None:
        """Put back the state (b, ...) of the images in those rows, except where their search was finished."""
        for name, values in vars(self).items():
            values[rows] = torch.where(per_image(finished, values), values[rows], getattr(part, name))

    def asked_at(self) -> Tensor:
        """The radii of the next decisions, (b,)."""
        return torch.where(self.bisecting, (self.low + self.radius) / 2, self.radius.minimum(self.farthest))

    def proposals(self, oracle: Oracle | None) -> Tensor:
        """The directions of the next decisions, (b, n). The oracle of these images draws random ones where needed."""
        numbers = self.best.shape[1]
        size = (-(-numbers // 2 ** self.level.clamp(max=62))).clamp_min(1)
        places = torch.arange(numbers, device=self.best.device) // size[:, None]
        flipped = torch.where(places == self.block[:, None], -self.best, self.best)
        directions = torch.where((self.bisecting | self.fresh)[:, None], self.best, flipped)
        if oracle is None:
            return directions
        drawn = to_device(oracle.choices().signs("direction", numbers), directions.device)
        return torch.where((~self.fresh & self.radius.isinf())[:, None], drawn, directions)

    def learn(self, directions: Tensor, succeeds: Tensor, tolerance: float) -> None:
        """Take in the answers (b,) to the last proposals."""
        asked, found = self.asked_at(), succeeds & ~self.bisecting
        tried = ~self.bisecting & ~succeeds & self.radius.isfinite()
        self.best = torch.where(found[:, None], directions, self.best)
        self.low = torch.where(found, 0.0, torch.where(self.bisecting & ~succeeds, asked, self.low))
        self.radius = torch.where(succeeds, asked, self.radius)
        finished = self.bisecting & (self.radius - self.low < tolerance)
        self.bisecting = (self.bisecting | found) & ~finished
        self.fresh = torch.zeros_like(self.fresh)
        self.block = self.block + (tried | finished).long()  # the next block, the last of a level before the next level
        numbers = self.best.shape[1]
        over = self.block * ((numbers + 2**self.level - 1) // 2**self.level) >= numbers
        self.level = torch.where(over & (2**self.level < numbers), self.level + 1, self.level)
        self.block = torch.where(over, 0, self.block)
