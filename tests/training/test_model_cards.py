"""The TOML that is written reads back as what was meant."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from robustbench_lpm import cards
from robustbench_lpm.cards import ModelCard
from robustbench_lpm.training.model_cards import to_toml, weights_file

TABLES: list[dict[str, Any]] = [
    {"text": 'quotes " and \\ and \n and é and \x7f and \t', "empty": ""},
    {"true": True, "false": False, "int": -3, "float": 0.1, "small": 1e-06, "large": 1e22, "infinite": float("inf")},
    {"list": [[32], [32, 2, 2]], "mixed": [1, "a"], "none": [], "tables": [{"a": 1, "b c": [2]}]},
    {"outer": {"x": 1, "inner": {"y": 2}}, "only nested": {"inner": {"z": 3}}, "a.b": {"c d": 4}},
    {"after": {"x": 1}, "plain": 1},  # a plain key after a table would belong to the table
]


@pytest.mark.parametrize("table", TABLES)
def test_toml_reads_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def test_none_is_left_out() -> None:
    assert to_toml({"a": None, "b": 1}) == "b = 1\n"


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="TOML cannot hold"):
        to_toml({"a": object()})


def test_every_model_card_survives_being_written(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    for card in map(cards.model, cards.names("model")):
        path.write_text(to_toml(card.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
        assert cards.read(path, ModelCard).model_dump() == card.model_dump(), card.name


@pytest.mark.parametrize(("name", "file"), [("cnn", "cnn.safetensors"), ("../my net", "my-net.safetensors")])
def test_weights_get_a_plain_file_name(name: str, file: str) -> None:
    card = cards.model("cnn").model_copy(update={"name": name})
    assert weights_file(card) == file
