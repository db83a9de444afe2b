"""Every committed checkpoint loads, and is as accurate as its card says."""

from __future__ import annotations

import shlex

import pytest
import torch

from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.cards import ModelCard
from robustbench_lpm.training.examples import load_split
from robustbench_lpm.training.plans import make_plan
from robustbench_lpm.training.validation import final_accuracy

LARGEST = 5_000_000  # bytes: a repository is cloned whole
ROUNDING = 0.003  # another processor may round a logit across a boundary
TRAINED = [name for name in cards.names("model") if cards.model(name).trained is not None]


def comes_along(name: str) -> bool:
    trained = cards.model(name).trained
    return trained is not None and not cards.dataset(trained.dataset).needs


def test_there_are_trained_models() -> None:
    assert {"cnn", "cnn-at", "resnet18", "ram", "ramlpm"} <= set(TRAINED)


HERE = [name for name in TRAINED if comes_along(name)]  # the data of the others are not


@pytest.mark.parametrize(
    "name", [name if name in ("cnn", "ram") else pytest.param(name, marks=pytest.mark.slow) for name in HERE]
)
def test_the_accuracy_is_the_one_on_the_card(name: str) -> None:
    card = cards.model(name)
    assert card.trained is not None
    plan = make_plan(
        name, recipe=None, dataset=card.trained.dataset, epochs=card.trained.epochs, seed=card.trained.seed,
        command=None, trust=False,
    )  # fmt: skip
    test = load_split(plan, None, "test")
    found = final_accuracy(zoo.load_model(name).classifier, test, card.trained.seed, "clean", torch.device("cpu"))
    claimed = {key.removeprefix("test"): share for key, share in card.trained.accuracy.items() if "test" in key}
    assert found == pytest.approx(claimed, abs=ROUNDING)


def test_the_cards_say_how_their_models_were_made() -> None:
    for name in TRAINED:
        card: ModelCard = cards.model(name)
        assert card.trained is not None
        assert card.weights is not None
        assert card.weights.file is not None
        assert "torch" in card.trained.versions, name
        assert cards.confined(card, card.weights.file).stat().st_size < LARGEST, name
        assert card.trained.recipe == card.recipe, name
        assert card.trained.epochs == cards.recipe(card.trained.recipe).epochs, name
        assert not card.trained.curve or card.trained.curve["epoch"][-1] == card.trained.epochs, name
        # Another seed of a model is trained by the model's own name.
        trained_as = card.control_of if name == f"{card.control_of}-seed{card.trained.seed}" else name
        if comes_along(name):
            assert card.trained.command == f"lpmbench train {trained_as} --seed {card.trained.seed}", name
        else:
            command = card.trained.command.removesuffix(" --device cuda")
            assert command.endswith(f"--seed {card.trained.seed} --data DIR"), name


def test_the_commands_train_these_very_networks() -> None:
    for name in TRAINED:
        card = cards.model(name)
        assert card.trained is not None
        words = shlex.split(card.trained.command)
        recipe = cards.recipe(words[words.index("--recipe") + 1] if "--recipe" in words else str(card.recipe))
        plan = make_plan(
            words[2], recipe=recipe, dataset=None, epochs=None, seed=card.trained.seed, command=None, trust=False
        )
        assert (recipe.name, recipe.dataset) == (card.trained.recipe, card.trained.dataset), name
        assert (plan.card.entry, plan.card.parameters) == (card.entry, card.parameters), name
