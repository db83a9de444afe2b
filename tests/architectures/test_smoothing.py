"""A smoothed classifier sees its image under Gaussian noise, which is a source of randomness like any other."""

from __future__ import annotations

from math import pi
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo
from robustbench_lpm.architectures.precision import reduced
from robustbench_lpm.randomness import Addresses, normal_at
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.admission import handed_over
from robustbench_lpm.registry.tasks import resolve_data
from tests.attacks.test_closed_forms import adversarials, centred, linear_data
from tests.classifiers import Linear, NoisyLinear

SIGMA = 0.25


class Flat(nn.Module):
    """Answers with its pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def where(count: int = 3, draw: int = 0) -> Addresses:
    return Addresses.of(0, range(count), "clean", draw)


def card_of(name: str, tmp_path: Path, smoothing: float) -> Path:
    """A registered card with smoothing, and its weights beside it."""
    text = Path(f"models/{name}.toml").read_text()
    weights = cards.model(name).weights
    assert weights is not None
    assert weights.file is not None
    (tmp_path / weights.file).write_bytes(Path(f"models/{weights.file}").read_bytes())
    path = tmp_path / f"{name}-smoothed.toml"
    path.write_text(text.replace(f'name = "{name}"', f'name = "{name}-smoothed"\nsmoothing = {smoothing}', 1))
    return path


def test_packed_addresses_hold_the_same_numbers() -> None:
    first, second = where(draw=3), Addresses.of(1, [7], "grade")
    both = torch.cat([first.packed("a"), second.packed("b")])
    expected = torch.cat([first.normal("a", 2, 5), second.normal("b", 2, 5)])
    assert torch.equal(normal_at(both, 2, 5), expected)


def test_the_noise_has_its_mean_its_deviation_and_no_limits() -> None:
    images = torch.full((400, 1, 16, 16), 0.5)
    classifier = Classifier(Flat(), smoothing=SIGMA)
    noise = (classifier(images, classifier.sample_noise(where(400))) - 0.5) / SIGMA
    n = noise.numel()
    assert abs(float(noise.mean())) < 4 * n**-0.5
    assert abs(float(noise.square().mean()) - 1) < 4 * (2 / n) ** 0.5
    # A clipped normal variable would have less absolute deviation than the square root of 2 / pi.
    assert abs(float(noise.abs().mean()) - (2 / pi) ** 0.5) < 4 * ((1 - 2 / pi) / n) ** 0.5


def test_runs_share_images_and_differ_in_noise() -> None:
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    classifier = Classifier(Flat(), smoothing=SIGMA)
    noise = classifier.sample_noise(where().draws(2))
    answers = classifier(images, noise)
    assert torch.equal(answers, images.flatten(1).repeat(2, 1) + SIGMA * where().draws(2).normal("smoothing", 16))
    average = MonteCarlo(classifier, 2)
    assert average.stochastic
    runs = where().runs(2).normal("smoothing", 16).unflatten(0, (3, 2)).mean(1)
    torch.testing.assert_close(average(images, average.sample_noise(where())), images.flatten(1) + SIGMA * runs)
    assert not torch.equal(classifier(images), classifier(images))  # without noise it draws its own


def test_a_network_keeps_noise_of_its_own() -> None:
    classifier = Classifier(NoisyLinear(torch.ones(1, 2, 2), sigma=3.0), smoothing=SIGMA)
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = classifier.sample_noise(where())
    assert set(noise) == {"margin", "smoothing"}
    expected = (images + SIGMA * where().normal("smoothing", 1, 2, 2)).flatten(1).sum(1) + 3 * noise["margin"]
    torch.testing.assert_close(classifier(images, noise)[:, 0], expected)
    assert set(classifier.smoothed(0).sample_noise(where())) == {"margin"}


def test_reduced_precision_is_smoothed_alike() -> None:
    classifier = zoo.load_model("cnn").classifier.smoothed(SIGMA)
    images = torch.stack(resolve_data("digits").read(range(3)).images)
    noise = classifier.sample_noise(where())
    found, exact = reduced(classifier, images, noise)(images, noise), classifier(images, noise)
    assert float((found - exact).norm() / exact.norm()) < 0.02
    assert float((classifier.smoothed(0)(images) - exact).norm() / exact.norm()) > 0.1


def test_a_card_without_it_is_what_it_was(tmp_path: Path) -> None:
    plain = zoo.load_model("cnn")
    assert "smoothing" not in plain.identity
    assert not plain.classifier.stochastic
    smoothed = zoo.load_model(str(card_of("cnn", tmp_path, SIGMA)))
    assert smoothed.identity == plain.identity | {
        "name": "cnn-smoothed", "smoothing": SIGMA, "stochastic": True,
    }  # fmt: skip


def test_frozen_noise_is_one_draw_in_attack_and_grading(tmp_path: Path) -> None:
    card = card_of("cnn", tmp_path, 0.6)
    records = [
        robustbench_lpm.evaluate(
            str(card), "pgd", "digits", eps=0.05, limit=24, draws=6, noise=noise, parameters={"steps": 3}
        )
        for noise in ("smoothing=averaged", "smoothing=frozen")
    ]
    averaged, frozen = (record.outcomes for record in records)
    assert any(len(set(row)) > 1 for row in averaged["clean_predictions"])
    assert all(len(row) == 1 for row in frozen["clean_predictions"])  # nothing is left to draw


def test_attacks_reach_the_worst_case_of_a_smoothed_linear_classifier() -> None:
    """Right with probability Φ((m - eps ||w||_1) / (sigma ||w||_2)): the noise on the margin is w times that on x."""
    weight, images, labels = linear_data(100)
    model = Classifier(Linear(weight, bias=centred(weight, 1.0)), smoothing=SIGMA)
    record = robustbench_lpm.evaluate(
        model, "pgd", (images, labels), eps=0.03, draws=200, parameters={"steps": 20, "eot": 2}, save_adversarials=True
    )
    linear = model.network
    worst = linear.margin(images) - 0.03 * weight.abs().sum()
    expected = torch.distributions.Normal(0, 1).cdf(worst / (SIGMA * weight.norm())).mean()
    assert record.robust_accuracy.value == pytest.approx(float(expected), abs=0.01)
    assert float((linear.margin(adversarials(record)) - worst).abs().max()) < 1e-3


def test_a_network_that_draws_from_global_generators_can_be_smoothed() -> None:
    class Dropping(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + torch.rand(1)

    model = Classifier(Dropping(torch.ones(1, 4, 4)), smoothing=SIGMA)
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    record = robustbench_lpm.evaluate(handed_over(model), "noise", (images, torch.zeros(6)), eps=0.1, draws=3)
    assert record.configuration["model"]["stochastic"]
