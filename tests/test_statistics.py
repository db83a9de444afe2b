"""Rates and intervals against numbers that are known, or counted by hand."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from robustbench_lpm.statistics import (
    MIN_IMAGES_FOR_INTERVAL,
    attempts,
    flip_rate,
    majority,
    mean_draw,
    rate,
    ratio_interval,
    wilson,
    worst_of_k,
)

# Wilson's formula worked out with forty decimal places of z = 1.95996....
WILSON = [
    (0, 20, 0.0, 0.1611252),
    (10, 20, 0.2992980, 0.7007020),
    (20, 20, 0.8388748, 1.0),
    (8, 10, 0.4901625, 0.9433178),
    (1, 1, 0.2065493, 1.0),
    (990, 1000, 0.9816905, 0.9945592),
]


@pytest.mark.parametrize(("right", "n", "low", "high"), WILSON)
def test_wilson_against_known_values(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right / n, n) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("n", [1, 7, 20, 500])
@pytest.mark.parametrize("value", [0.0, 0.013, 0.5, 0.9, 1.0])
def test_wilson_solves_its_equation(value: float, n: int) -> None:
    """Its ends are the p at which (value - p)² = z² p (1 - p) / n (Wilson 1927), and it mirrors."""
    low, high = wilson(value, n)
    for p in (low, high):
        assert (value - p) ** 2 == pytest.approx(1.959963985**2 * p * (1 - p) / n, abs=1e-9)
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    assert wilson(1 - value, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_confidence_widens_the_interval() -> None:
    low, high = wilson(0.5, 50, confidence=0.99)
    assert low < wilson(0.5, 50)[0]
    assert high > wilson(0.5, 50)[1]


@pytest.mark.parametrize("n", [0, -3])
def test_no_trials_no_interval(n: int) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0.5, n)


@pytest.mark.parametrize("n", [0, 1, 19, 20, 21])
def test_a_rate_has_an_interval_from_twenty_images_on(n: int) -> None:
    found = rate(np.ones(n, bool))
    assert found.n == n
    assert (found.low is None) == (found.high is None) == (n < 20)
    assert MIN_IMAGES_FOR_INTERVAL == 20
    assert np.isnan(found.value) if n == 0 else found.value == 1


T, F = True, False
GRADED = [
    # correct (images, draws), mean over draws, majority, worst of k
    ([[T, T, T, T]], 1.0, 1.0, 1.0),
    ([[T, T, T, F]], 0.75, 1.0, 0.0),
    ([[T, T, F, F]], 0.5, 0.0, 0.0),  # a tie is no majority
    ([[T, F, F, F]], 0.25, 0.0, 0.0),
    ([[F, F, F, F]], 0.0, 0.0, 0.0),
    ([[T], [F]], 0.5, 0.5, 0.5),
    ([[T, T, F], [F, T, F], [T, T, T], [F, F, F]], 0.5, 0.5, 0.25),
]


@pytest.mark.parametrize(("correct", "mean", "most", "every"), GRADED)
def test_rates_of_draws(correct: list[list[bool]], mean: float, most: float, every: float) -> None:
    graded = np.array(correct)
    assert (mean_draw(graded).value, majority(graded).value, worst_of_k(graded).value) == (mean, most, every)


def test_draws_do_not_narrow_the_interval() -> None:
    """The sampling unit is the image: the same share over more draws says no more about other images."""
    few = np.array([[T, F]] * 40)
    many = np.tile(few, (1, 50))
    assert mean_draw(few) == mean_draw(many)
    assert mean_draw(many).n == 40


def flips_by_enumeration(predictions: NDArray[np.int64]) -> float:
    """The share of ordered pairs of different draws that disagree, averaged over images."""
    pairs = [[a != b for a, b in permutations(row.tolist(), 2)] for row in predictions]
    return float(np.mean([np.mean(row) for row in pairs]))


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("draws", [2, 3, 20])
def test_flip_rate_by_enumeration(classes: int, draws: int) -> None:
    predictions = np.random.default_rng(draws).integers(0, classes, (17, draws))
    assert flip_rate(predictions) == pytest.approx(flips_by_enumeration(predictions), abs=1e-12)


@pytest.mark.parametrize(("predictions", "expected"), [
    ([[3], [4]], 0.0),
    ([[5, 5], [6, 6]], 0.0),
    ([[5, 6], [6, 6]], 0.5),
    ([[1, 2], [2, 1]], 1.0),
    ([[0, 0, 1]], 2 / 3),
])  # fmt: skip
def test_flip_rate_by_hand(predictions: list[list[int]], expected: float) -> None:
    assert flip_rate(np.array(predictions)) == pytest.approx(expected, abs=1e-15)


def test_attempts_are_what_all_choices_of_draws_say() -> None:
    """Against the mean over every choice of K of the draws."""
    correct = np.random.default_rng(0).random((7, 5)) < 0.7
    for k, found in enumerate(attempts(correct), 1):
        chosen = [correct[:, list(some)].all(axis=1).mean() for some in combinations(range(5), k)]
        assert found == pytest.approx(np.mean(chosen))
    assert attempts(correct)[0] == pytest.approx(mean_draw(correct).value)
    assert attempts(correct)[-1] == pytest.approx(worst_of_k(correct).value)
    assert attempts(np.array([[True], [False]])).tolist() == [0.5]


def test_the_interval_of_a_ratio_of_means_against_its_linearisation() -> None:
    """Of 4000 pairs of mean 2 and 1 the ratio is normal: its standard error is sd(x - r y) / (mean(y) sqrt(n))."""
    pairs = np.random.default_rng(1).normal((2.0, 1.0), (0.5, 0.2), size=(4000, 2))
    value, low, high = ratio_interval(pairs, lambda means: means[..., 0] / means[..., 1])
    error = np.std(pairs[:, 0] - value * pairs[:, 1]) / np.mean(pairs[:, 1]) / np.sqrt(len(pairs))
    assert value == pytest.approx(pairs[:, 0].mean() / pairs[:, 1].mean())
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    assert low < value < high
