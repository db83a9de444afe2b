"""Tiny trainings: fifty digits, networks of a few thousand weights. Nothing is drawn but in test_curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import RecipeCard
from robustbench_lpm.training import TrainingResult, curves, train

CARDS = Path(__file__).parent / "cards"
Trainer = Callable[..., TrainingResult]
Finished = Callable[..., TrainingResult]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take far longer to draw than a tiny network to train: only the tests of curves draw them."""
    if request.module.__name__ != "tests.training.test_curves":
        monkeypatch.setattr(curves, "draw", lambda *_: b"curves")


def tiny_recipe(name: str, **changes: Any) -> RecipeCard:
    """A recipe of the folder cards/, on its tiny dataset."""
    recipe = cards.recipe(str(CARDS / f"tiny-{name}.toml"))
    return recipe.model_copy(update={"dataset": str(CARDS / "tiny-digits.toml")} | changes)


def _train(model: str, recipe: str, out: Path, changes: dict[str, Any] | None = None, **options: Any) -> TrainingResult:
    card = str(CARDS / f"tiny-{model}.toml")
    return train(card, recipe=tiny_recipe(recipe, **changes or {}), out=out, trust=True, **options)


@pytest.fixture
def tiny_train() -> Trainer:
    """train() for the cards of cards/, by the short names of model and recipe; `changes` are laid over the recipe."""
    return _train


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainingResult]:
    """A training that nobody interrupts, made once for all tests: look at its directory, and change a copy of it."""

    @cache
    def run(model: str, recipe: str, epochs: int = 4) -> TrainingResult:
        return _train(model, recipe, tmp_path_factory.mktemp("finished") / "out", epochs=epochs)

    return run
