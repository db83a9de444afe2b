"""The table in docs/library-attacks.md: every attack of the other libraries that is installed, tried once.

    python -m tools.library_table docs/library-attacks.md

It tries them on a small network and two images at tiny budgets: whether they run, not how strong they are. Install all
five libraries first, and what some of their attacks need: cma, kornia, multiprocess and numba.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks import libraries
from robustbench_lpm.attacks.libraries.offers import Offer
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.grading import within_budget
from robustbench_lpm.protocol.oracle import ClassifierOracle, Ledger, Rules

HEAD = "| attack | norms | knows | targeted | tried |\n|---|---|---|---|---|"
EPS: dict[str, float] = {"linf": 0.05, "l2": 1.5, "l1": 20.0}
MOST = 10  # of every count among the parameters, but for these, which would fail, or take long
COUNTS = re.compile(r"steps|iter|eval|trial|queries|query|sample|directions|repeats|parallel")
TINY: dict[str, dict[str, Any]] = {
    "advlib:str_attack": {"max_iterations": 10, "binary_search_steps": 1, "retrain": False},
    "art:CarliniL0Method": {"max_iter": 1, "binary_search_steps": 1, "max_halving": 1, "max_doubling": 1},
    "art:GeoDA": {"max_iter": 400},
    "art:PixelAttack": {"th": 1, "max_iter": 1},
    "art:ThresholdAttack": {"th": 20, "max_iter": 1},
    "art:UniversalPerturbation": {"attacker": "fgsm", "max_iter": 1},
    "art:VirtualAdversarialMethod": {"max_iter": 1},
    "torchattacks:JSMA": {"gamma": 0.001},
}


class Tried(NamedTuple):
    """What a try of an attack came to: its images (B, C, H, W), projected, or why there are none."""

    ledger: Ledger
    images: Tensor | None = None
    reason: str = ""


def try_once(offer: Offer) -> Tried:
    """Run an attack at a tiny budget on a small network and two images of 32 x 32 pixels, in its first norm."""
    network, images = small_network(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    oracle = ClassifierOracle(Classifier(network), images, range(2), Rules(0, 10, 64))
    labels, norm = network(images).argmax(1), offer.usable[0]
    targets = (labels + 1) % 10 if offer.only_targeted else None
    try:
        found = offer.function(
            oracle, images.clone(), labels, norm=norm, eps=EPS[norm], targets=targets, **tiny(offer)
        )  # fmt: skip
        return Tried(oracle.ledger, within_budget(found, images, norm, EPS[norm], None))
    except LpmbenchError as error:
        return Tried(oracle.ledger, reason=str(error).removeprefix(f"{offer.address} "))


def tiny(offer: Offer) -> dict[str, Any]:
    """Parameters of an attack with which it is soon done."""
    counts = {name: value for name, value in offer.defaults.items() if type(value) is int and COUNTS.search(name)}
    return {name: min(value, MOST) for name, value in counts.items()} | TINY.get(offer.address, {})


def small_network() -> nn.Module:
    """A convolutional network from (n, 3, 32, 32) to 10 logits, with random weights that are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()]
        last = nn.Linear(784, 10)
    last.weight.data *= 8  # logits that differ
    return nn.Sequential(*layers, last).eval().requires_grad_(False)


def row(offer: Offer, tried: Tried) -> str:
    """The row of an attack."""
    norms = ", ".join(offer.norms) or "any"
    targeted = "only" if offer.only_targeted else "yes" if offer.targeted else "no"
    cells = [
        f"`{offer.address.partition(':')[2]}`", norms + ", minimised" * offer.minimises, offer.knowledge, targeted,
        tried.reason or "runs",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def section(library: str) -> str:
    """All that the page says of a library."""
    offers = [libraries.find(f"{library}:{name}") for name in libraries.names(library)]
    table = [HEAD, *(row(offer, try_once(offer)) for offer in offers)]
    parts = [f"## {library}: {libraries.told_version(library)}", "\n".join(table)]
    without = [f"`{name}` ({reason})" for name, reason in libraries.left_out(library).items()]
    return "\n\n".join([*parts, *(["Left out:\n" + ",\n".join(without) + "."] if without else [])])


def main(page: Path) -> None:
    """Write the sections of all libraries below the first part of the page."""
    made = "\n\n".join(map(section, libraries.LIBRARIES))  # it takes minutes
    head, mark, _ = page.read_text().partition("<!-- made by tools/library_table.py -->\n")
    page.write_text(f"{head}{mark}\n{made}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
