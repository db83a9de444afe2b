"""The plan of a training, made before it starts. Two trainings with equal plans make equal networks."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from robustbench_lpm.devices import goes_unnamed
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import RANDOM_NUMBERS
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.cards import DatasetCard, ModelCard, RecipeCard

WORDS = {"summary", "source"}
# Options that change nothing about the network that is trained; --trust comes last.
INCIDENTAL = ("resume", "trust", "save_every", "workers", "tensorboard")
DEFAULTS = {"devices": 1}


@dataclass(frozen=True)
class TrainingPlan:
    """A model card with its parameters resolved, a recipe with its overrides, a dataset, a seed."""

    card: ModelCard
    recipe: RecipeCard
    dataset: DatasetCard
    seed: int
    command: str
    trust: bool = False

    def identity(self) -> dict[str, Any]:
        """Everything that decides the trained network, without the cards' descriptions and existing weights."""
        model = self.card.identity()
        del model["weights"]
        recipe = self.recipe.model_dump(mode="json", exclude=WORDS)
        return {
            "model": model, "recipe": recipe, "dataset": self.dataset.identity(), "seed": self.seed,
            "random_numbers": RANDOM_NUMBERS,
        }  # fmt: skip


def completed(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity in today's form: keys that recipes did not have then get their defaults."""
    try:
        recipe = RecipeCard.model_validate(identity["recipe"] | {"summary": ""})
    except ValidationError:  # of an incompatible version: the comparison will say where
        return identity
    return identity | {"recipe": recipe.model_dump(mode="json", exclude=WORDS)}


def make_plan(
    model: str,
    *,
    recipe: RecipeCard | None,
    dataset: str | None,
    epochs: int | None,
    seed: int,
    command: str | None,
    trust: bool,
) -> TrainingPlan:
    """Resolve cards and overrides. Raises LpmbenchError where they do not fit together."""
    card = cards.model(model)
    if recipe is None:
        if card.recipe is None:
            raise LpmbenchError(f"Model '{card.name}' names no recipe; choose one: {', '.join(cards.names('recipe'))}.")
        recipe = cards.recipe(card.recipe)
    if epochs is not None and epochs < 1:
        raise LpmbenchError(f"A training needs at least one epoch, not {epochs}.")
    changes = {key: value for key, value in (("dataset", dataset), ("epochs", epochs)) if value is not None}
    resolved = _with(recipe, **changes)
    data = cards.dataset(resolved.dataset)
    if not zoo.fits(card, data):
        raise LpmbenchError(
            f"Model '{card.name}' (labels '{card.labels}', {card.input.channels} channel(s)) cannot be trained on "
            f"'{data.name}' (labels '{data.labels}', {data.channels} channel(s))."
        )
    trained = _with(card, parameters=card.parameters | recipe.model_parameters)
    return TrainingPlan(trained, resolved, data, seed, command or command_of(model, {"seed": seed, **changes}), trust)


def _with(card: Any, **changes: Any) -> Any:
    """A copy of a card that keeps its path: addresses of code are searched beside that file."""
    copy = card.model_copy(update=changes)
    copy._path = card.path
    return copy


def command_of(model: str, options: dict[str, Any]) -> str:
    """The `lpmbench train` command that repeats a training with these options, without the paths of data and output."""
    shown = {key: value for key, value in options.items() if value != DEFAULTS.get(key) and key not in INCIDENTAL}
    if goes_unnamed(shown.get("device", "")):
        del shown["device"]
    shown |= {"data": "DIR"} if "data" in shown else {}
    words = [f"--{key} {shlex.quote(str(value))}" for key, value in shown.items()]
    return " ".join(["lpmbench train", shlex.quote(model), *words, *["--trust"] * bool(options.get("trust"))])
