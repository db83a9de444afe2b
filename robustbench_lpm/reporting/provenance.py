"""The registered cards that a record leads home to."""

from __future__ import annotations

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import AttackCard, Card, Kind, ModelCard


def model_card(record: RunRecord) -> ModelCard | None:
    """The registered card of a record's model; None where the card of that name is another model's, or checkpoint's."""
    model = record.configuration["model"]
    try:
        card = cards.model(record.model) if record.model in cards.names("model") else None
    except LpmbenchError:  # a card that cannot be read is nobody's home
        return None
    if card is None or (card.entry, card.parameters) != (model["entry"], model.get("parameters", {})):
        return None
    expected = card.weights.sha256 if card.weights else None  # None: whoever runs it brings the weights
    return card if expected in (None, model.get("weights_sha256")) else None


def attack_card(record: RunRecord) -> AttackCard | None:
    """The registered card of a record's attack, None where that of its name is another one; its settings may differ."""
    attack = record.configuration["attack"]
    try:
        card = cards.attack(record.attack) if record.attack in cards.names("attack") else None
    except LpmbenchError:
        return None
    return card if card is not None and (card.entry == attack["entry"] or _worst_case(card, record)) else None


def _worst_case(card: AttackCard, record: RunRecord) -> bool:
    """Whether both are worst cases, which have members in the place of code."""
    return bool(card.members) and "members" in record.configuration["attack"]


def place(kind: Kind, card: Card) -> str:
    """Where a registered card lies below the root of the suite, such as "models/ramlpm.toml"."""
    return f"{cards.FOLDERS[kind]}/{card.name}.toml"
