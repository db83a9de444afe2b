"""The ranking of a classifier that is right with probability p whatever the attack says p, however many attacks it met.

A model that met eight attacks, and drew eight times the noise, is not to be punished for the unluckiest of the eight.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import robustbench_lpm
from robustbench_lpm import reporting
from tests.classifiers import Fair
from tests.reporting.conftest import make_record

P, ATTACKS = 0.6, 8


def seeds_of(count, images, draws, rng):
    """For each seed the records of one model: outcomes that are coins, some of them (of the same draw) shared by runs.

    draws: K of each attack. Draw k of an image is the same noise in every run of a seed, so that attacks which leave an
    image alike, as the first quarter here, meet the same coin.
    """
    for seed in range(count):
        alike = rng.random((images, max(draws))) < P
        for attack, own in enumerate(draws):
            coins = rng.random((images, own)) < P
            coins[: images // 4] = alike[: images // 4, :own]
            yield make_record(f"m{seed}", f"a{attack}", robust=coins, images=images, draws=own, stochastic=True)


def assert_fair_and_lowest_is_not(values, lowest):
    """values, lowest: what the ranking says, and what the lowest over whole runs would say, one of each seed."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    print(f"p = {P}: ranking {values.mean():.4f} ± {error:.4f}, lowest over whole runs {lowest.mean():.4f}")
    assert abs(values.mean() - P) < 4 * error
    assert lowest.mean() < P - 4 * lowest.std(ddof=1) / math.sqrt(len(lowest))


@pytest.mark.parametrize(
    ("images", "draws"),
    [(200, [20] * ATTACKS), (41, [3] * ATTACKS), (101, [1] * ATTACKS), (61, [3, 4, 5, 6, 8, 12, 20, 20])],
    ids=["K = 20", "odd K", "K = 1", "unequal K"],
)
def test_a_constant_classifier_is_ranked_at_its_p(images, draws):
    seeds = 12
    runs = list(seeds_of(seeds, images, draws, np.random.default_rng(seeds)))
    ranked, table = reporting.leaderboard(runs, {}), reporting.table(runs, {})
    assert len(ranked) == seeds
    assert_fair_and_lowest_is_not(ranked["robust_accuracy"], table.groupby("model")["robust_accuracy"].min())


@pytest.mark.slow
def test_fair_runs_are_ranked_at_their_p():
    """The same through real runs: eight attacks that each change the image, and with it the coin."""
    data = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(40, dtype=torch.long)
    budgets = [("noise", {"tries": tries}) for tries in (1, 2, 3)] + [("fgsm", {"eot": eot}) for eot in (1, 2)]
    budgets += [("pgd", {"steps": steps, "eot": 1}) for steps in (1, 2, 3)]
    values, lowest = [], []
    for seed in range(16):
        runs = [
            robustbench_lpm.evaluate(Fair(P), attack, data, eps=0.1, parameters=parameters, seed=seed)
            for attack, parameters in budgets
        ]
        for run in runs:
            run.configuration["attack"]["knowledge"] = "white-box"  # noise is a control, and would not count
        values.append(reporting.leaderboard(runs, {})["robust_accuracy"].iloc[0])
        lowest.append(min(run.robust_accuracy.value for run in runs))
    assert_fair_and_lowest_is_not(np.array(values), np.array(lowest))
