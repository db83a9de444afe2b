"""Verdicts on planted models, and what they cost: `python -m benchmarks.audits`.

Twelve masked models, whose results say nothing about their robustness, and twelve sound ones, all made from digit
networks of the zoo. Each is judged by `audit --until-decided`, one thread, from the first 200 digits on. A masked model
must fail, a sound one pass; the rest of the table says which check decided, and how many core-seconds that took.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.records.audits import Audit
from robustbench_lpm.registry.tasks import resolve_attack
from robustbench_lpm.registry.zoo import load_model
from tests.planted import Detached, Loud, Quantised, RandomFrontEnd, Remembering, StraightThrough, Tiring


class Around(nn.Module):
    """A network with something done to the image before it, and to its answer after it."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.network(self.before(images) if self.before else images)
        return self.after(answers) if self.after else answers


class Flipped(torch.autograd.Function):
    """The identity, with the opposite of its gradient."""

    @staticmethod
    def forward(_: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(_: object, gradients: Tensor) -> Tensor:
        return -gradients


class NoisyLogits(nn.Module):
    """Gaussian noise on the logits."""

    def __init__(self, network: nn.Module, sigma: float = 0.1) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"logits": addresses.normal("logits", 10)}

    def forward(self, images: Tensor, noise: dict[str, Tensor]) -> Tensor:
        answers: Tensor = self.network(images)
        return answers + self.sigma * noise["logits"]


class Dropped(nn.Module):
    """A tenth of the pixels is black."""

    def __init__(self, network: nn.Module, share: float = 0.1) -> None:
        super().__init__()
        self.network, self.share = network, share

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"mask": addresses.uniform("mask", 1, 32, 32)}

    def forward(self, images: Tensor, noise: dict[str, Tensor]) -> Tensor:
        answers: Tensor = self.network(images * (noise["mask"] > self.share))
        return answers


class Ensemble(nn.Module):
    """The mean of several networks' logits."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([network(images) for network in self.networks]).mean(0)


def cnn(name: str = "cnn") -> nn.Module:
    return load_model(name).classifier


MASKED: dict[str, Callable[[], nn.Module | str]] = {
    "flipped gradient": lambda: Around(cnn(), before=Flipped.apply),
    "logits times 1000": lambda: Loud(cnn()),
    "saturated log-probabilities": lambda: Around(cnn(), after=lambda x: (50 * x).log_softmax(-1)),
    "softmax inside": lambda: Around(cnn(), after=lambda x: (20 * x).softmax(-1)),
    "rounded logits": lambda: Around(cnn(), after=lambda x: (10 * x).round() / 10),
    "detached": lambda: Detached(cnn()),
    "8 levels": lambda: Quantised(cnn(), 8),
    "8 bits": lambda: Quantised(cnn(), 255),
    "two levels": lambda: Quantised(cnn(), 1),
    "remembering": lambda: Remembering(cnn()),
    "tiring": lambda: Tiring(cnn(), 200),
    "detached, noisy front end": lambda: RandomFrontEnd(Detached(cnn()), 0.6),
}
SOUND: dict[str, Callable[[], nn.Module | str]] = {
    "cnn": lambda: "cnn",
    "cnn-at": lambda: "cnn-at",
    "resnet18": lambda: "resnet18",
    "cnn-downsampled": lambda: "cnn-downsampled",
    "cnn-foveated": lambda: "cnn-foveated",
    "cnn and cnn-at": lambda: Ensemble(cnn(), cnn("cnn-at")),
    "8 bits, straight through": lambda: StraightThrough(cnn(), 255),
    "16 levels, straight through": lambda: StraightThrough(cnn(), 15),
    "logits times 0.1": lambda: Around(cnn(), after=lambda x: 0.1 * x),
    "noisy logits": lambda: NoisyLogits(cnn()),
    "cnn-at, noisy logits": lambda: NoisyLogits(cnn("cnn-at")),
    "a tenth of the pixels dropped": lambda: Dropped(cnn()),
}


@click.command(help=__doc__)
@click.option("--only", multiple=True, help='Only the models whose kind and name hold this, as in "masked 8".')
@click.option("--attack", default="pgd", show_default=True, help="The attack that is judged.")
@click.option("--steps", type=int, default=10, show_default=True, help="Its steps at the first look.")
def main(only: tuple[str, ...], attack: str, steps: int) -> None:
    torch.set_num_threads(1)
    click.echo(
        "| kind | model | verdict | images | core-seconds | checks that do not pass |\n|---|---|---|---|---|---|"
    )
    for kind, planted in (("masked", MASKED), ("sound", SOUND)):
        for name, make in planted.items():
            if only and not any(part in f"{kind} {name}" for part in only):
                continue
            start = time.process_time()
            found = _audit(name, make(), attack, steps)
            seconds, images = time.process_time() - start, max(check.images or 0 for check in found.checks)
            click.echo(f"| {kind} | {name} | {found.verdict} | {images} | {seconds:.0f} | {_reasons(found)} |")


def _audit(name: str, model: nn.Module | str, attack: str, steps: int) -> Audit:
    called = None if isinstance(model, str) else name.replace(" ", "-").replace(",", "")
    return robustbench_lpm.audit(
        model, attack, "digits", eps=0.1, limit=200, parameters={"steps": steps}, until_decided=True,
        black_box=[resolve_attack("square", parameters={"queries": 200, "draws": 2})], name=called,
    )  # fmt: skip


def _reasons(found: Audit) -> str:
    return "; ".join(
        f"{check.name} {100 * (check.judged or 0):.1f} against {100 * (check.reference or 0):.1f}"
        for check in found.checks
        if check.decides and check.verdict in ("fail", "undecided")
    )


if __name__ == "__main__":
    main()
