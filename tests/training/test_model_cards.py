"""The TOML that is written reads back as what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import ModelCard
from robustbench_lpm.training.checkpoints import weights_file, write_card


def test_every_model_card_survives_being_written(tmp_path: Path) -> None:
    for name in cards.names("model"):
        card = cards.model(name)
        path = tmp_path / "card.toml"
        path.write_text(tomli_w.dumps(card.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
        assert cards.read(path, ModelCard).model_dump() == card.model_dump()


def test_a_trained_card_says_where_its_weights_are_and_how_they_were_made(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    told = {
        "recipe": "r",
        "seed": 1,
        "epochs": 2,
        "dataset": "digits",
        "command": 'a "b" \\ é\t',
        "accuracy": {"test_m1": 0.5},
    }
    path = tmp_path / "card.toml"
    write_card(cards.model("resnet18-imagenet"), tmp_path / "w.safetensors", told | {"curve": {}}, path)
    card = cards.read(path, ModelCard)
    assert card.weights is not None
    assert card.trained is not None
    assert (card.weights.file, card.weights.torchvision, card.hint) == ("w.safetensors", None, "")
    assert told.items() <= card.trained.model_dump().items()


@pytest.mark.parametrize(("name", "file"), [("cnn", "cnn.safetensors"), ("../my net", "my-net.safetensors")])
def test_weights_get_a_plain_file_name(name: str, file: str) -> None:
    card = cards.model("cnn").model_copy(update={"name": name})
    assert weights_file(card) == file
