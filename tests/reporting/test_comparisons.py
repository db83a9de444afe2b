"""Pairs of models and pairs of attacks, against tables of right and wrong that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.reporting import comparisons, tables
from robustbench_lpm.statistics import paired_interval
from tests.reporting.conftest import probed


def both(*records, audits=None):
    records = tables.in_order(records)
    runs = tables.table(records, audits or {})
    ranked = tables.ranking(runs)
    return comparisons.compare(records, runs, ranked), comparisons.agree(records, runs, ranked)


def column(*blocks):
    """Rows of one draw, from (how many images, whether right)."""
    return [[right] for count, right in blocks for _ in range(count)]


def test_a_pair_is_compared_image_by_image(make):
    a = make("a", robust=column((20, True), (20, False)))  # right on images 0 to 19
    b = make("b", robust=column((5, False), (25, True), (10, False)))  # right on images 5 to 29
    (found,), _ = both(a, b)
    pairs = {pair.attack: pair for pair in found.pairs}
    assert set(pairs) == {comparisons.LOWEST, "pgd"}
    pair = pairs["pgd"]
    assert (pair.first, pair.second, pair.images) == ("b", "a", 40)  # in the order of the ranking
    assert (pair.first_better, pair.second_better) == (10, 5)
    assert pair.difference == pytest.approx(5 / 40)
    gap = np.array([-1.0] * 5 + [0.0] * 15 + [1.0] * 10 + [0.0] * 10)
    assert (pair.low, pair.high) == pytest.approx(paired_interval(gap))
    assert pairs[comparisons.LOWEST].difference == pair.difference


def test_shares_of_draws_count_as_shares(make):
    a = make("a", draws=4, robust=[[True, True, False, False]] * 40)
    b = make("b", draws=4, robust=[[True, False, False, False]] * 40)
    (found,), _ = both(a, b)
    assert {pair.difference for pair in found.pairs} == {0.25}
    assert {(pair.first_better, pair.second_better) for pair in found.pairs} == {(40, 0)}


def test_the_lowest_of_each_is_compared_though_the_attacks_differ(make):
    records = [make("a", "p", robust=0.5), make("a", "q", robust=0.75)]
    records += [make("b", "p", robust=1.0), make("b", "q", robust=0.25)]
    (found,), _ = both(*records)
    (pair,) = [pair for pair in found.pairs if pair.attack == comparisons.LOWEST]
    assert (pair.first, pair.first_accuracy, pair.second_accuracy) == ("a", 0.5, 0.25)
    assert found.attacks == [comparisons.LOWEST, "p", "q"]


@pytest.mark.parametrize(
    "other", [{"first_index": 3}, {"eps": 1 / 255}, {"mc": 10}, {"dataset": "photos"}, {"failed": 2}]
)
def test_only_like_is_compared_with_like(make, other):
    found, _ = both(make("a"), make("b", **other))
    assert found == []


def test_few_images_give_no_interval(make):
    (found,), _ = both(make("a", images=19), make("b", images=19))
    assert {(pair.low, pair.high) for pair in found.pairs} == {(None, None)}


def test_agreement_counts_images_of_which_two_attacks_say_the_same(make):
    p = make("a", "p", robust=column((10, False), (30, True)))
    q = make("a", "q", robust=column((4, True), (16, False), (20, True)))
    noise = make("a", "noise", robust=1.0, knowledge="none")
    _, (found,) = both(p, q, noise)
    assert found.attacks == ["noise", "p", "q"]
    assert found.fallen == [0, 10, 16]
    assert found.alone == [0, 4, 10]
    assert np.array(found.shares) == pytest.approx(
        np.array([[1.0, 30 / 40, 24 / 40], [30 / 40, 1.0, 26 / 40], [24 / 40, 26 / 40, 1.0]])
    )


def test_an_image_has_fallen_when_at_most_half_of_the_draws_are_right(make):
    half, more = [[True, True, False, False]] * 20, [[True, True, True, False]] * 20
    _, (found,) = both(make("a", "p", draws=4, robust=half + more), make("a", "q", draws=4, robust=more + more))
    assert found.fallen == [20, 0]


def test_probes_are_compared_nowhere(make):
    found, judged = probed(make)
    _, agreements = both(*found.values(), audits=judged)
    assert [agreement.attacks for agreement in agreements] == [["fgsm", "pgd", "square", "worst-case"]]


def test_what_speaks_against_a_number_goes_along(make):
    (found,), _ = both(make("a", "p"), make("a", "q"), make("b", "p"))
    assert found.models == {"a": "", "b": "fewer attacks: did not meet q"}
    assert reporting.leaderboard([make("a", "p")])["rank"].iloc[0] == 1
