"""An epoch shows every image once, and measuring averages over single draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.cards import Validation
from robustbench_lpm.training.examples import LabelledImages, in_memory, shuffled_batches
from robustbench_lpm.training.objectives import cross_entropy
from robustbench_lpm.training.validation import FINAL_DRAWS, final_accuracy, validate

CPU = torch.device("cpu")
DRAWS = Validation().draws


@pytest.mark.parametrize(("count", "batch_size"), [(1047, 64), (65, 64), (64, 64), (5, 2), (1, 8)])
def test_batches_hold_every_position_once_and_are_almost_equal(count: int, batch_size: int) -> None:
    batches = shuffled_batches(count, batch_size, seed=0, epoch=1)
    assert sorted(position for batch in batches for position in batch) == list(range(count))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_is_keyed_by_seed_and_epoch() -> None:
    orders = [shuffled_batches(100, 10, seed, epoch) for seed, epoch in [(0, 1), (0, 1), (0, 2), (1, 1)]]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


class Coin(nn.Module):
    """Right (label 0) when its one random number is below p; the logits are that far apart."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.passes = p, 0

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"coin": addresses.uniform("coin")}

    def forward(self, images: Tensor, noise: dict[str, Tensor]) -> Tensor:
        self.passes += 1
        distance = self.p - noise["coin"]
        return torch.stack([distance, torch.zeros_like(distance)], dim=1)


def zeros(count: int) -> LabelledImages:
    return in_memory(torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.long))


def test_a_single_run_and_the_average_of_ten_are_told_apart() -> None:
    found = final_accuracy(Classifier(Coin(0.6)), zeros(600), seed=0, purpose="clean", device=CPU)
    # Single: 0.6. The mean of ten uniform numbers has standard deviation 0.0913: Phi(0.1 / 0.0913) = 0.863.
    assert found["_m1"] == pytest.approx(0.6, abs=4 * (0.24 / (600 * FINAL_DRAWS)) ** 0.5)
    assert found["_m10"] == pytest.approx(0.863, abs=4 * (0.12 / 600) ** 0.5)


def test_a_deterministic_network_is_measured_once() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    labels = torch.tensor([0, 0, 0, 1])  # equal logits: the first class
    images = in_memory(torch.zeros(4, 1, 2, 2), labels)
    assert final_accuracy(Classifier(network), images, 0, "clean", CPU) == {"": 0.75}


def test_validation_averages_single_draws_on_the_same_noise_every_time() -> None:
    coin = Coin(0.6)
    classifier = Classifier(coin)
    first, again = (validate(classifier, cross_entropy, zeros(500), 0, CPU) for _ in range(2))
    assert first == again
    assert coin.passes == 2 * DRAWS * 2  # twice, each draw in two chunks
    assert first["accuracy"] == pytest.approx(0.6, abs=4 * (0.24 / (500 * DRAWS)) ** 0.5)
    assert validate(classifier, cross_entropy, zeros(500), 1, CPU) != first
