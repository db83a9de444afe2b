"""Objectives, against values derived by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.architectures.ram import Ram
from robustbench_lpm.architectures.ramlpm import RamLpm
from robustbench_lpm.architectures.recurrent_attention import Glance, RecurrentAttention, Trajectory
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import distance
from robustbench_lpm.randomness import Addresses, generator
from robustbench_lpm.training.objectives import (
    TrainingBatch,
    adversarial,
    cross_entropy,
    perturb,
    policy_loss,
    reinforce,
)

SIGMA = 0.5


class Toy(RecurrentAttention):
    """Two classes; one parameter each for the class, the next fixation and the baseline."""

    def __init__(self, glimpses: int = 3) -> None:
        super().__init__(glimpses=glimpses, sigma=SIGMA)
        self.score = nn.Parameter(torch.tensor(0.4))
        self.mu = nn.Parameter(torch.tensor([0.1, -0.2]))
        self.guess = nn.Parameter(torch.tensor(0.3))

    def start(self, images: Tensor, runs: int) -> int:
        return 0

    def glance(self, images: Tensor, fixations: Tensor, state: int) -> Glance:
        ones = images.new_ones(len(images))
        logits = torch.stack([self.score * ones, 0 * ones], dim=1)
        # Each step has a mean and a guess of its own, so that terms of the wrong step would show.
        return Glance(logits, self.mu * (state + 1) * ones[:, None], self.guess * (state + 1) * ones, state + 1)


def objective_of(count: int) -> Addresses:
    """Addresses of the objective's own choices about so many images."""
    return Addresses.of(0, range(count), "objective")


def toy_batch(labels: list[int], steps: int) -> TrainingBatch:
    noise = {
        "first_fixation": torch.zeros(len(labels), 2),
        "policy": torch.randn(len(labels), steps, 2, generator=generator("toy")),
    }
    return TrainingBatch(torch.zeros(len(labels), 1, 4, 4), torch.tensor(labels), noise, objective_of(len(labels)))


def test_reinforce_is_the_formula_by_hand() -> None:
    network, batch = Toy(), toy_batch([0, 1], steps=2)
    terms = reinforce(Classifier(network), batch)
    terms["loss"].backward()

    rewards = [1.0, 0.0]  # the toy always answers 0
    nll = [math.log(1 + math.exp(-0.4)), math.log(1 + math.exp(0.4))]
    baselines = [0.3, 0.6]
    policy, mean_gradient = 0.0, torch.zeros(2)
    for example, reward in enumerate(rewards):
        for t, baseline in enumerate(baselines):
            z = batch.noise["policy"][example, t]  # l[t+1] = mu[t] + sigma z
            log_density = -float(z.square().sum()) / 2 - 2 * math.log(SIGMA * math.sqrt(2 * math.pi))
            policy -= log_density * (reward - baseline) / 2
            # d log N / d mu[t] = z / sigma, and mu[t] = (t + 1) mu
            mean_gradient -= (t + 1) * z / SIGMA * (reward - baseline) / 2
    regression = sum((b - r) ** 2 for r in rewards for b in baselines) / 4
    guess_gradient = sum(2 * (b - r) * (t + 1) for r in rewards for t, b in enumerate(baselines)) / 4

    assert float(terms["classification"]) == pytest.approx(sum(nll) / 2, abs=1e-6)
    assert float(terms["policy"]) == pytest.approx(policy, abs=1e-5)
    assert float(terms["baseline"]) == pytest.approx(regression, abs=1e-6)
    assert terms["loss"].item() == pytest.approx(sum(nll) / 2 + policy + regression, abs=1e-5)
    assert float(terms["accuracy"]) == 0.5
    assert network.mu.grad is not None
    assert network.guess.grad is not None
    assert torch.allclose(network.mu.grad, mean_gradient, atol=1e-5)
    # Of the regression alone: the advantage is a constant for the policy.
    assert float(network.guess.grad) == pytest.approx(guess_gradient, abs=1e-6)


def test_the_policy_gradient_is_right_on_average() -> None:
    # Reward 1 for landing right of 0, mean 0: d/dmu P(l > 0) = phi(0) / sigma. The loss goes down where it goes up.
    count = 400_000
    mean = torch.zeros(1, 1, 2, requires_grad=True)
    drawn = SIGMA * torch.randn(1, count, 2, generator=generator("average"))
    reward = (drawn[..., 0] > 0).float()
    policy_loss(mean.expand(1, count, 2), drawn, SIGMA, reward - 0.5).backward()
    assert mean.grad is not None
    expected = -1 / math.sqrt(2 * math.pi) / SIGMA
    # One term has standard deviation below 1 (|z| / (2 sigma)): five standard errors.
    assert mean.grad[0, 0].tolist() == pytest.approx([expected, 0.0], abs=5 / math.sqrt(count))


@pytest.mark.parametrize("every_glimpse", [False, True])
def test_classifying_at_every_glimpse_averages_their_cross_entropies(every_glimpse: bool) -> None:
    network = small_ram()
    batch = ram_batch(network, 4)
    terms = reinforce(Classifier(network), batch, every_glimpse=every_glimpse, policy_weight=0, baseline_weight=0)
    logits = network.look(batch.images, batch.noise).logits
    each = torch.stack([F.cross_entropy(step, batch.labels) for step in logits])
    assert torch.allclose(terms["loss"], each.mean() if every_glimpse else each[-1])
    assert torch.allclose(terms["classification"], each[-1])


def small_ram(glimpses: int = 3) -> Ram:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Ram(channels=1, classes=10, patch=2, scales=2, features=8, hidden=8, glimpses=glimpses)


def ram_batch(network: RecurrentAttention, count: int) -> TrainingBatch:
    images = torch.rand(count, 1, 16, 16, generator=generator("images"))
    noise = network.sample_noise(Addresses.of(0, range(count), "train"))
    return TrainingBatch(images, torch.arange(count) % 10, noise, objective_of(count))


@pytest.mark.parametrize(("glimpses", "count"), [(1, 1), (1, 3), (4, 1)])
def test_one_glimpse_and_one_image_are_enough(glimpses: int, count: int) -> None:
    network = small_ram(glimpses)
    terms = reinforce(Classifier(network), ram_batch(network, count))
    terms["loss"].backward()
    assert all(math.isfinite(value.item()) for name, value in terms.items() if name != "logits")
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    if glimpses == 1:
        assert terms["policy"].item() == terms["baseline"].item() == 0


def test_each_path_learns_from_its_own_term_only() -> None:
    network = RamLpm(
        channels=1, classes=10, height=6, width=8, r_min=0.1, r_max=0.9, what=[[4, 2, 2]], where=[[4, 2, 2]],
        what_hidden=8, where_hidden=8, head="linear", glimpses=3,
    )  # fmt: skip
    batch = ram_batch(network, 6)
    groups = network.parameter_groups()

    def reached(**weights: float) -> set[str]:
        network.zero_grad()
        reinforce(Classifier(network), batch, **weights)["loss"].backward()
        moved = [n for n, ps in groups.items() if any(p.grad is not None and bool(p.grad.any()) for p in ps)]
        return set(moved)

    assert reached(policy_weight=0, baseline_weight=0) == {"rest"}
    assert reached(policy_weight=1, baseline_weight=0) == {"rest", "where"}
    assert reached(policy_weight=1, baseline_weight=1) == {"rest", "where", "baseline"}


def test_a_policy_without_noise_has_no_density() -> None:
    network = small_ram()
    network.sigma = 0
    with pytest.raises(LpmbenchError, match="sigma > 0"):
        reinforce(Classifier(network), ram_batch(network, 2))


def linear_classifier() -> Classifier:
    """Two classes; class 1 minus class 0 is w · x."""
    layer = nn.Linear(9, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(9), WEIGHTS]))
    return Classifier(nn.Sequential(nn.Flatten(), layer))


WEIGHTS = torch.tensor([3.0, -2.0, 1.0, 0.5, -0.5, -1.0, 2.0, -3.0, 0.25])


def grey_batch(labels: list[int]) -> TrainingBatch:
    """Grey images: no pixel near the border of the box."""
    count = len(labels)
    return TrainingBatch(torch.full((count, 1, 3, 3), 0.5), torch.tensor(labels), {}, objective_of(count))


def test_pgd_reaches_the_worst_case_of_a_linear_model() -> None:
    batch = grey_batch([0, 1])
    attacked = perturb(linear_classifier(), batch, norm="linf", eps=0.1, steps=10, step_size=0.05)
    worst = 0.1 * WEIGHTS.sign().reshape(1, 3, 3)
    assert torch.allclose(attacked - batch.images, torch.stack([worst, -worst]), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_stay_in_the_ball_and_the_box(norm: Any) -> None:
    images = torch.rand(5, 1, 3, 3, generator=generator("box")).round()  # on the corners of the box
    batch = TrainingBatch(images, torch.tensor([0, 1, 0, 1, 0]), {}, objective_of(5))
    attacked = perturb(linear_classifier(), batch, norm=norm, eps=0.3, steps=5, step_size=0.2)
    assert float(distance(attacked, images, norm).max()) <= 0.3 + 1e-6
    assert float(distance(attacked, images, norm).min()) > 0.1
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1


def test_adversarial_training_minimises_the_loss_on_the_worst_images() -> None:
    classifier, batch = linear_classifier(), grey_batch([0, 1])
    terms = adversarial(classifier, batch, eps=0.1, steps=10, step_size=0.05)
    margin = 0.5 * float(WEIGHTS.sum())  # of class 1, on grey
    reach = 0.1 * float(WEIGHTS.abs().sum())
    expected = [math.log1p(math.exp(margin + reach)), math.log1p(math.exp(reach - margin))]
    assert terms["loss"].item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert float(terms["clean_accuracy"]) == 0.5  # margin 0.125: always class 1
    assert float(terms["accuracy"]) == 0.0  # within reach both can be flipped
    terms["loss"].backward()
    assert next(classifier.parameters()).grad is not None


def test_the_attack_leaves_batch_statistics_and_the_mode_alone() -> None:
    norm = nn.BatchNorm2d(1)
    classifier = Classifier(nn.Sequential(norm, linear_classifier().network)).train()
    adversarial(classifier, grey_batch([0, 1]), eps=0.1, steps=5, step_size=0.05)
    assert classifier.training
    assert int(norm.num_batches_tracked or 0) == 1  # the one pass that is trained on


def test_validation_attacks_without_gradients_around_it() -> None:
    with torch.no_grad():
        terms = adversarial(linear_classifier().eval(), grey_batch([0, 1]), eps=0.1, steps=10, step_size=0.05)
    assert float(terms["accuracy"]) == 0.0


def test_label_smoothing_shows_in_the_loss_only() -> None:
    classifier, batch = linear_classifier(), grey_batch([1, 1])
    plain, smooth = cross_entropy(classifier, batch), cross_entropy(classifier, batch, label_smoothing=0.2)
    assert plain["loss"].item() == float(plain["classification"]) == float(smooth["classification"])
    flipped = F.cross_entropy(classifier(batch.images), 1 - batch.labels)
    assert smooth["loss"].item() == pytest.approx(0.9 * plain["loss"].item() + 0.1 * flipped.item(), abs=1e-6)


class Watched(Ram):
    """RAM that keeps what it was asked."""

    def look(self, images: Tensor, noise: Any = None, **options: Any) -> Trajectory:
        self.asked = [*getattr(self, "asked", []), (images.detach().clone(), noise)]
        return super().look(images, noise, **options)


def test_reinforce_learns_on_the_images_that_pgd_made_on_the_same_noise() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Watched(channels=1, classes=10, patch=4, scales=2, features=8, hidden=8, glimpses=3)
    classifier, batch = Classifier(network).train(), ram_batch(network, 6)
    attack: dict[str, Any] = {"eps": 0.1, "steps": 3, "step_size": 0.05}
    terms = adversarial(classifier, batch, **attack, loss="reinforce", loss_parameters={"every_glimpse": True})

    *_, (clean, _), (trained, _) = network.asked
    assert len(network.asked) == attack["steps"] + 2
    assert all(torch.equal(n[source], batch.noise[source]) for _, n in network.asked for source in batch.noise)
    assert torch.equal(clean, batch.images)
    for images, _ in network.asked:
        assert float((images - batch.images).abs().max()) <= attack["eps"] + 1e-6
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
    assert float((trained - clean).abs().max()) > 0.09  # it moved

    expected = reinforce(classifier, replace(batch, images=trained), every_glimpse=True)
    assert terms.keys() == expected.keys() | {"clean_accuracy"}
    assert all(torch.equal(terms[name], value) for name, value in expected.items())
    before = F.cross_entropy(classifier(batch.images, batch.noise), batch.labels)
    assert float(terms["classification"]) > float(before)  # the attack worked on this noise
    terms["loss"].backward()
    groups = network.parameter_groups()
    assert all(any(p.grad is not None and bool(p.grad.any()) for p in ps) for ps in groups.values())
    assert classifier.training


@pytest.mark.parametrize(("options", "message"), [
    ({"loss": "reinforced"}, "Did you mean 'reinforce'"),
    ({"loss": "adversarial"}, "Unknown loss"),
    ({"loss_parameters": {"label_smoothin": 0.1}}, "Did you mean 'label_smoothing'"),
])  # fmt: skip
def test_a_loss_of_adversarial_training_that_does_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LpmbenchError, match=message):
        adversarial(linear_classifier(), grey_batch([0, 1]), eps=0.1, steps=1, step_size=0.1, **options)
