"""Pairs of models and pairs of attacks, against tables of right and wrong that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.protocol.ranking import ranking
from robustbench_lpm.reporting import comparisons, tables
from robustbench_lpm.statistics import first_half, paired_interval
from tests.reporting.conftest import probed


def both(*records, audits=None):
    records = tables.in_order(records)
    runs = tables.table(records, audits or {})
    ranked = ranking(runs)
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
    assert (pair.first, pair.second, pair.images) == ("b, M = 1", "a, M = 1", 40)  # in the order of the ranking
    assert (pair.first_attack, pair.second_attack, pair.note) == ("pgd", "pgd", "")
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
    assert (pair.first, pair.first_accuracy, pair.second_accuracy) == ("a, M = 1", 0.5, 0.25)
    assert (pair.first_attack, pair.second_attack, pair.note) == ("p", "q", "")
    assert found.attacks == [comparisons.LOWEST, "p", "q"]


@pytest.mark.parametrize(("draws", "other_draws"), [(2, 2), (4, 2), (3, 5)])
def test_the_strongest_is_read_on_the_halves_of_the_draws_as_the_ranking_reads_it(make, draws, other_draws):
    cuts = first_half(np.arange(41), draws), first_half(np.arange(41), other_draws)
    lost = np.arange(41)[:, None] < 10  # images that no draw gets right
    first = make("a", "p", robust=~lost & cuts[0], images=41, draws=draws)  # each is lowest on a half of its own
    other = make("a", "q", robust=~lost & ~cuts[1], images=41, draws=other_draws)
    records = [first, other, *(make("b", name, robust=0.25, images=41, draws=2) for name in "pq")]
    (found,), _ = both(*records)
    ranked = reporting.leaderboard(records).set_index("model")["robust_accuracy"]
    (pair,) = [pair for pair in found.pairs if pair.attack == comparisons.LOWEST]
    shown = {pair.first: pair.first_accuracy, pair.second: pair.second_accuracy}
    assert shown == pytest.approx({f"{name}, M = 1": value for name, value in ranked.items()})
    assert shown["a, M = 1"] == pytest.approx(31 / 41, abs=0.01)  # each read on the half that it is right on
    assert (pair.first_attack, pair.second_attack) == ("p, q", "p")


@pytest.mark.parametrize(
    "other", [{"first_index": 3}, {"eps": 1 / 255}, {"norm": "l2"}, {"dataset": "photos"}, {"failed": 2}]
)
def test_only_like_is_compared_with_like(make, other):
    found, _ = both(make("a"), make("b", **other))
    assert found == []


def by_attack(found):
    return {pair.attack: pair for pair in found.pairs}


def test_a_model_is_compared_with_the_average_of_its_runs(make):
    half, more = [[True, True, False, False]] * 40, [[True, True, True, False]] * 30 + [[False] * 4] * 10
    (found,), _ = both(make("a", draws=4, robust=half), make("a", draws=4, robust=more, mc=10))
    assert [each["name"] for each in found.classifiers] == ["a, M = 1", "a, M = 10"]
    assert "M =" not in found.budget  # which is of the classifiers, not of what they met
    assert set(by_attack(found)) == {comparisons.LOWEST, "pgd"}
    pair = by_attack(found)["pgd"]
    assert (pair.first, pair.second, pair.note) == ("a, M = 1", "a, M = 10", "")
    gap = np.array([-0.25] * 30 + [0.5] * 10)
    assert pair.difference == pytest.approx(gap.mean())
    assert (pair.low, pair.high) == pytest.approx(paired_interval(gap))
    assert (pair.first_better, pair.second_better) == (10, 30)


@pytest.mark.parametrize("other", [{"first_index": 3}, {"eps": 1 / 255}, {"size": "16"}, {"data_sha256": "e" * 64}])
def test_averages_too_are_compared_with_like_only(make, other):
    found, _ = both(make("a"), make("a", mc=10, **other))
    assert found == []


def test_settings_that_differ_from_m_to_m_are_told(make):
    single = make("a", robust=0.5, parameters={"steps": 10, "eot": 10}, draws=4)
    weaker = make("a", robust=0.75, parameters={"steps": 5, "eot": 10}, draws=4)
    average = make("a", robust=0.75, parameters={"steps": 10, "eot": 2}, draws=4, mc=10)
    (found,), _ = both(single, weaker, average)
    pairs = by_attack(found)
    assert set(pairs) == {comparisons.LOWEST, f"pgd ({comparisons.UNEQUAL})"}
    pair = pairs[f"pgd ({comparisons.UNEQUAL})"]
    assert (pair.first_accuracy, pair.second_accuracy) == (0.5, 0.75)  # of several the lowest
    assert (pair.first_attack, pair.second_attack) == ("pgd (eot=10)", "pgd (eot=2)")
    assert pair.note == comparisons.UNEQUAL_NOTE
    assert (pairs[comparisons.LOWEST].first_attack, pairs[comparisons.LOWEST].second_attack) == (
        "pgd (eot=10, steps=10)", "pgd (eot=2, steps=10)",
    )  # fmt: skip


def test_equal_settings_are_found_whatever_they_are_called_at_one_m(make):
    """At M = 1 alone the eot tells two attacks apart; at M = 10 there is but one, which needs no such name."""
    few, many = {"eot": 5}, {"eot": 20}
    records = [make("a", robust=0.5, parameters=few), make("a", robust=0.25, parameters=many)]
    records += [make("b", robust=0.75, parameters=many, mc=10), make("c", robust=0.5, parameters=many, mc=10)]
    (found,), _ = both(*records)
    pairs = {(pair.attack, pair.first, pair.second): pair for pair in found.pairs}
    assert {key for key in pairs if key[0] != comparisons.LOWEST} == {
        ("pgd (eot=20)", "a, M = 1", "b, M = 10"), ("pgd (eot=20)", "a, M = 1", "c, M = 10"),
        ("pgd (eot=20)", "b, M = 10", "c, M = 10"),
    }  # fmt: skip
    assert pairs["pgd (eot=20)", "a, M = 1", "b, M = 10"].first_accuracy == 0.25


def test_settings_of_the_members_of_a_worst_case_are_told(make):
    def worst(eot, mc):
        parameters = {"attacks": ["pgd"], "settings": {"pgd": {"eot": eot, "steps": 10}}}
        return make("a", "worst-case", parameters=parameters, mc=mc)

    (found,), _ = both(worst(10, 1), worst(2, 10))
    pair = by_attack(found)[f"worst-case ({comparisons.UNEQUAL})"]
    assert (pair.first_attack, pair.second_attack) == ("worst-case (pgd: eot=10)", "worst-case (pgd: eot=2)")


@pytest.mark.parametrize(
    "other", [{"target": 3}, {"knowledge": "black-box"}, {"attack_identity": {"entry": "a:other"}}]
)
def test_another_attack_is_no_other_setting(make, other):
    (found,), _ = both(make("a"), make("a", mc=10, **other))
    assert set(by_attack(found)) == {comparisons.LOWEST}


def test_a_gradient_mode_that_differs_from_m_to_m_is_told(make):
    strongest, detached = {"gradient_mode": "strongest"}, {"gradient_mode": "detached"}
    (found,), _ = both(make("a", **strongest), make("cnn"), make("a", mc=10, **detached))
    pairs = {(pair.first, pair.second): pair for pair in found.pairs if pair.attack == f"pgd ({comparisons.UNEQUAL})"}
    assert set(pairs) == {("a, M = 1", "a, M = 10"), ("cnn, M = 1", "a, M = 10")}
    assert {(pair.first_attack, pair.second_attack) for pair in pairs.values()} == {("pgd", "pgd (detached gradients)")}


def test_who_met_fewer_attacks_at_its_m_is_named(make):
    gaze = {"applies_to": "glimpsing"}
    records = [make("a", "p", glimpses=6), make("a", "noise", knowledge="none"), make("a", "g", attack_identity=gaze)]
    records += [make("a", "p", mc=10), make("cnn", "p", glimpses=0), make("cnn", "p", mc=10, glimpses=0)]
    (found,), _ = both(*records)
    notes = {(pair.first, pair.second): pair.note for pair in found.pairs if pair.attack == comparisons.LOWEST}
    assert notes["a, M = 1", "a, M = 10"] == "a, M = 10 was not run under g, so its lowest may be too high."
    assert notes["cnn, M = 1", "cnn, M = 10"] == ""
    assert notes["a, M = 1", "cnn, M = 10"] == ""  # which has no gaze to be attacked
    assert {pair.note for pair in found.pairs if pair.attack != comparisons.LOWEST} == {""}


def test_members_of_a_worst_case_were_met(make):
    worst = {"parameters": {"attacks": ["p", "q"]}}
    (found,), _ = both(make("a", "p"), make("a", "worst-case", **worst), make("a", "worst-case", mc=10, **worst))
    assert by_attack(found)[comparisons.LOWEST].note == ""


def test_few_images_give_no_interval(make):
    (found,), _ = both(make("a", images=19), make("b", images=19))
    assert {(pair.low, pair.high) for pair in found.pairs} == {(None, None)}


def test_agreement_counts_images_of_which_two_attacks_say_the_same(make):
    p = make("a", "p", robust=column((10, False), (30, True)))
    q = make("a", "q", robust=column((4, True), (16, False), (20, True)))
    noise = make("a", "noise", robust=1.0, knowledge="none")
    _, (found,) = both(p, q, noise)
    assert found.attacks == ["noise", "p", "q"]
    assert found.misclassified == [0, 10, 16]
    assert found.alone == [0, 4, 10]
    assert np.array(found.shares) == pytest.approx(
        np.array([[1.0, 30 / 40, 24 / 40], [30 / 40, 1.0, 26 / 40], [24 / 40, 26 / 40, 1.0]])
    )


def test_an_image_is_misclassified_when_at_most_half_of_the_draws_are_right(make):
    half, more = [[True, True, False, False]] * 20, [[True, True, True, False]] * 20
    _, (found,) = both(make("a", "p", draws=4, robust=half + more), make("a", "q", draws=4, robust=more + more))
    assert found.misclassified == [20, 0]


def test_probes_are_compared_nowhere(make):
    found, judged = probed(make)
    _, agreements = both(*found.values(), audits=judged)
    assert [agreement.attacks for agreement in agreements] == [["fgsm", "pgd", "square", "worst-case"]]


def test_what_speaks_against_a_number_goes_along(make):
    (found,), _ = both(make("a", "p"), make("a", "q"), make("b", "p"))
    told = {classifier["name"]: classifier["notes"] for classifier in found.classifiers}
    assert told == {"a, M = 1": "", "b, M = 1": "fewer attacks: not run under q"}
