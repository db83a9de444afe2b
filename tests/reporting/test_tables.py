"""The table of runs says what the outcomes say; the ranking compares only what can be compared."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.statistics import wilson

RATES = ("clean_accuracy", "robust_accuracy")


def standing(records, **where):
    """Rank by model, in the part of the leaderboard asked for."""
    ranked = reporting.leaderboard(records)
    for column, value in where.items():
        ranked = ranked[ranked[column] == value]
    return {row["model"]: None if pd.isna(row["rank"]) else int(row["rank"]) for row in ranked.to_dict("records")}


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
    text = {"dataset", "size", "norm", "eps_text", "image_set", "model", "model_variant", "attack", "attack_variant",
            "knowledge", "target", "gradient_mode", "notes", "record", "command"}  # fmt: skip
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


def test_models_are_ranked_by_their_lowest_accuracy_over_attacks(make):
    records = [
        make("even", "pgd", robust=0.4), make("even", "spsa", robust=0.4, knowledge="black-box"),
        make("blind", "pgd", robust=0.8), make("blind", "spsa", robust=0.2, knowledge="black-box"),
    ]  # fmt: skip
    assert standing(records) == {"even": 1, "blind": 2}
    ranked = reporting.leaderboard(records).set_index("model")
    assert ranked.loc["blind", "strongest_attack"] == "spsa"
    assert ranked.loc["blind", "robust_accuracy"] == pytest.approx(0.2)
    assert ranked.loc["even", "strongest_attack"] == "pgd, spsa"  # both, for both reach it
    assert ranked.loc["blind", "record"] == records[3].id


def test_ties_share_a_rank_and_the_next_rank_is_left_out(make):
    records = [make("a", robust=0.5), make("b", robust=0.5), make("c", robust=0.25), make("d", robust=0.75)]
    assert standing(records) == {"d": 1, "a": 2, "b": 2, "c": 4}


def test_controls_do_not_count(make):
    records = [
        make("a", "pgd", robust=0.5), make("a", "noise", robust=0.1, knowledge="none"), make("b", "pgd", robust=0.4),
        make("c", "noise", robust=0.9, knowledge="none"),
    ]  # fmt: skip
    assert standing(records) == {"a": 1, "b": 2, "c": None}
    only_control = reporting.leaderboard(records).set_index("model").loc["c"]
    assert math.isnan(only_control["robust_accuracy"])
    assert "only controls" in only_control["notes"]


def test_failed_examples_cost_the_rank(make):
    records = [make("whole", robust=0.25), make("broken", robust=0.75, failed=3)]
    assert standing(records) == {"whole": 1, "broken": None}
    assert "3 example(s) failed" in reporting.leaderboard(records).set_index("model").loc["broken", "notes"]


def test_a_run_that_failed_wholly_is_listed_without_numbers(make):
    records = [make("whole"), make("gone", images=40, failed=40)]
    assert standing(records) == {"whole": 1, "gone": None}
    row = reporting.table(records).set_index("model").loc["gone"]
    assert (row["images"], row["failed_examples"]) == (0, 40)
    assert math.isnan(row["robust_accuracy"])


def test_a_model_that_met_fewer_attacks_has_no_rank(make):
    records = [make("a", "pgd"), make("a", "spsa", robust=0.1), make("b", "pgd", robust=0.9)]
    assert standing(records) == {"a": 1, "b": None}
    assert "did not meet spsa" in reporting.leaderboard(records).set_index("model").loc["b", "notes"]


def test_the_same_attack_at_other_settings_is_another_attack(make):
    records = [
        make("a", "pgd", parameters={"steps": 10, "restarts": 1}, robust=0.6),
        make("b", "pgd", parameters={"steps": 300, "restarts": 1}, robust=0.1),
    ]
    assert standing(records) == {"a": None, "b": None}
    notes = reporting.leaderboard(records).set_index("model")["notes"]
    assert "did not meet pgd (steps=300)" in notes["a"]
    assert set(reporting.table(records)["attack_variant"]) == {"steps=10", "steps=300"}


@pytest.mark.parametrize(
    "change", [{"eps": 4 / 255}, {"norm": "l2"}, {"size": "224"}, {"mc": 10}, {"dataset": "imagenet"}]
)
def test_each_budget_has_its_own_ranking(make, change):
    records = [make("a", robust=0.9), make("b", robust=0.1, **change)]
    assert standing(records) == {"a": 1, "b": 1}
    assert set(reporting.leaderboard(records)["image_sets"]) == {1}


@pytest.mark.parametrize("change", [{"first_index": 1}, {"data_sha256": "e" * 64}, {"images": 30}])
def test_models_are_compared_on_the_same_images_only(make, change):
    records = [make("a", robust=0.9), make("b", robust=0.8), make("c", robust=0.1, **change)]
    ranked = reporting.leaderboard(records)
    assert dict(zip(ranked["model"], ranked["rank"], strict=True)) == {"a": 1, "b": 2, "c": 1}
    assert ranked["image_set"].nunique() == 2
    assert set(ranked["image_sets"]) == {2}


def test_two_checkpoints_of_one_name_are_two_models(make):
    records = [make("a", robust=0.9, weights="1" * 64), make("a", robust=0.1, weights="2" * 64)]
    ranked = reporting.leaderboard(records)
    assert list(ranked["model_variant"]) == ["weights 11111111", "weights 22222222"]
    assert list(ranked["rank"]) == [1, 2]


def test_of_repeated_runs_the_lowest_counts(make):
    records = [make("a", robust=0.6, seed=0), make("a", robust=0.3, seed=1), make("b", robust=0.5)]
    assert standing(records) == {"b": 1, "a": 2}


def test_the_rank_stands_beside_the_run_that_decides_it(make):
    records = [make("a", "pgd", robust=0.5), make("a", "spsa", robust=0.25)]
    table = reporting.table(records).set_index("attack")
    assert pd.isna(table.loc["pgd", "rank"])
    assert table.loc["spsa", "rank"] == 1
