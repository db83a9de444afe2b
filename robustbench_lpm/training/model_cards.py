"""Write a model card for a trained network: a TOML file that says all that is needed to run it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli_w

from robustbench_lpm import cards
from robustbench_lpm.cards import ModelCard
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.training.checkpoints import write
from robustbench_lpm.versions import OURS, versions_of


def write_card(card: ModelCard, weights: Path, trained: dict[str, Any], path: Path) -> ModelCard:
    """Write `card` with the weights beside `path` and how they were trained; the card as it reads back."""
    content = to_dict(card.model_copy(update={"hint": ""}))
    content |= {"weights": {"file": weights.name, "sha256": sha256_of(weights)}, "trained": trained}
    write(path, tomli_w.dumps(content).encode())
    return cards.read(path, ModelCard)


def to_dict(card: ModelCard) -> dict[str, Any]:
    """What the TOML file of a card holds: every key that is not at its default."""
    return card.model_dump(mode="json", exclude_defaults=True)


def versions() -> dict[str, str]:
    """Of the packages that decide what a training makes."""
    return versions_of(("torch", OURS))


def weights_file(card: ModelCard) -> str:
    """A file name for a card's weights."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", card.name).strip("-.") + ".safetensors"
