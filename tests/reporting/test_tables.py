"""The table of runs says what the outcomes say."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.statistics import wilson

RATES = ("clean_accuracy", "robust_accuracy")


def test_numbers_of_a_stochastic_run_are_those_of_its_outcomes(make):
    right = [[True, True, True, True]] * 10 + [[True, True, True, False]] * 10 + [[True, False, False, False]] * 20
    row = reporting.table([make(robust=right, draws=4, clean=1.0)]).iloc[0]
    assert row["robust_accuracy"] == pytest.approx((10 + 7.5 + 5) / 40)
    assert row["robust_majority"] == pytest.approx(20 / 40)
    assert row["robust_worst_of_k"] == pytest.approx(10 / 40)
    assert (row["robust_accuracy_low"], row["robust_accuracy_high"]) == pytest.approx(wilson(22.5 / 40, 40))
    assert (row["clean_accuracy"], row["clean_flip_rate"]) == (1.0, 0.0)
    assert (row["forwards"], row["backwards"], row["glimpses"]) == (100 + 39 / 2, 7, 30)
    assert (row["images"], row["draws"], row["mc"], row["seconds"]) == (40, 4, 1, 12.5)
    assert (row["eps_text"], row["knowledge"], row["failed_examples"]) == ("8/255", "white-box", 0)


def test_flip_rate_counts_pairs_of_draws(make):
    row = reporting.table([make(clean=0.5, draws=2)]).iloc[0]  # one draw all right, the other all wrong
    assert row["clean_flip_rate"] == 1.0


def test_target_rate_stands_only_with_targeted_attacks(make):
    table = reporting.table([make(robust=0.25, target=3), make("other", robust=0.25)]).set_index("model")
    # the first quarter of the images is right; of the others, and of those, whoever is called 3 is hit
    hits = [i % 10 == 3 if i < 10 else True for i in range(40)]
    assert table.loc["cnn", "target_rate"] == pytest.approx(np.mean(hits))
    assert math.isnan(table.loc["other", "target_rate"])
    assert table.loc["cnn", "target"] == "3"


@pytest.mark.parametrize(("images", "shown"), [(19, False), (20, True)])
def test_intervals_need_twenty_images(make, images, shown):
    row = reporting.table([make(images=images)]).iloc[0]
    for rate in RATES:
        assert pd.notna(row[f"{rate}_low"]) == pd.notna(row[f"{rate}_high"]) == shown
    ranked = reporting.leaderboard([make(images=images)]).iloc[0]
    assert pd.notna(ranked["robust_accuracy_low"]) == shown


@pytest.mark.parametrize("timing", [{}, {"seconds": "soon"}, {"seconds": None}])
def test_a_run_without_a_usable_timing_has_no_seconds(make, timing):
    assert math.isnan(reporting.table([make(timing=timing)]).iloc[0]["seconds"])


def test_numbers_are_numbers(make):
    table = reporting.table([make(), make("other", images=5, timing={})])
    text = {"dataset", "size", "norm", "eps_text", "image_set", "images_text", "model", "model_variant", "attack",
            "attack_variant", "knowledge", "target", "gradient_mode", "applies_to", "members", "chosen", "verdict",
            "failed_checks", "audit", "notes", "record", "command"}  # fmt: skip
    for column in table.columns:
        assert pd.api.types.is_numeric_dtype(table[column]) == (column not in text), column


def test_no_records_make_empty_tables():
    assert len(reporting.table([])) == len(reporting.leaderboard([])) == 0


def test_repeats_are_dropped_and_order_does_not_matter(make):
    a, b = make("a"), make("b")
    untimed = make("a", timing={})  # the same run, its timing lost
    expected = reporting.table([a, untimed, b])
    assert len(expected) == 2
    pd.testing.assert_frame_equal(reporting.table([b, untimed, a, a]), expected)


def test_what_was_chosen_for_how_many_images_is_told(make):
    record = make("a", "worst-case", choice=["spsa"] * 10 + ["pgd"] * 30)
    assert reporting.table([record])["chosen"].iloc[0] == "pgd 30, spsa 10"
