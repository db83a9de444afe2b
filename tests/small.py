"""Registered attacks at the smallest budget that still does something, for tests of what holds for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from robustbench_lpm.registry import cards
from robustbench_lpm.registry.tasks import Attack, resolve_attack
from robustbench_lpm.registry.zoo import LoadedModel

MOST = 4  # even: what costs two queries may use all of them


def budget(name: str) -> dict[str, int]:
    """Every whole number among the parameters of a registered attack, at most 4."""
    card = cards.attack(name)
    taken = inspect.signature(cards.resolve_entry(card)).parameters.values()
    given = {parameter.name: parameter.default for parameter in taken} | card.parameters
    return {key: min(value, MOST) for key, value in given.items() if type(value) is int}


def small(name: str, surrogates: Sequence[LoadedModel]) -> Attack:
    """A registered attack, or a worst case, with such budgets; made on the surrogates if it is carried over."""
    if members := cards.attack(name).members:
        found = resolve_attack(name, settings={member: budget(member) for member in members})
    else:
        found = resolve_attack(name, parameters=budget(name))
    return resolve_attack(found, surrogates=surrogates) if found.carried_over else found
