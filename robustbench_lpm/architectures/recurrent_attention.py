"""The loop of all glimpsing classifiers: look, update, classify, choose the next fixation.

One pass uses two sources of randomness, both in the noise dictionary:
    "first_fixation"  (B, 2), uniform on [-spread, spread]², in normalised coordinates
    "policy"          (B, T-1, 2), standard normal; the next fixation is mu + sigma · policy

Noise for R · B runs over B images comes with the images once; row i of all that is returned belongs to image i mod B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustbench_lpm.randomness import Addresses

GRADIENT_MODES = ("detached", "reparameterised", "straight-through", "score-function")
THROUGH = ("reparameterised", "straight-through")  # modes in which a gradient passes the sampling grid
Policy = Literal["learned", "centre", "random"]

_calls = count()  # calls without noise, of all models of this process: a model and its copy never draw the same


@dataclass(frozen=True)
class Trajectory:
    """The results of every glimpse t = 0..T-1; the first dimension is t."""

    logits: Tensor  # (T, B, K) if the model classified there
    means: Tensor  # (T, B, 2), mu[t], in [-1, 1]: the policy's mean after glimpse t
    fixations: Tensor  # (T, B, 2), l[t]: where glimpse t looked
    baselines: Tensor  # (T, B), the expected reward after glimpse t

    def log_density(self, sigma: float) -> Tensor:
        """Σ_t log N(l[t+1]; mu[t], sigma²) up to a constant, (B,): its gradient reaches the means alone."""
        distance = self.fixations[1:].detach() - self.means[:-1]
        return -distance.square().sum((0, 2)) / (2 * sigma**2)


@dataclass(frozen=True)
class Glance:
    """The results of one glimpse."""

    logits: Tensor  # (B, K)
    mean: Tensor  # (B, 2), before the clamp to [-1, 1]
    baseline: Tensor  # (B,)
    state: Any


class RecurrentAttention(nn.Module):
    """Base of the classifiers that look T times; a subclass defines one glimpse (`start`, `glance`).

    Args:
        glimpses T, sigma (of the policy, normalised units).
        first_fixation_spread: half the side of the square in which the first glimpse looks.
        policy: "learned"; or, as controls from the same weights, "centre" (every glimpse looks at the centre) and
            "random" (every glimpse looks at a point drawn uniformly from [-random_spread, random_spread]²).
    """

    shares_images = False  # whether `glance` takes fixations of several runs, row i for image i mod B

    def __init__(
        self,
        glimpses: int,
        sigma: float,
        first_fixation_spread: float = 0.25,
        policy: Policy = "learned",
        random_spread: float = 0.5,
    ) -> None:
        super().__init__()
        if glimpses < 1 or sigma < 0 or first_fixation_spread < 0 or random_spread < 0:
            raise ValueError("a glimpsing model needs glimpses >= 1, sigma >= 0 and spreads >= 0")
        if policy not in ("learned", "centre", "random"):
            raise ValueError(f"policy must be 'learned', 'centre' or 'random', not '{policy}'")
        self.glimpses, self.sigma, self.first_fixation_spread = glimpses, sigma, first_fixation_spread
        self.policy, self.random_spread = policy, random_spread

    @property
    def stochastic(self) -> bool:
        """Whether two passes over one image may differ: not when every glimpse looks at the centre."""
        return self.policy != "centre"

    @property
    def gradient_modes(self) -> tuple[str, ...]:
        """The ways in which a gradient may pass the fixations, without those that make no difference.

        "detached" (not at all, as trained), "reparameterised" (through l = mu + sigma · noise, the sampling grid and
        the clamp), "straight-through" (the same without the clamp), "score-function" (the likelihood-ratio estimate of
        Williams 1992, through the density of the fixations).
        """
        if self.policy != "learned" or self.glimpses == 1:
            return ("detached",)  # the next fixation does not depend on the image
        return GRADIENT_MODES if self.sigma > 0 else GRADIENT_MODES[:-1]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameter groups with separate learning rates: where path and locator, baseline, the rest."""
        groups: dict[str, list[nn.Parameter]] = {"where": [], "baseline": [], "rest": []}
        for name, parameter in self.named_parameters():
            group = "where" if name.startswith(("where_", "locator")) else "rest"
            groups["baseline" if name.startswith("baseline") else group].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters}

    def start(self, images: Tensor, runs: int) -> Any:
        """The state of the runs before the first glimpse."""
        raise NotImplementedError

    def glance(self, images: Tensor, fixations: Tensor, state: Any) -> Glance:
        """Look at images (B, C, H, W) at fixations (B, 2); or (R · B, 2) where images are shared."""
        raise NotImplementedError

    def sample_noise(self, addresses: Addresses, glimpses: int | None = None) -> dict[str, Tensor]:
        """Every random number that one forward pass of T glimpses uses, one address for each example.

        The numbers of the first t glimpses do not depend on T.
        """
        steps = (glimpses or self.glimpses) - 1
        return {
            "first_fixation": (addresses.uniform("first_fixation", 2) * 2 - 1) * self.first_fixation_spread,
            "policy": addresses.normal("policy", steps, 2),
        }

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Tensor:
        """Logits (B, K) after the last glimpse at images (B, C, H, W); without noise, the model draws its own."""
        return self.look(images, noise, gradient_mode=gradient_mode).logits[-1]

    def look(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Trajectory:
        """The trajectory of as many glimpses as the noise has numbers for."""
        noise = self.noise_for(images, noise)
        state, glances = self.start(images, len(noise["first_fixation"])), []

        def aim(fixations: Tensor) -> Tensor:
            nonlocal state
            glance = self.glance(images, fixations, state)
            glances.append(glance)
            state = glance.state
            return glance.mean

        means, fixations = self.follow(noise, gradient_mode, aim)
        return Trajectory(
            logits=torch.stack([glance.logits for glance in glances]),
            means=torch.stack(means),
            fixations=torch.stack(fixations),
            baselines=torch.stack([glance.baseline for glance in glances]),
        )

    def noise_for(self, images: Tensor, noise: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Noise in the precision and on the device of the images; the model's own where none is given."""
        if not noise and self.policy == "centre":  # it needs none, but for how many there are
            count, steps = len(images), self.glimpses - 1
            return {"first_fixation": images.new_zeros(count, 2), "policy": images.new_zeros(count, steps, 2)}
        noise = noise or self._own_noise(len(images))
        return {source: values.to(images) for source, values in noise.items()}

    def follow(
        self, noise: dict[str, Tensor], gradient_mode: str, aim: Callable[[Tensor], Tensor], *, last: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """T means and T fixations of a policy, (B, 2) each: `aim` takes a glimpse at fixations, returns the next mean.

        Without `last` no glimpse is taken at the last fixation, and its mean is left out.
        """
        if gradient_mode not in GRADIENT_MODES:
            raise ValueError(f"gradient_mode must be one of {', '.join(GRADIENT_MODES)}, not '{gradient_mode}'")
        first, steps = noise["first_fixation"], noise["policy"].unbind(1)
        fixations, means = [torch.zeros_like(first) if self.policy == "centre" else first], []
        for t in range(len(steps) + last):
            mean = aim(fixations[t])
            clamped = mean.clamp(-1, 1)
            if gradient_mode == "straight-through" or (self.training and gradient_mode == "detached"):
                # The difference is exactly 0 and carries the gradient: every mode computes the same logits. In training
                # it reaches the policy's likelihood alone: a mean past the clamp would have none that leads it back.
                clamped = clamped.detach() + (mean - mean.detach())
            means.append(clamped)
            if t < len(steps):
                following = self._next_fixation(means[t], steps[t])
                fixations.append(following if gradient_mode in THROUGH else following.detach())
        return means, fixations

    def _next_fixation(self, mean: Tensor, noise: Tensor) -> Tensor:
        """Where the next glimpse looks, (B, 2), from standard normal noise (B, 2)."""
        if self.policy == "learned":
            return mean + self.sigma * noise
        if self.policy == "centre":
            return torch.zeros_like(mean)
        return self.random_spread * torch.erf(noise / 2**0.5)  # the normal's distribution function: uniform

    def _own_noise(self, batch_size: int) -> dict[str, Tensor]:
        return self.sample_noise(Addresses.of("", range(batch_size), "own", next(_calls)))
