"""Attacks that look for the smallest perturbation, against distances that can be derived: linear classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks.autoattack_adapter import fab
from robustbench_lpm.attacks.minimum import ddn, deepfool, fmn, nearest_on_ray, sigma_zero
from robustbench_lpm.norms import Norm, distance
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from tests.classifiers import Affine, Linear, NoisyLinear

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
ATTACKS: list[tuple[Callable[..., Tensor], Norm, float]] = [
    (ddn, "l2", 1.01), (fmn, "linf", 1.01), (fmn, "l2", 1.01), (fmn, "l1", 1.05),
    (deepfool, "linf", 1.01), (deepfool, "l2", 1.01), (fab, "linf", 1.01), (fab, "l2", 1.01), (fab, "l1", 1.05),
    (sigma_zero, "l0", 1.01),
]  # fmt: skip


def data(*, boxed: bool = False) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier and images that it gets right, away from the box, or with most pixels near its ends."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 8, 8, generator=generator)
    pixels = torch.rand(12, 1, 8, 8, generator=generator) * 2 - 1
    images = 0.5 + 0.5 * pixels.sign() * pixels.abs() ** 0.2 if boxed else 0.5 + 0.2 * pixels
    model = Linear(weight)
    model.bias = 1.0 - float(model.margin(images).min())
    return model, images, torch.zeros(12, dtype=torch.long)


def oracle_of(network: nn.Module, images: Tensor, classes: int = 2, select_draws: int = 1) -> ClassifierOracle:
    return ClassifierOracle(Classifier(network), images, range(len(images)), Rules(0, classes, 64, select_draws))


def least(model: Linear, images: Tensor, norm: Norm) -> Tensor:
    """The distance to the nearest point of the box at which the margin is 0, (B,), by root finding in one number.

    Towards the boundary pixel i has room r_i. The nearest point moves it by min(eps, r_i) in linf, by min(t |w_i|, r_i)
    in l2; in l1 the pixels of the largest weights are moved to the end of the box, one after the other; in l0 those
    that win the most go there.
    """
    weight, found = model.weight.flatten().double(), []
    for image, margin in zip(images.flatten(1).double(), model.margin(images).double().tolist(), strict=True):
        room, size = torch.where(weight * margin > 0, image, 1 - image), weight.abs()
        if norm == "l0":
            won = (room * size).sort(descending=True).values.cumsum(0)
            found.append((won <= abs(margin)).sum().double() + 1)
            continue

        def offsets(level: float, room: Tensor = room, size: Tensor = size) -> Tensor:
            if norm == "l1":
                order = size.argsort(descending=True)
                before = room[order].cumsum(0) - room[order]
                return torch.zeros_like(room).scatter(0, order, (level - before).clamp_min(0).minimum(room[order]))
            return (torch.full_like(size, level) if norm == "linf" else level * size).minimum(room)

        level = brentq(lambda t: float(offsets(t) @ size) - abs(margin), 0, 1e3, xtol=1e-12)  # noqa: B023
        found.append(distance(offsets(level)[None], torch.zeros_like(room)[None], norm)[0])
    return torch.stack(found)


@pytest.mark.parametrize(("attack", "norm", "ratio"), ATTACKS)
@pytest.mark.parametrize("boxed", [False, True])
def test_the_nearest_adversarial_example_is_found(
    attack: Callable[..., Tensor], norm: Norm, ratio: float, boxed: bool
) -> None:
    model, images, labels = data(boxed=boxed)
    expected = least(model, images, norm)
    found = attack(oracle_of(model, images), images, labels, norm=norm, eps=0.0, steps=200)
    assert (model.margin(found) < 0).all()
    assert (distance(found, images, norm) / expected).max() < ratio
    assert (distance(found, images, norm) / expected).min() > 1 - 1e-5


@pytest.mark.parametrize(("attack", "norm", "ratio"), ATTACKS)
def test_the_nearest_of_several_classes_is_found(attack: Callable[..., Tensor], norm: Norm, ratio: float) -> None:
    """Six classes: the distance to the nearest of five hyperplanes, none of which the box touches but in l1."""
    generator = torch.Generator().manual_seed(3)
    weights, (_, images, labels) = torch.randn(6, 64, generator=generator), data()
    bias = -0.5 * weights.sum(1)
    bias[0] += 12
    network = Affine(weights, bias)
    assert (network(images).argmax(1) == labels).all()
    leads = [Linear((weights[0] - weights[k]).reshape(1, 8, 8), float(bias[0] - bias[k])) for k in range(1, 6)]
    expected = torch.stack([least(lead, images, norm) for lead in leads]).amin(0)
    found = attack(oracle_of(network, images, classes=6), images, labels, norm=norm, eps=0.0, steps=200)
    assert (network(found).argmax(1) != labels).all()
    # Descents of the loss follow the class that is ahead, which need not be the one that is nearest.
    nearly = {ddn: 1.05, fmn: 1.05, sigma_zero: 1 + 1 / 7}.get(attack, ratio)  # one value more than seven
    assert float((distance(found, images, norm) / expected).median()) < nearly
    assert (distance(found, images, norm) / expected).min() > 1 - 1e-5


@pytest.mark.parametrize(("attack", "norm"), [(attack, norm) for attack, norm, _ in ATTACKS if norm != "l0"])
def test_of_a_stochastic_classifier_half_of_the_selection_draws_are_right(
    attack: Callable[..., Tensor], norm: Norm
) -> None:
    """With symmetric noise on the margin that is where the margin is 0: the distance of the classifier without noise.

    The median of 200 draws is uncertain by 1.25 sigma / sqrt(200), of margins of 1 to 8.
    """
    still, images, labels = data()
    model = NoisyLinear(still.weight, still.bias, sigma=0.5)
    oracle = oracle_of(model, images, select_draws=200)
    found = attack(oracle, images, labels, norm=norm, eps=0.0, steps=100)
    assert oracle.outvoted(found, labels).all()
    nearer = images + 0.99 * (found - images)
    assert not oracle.outvoted(nearer, labels).any()
    assert model.margin(found).abs().max() < 4 * 1.25 * 0.5 / math.sqrt(200)
    ratio = distance(found, images, norm) / least(still, images, norm)
    assert float(ratio.median()) == pytest.approx(1, abs=0.1)


def test_in_l0_few_values_are_changed_of_a_stochastic_classifier_and_towards_a_target() -> None:
    """Without noise on the margin as many would do; one more or less is what the selection draws' noise may cost."""
    still, images, labels = data()
    oracle = oracle_of(NoisyLinear(still.weight, still.bias, sigma=0.5), images, select_draws=200)
    found = sigma_zero(oracle, images, labels, norm="l0", eps=0.0, steps=100)
    assert oracle.outvoted(found, labels).all()
    assert (distance(found, images, "l0") - least(still, images, "l0")).abs().max() <= 1
    weights = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    network, targets = Affine(weights, -0.5 * weights.sum(1) + torch.tensor([3.0, 0, 0, 0])), torch.arange(12) % 3 + 1
    found = sigma_zero(oracle_of(network, images, 4), images, labels, targets=targets, norm="l0", eps=0.0, steps=200)
    assert (network(found).argmax(1) == targets).all()
    assert distance(found, images, "l0").max() < 16


@pytest.mark.parametrize(("attack", "norm"), [(ddn, "l2"), (fmn, "linf"), (fmn, "l2"), (fmn, "l1"), (deepfool, "l2")])
def test_targeted_searches_reach_the_target(attack: Callable[..., Tensor], norm: Norm) -> None:
    generator = torch.Generator().manual_seed(3)
    weights, (_, images, labels) = torch.randn(4, 64, generator=generator), data()
    network = Affine(weights, -0.5 * weights.sum(1) + torch.tensor([3.0, 0, 0, 0]))
    targets = torch.arange(len(images)) % 3 + 1
    found = attack(oracle_of(network, images, classes=4), images, labels, targets=targets, norm=norm, eps=0.0)
    assert (network(found).argmax(1) == targets).all()
    short = images + 0.99 * (found - images)
    assert (network(short).argmax(1) != targets).all()


@pytest.mark.parametrize("factor", [0.2, 0.9, 1.5, 40.0])
def test_the_ray_is_searched_before_and_behind_the_candidate(factor: float) -> None:
    model, images, labels = data()
    normal = model.weight / model.weight.square().sum()
    edge = model.margin(images)[:, None, None, None] * normal
    found = nearest_on_ray(oracle_of(model, images), images, images - factor * edge, labels, None)
    share = (found - images).flatten(1).norm(dim=1) / edge.flatten(1).norm(dim=1)
    assert (model.margin(found) < 0).all()
    # From 0.2 it takes eight queries to 1.25^8 = 5.96 times as far, and four remain; from 40 the box is in the way.
    assert share.max() < {0.2: 1.02, 40.0: 1.05}.get(factor, 1.001)


class Wall(nn.Module):
    """Always right, whatever the image; its gradient leads nowhere."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.flatten(1).mean(1)
        return torch.stack([level + 9, level * 0], dim=1)


@pytest.mark.parametrize(("attack", "norm"), [(attack, norm) for attack, norm, _ in ATTACKS if attack is not fab])
def test_where_nothing_is_found_the_farthest_try_is_returned(attack: Callable[..., Tensor], norm: Norm) -> None:
    _, images, labels = data()
    found = attack(oracle_of(Wall(), images), images, labels, norm=norm, eps=0.0, steps=20)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (distance(found, images, norm) > 0.2).all()


def test_what_is_misclassified_as_it_is_stays() -> None:
    model, images, _ = data()
    for attack, norm in ((ddn, "l2"), (fmn, "linf"), (deepfool, "l2")):
        found: Any = attack(oracle_of(model, images), images, torch.ones(12, dtype=torch.long), norm=norm, eps=0.0)
        assert torch.equal(found, images)
