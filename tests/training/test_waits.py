"""Training and validation on an accelerator do not wait for it in any step, and end in the numbers of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy

from robustbench_lpm.randomness import Addresses, generator
from robustbench_lpm.registry.cards import Augmentation
from robustbench_lpm.training import examples, loop
from robustbench_lpm.training.augmentation import augment
from robustbench_lpm.training.devices import start
from robustbench_lpm.training.examples import load_split
from robustbench_lpm.training.plans import make_plan
from tests.training.conftest import CARDS, tiny_recipe
from tests.waits import DEVICE, counted

MOVED = Augmentation(rotate=10, translate=0.3, scale=(0.9, 1.1), keep=0.9, flip=0.5)
# Adam makes steps of gradients that are zero but for rounding; and large steps are chaotic.
CALM = {"optimiser": "sgd", "learning_rate": 1e-4}
EVERYTHING: dict[str, Any] = {"every_glimpse": True, "reward": "following", "through": "both", "entropy_weight": 0.1}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("cnn", "clean", {}),
    ("cnn", "clean", {"augmentation": MOVED, "optimiser": "sgd", "gradient_clip": 1.0, "schedule": "cosine"}),
    ("cnn", "adversarial", {}),
    ("ramlpm", "reinforce", CALM | {"glimpses": [(0.0, 1), (0.5, 4)], "sigma_start": 0.3}),
    ("ramlpm", "reinforce", CALM | {"parameters": EVERYTHING}),
]


class _OnDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """The stand-in needs nothing."""


@pytest.fixture
def _in_place() -> Iterator[None]:
    """A module that moves keeps its parameters, as on a GPU: the optimiser holds them."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def training(model: str, recipe: str, changes: dict[str, Any], out: Path, fabric: Fabric) -> loop._Training:
    plan = make_plan(
        str(CARDS / f"tiny-{model}.toml"),
        recipe=tiny_recipe(recipe, **changes), dataset=None, epochs=4, seed=0, command=None, trust=True,
    )  # fmt: skip
    return loop._Training(plan, out, fabric, lambda split: load_split(plan, None, split), save_every=None)


def epochs(run: loop._Training, watch: Callable[[], Any] = lambda: None) -> list[dict[str, float]]:
    found = [run._train_epoch(epoch, lambda done, row: watch())[0] for epoch in (1, 2, 3)]
    return [*found, run._validate()]


@pytest.mark.usefixtures("_in_place")
@pytest.mark.parametrize(("model", "recipe", "changes"), CASES)
def test_a_step_never_waits_and_an_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, recipe: str, changes: dict[str, Any]
) -> None:
    if changes:
        monkeypatch.setattr(examples, "LARGEST_IN_MEMORY", 0)  # the images stay on the disk
    expected = epochs(training(model, recipe, changes, tmp_path, start("cpu")))
    with counted() as waits:
        fabric = Fabric(strategy=SingleDeviceStrategy(device=DEVICE, accelerator=_OnDevice()))
        run = training(model, recipe, changes, tmp_path, fabric)
        waits.counts.clear()
        waits.places.clear()
        seen: list[int] = []
        found = epochs(run, lambda: seen.append(waits.total))
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3], waits.places  # three epochs of three steps: each is read at its end
    assert waits.total == 4, waits.places  # and a validation
    rounding = 1e-6 if model == "cnn" else 1e-2  # which the steps of RAM-LPM amplify
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=rounding)


def test_the_loss_is_checked_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    steps: list[float] = []
    run = training("cnn", "clean", {"learning_rate": 1e30, "schedule": "constant"}, tmp_path, start("cpu"))
    with pytest.raises(loop.LpmbenchError, match="The loss is"):
        run._train_epoch(1, lambda done, row: steps.append(done))
    assert len(steps) == 1  # the first loss is finite; the second step is checked before it counts as done


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_an_image_gets_the_same_map_whether_fits_are_read_or_not(keep: float) -> None:
    images = torch.rand(60, 3, 12, 12, generator=generator("maps")) ** 4
    settings = MOVED.model_copy(update={"keep": keep})
    addresses = Addresses.of(0, range(60), "augment", 1)
    with counted() as waits:
        there = augment(images.to(DEVICE, non_blocking=True), settings, addresses)
        assert waits.total == 0, waits.places
        found = there.cpu()
    assert torch.equal(found, augment(images, settings, addresses))
