"""What a recipe says of glimpses, sigma and validation is what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.architectures.ramlpm import RamLpm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses, generator
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.cards import RecipeCard, Validation
from robustbench_lpm.training import train
from robustbench_lpm.training.examples import in_memory
from robustbench_lpm.training.objectives import cross_entropy
from robustbench_lpm.training.validation import validate
from tests.training.conftest import CARDS, Trainer, tiny_recipe
from tests.training.test_epochs_and_measures import CPU, Coin, zeros
from tests.training.test_objectives import small_ram

Seen = list[tuple[bool, int, float]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Whether it trained, glimpses and sigma of every look that a RAM-LPM takes: watched, not replaced."""
    calls: Seen = []
    look = RamLpm.look

    def watched(self: RamLpm, images: Tensor, noise: Any = None, **options: Any) -> Any:
        trajectory = look(self, images, noise, **options)
        calls.append((self.training, len(trajectory.logits), self.sigma))
        return trajectory

    monkeypatch.setattr(RamLpm, "look", watched)
    return calls


def test_glimpses_come_in_stages_and_sigma_falls(tiny_train: Trainer, tmp_path: Path, seen: Seen) -> None:
    # 50 images in batches of 17: three steps an epoch, twelve in all. Its own: 3 glimpses, sigma 0.1.
    changes = {"glimpses": [(0.0, 2), (0.5, 4)], "sigma_start": 0.5}
    result = tiny_train("ramlpm", "reinforce", tmp_path, changes)
    trained = [(glimpses, sigma) for training, glimpses, sigma in seen if training]
    assert [glimpses for glimpses, _ in trained] == [2] * 6 + [4] * 6
    expected = [0.5 - step / 12 * (0.5 - 0.1) for step in range(12)]
    assert [sigma for _, sigma in trained] == pytest.approx(expected)
    assert {(glimpses, sigma) for training, glimpses, sigma in seen if not training} == {(3, 0.1)}
    assert result.card.parameters["sigma"] == 0.1
    assert result.card.parameters["glimpses"] == 3
    assert zoo.load_model(str(result.card_path)).classifier.network.sigma == 0.1


def test_without_stages_a_model_trains_as_it_is(tiny_train: Trainer, tmp_path: Path, seen: Seen) -> None:
    tiny_train("ramlpm", "reinforce", tmp_path, epochs=1)
    assert {call[1:] for call in seen} == {(3, 0.1)}


def test_a_training_that_was_broken_off_between_stages_goes_on_in_its_stage(
    tiny_train: Trainer, tmp_path: Path, seen: Seen
) -> None:
    from tests.training.test_training import stop_at

    changes = {"glimpses": [(0.0, 2), (0.5, 4)], "sigma_start": 0.5}
    with pytest.raises(KeyboardInterrupt):
        tiny_train("ramlpm", "reinforce", tmp_path / "broken", changes, progress=stop_at(3))
    seen.clear()
    resumed = tiny_train("ramlpm", "reinforce", tmp_path / "broken", changes, resume=True)
    assert [glimpses for training, glimpses, _ in seen if training] == [4] * 6
    whole = tiny_train("ramlpm", "reinforce", tmp_path / "whole", changes)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize("changes", [{"glimpses": [(0.0, 2)]}, {"sigma_start": 0.5}])
def test_stages_are_of_glimpsing_models(tiny_train: Trainer, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(LpmbenchError, match="'tiny-cnn' sees images whole"):
        tiny_train("cnn", "clean", tmp_path, changes)


@pytest.mark.parametrize("stages", [[[0.1, 2]], [[0.0, 2], [0.0, 3]], [[0.0, 2], [0.9, 3], [0.5, 4]]])
def test_stages_begin_at_the_beginning_and_grow(stages: list[list[float]]) -> None:
    given = tiny_recipe("reinforce").model_dump() | {"glimpses": stages}
    with pytest.raises(ValueError, match="growing shares"):
        RecipeCard.model_validate(given)


@pytest.mark.parametrize(("every", "validated"), [(1, {1, 2, 3, 4}), (3, {3, 4}), (9, {4})])
def test_every_so_many_epochs_and_the_last_are_validated(
    tiny_train: Trainer, tmp_path: Path, every: int, validated: set[int]
) -> None:
    result = tiny_train("cnn", "clean", tmp_path, {"validation": Validation(every=every)})
    assert {int(row["epoch"]) for row in result.rows if "validation_accuracy" in row} == validated
    assert result.best_epoch in validated


def test_a_limit_measures_the_first_images() -> None:
    images = in_memory(torch.zeros(8, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))  # always class 0
    shares = {
        limit: validate(Classifier(network), cross_entropy, images, 0, CPU, Validation(limit=limit))["accuracy"]
        for limit in (3, 4, 8, 100, None)
    }
    assert shares == {3: 1.0, 4: 0.75, 8: 3 / 8, 100: 3 / 8, None: 3 / 8}


def test_draws_give_the_single_run_and_the_average_of_all() -> None:
    # As in test_epochs_and_measures: single 0.6, and the mean of m uniform numbers is normal enough.
    found = validate(Classifier(Coin(0.6)), cross_entropy, zeros(600), 0, CPU, Validation(draws=10))
    assert found["accuracy"] == pytest.approx(0.6, abs=4 * (0.24 / 6000) ** 0.5)
    assert found["accuracy_m10"] == pytest.approx(0.863, abs=4 * (0.12 / 600) ** 0.5)
    assert [name for name in found if name.startswith("accuracy_m")] == ["accuracy_m10"]


def test_one_draw_has_no_average_of_its_own() -> None:
    found = validate(Classifier(Coin(0.6)), cross_entropy, zeros(50), 0, CPU, Validation(draws=1))
    assert set(found) == {"loss", "classification", "accuracy"}


def test_controls_are_one_draw_under_the_other_policies() -> None:
    network = small_ram()
    classifier = Classifier(network)
    images = in_memory(torch.rand(30, 1, 16, 16, generator=generator("controls")), torch.arange(30) % 10)
    with torch.no_grad():
        for parameter in network.parameters():  # an untrained network answers alike whatever it sees
            parameter.mul_(3)
    found = validate(classifier, cross_entropy, images, 0, CPU, Validation(draws=1, controls=True))
    assert network.policy == "learned"
    noise = network.sample_noise(Addresses.of(0, range(30), "validate", 0))
    for policy in ("random", "centre"):
        network.policy = policy  # type: ignore[assignment]
        with torch.no_grad():
            right = network.look(images.take(range(30))[0], noise).logits[-1].argmax(1) == images.labels
        assert found[f"accuracy_{policy}"] == pytest.approx(float(right.float().mean()))
    plain = validate(Classifier(Coin(0.5)), cross_entropy, zeros(9), 0, CPU, Validation(controls=True))
    assert not any("random" in name for name in plain)  # a model that sees images whole has no fixations


def test_a_smoothed_card_trains_under_its_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "smoothed.toml"
    text = (CARDS / "tiny-ramlpm.toml").read_text()
    card.write_text(text.replace("\n[", "\nsmoothing = 0.5\n\n[", 1))
    darkest: dict[bool, float] = {}
    look = RamLpm.look

    def watched(self: RamLpm, images: Tensor, noise: Any = None, **options: Any) -> Any:
        darkest[self.training] = min(darkest.get(self.training, 0.0), float(images.min()))
        return look(self, images, noise, **options)

    monkeypatch.setattr(RamLpm, "look", watched)
    result = train(str(card), recipe=tiny_recipe("reinforce"), out=tmp_path / "out", trust=True, epochs=1)
    assert darkest[True] < -1  # no image is below 0 without noise
    assert darkest[False] < -1
    assert zoo.load_model(str(result.card_path)).classifier.smoothing == 0.5
