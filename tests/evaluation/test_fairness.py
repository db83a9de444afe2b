"""Acceptance 1 of the protocol: a classifier right with probability p scores p, whatever the attack."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm import cards
from robustbench_lpm.randomness import generator
from tests.classifiers import Fair, FairGazing, FairGlimpsing, Linear

WEIGHT = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
GRADES = 25_000  # images x draws: with fewer the test would not see a bias of one point
P = 0.8
SMALL = {
    "steps": 3, "restarts": 2, "eot": 1, "queries": 6, "votes": 1, "draws": 3, "iterations": 2, "pairs": 4, "tries": 3,
}  # fmt: skip
# Where restarts or draws choose among results: as small as they must be for that, beside the small size of each attack.
MORE: list[tuple[str, dict[str, Any]]] = [
    ("pgd", {"steps": 3, "restarts": 4, "eot": 1}),
    ("apgd-margin", {"steps": 5, "eot": 2}),
    ("art-pgd", {"steps": 2, "eot": 2}),
    ("cleverhans-pgd", {"steps": 2, "eot": 2}),
]


class FairOfFour(Fair):
    """The same with two more classes that are never predicted: some losses need them."""

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        logits = super().forward(images, noise)
        return torch.cat([logits, torch.full((len(images), 2), -2.0)], dim=1)


def small(attack: str) -> dict[str, Any]:
    return {name: SMALL[name] for name in cards.attack(attack).parameters if name in SMALL}


def assert_fair(model: nn.Module, p: float, attack: Any, parameters: dict[str, Any], **given: Any) -> None:
    """The model scores p, clean and attacked; draws are independent given the image here, so that all of them count."""
    images = torch.rand(125, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data, draws = (images, torch.zeros(125, dtype=torch.long)), GRADES // 125
    record = robustbench_lpm.evaluate(model, attack, data, eps=0.1, parameters=parameters, draws=draws, **given)
    standard_error = math.sqrt(p * (1 - p) / GRADES)
    assert abs(record.clean_accuracy.value - p) < 3.5 * standard_error
    assert abs(record.robust_accuracy.value - p) < 3.5 * standard_error
    assert record.outcomes["linf"].min() > 0  # the attack did something, on every example


@pytest.mark.parametrize("attack", [name for name in cards.names("attack") if not cards.attack(name).members])
def test_fairness(attack: str) -> None:
    """Whatever is registered; a worst case is tested in `test_worst_case.py`."""
    card = cards.attack(attack)
    if card.surrogates is not None:
        assert_fair(Fair(P), P, attack, small(attack), surrogates=[Linear(WEIGHT), Linear(-WEIGHT)])
    else:
        model = FairGazing(P) if card.applies_to == "glimpsing" else FairOfFour(P)
        assert_fair(model, P, attack, small(attack))


@pytest.mark.parametrize(("attack", "parameters"), MORE, ids=lambda value: str(value))
def test_fairness_of_choices(attack: str, parameters: dict[str, Any]) -> None:
    assert_fair(FairOfFour(0.6), 0.6, attack, parameters)


@pytest.mark.parametrize("parameters", [{"steps": 2, "eot": 1}, {"steps": 2, "eot": 1, "restarts": 2}], ids=str)
def test_fairness_of_the_choice_among_gradient_modes(parameters: dict[str, Any]) -> None:
    assert_fair(FairGlimpsing(P), P, "pgd", parameters)


class DrawsAfresh(nn.Module):
    """`FairOfFour` as code that knows no noise sees it: new noise at every call."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.fair, self.generator = FairOfFour(p), generator("afresh")

    def forward(self, images: Tensor) -> Tensor:
        noise = {"key": torch.randint(2**62, (len(images),), generator=self.generator)}
        return self.fair(images, noise)


@pytest.mark.slow
def test_plain_autoattack_is_unfair(tmp_path: Path) -> None:
    """Why we grade apart: the package's own driver, in its version for randomised models, scores p³ where p is right.

    Every one of its three single passes (clean, and after each of two stages) keeps only what was right so far.
    """
    from pyautoattack import AutoAttack
    from pyautoattack.state import EvaluationState

    p, images = 0.9, torch.rand(1000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    tracer, state = sys.gettrace(), tmp_path / "state.json"
    attack = AutoAttack(DrawsAfresh(p), norm="Linf", eps=0.1, version="rand", seed=0)
    try:
        attack.run_standard_evaluation(images, torch.zeros(1000, dtype=torch.long), state_path=state)
    finally:
        sys.settrace(tracer)  # it takes away whatever traced before, such as a measurement of coverage
    score = float(EvaluationState.from_disk(state).robust_flags.float().mean())
    print(f"AutoAttack's own score of a classifier that is right with probability {p}: {score:.3f}")
    assert abs(score - p**3) < 0.05
    assert score < p - 0.1
