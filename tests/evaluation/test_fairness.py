"""Acceptance 1 of the protocol: a classifier right with probability p scores p, whatever the attack."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import robustbench_lpm
from tests.classifiers import Fair

IMAGES, DRAWS = 2000, 20
ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("noise", {"tries": 3}),
    ("fgsm", {"eot": 2}),
    ("pgd", {"steps": 5}),
    ("pgd", {"steps": 3, "restarts": 4}),
    ("spsa", {"iterations": 3, "pairs": 4}),
    ("art-pgd", {"steps": 3, "restarts": 2}),
    ("cleverhans-pgd", {"steps": 3}),
]


@pytest.mark.parametrize("p", [0.9, 0.6])
@pytest.mark.parametrize(("attack", "parameters"), ATTACKS, ids=lambda value: str(value))
def test_fairness(attack: str, parameters: dict[str, Any], p: float) -> None:
    images = torch.rand(IMAGES, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(IMAGES, dtype=torch.long)
    record = robustbench_lpm.evaluate(Fair(p), attack, (images, labels), eps=0.1, parameters=parameters, draws=DRAWS)
    # Draws are independent given the image here, so that all IMAGES x DRAWS of them count.
    standard_error = math.sqrt(p * (1 - p) / (IMAGES * DRAWS))
    assert abs(record.clean_accuracy.value - p) < 4 * standard_error
    assert abs(record.robust_accuracy.value - p) < 4 * standard_error
    assert record.outcomes["linf"].min() > 0  # the attack did something, on every example
