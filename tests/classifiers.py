"""Classifiers whose behaviour under attack can be derived, for tests of attacks and of the protocol."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lpm.architectures.recurrent_attention import Trajectory
from robustbench_lpm.randomness import Addresses


class Linear(nn.Module):
    """Two classes, margin z_0 - z_1 = <w, x> + b: every worst case has a closed form.

    In the ball of radius eps the smallest margin is m - eps ||w||_1 (linf) or m - eps ||w||_2 (l2), away from the box.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, bias: float = 0.0, sigma: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias, self.sigma = bias, sigma

    def margin(self, images: Tensor) -> Tensor:
        return (images * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, images: Tensor) -> Tensor:
        margin = self.margin(images)
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


class NoisyLinear(Linear):
    """The same with Gaussian noise of standard deviation sigma on the margin.

    Under the worst perturbation in linf an image of margin m is right with probability Φ((m - eps ||w||_1) / sigma).
    """

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"margin": addresses.normal("margin")}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        margin = self.margin(images) + self.sigma * noise["margin"]
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)


class TwoSources(Linear):
    """Linear with two sources of noise: "level" (one number) for the logit of class 0, "tilt" (three) for that of 1."""

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"level": addresses.normal("level"), "tilt": addresses.normal("tilt", 3)}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        margin, tilt = self.margin(images) + self.sigma * noise["level"], self.sigma * noise["tilt"].sum(1)
        return torch.stack([margin, tilt], dim=1)


class Affine(nn.Module):
    """Logits W x + b of several classes, with Gaussian noise of standard deviation sigma on each."""

    weights: Tensor
    bias: Tensor

    def __init__(self, weights: Tensor, bias: Tensor, sigma: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("bias", bias)
        self.sigma, self.stochastic = sigma, sigma > 0

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"logits": addresses.normal("logits", len(self.bias))}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        logits = images.flatten(1) @ self.weights.T + self.bias
        return logits + self.sigma * noise["logits"] if noise else logits


class Fair(nn.Module):
    """Right with probability p on every input, whatever an attack does: its flips are decided by noise and a hash.

    The label of an image is 0. An honest protocol scores p; one that grades on noise the attack has seen scores less.
    Classes beyond two are never predicted.
    """

    def __init__(self, p: float, classes: int = 2) -> None:
        super().__init__()
        self.p, self.classes = p, classes

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"key": addresses.integers("key", 2**62)}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        right = _coins(images.detach().cpu().flatten(1).numpy(), noise["key"].numpy()) < self.p
        # A little of the image in the logits, so that a gradient exists.
        tilt = 1e-3 * images.flatten(1).mean(1)
        sign = torch.where(right, 1.0, -1.0)
        others = (torch.full_like(sign, -2.0) for _ in range(self.classes - 2))
        return torch.stack([sign + tilt, -sign - tilt, *others], dim=1)


class FairGlimpsing(Fair):
    """The same, with two ways in which gradients may pass decisions of its own (it makes none): both are attacked."""

    gradient_modes = ("detached", "reparameterised")

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Tensor:
        assert gradient_mode in self.gradient_modes
        return super().forward(images, noise)


class FairGazing(Fair):
    """The same with fixations to attack: after each of two glimpses it wants to look at a point that the image decides.

    The logits have nothing to do with where it looks.
    """

    glimpses = 2

    def look(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Trajectory:
        halves = torch.stack([part.flatten(1).mean(1) for part in images.chunk(2, dim=-1)], dim=1)
        means = (2 * halves - 1).expand(self.glimpses, -1, -1)
        logits = self(images, noise).expand(self.glimpses, -1, -1)
        return Trajectory(logits, means, fixations=means.detach(), baselines=means[..., 0].detach())


def _coins(pixels: NDArray[np.float32], keys: NDArray[np.int64]) -> Tensor:
    """A number in [0, 1) for each row, of all bits of its pixels and its key (splitmix64, Steele et al. 2014)."""
    bits = np.ascontiguousarray(pixels).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(2**63, size=bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (bits * odd).sum(1) + keys.astype(np.uint64)  # modulo 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy(mixed.astype(np.float64) / 2**64)
