"""The oracle counts every pass, hands out noise by address, guards fixed pixels, and chooses on noise of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo
from robustbench_lpm.attacks.pgd import pgd
from robustbench_lpm.attacks.spsa import spsa
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards
from tests.classifiers import Linear, NoisyLinear
from tests.small import budget

WEIGHT = torch.linspace(-1, 1, 16).reshape(1, 4, 4)


def images_of(n: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(n))


def oracle_of(network: nn.Module, images: Tensor, runs: int = 1, **options: Any) -> ClassifierOracle:
    classifier = Classifier(network) if runs == 1 else MonteCarlo(Classifier(network), runs)
    given = {"seed": 0, "classes": 2, "chunk": 5} | options
    rules = Rules(**{name: given.pop(name) for name in Rules._fields if name in given})
    return ClassifierOracle(classifier, images, range(len(images)), rules, **given)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("eot", [1, 4])
def test_every_pass_of_pgd_is_counted(runs: int, eot: int) -> None:
    images = images_of(7)
    oracle = oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images, runs)
    pgd(oracle, images, torch.zeros(7, dtype=torch.long), norm="linf", eps=0.1, steps=3, eot=eot)
    assert oracle.ledger.forwards.tolist() == [3 * eot * runs] * 7
    assert oracle.ledger.backwards.tolist() == [3 * eot * runs] * 7


class SumOfPixels(nn.Module):
    """Its gradient is one number for all pixels of an image, which autograd does not write out."""

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"factor": addresses.uniform("factor")}

    def forward(self, images: Tensor, noise: dict[str, Tensor]) -> Tensor:
        total = images.flatten(1).sum(1) * noise["factor"]
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def test_gradients_that_are_expanded_numbers_are_averaged_over_groups_of_draws() -> None:
    images = images_of(5)
    oracle = oracle_of(SumOfPixels(), images)  # one draw at once
    noise = oracle.noise(4)
    gradients, _, _ = oracle.gradient(images, noise, lambda logits: logits[..., 0])
    factors = noise.values["factor"].unflatten(0, (4, 5)).mean(0)
    torch.testing.assert_close(gradients, factors[:, None, None, None].expand_as(images))


def test_choosing_among_restarts_is_counted_too() -> None:
    images = images_of(2)
    oracle = oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images, select_draws=6)
    pgd(oracle, images, torch.zeros(2, dtype=torch.long), norm="linf", eps=0.1, steps=3, restarts=2)
    assert oracle.ledger.forwards.tolist() == [2 * 3 + 2 * 6] * 2
    assert oracle.ledger.backwards.tolist() == [2 * 3] * 2


def test_misclassified_images_cost_nothing_more() -> None:
    images = images_of(2)
    margin = float((images[0] * WEIGHT).sum()) - float((images[1] * WEIGHT).sum())
    assert margin != 0
    bias = -float((images * WEIGHT).flatten(1).sum(1).mean())  # one image is right, the other is not
    oracle = oracle_of(Linear(WEIGHT, bias), images)
    pgd(oracle, images, torch.zeros(2, dtype=torch.long), norm="linf", eps=1e-6, steps=5)
    assert sorted(oracle.ledger.forwards.tolist()) == [1, 5]


def test_spsa_asks_twice_for_each_pair_and_once_for_each_iteration() -> None:
    images = images_of(3)
    oracle = oracle_of(Linear(WEIGHT, 50.0), images)
    spsa(oracle, images, torch.zeros(3, dtype=torch.long), norm="linf", eps=0.1, iterations=4, pairs=6)
    assert oracle.ledger.forwards.tolist() == [4 * (2 * 6 + 1)] * 3
    assert oracle.ledger.backwards.sum() == 0


def test_paired_noise_is_the_same_at_both_ends() -> None:
    oracle = oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images_of(3))
    noise = oracle.noise(4, paired=True)
    plus, minus = noise.values["margin"].reshape(8, 3).split(4)
    assert noise.count == 8
    assert torch.equal(plus, minus)
    assert len(plus.unique()) == plus.numel()


def test_noise_belongs_to_the_example_not_to_the_batch() -> None:
    whole = oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images_of(4)).noise(3).values["margin"].reshape(3, 4)
    part = oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images_of(4))
    rows = part.rows(torch.tensor([False, True, False, True])).noise(3).values["margin"].reshape(3, 2)
    assert torch.equal(whole[:, [1, 3]], rows)


def test_fresh_noise_is_addressed_by_the_draws_that_an_image_has_had() -> None:
    """Whatever the others of its batch did; an image that is asked about twice at once has two draws."""
    oracle, alone = (oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images_of(4)) for _ in range(2))
    oracle.rows(torch.tensor([0, 2])).noise(5)
    twice = oracle.rows(torch.tensor([1, 3, 1])).noise(2).values["margin"].reshape(2, 3)
    oracle.choices()
    last = oracle.noise().values["margin"]
    assert oracle.ledger.draws.tolist() == [7, 6, 7, 4]
    expected = alone.rows(torch.tensor([1])).noise(6).values["margin"]
    assert torch.equal(torch.cat([twice[:, 0], twice[:, 2], last[1:2]]), expected[[0, 1, 2, 3, 5]])


def test_attack_and_selection_noise_differ_from_each_other_and_from_grading_noise() -> None:
    network = NoisyLinear(WEIGHT, sigma=1.0)
    classifier = Classifier(network)
    drawn = {p: classifier.sample_noise(Addresses.of(0, [0], p))["margin"] for p in ("attack", "select", "grade")}
    assert len({float(value) for value in drawn.values()}) == 3
    assert torch.equal(oracle_of(network, images_of(1)).noise().values["margin"], drawn["attack"])


def test_masked_pixels_never_reach_the_network_changed() -> None:
    images = images_of(2)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 0] = False
    oracle = oracle_of(Linear(WEIGHT), images, mask=mask)
    moved = images.clone()
    moved[:, :, 0] += 1  # only masked pixels
    same = oracle(moved.requires_grad_(), oracle.noise())
    assert torch.equal(same, oracle(images, oracle.noise()))
    (gradient,) = torch.autograd.grad(same[..., 0].sum(), moved)
    assert gradient[:, :, 0].abs().max() == 0
    assert gradient[:, :, 1:].abs().max() > 0


def test_each_image_gets_its_strongest_candidate() -> None:
    images = torch.full((2, 1, 4, 4), 0.5)
    oracle = oracle_of(Linear(WEIGHT, bias=0.1), images)
    down, up = images - 0.1 * WEIGHT, images + 0.1 * WEIGHT
    first, second = torch.stack([down[0], up[1]]), torch.stack([up[0], down[1]])
    chosen = oracle.choose([first, second], torch.zeros(2, dtype=torch.long))
    assert torch.equal(chosen, down)


def test_the_view_gives_fresh_noise_at_every_call() -> None:
    images = images_of(3)
    view = oracle_of(NoisyLinear(WEIGHT, sigma=1.0), images).view()
    assert not torch.equal(view(images), view(images))


def test_the_view_recognises_some_of_the_images() -> None:
    images = images_of(3)
    oracle = oracle_of(Linear(WEIGHT), images)
    view = oracle.view()
    asked = torch.cat([images[2:], images[:1] + 0.01, images[2:] - 0.01, images[:2]])
    assert torch.equal(view(asked), Classifier(Linear(WEIGHT))(asked))
    assert oracle.ledger.forwards.tolist() == [2, 1, 2]


def test_the_view_averages_probabilities_over_draws() -> None:
    images = images_of(2)
    network = NoisyLinear(WEIGHT, sigma=3.0)
    answers = oracle_of(network, images).view(draws=4)(images)
    each = oracle_of(network, images)
    expected = each(images, each.noise(4)).softmax(-1).mean(0).log()
    torch.testing.assert_close(answers, expected)
    assert each.ledger.forwards.tolist() == [4, 4]


class Answering(Linear):
    """Three classes; the third has the same logit for every image."""

    def __init__(self, last: float, of_all: bool = False) -> None:
        super().__init__(WEIGHT, bias=1.0)
        self.last, self.of_all = last, of_all

    def forward(self, images: Tensor) -> Tensor:
        margin = self.margin(images)[:, None]
        last = torch.full_like(margin, self.last)
        return last.expand(-1, 3) + 0 * margin if self.of_all else torch.cat([margin, -margin, last], dim=1)


ASKING: dict[str, Callable[[ClassifierOracle, Tensor], object]] = {
    "call": lambda oracle, images: oracle(images, oracle.noise()),
    "probe": lambda oracle, images: oracle.probe(images, oracle.noise()),
    "gradient": lambda oracle, images: oracle.gradient(images, oracle.noise(), lambda logits: logits.sum(-1)),
    "view": lambda oracle, images: oracle.view()(images),
    "inexact view": lambda oracle, images: oracle.view(exact=False)(images),
}


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(("last", "of_all", "kind"), [
    (math.nan, False, "NaN"), (math.inf, False, "infinite"), (-math.inf, True, "infinite"),
])  # fmt: skip
def test_logits_that_are_no_numbers_are_an_error(ask: str, last: float, of_all: bool, kind: str) -> None:
    images = images_of(2)
    with pytest.raises(LpmbenchError, match=f"gives {kind} logits"):
        ASKING[ask](oracle_of(Answering(last, of_all), images, classes=3), images)


@pytest.mark.parametrize("ask", ASKING)
def test_a_class_may_be_ruled_out(ask: str) -> None:
    ASKING[ask](oracle_of(Answering(-math.inf), images_of(2), classes=3), images_of(2))


@pytest.mark.parametrize("attack", cards.names("attack"))
@pytest.mark.parametrize("label", [2, 0], ids=["the label", "another class"])
def test_attacks_go_on_where_a_class_is_ruled_out(attack: str, label: int) -> None:
    """What is made is what would be made if the class were far below the others: no loss is infinite or no number."""
    card = cards.attack(attack)
    if card.applies_to == "any" and not card.members and card.surrogates is None:
        images, labels = images_of(4), torch.full((4,), label)
        found = [
            robustbench_lpm.evaluate(
                Answering(last),
                attack,
                (images, labels),
                eps=4 if card.norms[0] == "l0" else 0.1,
                norm=card.norms[0],
                parameters=budget(attack),
            )
            for last in (-math.inf, -200.0)
        ]
        assert found[0].robust_accuracy.value == found[1].robust_accuracy.value
        assert (found[0].outcomes["l2"] > 0).tolist() == (found[1].outcomes["l2"] > 0).tolist()
