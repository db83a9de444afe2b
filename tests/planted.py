"""Models with planted faults, whose results an audit must not let pass, and a quick way to audit them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lpm.randomness import Addresses


class Loud(nn.Module):
    """Logits times 1000: cross-entropy saturates, its gradient underflows to zero, and gradient attacks stand still."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return 1000 * self.network(images)


class Quantised(nn.Module):
    """A front end that rounds pixels to a few levels: flat almost everywhere, so that the gradient is zero."""

    def __init__(self, network: nn.Module, levels: int = 8) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images * self.levels).round() / self.levels)


class Detached(nn.Module):
    """Answers right, but lets no gradient of its answer reach the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)


class RandomFrontEnd(nn.Module):
    """Gaussian noise on the image before the network: one draw's gradient says little of the next one's."""

    def __init__(self, network: nn.Module, sigma: float = 0.6) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"pixels": addresses.normal("pixels", 1, 32, 32)}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        return self.network(images + self.sigma * noise["pixels"])


class StraightThrough(Quantised):
    """The same front end with the gradient of the identity, as the literature attacks it (BPDA)."""

    def forward(self, images: Tensor) -> Tensor:
        rounded = (images.detach() * self.levels).round() / self.levels
        return self.network(images + rounded - images.detach())


class Remembering(nn.Module):
    """Answers for images near one that it has seen as it answered then: no attack from a clean image changes it."""

    def __init__(self, network: nn.Module, near: float = 0.15) -> None:
        super().__init__()
        self.network, self.near = network, near
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        answers = self.network(images)
        for row, image in enumerate(images.detach()):
            known = next((logits for seen, logits in self.seen if (seen - image).abs().max() <= self.near), None)
            if known is None:
                self.seen.append((image.clone(), answers[row].detach().clone()))
            else:
                answers = answers.index_fill(0, torch.tensor([row]), 0.0)
                answers[row] = answers[row] + known
        return answers


class Tiring(nn.Module):
    """Answers at random, and without a gradient, after so many calls."""

    def __init__(self, network: nn.Module, patience: int) -> None:
        super().__init__()
        self.network, self.patience, self.calls = network, patience, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        answers: Tensor = self.network(images)
        return answers if self.calls <= self.patience else 0 * answers + answers.detach().roll(1, -1)
