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
from robustbench_lpm.randomness import generator
from robustbench_lpm.registry import cards
from tests.classifiers import Fair, FairGlimpsing
from tests.protocol import test_worst_case
from tests.registry import test_surrogates

GRADES = 40_000  # images x draws: with fewer the test would not see a bias of one point
# Small budgets for every registered attack that can attack any model; several where restarts choose among results.
BUDGETS: dict[str, list[dict[str, Any]]] = {
    "apgd-ce": [{"steps": 5, "eot": 1}, {"steps": 3, "eot": 1, "restarts": 3}],
    "apgd-margin": [{"steps": 5, "eot": 2}],
    "art-pgd": [{"steps": 3, "restarts": 2, "eot": 1}, {"steps": 2, "eot": 2}],
    "autoattack": [{"steps": 2, "queries": 3}],
    "autoattack-rand": [{"steps": 3, "eot": 2}],
    "cleverhans-pgd": [{"steps": 3, "eot": 1}, {"steps": 2, "eot": 2}],
    "cleverhans-spsa": [{"iterations": 1, "pairs": 1}],
    "fgsm": [{"eot": 2}],
    "noise": [{"tries": 3}],
    "pgd": [{"steps": 5, "eot": 1}, {"steps": 3, "restarts": 4, "eot": 1}],
    "pgd-kiritani2020": [{"steps": 5}],
    "rays": [{"queries": 6, "votes": 1}],
    "spsa": [{"iterations": 3, "pairs": 4}],
    "spsa-kiritani2020": [{"iterations": 3, "pairs": 4}],
    "square": [{"queries": 6, "draws": 3}],
}
# They need a model that glimpses, surrogates, or members; these modules have them.
ELSEWHERE = {attack for _, attack, _ in test_surrogates.FAIR_CASES} | {test_worst_case.worst_of("noise").name}
ONE_BY_ONE = {"cleverhans-spsa"}  # attacks one image at a time, slowly
NEEDS_THREE_CLASSES = {"apgd-dlr": [{"steps": 5, "eot": 1}]}
CASES = [(attack, budget) for attack, budgets in BUDGETS.items() for budget in budgets]


class FairOfThree(Fair):
    """The same with a third class that is never predicted."""

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        logits = super().forward(images, noise)
        return torch.cat([logits, torch.full_like(logits[:, :1], -2.0)], dim=1)


def assert_fair(model: nn.Module, p: float, attack: str, parameters: dict[str, Any], images: int = 1000) -> None:
    data = torch.rand(images, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(images, dtype=torch.long)
    draws = GRADES // images
    record = robustbench_lpm.evaluate(model, attack, (data, labels), eps=0.1, parameters=parameters, draws=draws)
    # Draws are independent given the image here, so that all of them count.
    standard_error = math.sqrt(p * (1 - p) / GRADES)
    assert abs(record.clean_accuracy.value - p) < 4 * standard_error
    assert abs(record.robust_accuracy.value - p) < 4 * standard_error
    assert record.outcomes["linf"].min() > 0  # the attack did something, on every example


def test_the_fairness_of_every_registered_attack_is_tested() -> None:
    assert set(BUDGETS) | set(NEEDS_THREE_CLASSES) | ELSEWHERE == set(cards.names("attack"))


@pytest.mark.parametrize("p", [0.9, 0.6])
@pytest.mark.parametrize(("attack", "parameters"), CASES, ids=lambda value: str(value))
def test_fairness(attack: str, parameters: dict[str, Any], p: float) -> None:
    assert_fair(Fair(p), p, attack, parameters, images=400 if attack in ONE_BY_ONE else 1000)


@pytest.mark.parametrize("p", [0.9, 0.6])
@pytest.mark.parametrize("attack", NEEDS_THREE_CLASSES)
def test_fairness_with_three_classes(attack: str, p: float) -> None:
    for parameters in NEEDS_THREE_CLASSES[attack]:
        assert_fair(FairOfThree(p), p, attack, parameters)


@pytest.mark.parametrize("p", [0.9, 0.6])
@pytest.mark.parametrize("parameters", [{"steps": 2, "eot": 1}, {"steps": 2, "eot": 1, "restarts": 2}], ids=str)
def test_fairness_of_the_choice_among_gradient_modes(parameters: dict[str, Any], p: float) -> None:
    assert_fair(FairGlimpsing(p), p, "pgd", parameters)


class DrawsAfresh(nn.Module):
    """`Fair` as code that knows no noise sees it: new noise at every call; four classes, two never predicted."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.fair, self.generator = Fair(p), generator("afresh")

    def forward(self, images: Tensor) -> Tensor:
        noise = {"key": torch.randint(2**62, (len(images),), generator=self.generator)}
        logits = self.fair(images, noise)
        return torch.cat([logits, torch.full((len(images), 2), -2.0)], dim=1)


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
