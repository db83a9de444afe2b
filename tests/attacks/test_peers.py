"""Our attacks beside other libraries': agreement where they are right, and a pin on what is known to be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks.cleverhans_adapter import cleverhans_spsa
from robustbench_lpm.attacks.spsa import estimate, spsa
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from tests.classifiers import Linear, NoisyLinear


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["art-pgd", "cleverhans-pgd"])
def test_pgd_agrees_within_one_point_on_the_cnn(peer: str) -> None:
    settings: dict[str, Any] = {"dataset": "digits", "eps": 0.08, "limit": 200, "parameters": {"steps": 20}}
    ours = robustbench_lpm.evaluate("cnn", "pgd", **settings)
    theirs = robustbench_lpm.evaluate("cnn", peer, **settings)
    assert ours.robust_accuracy.n == 200
    assert 0.3 < ours.robust_accuracy.value < 0.9  # the comparison is about something
    assert abs(ours.robust_accuracy.value - theirs.robust_accuracy.value) <= 0.01


class Recorder(ClassifierOracle):
    """Keeps the mean of every batch of versions of its one image."""

    centres: list[Tensor]

    def __call__(self, images: Tensor, noise: Any) -> Tensor:
        self.centres.append(images.detach().reshape(-1, *self.originals.shape[1:]).mean(0))
        return super().__call__(images, noise)

    def rows(self, keep: Tensor) -> Recorder:
        part = object.__new__(Recorder)  # writes into the same list
        part.__dict__ |= super().rows(keep).__dict__
        return part


def recorder() -> tuple[Recorder, Tensor, Tensor]:
    image = torch.full((1, 1, 4, 4), 0.3)
    weight = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    oracle = Recorder(Classifier(Linear(weight, 50.0)), image, [0], Rules(0, 2, 64))
    oracle.centres = []
    return oracle, image, torch.zeros(1, dtype=torch.long)


def test_cleverhans_spsa_probes_around_twice_the_image() -> None:
    """The known defect: when this fails, cleverhans was mended, and its card must say so."""
    oracle, image, label = recorder()
    cleverhans_spsa(oracle, image, label, norm="linf", eps=0.05, iterations=2, pairs=8)
    probes = [centre for centre in oracle.centres if (centre - 0.3).abs().max() > 0.1]
    assert len(probes) == 2
    assert all(torch.allclose(centre, torch.full_like(centre, 0.6), atol=1e-5) for centre in probes)


def test_our_spsa_probes_around_the_current_image() -> None:
    oracle, image, label = recorder()
    spsa(oracle, image, label, norm="linf", eps=0.05, iterations=2, pairs=8)
    assert all((centre - 0.3).abs().max() <= 0.05 + 1e-6 for centre in oracle.centres)
    assert (oracle.centres[-1] - 0.3).abs().max() > 5e-3  # the second step starts from what the first one found


@pytest.mark.parametrize("chunk", [2, 8, 1000])
def test_the_estimate_does_not_depend_on_how_its_queries_are_split(chunk: int) -> None:
    """Nor do the directions: each pair has its own."""
    images = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = NoisyLinear(torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(1)).double(), sigma=0.3)
    labels = torch.tensor([0, 1, 0])

    def found(chunk: int) -> Tensor:
        oracle = ClassifierOracle(Classifier(network), images, range(3), Rules(0, 2, chunk))
        return estimate(oracle, images, labels, None, pairs=37, delta=0.01)

    torch.testing.assert_close(found(chunk), found(64), atol=1e-12, rtol=0)


def test_the_estimate_converges_to_the_gradient() -> None:
    oracle, image, label = recorder()
    found = estimate(oracle, image, label, None, pairs=4096, delta=0.01).flatten()
    gradient = torch.linspace(-1, 1, 16)
    assert torch.nn.functional.cosine_similarity(found, gradient, dim=0) > 0.99
    assert torch.allclose(found, gradient, atol=0.2)
