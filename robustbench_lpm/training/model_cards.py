"""Write a model card for a trained network: a TOML file that says all that is needed to run it again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from robustbench_lpm.cards import ModelCard, Trained, Weights
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.training.checkpoints import write


def write_card(card: ModelCard, weights: Path, trained: Trained, path: Path) -> None:
    """Write `card` to `path`, with the weights beside it and how they were made."""
    source = Weights(file=weights.name, sha256=sha256_of(weights))
    whole = card.model_copy(update={"weights": source, "trained": trained, "hint": ""})
    write(path, to_toml(whole.model_dump(mode="json", exclude_defaults=True)).encode())


def weights_file(card: ModelCard) -> str:
    """A file name for a card's weights."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", card.name).strip("-.") + ".safetensors"


def to_toml(table: dict[str, Any], where: str = "") -> str:
    """TOML for nested dictionaries of strings, booleans, numbers, lists and None (left out)."""
    plain = {key: value for key, value in table.items() if value is not None and not isinstance(value, dict)}
    nested = {key: value for key, value in table.items() if isinstance(value, dict) and value}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    header = [f"\n[{where}]"] if where and lines else []
    text = "".join(f"{line}\n" for line in header + lines)
    return text + "".join(
        to_toml(inner, f"{where}.{_key(key)}" if where else _key(key)) for key, inner in nested.items()
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON escapes all else that TOML asks
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"TOML cannot hold {value!r}")
