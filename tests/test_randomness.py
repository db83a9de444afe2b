"""Every number has an address of its own, and code that uses the global generators leaves them as they were."""

from __future__ import annotations

import hashlib
import random
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from robustbench_lpm.randomness import (
    Addresses,
    Purpose,
    _normal,
    generator,
    isolated_globals,
    key,
    normal_of,
    numbers_on,
    philox,
    uniform_of,
)

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@pytest.mark.parametrize(("counter", "key", "words"), [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
])  # fmt: skip
def test_philox_gives_the_published_words(counter: str, key: str, words: str) -> None:
    """The known-answer vectors of Random123, by the authors of the paper."""
    low, high = (int(word, 16) for word in key.split())
    found = philox(np.array([[int(word, 16)] for word in counter.split()], dtype=np.uint32), low | high << 32)
    assert " ".join(f"{int(word):08x}" for word in found[0]) == words


def test_philox_gives_the_words_of_another_implementation() -> None:
    """The hash is that of randomgen 2.5.1: Philox(number=4, width=32).random_raw(4) at each of the counters."""
    counters = np.arange(1, 1025, dtype=np.uint64).reshape(4, 256) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    counters = counters.astype(np.uint32)
    digest = hashlib.sha256(philox(counters, 0x0123456789ABCDEF).tobytes()).hexdigest()
    assert digest == "435c41c87e8d783ce31b0628cab52d1f7c2ed02ae35073f2865ee1f7c8f6f5f8"


def test_numbers_never_change() -> None:
    """Pinned to the last bit: other numbers would be other results under the same name."""
    here = Addresses.of(0, [17], "grade", 3)
    assert here.integers("key", 2**62, 2).tolist() == [[3126364670346414922, 2946883348174692185]]
    assert here.bytes("key", 4).tolist() == [[74, 75, 84, 126]]
    normal = Addresses.of(0, range(100), "attack").draws(10).normal("policy", 13)
    digest = hashlib.sha256(normal.numpy().tobytes()).hexdigest()
    assert digest == "5773a2b346b3faa66b7501f46e95bc5960ead6cb1fc14c61f0b5473a46510cc6"
    assert key(0, 17, "grade", 3) == 8759540136563536994
    assert torch.rand(2, generator=generator(0, 17)).tolist() == pytest.approx([0.983179, 0.349044], abs=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"
))])  # fmt: skip
def test_torch_makes_the_same_numbers_on_a_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in pieces or at once: a run on a GPU starts where one on a CPU does."""
    there = torch.device(device)
    few, many = Addresses.of(7, range(5), "search", 3, stream="x").draws(3), Addresses.of("a", [2**32 - 1], "own")
    for at_once in (2**22, 7):
        monkeypatch.setattr("robustbench_lpm.randomness._AT_ONCE", at_once)
        for addresses, shape in ((few, ()), (few, (3,)), (few, (2, 5, 3)), (many, (3, 224, 224))):
            packed = addresses.packed("pixels")
            uniform, normal = (numbers_on(there, packed, shape, made_of).cpu() for made_of in (uniform_of, normal_of))
            assert torch.equal(uniform, addresses.uniform("pixels", *shape))
            assert torch.equal(normal, addresses.normal("pixels", *shape))
    words = torch.arange(0, 2**32, 4099)
    expected = torch.from_numpy(_normal(words.numpy().astype("<u4")))
    assert torch.equal(normal_of(words.to(there)).cpu(), expected)


def test_no_two_of_ten_million_addresses_share_their_numbers() -> None:
    """63 bits of each: two alike by chance would be met once in 180,000 such tests."""
    keys = [Addresses.of(seed, range(1000), purpose) for seed in range(2) for purpose in PURPOSES[:5]]
    numbers = torch.cat([part.draws(100).runs(10).integers("key", 2**63) for part in keys])
    assert len(numbers) == 10**7
    assert (np.diff(np.sort(numbers.numpy())) > 0).all()


@pytest.mark.parametrize("other", [
    Addresses.of(1, range(4), "grade", 2),
    Addresses.of("0on another", range(4), "grade", 2),
    Addresses.of(0, range(10, 14), "grade", 2),
    Addresses.of(0, range(4), "grade", 3),
    Addresses.of(0, range(4), "grade", 2, stream="on another"),
    Addresses.of(0, range(4), "grade", 2).runs(2).rows([1, 3, 5, 7]),
    *(Addresses.of(0, range(4), purpose, 2) for purpose in PURPOSES if purpose != "grade"),
])  # fmt: skip
def test_every_part_of_an_address_counts(other: Addresses) -> None:
    here = Addresses.of(0, range(4), "grade", 2)
    for one, another in product(here.uniform("policy", 3), other.uniform("policy", 3)):
        assert not torch.equal(one, another)
    assert not torch.equal(here.uniform("policy", 3), here.uniform("first_fixation", 3))


@pytest.mark.parametrize("part", [-1, 2**32])
def test_an_address_beyond_the_counter_is_refused(part: int) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 2\^32 - 1"):
        Addresses.of(0, [part], "grade")
    with pytest.raises(ValueError, match=r"from 0 to 2\^32 - 1"):
        Addresses.of(0, [0], "grade", part)


@pytest.mark.parametrize("numbers", [1, 4, 13, 40_000])  # the last are more than are made at once
@pytest.mark.parametrize("drawn", ["uniform", "normal", "bytes", "signs"])
def test_the_numbers_of_an_address_do_not_depend_on_its_company(drawn: str, numbers: int) -> None:
    def draw(addresses: Addresses, *shape: int) -> Tensor:
        found: Tensor = getattr(addresses, drawn)("source", *shape)
        return found

    whole = Addresses.of(5, [3, 1, 2], "attack")
    together = draw(whole, numbers, 2)
    assert torch.equal(draw(whole.rows([2, 0]), numbers, 2), together[[2, 0]])
    assert torch.equal(draw(whole, numbers + 7, 2)[:, :numbers], together)
    assert torch.equal(draw(whole.draws(2), numbers, 2)[:3], together)
    assert torch.equal(draw(whole.runs(2), numbers, 2)[::2], together)
    following = Addresses.of(5, [3, 1, 2], "attack", [1, 1, 1])
    assert torch.equal(draw(whole.draws(2), numbers, 2)[3:], draw(following, numbers, 2))


def test_numbers_have_the_distribution_that_they_promise() -> None:
    addresses = Addresses.of(0, range(1000), "attack")
    uniform = addresses.uniform("u", 300).double().flatten()
    assert (uniform * 2**24 == (uniform * 2**24).round()).all()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(addresses.normal("z", 300).double().flatten(), "norm").pvalue > 1e-3
    assert abs(float(addresses.signs("s", 300).mean())) < 4 / 300_000**0.5
    assert set(addresses.signs("s", 300).unique().tolist()) == {-1, 1}
    counts = torch.bincount(addresses.integers("i", 7, 300).flatten())
    assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbouring_addresses_are_independent() -> None:
    """Rows that follow one another in example, draw or run, and the numbers of a row."""
    for addresses in (Addresses.of(0, range(10_000), "attack"), Addresses.of(0, [0], "attack").draws(10_000)):
        numbers = addresses.normal("z", 8)
        assert abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 5 / 100
        assert abs(np.corrcoef(numbers[1:].flatten(), numbers[:-1].flatten())[0, 1]) < 5 / 80_000**0.5


def test_normal_numbers_are_the_inverse_of_the_distribution_function() -> None:
    """To 5 parts in 10^7, up to the farthest of 2^32; symmetric."""
    middle, end = np.arange(4000), np.arange(2**31 - 4000, 2**31)
    signed = np.concatenate([np.arange(0, 2**31, 99_991), middle, end]).astype("<i4")
    found = _normal(signed.view("<u4"))
    np.testing.assert_allclose(found, special.ndtri(0.5 + (signed + 0.5) / 2**32), rtol=5e-7)
    np.testing.assert_allclose(_normal((~signed).view("<u4")), -found, rtol=5e-7)


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
