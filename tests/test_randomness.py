"""Every number has an address of its own, and code that uses the global generators leaves them as they were."""

from __future__ import annotations

import random
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

from robustbench_lpm.randomness import Purpose, generator, generators, isolated_globals, key

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
PINNED_KEY = 8759540136563536994
PINNED_NUMBERS = [0.584938, 0.191833]


def test_addresses_do_not_collide() -> None:
    addresses = list(product(range(10), range(50), PURPOSES, range(5)))
    assert len(PURPOSES) >= 5
    assert len({key(*address) for address in addresses}) == len(addresses)


@pytest.mark.parametrize(("one", "other"), [
    ((1, 23), (12, 3)),
    ((1, 2), (2, 1)),
    ((1,), (1, "")),
    (("a", "b"), ("ab",)),
])  # fmt: skip
def test_every_part_and_their_order_count(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert key(*one) != key(*other)


def test_keys_are_seeds_that_never_change() -> None:
    """Pinned: another derivation would change the noise of every record."""
    assert key(0, 17, "grade", 3) == PINNED_KEY
    assert all(0 <= key(i) < 2**63 for i in range(1000))
    assert torch.rand(2, generator=generator(0, 17, "grade", 3)).tolist() == pytest.approx(PINNED_NUMBERS, abs=1e-6)


@pytest.mark.parametrize(("changed", "other"), [
    ("seed", generators(1, range(4), "grade", 2)),
    ("indices", generators(0, range(10, 14), "grade", 2)),
    ("draw", generators(0, range(4), "grade", 3)),
    *((purpose, generators(0, range(4), purpose, 2)) for purpose in PURPOSES if purpose != "grade"),
])  # fmt: skip
def test_generators_differ_in_every_part_of_their_address(changed: str, other: list[torch.Generator]) -> None:
    here = [torch.rand(3, generator=g) for g in generators(0, range(4), "grade", 2)]
    there = [torch.rand(3, generator=g) for g in other]
    assert all(not torch.equal(a, b) for a, b in product(here, there)), changed


def test_generators_belong_to_examples() -> None:
    whole = [torch.rand(3, generator=g).tolist() for g in generators(5, [3, 1, 2], "attack")]
    alone = [torch.rand(3, generator=generators(5, [i], "attack")[0]).tolist() for i in (3, 1, 2)]
    assert whole == alone


def draw() -> tuple[float, ...]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def test_global_generators_are_seeded_inside_and_restored_after() -> None:
    seed_everything(7)
    expected = [draw() for _ in range(2)]
    seed_everything(7)
    found = [draw()]
    with isolated_globals(11):
        first = [draw() for _ in range(3)]
    found.append(draw())
    assert found == expected
    with isolated_globals(11):
        assert [draw() for _ in range(3)] == first
    with isolated_globals(12):
        assert all(a != b for a, b in zip(draw(), first[0], strict=True))


def reseed_and_fail() -> None:
    with isolated_globals(2**63 - 1):
        seed_everything(0)  # as AutoAttack does
        raise RuntimeError("on purpose")


def test_global_generators_are_restored_after_an_error_and_a_reseeding() -> None:
    seed_everything(7)
    expected = draw()
    seed_everything(7)
    with pytest.raises(RuntimeError, match="on purpose"):
        reseed_and_fail()
    assert draw() == expected
