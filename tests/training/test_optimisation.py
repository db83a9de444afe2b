"""Parameter groups get the rates of the recipe, and the schedule moves them together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustbench_lpm.architectures.ram import Ram
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.training.objectives import make_optimiser, make_schedule, rates
from tests.training.conftest import tiny_recipe


def small_ram() -> Ram:
    return Ram(channels=1, classes=10, patch=2, scales=2, features=8, hidden=8)


def test_groups_get_their_rates_and_every_parameter_is_in_one() -> None:
    network = small_ram()
    optimiser = make_optimiser(network, tiny_recipe("reinforce", groups={"where": 1e-5}, learning_rate=1e-3))
    rate_of = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    expected = {name: 1e-5 if name.startswith("locator") else 1e-3 for name, _ in network.named_parameters()}
    assert {name: rate_of[id(p)] for name, p in network.named_parameters()} == expected


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_a_schedule_moves_all_groups_by_the_same_factors(schedule: str) -> None:
    recipe = tiny_recipe("reinforce", groups={"where": 1e-5}, learning_rate=1e-3, schedule=schedule)
    optimiser = make_optimiser(small_ram(), recipe)
    steps = make_schedule(optimiser, recipe, 40)
    seen = []
    for _ in range(40):
        seen.append(rates(optimiser))
        optimiser.step()
        steps.step()
    assert all(row["learning_rate_where"] == pytest.approx(row["learning_rate_rest"] / 100) for row in seen)
    assert max(row["learning_rate_rest"] for row in seen) == pytest.approx(1e-3)
    first, last = seen[0]["learning_rate_rest"], seen[-1]["learning_rate_rest"]
    falls = {
        "constant": first == last == 1e-3,
        "cosine": first == 1e-3 and last < 1e-5,
        "one-cycle": last < first < 1e-4,
    }
    assert falls[schedule]


KINDS: list[tuple[str, type[Any], dict[str, float]]] = [
    ("adam", torch.optim.Adam, {"weight_decay": 0.5}),
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.5}),
    ("sgd", torch.optim.SGD, {"weight_decay": 0.5, "momentum": 0.7}),
]


@pytest.mark.parametrize(("name", "kind", "settings"), KINDS)
def test_the_optimiser_is_the_one_that_is_named(name: str, kind: type[Any], settings: dict[str, float]) -> None:
    optimiser = make_optimiser(nn.Linear(2, 2), tiny_recipe("clean", optimiser=name, weight_decay=0.5, momentum=0.7))
    assert type(optimiser) is kind
    assert {key: optimiser.param_groups[0][key] for key in settings} == settings


def test_an_unknown_group_is_told_with_its_neighbour() -> None:
    with pytest.raises(LpmbenchError, match="Did you mean 'where'"):
        make_optimiser(small_ram(), tiny_recipe("reinforce", groups={"were": 1e-5}))


def test_a_parameter_outside_all_groups_is_an_error() -> None:
    network = small_ram()
    network.forgotten = nn.Parameter(torch.zeros(1))
    network.parameter_groups = lambda: {"rest": list(network.locator.parameters())}  # type: ignore[method-assign]
    with pytest.raises(LpmbenchError, match="leaves out"):
        make_optimiser(network, tiny_recipe("reinforce", groups={}))
