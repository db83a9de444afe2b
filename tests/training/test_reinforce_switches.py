"""The switches of REINFORCE, against values derived by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.training.objectives import gaze_entropy, reinforce, returns
from tests.training.test_objectives import SIGMA, Toy, ram_batch, small_ram, toy_batch

# Logits (T = 4, B = 2, K = 2) by their winner; labels 0 and 1. Right answers: 1, 0, 1, 1 and 0, 1, 1, 0.
WINNERS = torch.tensor([[0, 0], [1, 1], [0, 1], [0, 0]])
LOGITS = 2.0 * F.one_hot(WINNERS, 2).float()
LABELS = torch.tensor([0, 1])
SURE = 1 / (1 + math.exp(-2))  # the probability of the winner


def test_the_last_answer_rewards_every_decision_alike() -> None:
    assert returns(LOGITS, LABELS, "last").tolist() == [[1, 0]] * 3


def test_following_answers_are_averaged_over_what_is_left() -> None:
    # Of mu[0]: the answers after glimpses 1, 2, 3; of mu[1]: after 2 and 3; of mu[2]: after 3.
    expected = torch.tensor([[2 / 3, 2 / 3], [1, 1 / 2], [1, 0]])
    assert torch.allclose(returns(LOGITS, LABELS, "following"), expected)


def test_probabilities_are_averaged_over_what_is_left() -> None:
    expected = torch.tensor([[2 * SURE + 1 - SURE, 2 * SURE + 1 - SURE], [2 * SURE, 1.0], [SURE, 1 - SURE]])
    left = torch.tensor([[3.0], [2.0], [1.0]])
    assert torch.allclose(returns(LOGITS, LABELS, "probability"), expected / left)


@pytest.mark.parametrize("reward", ["last", "following", "probability"])
def test_one_glimpse_leads_to_no_decision(reward: Any) -> None:
    assert returns(LOGITS[:1], LABELS, reward).shape == (0, 2)


def test_an_unknown_reward_is_told() -> None:
    with pytest.raises(LpmbenchError, match="'last', 'following' or 'probability', not 'first'"):
        returns(LOGITS, LABELS, "first")  # type: ignore[arg-type]


def test_the_reward_enters_the_loss() -> None:
    # The toy always answers class 0, with probability sigmoid(0.4): of labels 0 and 1, right and wrong.
    network, batch = Toy(), toy_batch([0, 1], steps=2)
    found = float(reinforce(Classifier(network), batch, reward="probability")["baseline"])
    sure = 1 / (1 + math.exp(-0.4))
    expected = sum((b - r) ** 2 for r in (sure, 1 - sure) for b in (0.3, 0.6)) / 4
    assert found == pytest.approx(expected, abs=1e-6)


def test_without_a_baseline_the_reward_itself_weighs_the_density() -> None:
    network, batch = Toy(), toy_batch([0, 1], steps=2)
    terms = reinforce(Classifier(network), batch, baseline=False)
    terms["loss"].backward()
    policy, gradient = 0.0, torch.zeros(2)
    for t in (0, 1):  # of the first example alone: the second earns nothing
        z = batch.noise["policy"][0, t]
        policy -= (-float(z.square().sum()) / 2 - 2 * math.log(SIGMA * math.sqrt(2 * math.pi))) / 2
        gradient -= (t + 1) * z / SIGMA / 2
    assert float(terms["policy"]) == pytest.approx(policy, abs=1e-5)
    assert "baseline" not in terms
    assert network.guess.grad is None
    assert network.mu.grad is not None
    assert torch.allclose(network.mu.grad, gradient, atol=1e-5)


def test_entropy_of_a_gaze_by_hand() -> None:
    # Two images, means (a, 0) and (-a, 0): variance a^2 along x, 0 along y; sigma^2 comes on top of both.
    a, sigma = 0.3, 0.5
    means = torch.tensor([[[a, 0.0], [-a, 0.0]], [[0.1, 0.2], [0.1, 0.2]]])
    spread = 0.5 * math.log((2 * math.pi * math.e) ** 2 * (a**2 + sigma**2) * sigma**2)
    together = 0.5 * math.log((2 * math.pi * math.e) ** 2 * sigma**4)
    assert float(gaze_entropy(means, sigma)) == pytest.approx((spread + together) / 2, abs=1e-6)


def test_the_entropy_bonus_drives_the_means_of_a_batch_apart() -> None:
    means = torch.tensor([[[0.1, 0.0], [-0.1, 0.0]]], requires_grad=True)
    gaze_entropy(means, 0.2).backward()
    assert means.grad is not None
    # d/da of 1/2 log(a^2 + sigma^2), shared by two means.
    expected = 0.1 / (0.1**2 + 0.2**2) / 2
    assert torch.allclose(means.grad, torch.tensor([[[expected, 0.0], [-expected, 0.0]]]), atol=1e-6)


def test_the_entropy_bonus_is_subtracted_from_the_loss() -> None:
    classifier, batch = Classifier(Toy()), toy_batch([0, 1], steps=2)
    plain, driven = reinforce(classifier, batch), reinforce(classifier, batch, entropy_weight=0.5)
    expected = math.log(2 * math.pi * math.e * SIGMA**2)  # the toy looks at one place whatever the image
    assert float(driven["entropy"]) == pytest.approx(expected, abs=1e-6)
    assert driven["loss"].item() == pytest.approx(plain["loss"].item() - 0.5 * expected, abs=1e-5)
    assert "entropy" not in plain


def where_gradients(through: Any, bias: float = 0.0) -> tuple[dict[str, torch.Tensor], bool]:
    """What the loss leaves in the locator, and whether it had the policy's term. bias: of the means, before the clamp.

    The reward is never quite 0, and there is no baseline: nothing but the NLL and the policy's term is in the loss.
    """
    network = small_ram()
    with torch.no_grad():
        network.locator.bias.add_(bias)
    batch = ram_batch(network, 4)
    terms = reinforce(Classifier(network), batch, through=through, baseline=False, reward="probability")
    terms["loss"].backward()
    found = {name: p.grad.clone() for name, p in network.locator.named_parameters() if p.grad is not None}
    return found, "policy" in terms


def test_through_says_which_gradients_reach_the_policy() -> None:
    alone, with_density = where_gradients("score-function")
    grid, with_grid = where_gradients("reparameterised")
    both, with_both = where_gradients("both")
    assert (with_density, with_grid, with_both) == (True, False, True)
    assert alone.keys() == grid.keys() == both.keys() == {"weight", "bias"}
    assert all(bool(gradient.any()) for gradient in [*alone.values(), *grid.values()])
    # Not quite the sum: in "both" the means of later steps depend on the earlier ones through the grid.
    assert all(bool((both[name] - grid[name]).any()) for name in both)
    straight, _ = where_gradients("straight-through")
    assert all(torch.allclose(straight[name], grid[name], atol=1e-6) for name in grid)  # no mean is clamped


def test_straight_through_passes_the_clamp() -> None:
    stuck, _ = where_gradients("reparameterised", bias=3.0)
    freed, _ = where_gradients("straight-through", bias=3.0)
    assert not any(bool(gradient.any()) for gradient in stuck.values())
    assert all(bool(gradient.any()) for gradient in freed.values())


def test_the_density_leads_a_policy_back_from_beyond_the_clamp() -> None:
    found, _ = where_gradients("score-function", bias=3.0)
    assert all(bool(gradient.any()) for gradient in found.values())
