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
from robustbench_lpm.registry.tasks import Attack, resolve_attack, resolve_model
from tests.classifiers import Fair, FairGazing, FairGlimpsing, Linear
from tests.small import small

GRADES = 40_000  # images x draws: with fewer the test would not see a bias of one point
WEIGHT = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
EPS = {"l0": 4}
# Two opposite surrogates, of four classes.
OTHERS = [
    resolve_model(nn.Sequential(Linear(weight), nn.ConstantPad1d((0, 2), -50.0)), name=name)
    for name, weight in (("one", WEIGHT), ("its opposite", -WEIGHT))
]


def assert_fair(model: nn.Module, p: float, attack: Attack, images: int = 400) -> None:
    data = torch.rand(images, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(images, dtype=torch.long)
    norm = attack.norms[0]
    record = robustbench_lpm.evaluate(
        model, attack, (data, labels), eps=EPS.get(norm, 0.1), norm=norm, draws=GRADES // images
    )
    # Draws are independent given the image here, so that all of them count.
    standard_error = math.sqrt(p * (1 - p) / GRADES)
    assert abs(record.clean_accuracy.value - p) < 4 * standard_error
    assert abs(record.robust_accuracy.value - p) < 4 * standard_error
    # The attack did something, on every example; but no value need change where half of the selection draws are wrong.
    moved = record.outcomes[norm]
    assert (moved.mean() if norm == "l0" else moved.min()) > 0


@pytest.mark.parametrize("p", [0.9, pytest.param(0.6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("attack", [name for name in cards.names("attack") if not cards.attack(name).members])
def test_fairness(attack: str, p: float) -> None:
    """On a classifier that glimpses and has four classes, so that it suits every attack; see also test_worst_case."""
    assert_fair(FairGazing(p, classes=4), p, small(attack, OTHERS))


@pytest.mark.parametrize("p", [0.9, 0.6])
@pytest.mark.parametrize("parameters", [{"steps": 2, "eot": 1}, {"steps": 2, "eot": 1, "restarts": 2}], ids=str)
def test_fairness_of_the_choice_among_gradient_modes(parameters: dict[str, Any], p: float) -> None:
    assert_fair(FairGlimpsing(p), p, resolve_attack("pgd", parameters=parameters))


class DrawsAfresh(nn.Module):
    """`Fair` as code that knows no noise sees it: new noise at every call; four classes, two never predicted."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.fair, self.generator = Fair(p, classes=4), generator("afresh")

    def forward(self, images: Tensor) -> Tensor:
        noise = {"key": torch.randint(2**62, (len(images),), generator=self.generator)}
        logits: Tensor = self.fair(images, noise)
        return logits


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
