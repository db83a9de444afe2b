"""The loop that all glimpsing classifiers share: look, update, classify, decide where to look next.

The randomness is an argument. One pass uses two sources of it, both in the noise dictionary:
    "first_fixation"  (B, 2), uniform on [-spread, spread]², in normalised coordinates
    "policy"          (B, T-1, 2), standard normal; the next fixation is mu + sigma · policy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lpm.randomness import generator

GRADIENT_MODES = ("detached", "reparameterised", "straight-through")


@dataclass(frozen=True)
class Trajectory:
    """What happened at every glimpse t = 0..T-1; the first dimension is t."""

    logits: Tensor  # (T, B, K) if the model classified there
    means: Tensor  # (T, B, 2), mu[t], in [-1, 1]: where the policy wants to look after glimpse t
    fixations: Tensor  # (T, B, 2), l[t]: where glimpse t looked
    baselines: Tensor  # (T, B), the expected reward after glimpse t


@dataclass(frozen=True)
class Glance:
    """What one glimpse tells."""

    logits: Tensor  # (B, K)
    mean: Tensor  # (B, 2), before the clamp to [-1, 1]
    baseline: Tensor  # (B,)
    state: Any


class RecurrentAttention(nn.Module):
    """Base of the classifiers that look T times; a subclass says what one glimpse does to its state.

    `gradient_modes` are the ways in which a gradient may pass the fixations: "detached" (as trained: not at all),
    "reparameterised" (through l = mu + sigma · noise, the retina's sampling grid and the clamp), "straight-through"
    (the same, past the clamp as if it were not there).
    """

    gradient_modes = GRADIENT_MODES

    def __init__(self, *, glimpses: int, sigma: float, first_fixation_spread: float = 0.25) -> None:
        super().__init__()
        if glimpses < 1 or sigma < 0 or first_fixation_spread < 0:
            raise ValueError("a glimpsing model needs glimpses >= 1, sigma >= 0 and first_fixation_spread >= 0")
        self.glimpses, self.sigma, self.first_fixation_spread = glimpses, sigma, first_fixation_spread
        self._own_seed = 0

    def start(self, images: Tensor) -> Any:
        """The state before the first glimpse."""
        raise NotImplementedError

    def glance(self, images: Tensor, fixations: Tensor, state: Any) -> Glance:
        """Look at images (B, C, H, W) at fixations (B, 2)."""
        raise NotImplementedError

    def sample_noise(
        self, batch_size: int, generators: Sequence[torch.Generator], glimpses: int | None = None
    ) -> dict[str, Tensor]:
        """Every random number that one forward pass of T glimpses uses; one CPU generator for each example.

        The numbers of the first t glimpses do not depend on T.
        """
        steps = (glimpses or self.glimpses) - 1
        if len(generators) != batch_size:
            raise ValueError(f"{batch_size} examples need as many generators, not {len(generators)}")
        first = [torch.rand(2, generator=g) for g in generators]
        policy = [torch.stack([torch.randn(2, generator=g) for _ in range(steps)]) for g in generators if steps]
        return {
            "first_fixation": (torch.stack(first) * 2 - 1) * self.first_fixation_spread,
            "policy": torch.stack(policy) if steps else torch.zeros(batch_size, 0, 2),
        }

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Tensor:
        """Logits (B, K) after the last glimpse at images (B, C, H, W); without noise, the model draws its own."""
        return self.look(images, noise, gradient_mode=gradient_mode).logits[-1]

    def look(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Trajectory:
        """Take as many glimpses as the noise provides for; everything that happened on the way."""
        if gradient_mode not in self.gradient_modes:
            raise ValueError(f"gradient_mode must be one of {', '.join(self.gradient_modes)}, not '{gradient_mode}'")
        noise = noise if noise is not None else self._own_noise(len(images))
        offsets = self.sigma * noise["policy"].to(images)
        fixations = [noise["first_fixation"].to(images)]
        state, glances, means = self.start(images), [], []
        for t in range(offsets.shape[1] + 1):
            glance = self.glance(images, fixations[t], state)
            glances.append(glance)
            means.append(_clamp(glance.mean, straight_through=gradient_mode == "straight-through"))
            state = glance.state
            if t < offsets.shape[1]:
                following = means[t] + offsets[:, t]
                fixations.append(following.detach() if gradient_mode == "detached" else following)
        return Trajectory(
            logits=torch.stack([glance.logits for glance in glances]),
            means=torch.stack(means),
            fixations=torch.stack(fixations),
            baselines=torch.stack([glance.baseline for glance in glances]),
        )

    def _own_noise(self, batch_size: int) -> dict[str, Tensor]:
        self._own_seed += 1
        return self.sample_noise(batch_size, [generator("own", self._own_seed, i) for i in range(batch_size)])


def _clamp(mean: Tensor, *, straight_through: bool) -> Tensor:
    clamped = mean.clamp(-1, 1)
    # The difference is exactly 0 and carries the gradient: every mode computes the same logits, to the last bit.
    return clamped.detach() + (mean - mean.detach()) if straight_through else clamped
