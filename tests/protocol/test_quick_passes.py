"""Reduced precision serves estimates; decisions and grades are made in full precision. Chunks fit the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks.apgd import apgd
from robustbench_lpm.attacks.pgd import pgd
from robustbench_lpm.attacks.spsa import spsa
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.chunks import chunk_for, default_chunk
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.protocol.plan import make_plan, vary
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model
from tests.classifiers import Linear

WEIGHT = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(4, dtype=torch.long)


class Mistaken(Linear):
    """A copy whose every answer is wrong, though its gradients are right."""

    def margin(self, images: Tensor) -> Tensor:
        return super().margin(images) - 100


def oracle_of(bias: float) -> ClassifierOracle:
    exact, quick = Classifier(Linear(WEIGHT, bias)), Classifier(Mistaken(WEIGHT, bias))
    return ClassifierOracle(exact, IMAGES, range(4), Rules(0, 2, 8), quick=quick)


def test_estimates_come_from_the_quick_copy_and_answers_from_the_classifier() -> None:
    oracle = oracle_of(50.0)
    exact, quick = oracle(IMAGES, oracle.noise()), oracle.probe(IMAGES, oracle.noise())
    torch.testing.assert_close(quick[..., 0], exact[..., 0] - 100)
    _, _, logits = oracle.gradient(IMAGES, oracle.noise(), lambda logits: logits[..., 0])
    torch.testing.assert_close(logits, quick)
    torch.testing.assert_close(oracle.view()(IMAGES), exact[0])
    torch.testing.assert_close(oracle.view(exact=False)(IMAGES), quick[0])


@pytest.mark.parametrize(
    ("attack", "parameters"), [(pgd, {"steps": 5}), (apgd, {"steps": 5}), (spsa, {"iterations": 5, "pairs": 64})]
)
def test_no_image_counts_as_misclassified_because_a_quick_copy_says_so(attack: Any, parameters: dict[str, Any]) -> None:
    """The whole budget goes into images that stand, and every one is moved as far as its gradient leads."""
    oracle = oracle_of(50.0)
    found = attack(oracle, IMAGES, LABELS, norm="linf", eps=0.01, **parameters)
    assert (oracle.ledger.backwards == (0 if attack is spsa else 5)).all()
    changed = ((found - IMAGES) * -WEIGHT.sign()).flatten(1)
    assert (changed.mean(1) > 0.007).all()


def test_a_misclassified_image_is_left_alone() -> None:
    oracle = oracle_of(-50.0)
    pgd(oracle, IMAGES, LABELS, norm="linf", eps=0.01, steps=5)
    assert oracle.ledger.backwards.tolist() == [1] * 4
    assert oracle.ledger.forwards.tolist() == [2] * 4  # the second asks the classifier itself


@pytest.mark.parametrize(("model", "attack"), [("cnn", "spsa"), ("ram", "pgd")])
def test_outcomes_hardly_differ(model: str, attack: str) -> None:
    """benchmarks/ measures more images; here one of 10 may fall on the other side, and strength must not be lost."""
    settings: dict[str, Any] = {
        "eps": 0.1, "limit": 10, "draws": 4,
        "parameters": {"steps": 5, "eot": 2} if attack == "pgd" else {"iterations": 6, "pairs": 64},
        "gradient_mode": "detached" if model == "ram" else None,
    }  # fmt: skip
    full = robustbench_lpm.evaluate(model, attack, **settings)
    quick = robustbench_lpm.evaluate(model, attack, **settings, precision="bfloat16")
    assert full.id != quick.id
    assert "--precision bfloat16" in quick.command
    assert quick.configuration["evaluation"]["precision"] == "bfloat16"
    right = [
        np.stack(record.outcomes["predictions"]) == record.outcomes["label"].to_numpy()[:, None]
        for record in (full, quick)
    ]
    assert np.abs(right[0].mean(1) - right[1].mean(1)).sum() <= 1 + (model == "ram")
    assert [list(row) for row in full.outcomes["clean_predictions"]] == [
        list(row) for row in quick.outcomes["clean_predictions"]
    ]


def test_memory_bounds_the_chunk_and_nothing_else() -> None:
    model, data, attack = resolve_model("cnn"), resolve_data("digits"), resolve_attack("pgd")
    given: dict[str, Any] = {"eps": 0.1, "limit": 70}
    usual, tight = (make_plan(model, attack, data, Options(**given, memory=memory)) for memory in (None, 0.005))
    assert usual.chunk == default_chunk(32, 32) == 64
    assert 1 <= tight.chunk < 64
    assert usual.id == tight.id
    assert "--memory 0.005" in tight.command()
    assert "--memory" not in usual.command()
    assert vary(tight, eps=0.2).chunk == tight.chunk
    assert make_plan(model, attack, data, Options(**given, memory=1e-9)).chunk == 1


def test_a_network_that_remembers_nothing_is_bounded_by_its_images() -> None:
    class Answer(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.detach().flatten(1)[:, :2]

    example = torch.zeros(1, 1, 512, 512)
    assert chunk_for(Classifier(Answer()), example, 2.0) == default_chunk(512, 512)
    assert chunk_for(Classifier(Answer()), example, 4 * 2**20 * 3 / 2**30) == 3


@pytest.mark.parametrize(
    ("changed", "said"), [({"precision": "float16"}, "precision 'float16'"), ({"memory": 0.0}, "memory must be")]
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(LpmbenchError, match=said):
        make_plan(
            resolve_model("cnn"), resolve_attack("pgd"), resolve_data("digits"), Options(eps=0.1, limit=1, **changed)
        )


def test_surrogates_are_reduced_too() -> None:
    attack = resolve_attack("transfer", surrogates=["cnn-at"])
    plan = make_plan(
        resolve_model("cnn"), attack, resolve_data("digits"), Options(eps=0.1, limit=1, precision="bfloat16")
    )
    assert plan.surrogates[0].weights_sha256 == resolve_model("cnn-at").weights_sha256
    dtypes = {parameter.dtype for parameter in plan.surrogates[0].classifier.parameters()}
    assert dtypes == {torch.float32, torch.bfloat16}
