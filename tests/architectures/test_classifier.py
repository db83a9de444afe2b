"""A classifier is its network behind its preprocessing, and an average of M runs is what it says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, GloballyRandom, MonteCarlo
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses


def images(batch: int = 4, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


class Recorder(nn.Module):
    """Answers with the mean of each channel, and keeps what it saw."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean(dim=(2, 3))


class Noisy(Recorder):
    """A stochastic network with two sources of noise, two gradient modes and three glimpses."""

    gradient_modes = ("plain", "fancy")
    glimpses = 3
    mode = "none"

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {
            "shift": addresses.normal("shift", 3),
            "factor": addresses.uniform("factor"),
        }

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "plain"
    ) -> Tensor:
        self.mode = gradient_mode
        if noise is None:
            return super().forward(images)
        return super().forward(images) * noise["factor"][:, None] + noise["shift"]


class Secretive(nn.Module):
    """Draws from all three global generators."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) + torch.rand(3) + float(np.random.rand()) + random.random()


def test_normalisation_lies_inside() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    classifier = Classifier(Recorder(), mean=mean, std=std)
    expected = torch.stack([(images()[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    assert torch.equal(classifier.prepare(images()), expected)
    assert torch.equal(classifier(images()), expected.mean(dim=(2, 3)))
    assert not classifier.state_dict()  # checkpoints hold the network alone
    assert classifier.double().prepare(images().double()).dtype is torch.float64


def test_without_preprocessing_a_network_sees_the_images_themselves() -> None:
    classifier = Classifier(Recorder())
    given = images()
    classifier(given)
    assert classifier.network.seen is given


@pytest.mark.parametrize("size", [4, 12])
def test_the_working_size_is_an_inner_resize(size: int) -> None:
    classifier = Classifier(Recorder(), working_size=size)
    given = images(height=9, width=7).requires_grad_()
    logits = classifier(given)
    assert classifier.network.seen.shape == (4, 3, size, size)
    expected = F.interpolate(given, (size, size), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(classifier.network.seen, expected)
    (gradient,) = torch.autograd.grad(logits.sum(), given)
    assert gradient.abs().min() > 0  # epsilon counts the pixels before the resize, and all of them matter


def test_images_of_the_working_size_keep_their_bits() -> None:
    given = images()
    assert Classifier(Recorder(), working_size=8).prepare(given) is given


def test_a_deterministic_classifier_needs_no_noise() -> None:
    classifier = Classifier(Recorder())
    assert not classifier.stochastic
    assert classifier.sample_noise(Addresses.of(0, range(4), "grade")) == {}
    assert torch.equal(classifier(images(), {}), classifier(images()))
    assert (classifier.passes, classifier.glimpses, classifier.gradient_modes) == (1, 0, ())


def test_noise_and_gradient_mode_reach_the_network() -> None:
    classifier = Classifier(Noisy())
    noise = classifier.sample_noise(Addresses.of(0, range(4), "grade"))
    expected = images().mean(dim=(2, 3)) * noise["factor"][:, None] + noise["shift"]
    assert torch.equal(classifier(images(), noise), expected)
    assert classifier.network.mode == "plain"
    classifier(images(), noise, gradient_mode="fancy")
    assert classifier.network.mode == "fancy"
    assert (classifier.stochastic, classifier.passes, classifier.glimpses) == (True, 1, 3)
    assert classifier.gradient_modes == ("plain", "fancy")


@pytest.mark.parametrize("runs", [1, 2, 7])
def test_the_average_of_separate_runs(runs: int) -> None:
    classifier = Classifier(Noisy(), mean=[0.5] * 3, std=[2.0] * 3)
    average = MonteCarlo(classifier, runs)
    noise = average.sample_noise(Addresses.of(0, range(4), "grade"))
    assert noise["shift"].shape == (4, runs, 3)
    separate = [classifier(images(), {source: values[:, m] for source, values in noise.items()}) for m in range(runs)]
    torch.testing.assert_close(average(images(), noise), torch.stack(separate).mean(0))
    assert (average.stochastic, average.passes, average.glimpses) == (True, runs, 3 * runs)
    assert average.gradient_modes == ("plain", "fancy")
    average(images(), noise, gradient_mode="fancy")
    assert classifier.network.mode == "fancy"


def test_the_runs_of_an_average_are_different_draws_of_the_example_s_own_generator() -> None:
    average = MonteCarlo(Classifier(Noisy()), 5)
    noise = average.sample_noise(Addresses.of(0, range(4), "grade"))
    assert len(noise["factor"].flatten().unique()) == 20
    alone = average.sample_noise(Addresses.of(0, [2], "grade"))
    assert all(torch.equal(alone[source], noise[source][2:3]) for source in noise)
    few = MonteCarlo(Classifier(Noisy()), 2).sample_noise(Addresses.of(0, range(4), "grade"))
    assert torch.equal(few["shift"], noise["shift"][:, :2])  # more runs go on where fewer stopped


def test_an_average_without_noise_is_that_of_the_network_s_own() -> None:
    torch.testing.assert_close(MonteCarlo(Classifier(Noisy()), 3)(images()), Classifier(Recorder())(images()))


def test_an_average_of_no_runs() -> None:
    with pytest.raises(LpmbenchError, match="at least one run, not 0"):
        MonteCarlo(Classifier(Noisy()), 0)


def test_hidden_randomness_becomes_an_argument() -> None:
    classifier = Classifier(GloballyRandom(Secretive()))
    noise = classifier.sample_noise(Addresses.of(0, range(4), "grade"))
    assert classifier.stochastic
    assert noise["global_seed"].shape == (4,)
    assert torch.equal(classifier(images(), noise), classifier(images(), noise))
    other = {"global_seed": noise["global_seed"] + torch.tensor([0, 0, 0, 1])}
    assert (classifier(images(), other) != classifier(images(), noise)).all()  # one seed of the batch decides with all
    assert (classifier(images()) != classifier(images())).any()


def test_hidden_randomness_leaves_the_global_generators_alone() -> None:
    classifier = Classifier(GloballyRandom(Secretive()))
    noise = classifier.sample_noise(Addresses.of(0, range(4), "grade"))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    classifier(images(), noise)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
