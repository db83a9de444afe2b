"""recipes/README.md tells every key that a recipe may hold, and every parameter of the objectives."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from robustbench_lpm.registry.cards import Augmentation, RecipeCard, Validation
from robustbench_lpm.training import objectives

README = Path(__file__).parents[2] / "recipes" / "README.md"
TABLES: list[tuple[str, type[BaseModel]]] = [
    ("## What a recipe holds", RecipeCard),
    ("### `[augmentation]`", Augmentation),
    ("### `[validation]`", Validation),
]


def first_column(heading: str) -> list[str]:
    """The names in the first column of the table under a heading."""
    section = re.split(r"\n#+ ", README.read_text().split(f"\n{heading}\n", 1)[1], maxsplit=1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


@pytest.mark.parametrize(("heading", "card"), TABLES)
def test_every_key_has_a_row(heading: str, card: type[BaseModel]) -> None:
    assert sorted(first_column(heading)) == sorted(card.model_fields)


def test_every_parameter_of_an_objective_has_a_row() -> None:
    section = README.read_text().split("\n### Objectives and their parameters\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    told = {(row[1].strip(" `"), name) for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    there = {
        (name, parameter.name)
        for name in ("cross_entropy", "adversarial", "reinforce")
        for parameter in inspect.signature(getattr(objectives, name)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert told == there
