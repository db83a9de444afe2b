"""The ranking compares only what can be compared, and a weak attack or a failed audit earns no rank."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.protocol.ranking import image_set, image_set_names
from robustbench_lpm.records import audits
from robustbench_lpm.records import runs as records
from robustbench_lpm.statistics import first_half, wilson
from tests.reporting.conftest import ORDINARY, check, make_audit, make_record, probed


@pytest.fixture(name="make")
def made():
    """Makes a record; none of what decides a rank depends on its being stored."""
    return make_record


def passed(*records):
    """Audits of all these runs that pass: only such results have a rank."""
    return {record.id: make_audit(record, check("pass")) for record in records}


def standing(records, **where):
    """Rank by model, in the part of the leaderboard asked for, where every audit passes."""
    ranked = reporting.leaderboard(records, passed(*records))
    for column, value in where.items():
        ranked = ranked[ranked[column] == value]
    return {row["model"]: None if pd.isna(row["rank"]) else int(row["rank"]) for row in ranked.to_dict("records")}


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


def halved(*shares, images=20, draws=2):
    """What was right (images, draws), as shares of the first and of the second half of the draws."""
    first, right = first_half(np.arange(images), draws), np.zeros((images, draws), bool)
    for half, share in zip((first, ~first), shares, strict=True):
        right[half] = np.arange(half.sum()) < share * half.sum()
    return right


@pytest.mark.parametrize(
    ("runs", "accuracy", "read_from", "decides", "strongest"),
    [
        # attack: accuracy on the first and on the second half; one half chooses (the lowest on it), the other is read
        ({"p": (0.4, 0.5), "q": (0.6, 0.7)}, 0.45, "p", "p", "p"),  # both choose p, whose own accuracy stands
        ({"p": (0.5, 0.5), "q": (0.6, 0.4)}, (0.6 + 0.5) / 2, "qp", "p", "p, q"),
        ({"p": (1.0, 0.0), "q": (0.2, 0.9)}, (1.0 + 0.9) / 2, "pq", "p", "p, q"),
        ({"p": (1.0, 0.0), "q": (0.0, 1.0), "r": (0.4, 0.4)}, 1.0, "pq", "r", "p, q, r"),
        ({"p": (0.5, 0.5), "q": (0.5, 0.4)}, 0.5, "qp", "q", "p, q"),  # of equals on a half the first by name
        ({"p": (0.5, 0.5), "q": (0.5, 0.5)}, 0.5, "p", "p", "p, q"),
    ],
)
def test_the_strongest_is_chosen_on_one_half_of_the_draws_and_read_on_the_other(
    make, runs, accuracy, read_from, decides, strongest
):
    made = {name: make("a", name, robust=halved(*shares), images=20, draws=2) for name, shares in runs.items()}
    row = row_of(list(made.values()), "a")
    assert row["robust_accuracy"] == pytest.approx(accuracy)
    assert (row["robust_accuracy_low"], row["robust_accuracy_high"]) == pytest.approx(wilson(accuracy, 20))
    assert row["read_from"] == ", ".join(made[name].id for name in read_from)
    assert (row["record"], row["strongest_attack"], row["notes"]) == (made[decides].id, strongest, "")


@pytest.mark.parametrize(
    ("images", "draws", "change", "halves"),
    [
        (20, 4, {}, (0.5, 0.25)),
        (5, 3, {}, (0.5, 2 / 7)),  # 8 draws of the first half, 7 of the second
        (20, 1, {"stochastic": True}, (0.5, 0.3)),  # one draw is cut by images
        (20, 1, {}, (0.4, 0.4)),  # a deterministic model has nothing to cut
        (1, 1, {"stochastic": True}, (1.0, 1.0)),  # nor has one draw of one image
    ],
)
def test_the_halves_of_the_draws(make, images, draws, change, halves):
    right = halved(0.5, 0.25, images=images, draws=draws)
    row = reporting.table([make(robust=right, images=images, draws=draws, **change)]).iloc[0]
    assert (row["robust_first_half"], row["robust_second_half"]) == pytest.approx(halves)


@pytest.mark.parametrize("select_draws", [1, 5])
def test_a_model_whose_noise_is_all_frozen_is_one_draw_that_is_not_cut(make, select_draws):
    record = make(robust=halved(0.5, 0.2, draws=1), images=20, stochastic=True, noise=[("policy", "frozen")],
                  select_draws=select_draws)  # fmt: skip
    expected = (0.35, 0.35) if select_draws == 1 else (0.5, 0.2)  # other sources are left to compare on
    assert record.robust_halves == pytest.approx(expected)


def test_failed_images_leave_every_draw_in_its_half(make):
    record = make(robust=halved(1.0, 0.0), images=20, draws=2)
    assert replace(record, outcomes=record.outcomes.iloc[1:]).robust_halves == (1.0, 0.0)


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
    assert "not run under spsa" in reporting.leaderboard(records).set_index("model").loc["b", "notes"]


def test_the_same_attack_at_other_settings_is_another_attack(make):
    records = [
        make("a", "pgd", parameters={"steps": 10, "restarts": 1}, robust=0.6),
        make("b", "pgd", parameters={"steps": 300, "restarts": 1}, robust=0.1),
    ]
    notes = reporting.leaderboard(records).set_index("model")["notes"]
    assert "not run under pgd (steps=300)" in notes["a"]
    assert set(reporting.table(records)["attack_variant"]) == {"steps=10", "steps=300"}


def test_an_attack_whose_audit_passed_is_not_asked_for_at_the_settings_of_others(make):
    """Twice its work changed nothing: 300 steps, which another model needed, are not needed here."""
    few, many = (
        make(name, "pgd", parameters={"steps": n}, robust=r) for name, n, r in (("a", 10, 0.6), ("b", 300, 0.1))
    )
    assert standing([few, many]) == {"a": 1, "b": 2}
    ranked = reporting.leaderboard([few, many], audited(many, "pass") | audited(few, "undecided")).set_index("model")
    assert ranked["rank"].fillna(0).to_dict() == {"b": 1, "a": 0}
    assert "not run under pgd (steps=300)" in ranked.loc["a", "notes"]
    assert standing([few, many, make("b", "spsa", robust=0.5)]) == {"b": 1, "a": None}


LONG = {f"parameter{i}": i for i in range(9)}
MEMBERS = {"pgd": {"steps": 10, "eot": 2}, "spsa": {"pairs": 8}}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"settings": MEMBERS | {"pgd": {"steps": 20}}}, "pgd: steps=20"),
        ({"settings": MEMBERS | {"pgd": {"steps": 20, "eot": 5}, "spsa": {"pairs": 9}}},
         "pgd: eot=5, steps=20; spsa: pairs=9"),
        ({"settings": MEMBERS, "restarts": 2}, "restarts=2"),
        ({"settings": MEMBERS | {"pgd": {"steps": 20}}, "restarts": 2}, "restarts=2; pgd: steps=20"),
        ({"settings": MEMBERS} | LONG, "settings [0-9a-f]{8}"),
    ],
)  # fmt: skip
def test_settings_that_tell_attacks_apart_are_spelled_out(make, settings, name):
    records = [make("a", "worst-case", parameters={"settings": MEMBERS}),
               make("a", "worst-case", parameters=settings)]  # fmt: skip
    assert re.fullmatch(name, reporting.table(records).set_index("record")["attack_variant"][records[1].id])


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
    ranked = reporting.leaderboard(records, passed(*records))
    assert dict(zip(ranked["model"], ranked["rank"], strict=True)) == {"a": 1, "b": 2, "c": 1}
    assert ranked["image_set"].nunique() == 2
    assert set(ranked["image_sets"]) == {2}


def test_two_checkpoints_of_one_name_are_two_models(make):
    records = [make("a", robust=0.9, weights="1" * 64), make("a", robust=0.1, weights="2" * 64)]
    ranked = reporting.leaderboard(records, passed(*records))
    assert list(ranked["model_variant"]) == ["weights 11111111", "weights 22222222"]
    assert list(ranked["rank"]) == [1, 2]


def test_of_repeated_runs_the_lowest_counts(make):
    records = [make("a", robust=0.6, seed=0), make("a", robust=0.3, seed=1), make("b", robust=0.5)]
    assert standing(records) == {"b": 1, "a": 2}


def test_the_rank_stands_beside_the_run_that_decides_it(make):
    records = [make("a", "pgd", robust=0.5), make("a", "spsa", robust=0.25)]
    table = reporting.table(records, passed(*records)).set_index("attack")
    assert pd.isna(table.loc["pgd", "rank"])
    assert table.loc["spsa", "rank"] == 1


def audited(record, verdict, **changes):
    return {record.id: make_audit(record, check(verdict, **changes))}


def row_of(records, model, audits=None):
    return reporting.leaderboard(records, audits).set_index("model").loc[model]


def test_a_result_that_fails_its_audit_has_no_rank(make):
    a, b = make("a", robust=0.75), make("b", robust=0.25)
    row = row_of([a, b], "a", audited(a, "fail"))
    assert pd.isna(row["rank"])
    assert row["notes"] == "audit failed: white-box vs black-box"
    assert row["audit"] == "white-box vs black-box: 62.0 % against 40.1 %, difference [14.1, 29.7]"
    assert row_of([a, b], "b", audited(a, "fail") | audited(b, "pass"))["rank"] == 1
    table = reporting.table([a, b], audited(a, "fail")).set_index("model")
    assert list(table["verdict"]) == ["fail", ""]
    assert pd.isna(table.loc["a", "rank"])


def test_beside_audited_results_only_a_pass_has_a_rank(make):
    a, b, c, d = (make(name, robust=robust) for name, robust in (("a", 0.75), ("b", 0.5), ("c", 0.25), ("d", 0.9)))
    judged = audited(b, "pass") | audited(c, "undecided") | audited(d, "fail")
    assert row_of([a, b, c, d], "a", judged)["notes"] == "not audited, as others here are"
    assert row_of([a, b, c, d], "c", judged)["notes"] == "audit undecided"
    ranked = reporting.leaderboard([a, b, c, d], judged)
    assert list(ranked["model"]) == ["b", "c", "d", "a"]  # what is undecided stands apart from what has no rank at all
    assert list(ranked["rank"].fillna(0)) == [1, 0, 0, 0]
    assert list(ranked["audited"]) == [b.id, c.id, d.id, ""]


def test_a_result_that_passes_has_a_rank(make):
    a, b = make("a", robust=0.75), make("b", robust=0.25)
    row = row_of([a, b], "a", audited(a, "pass"))
    assert (row["rank"], row["verdict"], row["audit"], row["notes"]) == (1, "pass", "", "")


def test_where_nothing_is_audited_there_is_an_order_and_no_rank(make):
    records = [make("low", robust=0.25), make("high", robust=0.75), make("broken", robust=0.9, failed=3)]
    ranked = reporting.leaderboard(records, {})
    assert list(ranked["model"]) == ["high", "low", "broken"]  # what a ranking could not hold stands last
    assert ranked["rank"].isna().all()
    assert list(ranked["notes"]) == ["", "", "3 example(s) failed"]
    assert reporting.table(records, {})["rank"].isna().all()


def test_a_gradient_that_points_elsewhere_fails_no_result(make):
    a = make("a")
    row = row_of([a], "a", audited(a, "fail", name="direction", unit="cosine"))
    assert (row["verdict"], row["audit"], row["notes"]) == ("undecided", "", "audit undecided")


def test_audits_are_read_from_beside_the_records(make, tmp_path):
    a = records.read(records.write(make_record("a"), tmp_path))
    audits.write(make_audit(a, check("fail")), tmp_path)
    assert row_of([a], "a")["verdict"] == reporting.table([a])["verdict"][0] == "fail"
    assert row_of([a], "a", {})["verdict"] == ""  # none given is none


def test_the_audit_of_the_run_that_decides_counts(make):
    weak, strong = make("a", "pgd", robust=0.75), make("a", "spsa", robust=0.25)
    assert row_of([weak, strong], "a", audited(weak, "fail") | audited(strong, "pass"))["rank"] == 1
    assert pd.isna(row_of([weak, strong], "a", audited(strong, "fail"))["rank"])


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("fail", "pass"), "pass"),
        (("fail", "undecided"), "undecided"),
        (("undecided", "pass"), "pass"),
        (("fail", None), "fail"),  # a run that nobody judged lifts no verdict
        (("pass", None), "pass"),
        ((None, None), ""),
    ],
)
def test_of_equal_runs_the_best_verdict_decides(make, verdicts, expected):
    runs = [make("a", "pgd", robust=0.5), make("a", "spsa", robust=0.5)]
    for order in (runs, runs[::-1]):
        given = {}
        for run, verdict in zip(order, verdicts, strict=True):
            given |= audited(run, verdict) if verdict else {}
        row = row_of(runs, "a", given)
        assert row["verdict"] == expected
        assert pd.isna(row["rank"]) == (expected != "pass")
        assert not given or row["record"] in given


def worst_case(make, model, robust=0.5, attacks=("pgd", "spsa"), **changes):
    """The worst case over some attacks; its members are runs of this model."""
    members = {name: f"{model} {name}" for name in attacks}
    return make(
        model, "worst-case", robust=robust, parameters={"attacks": list(attacks)},
        attack_identity={"members": members}, **changes
    )  # fmt: skip


def test_models_with_the_same_worst_case_are_not_asked_for_more(make):
    records = [
        make("a", "pgd", robust=0.6), make("a", "spsa", robust=0.7), worst_case(make, "a", 0.5),
        make("b", "pgd", robust=0.4), make("b", "spsa", robust=0.4), worst_case(make, "b", 0.3),
        make("a", "pgd", robust=0.6, parameters={"steps": 20}), make("a", "square", robust=0.6),  # an audit's probes
        make("a", "pgd", robust=0.6, gradient_mode="detached"),
    ]  # fmt: skip
    assert standing(records) == {"a": 1, "b": 2}
    assert set(reporting.table(records).query("attack == 'worst-case'")["attack_variant"]) == {""}


def test_what_a_model_met_beyond_the_worst_case_counts_against_it(make):
    records = [worst_case(make, "a", 0.5), worst_case(make, "b", 0.4), make("a", "square", robust=0.1)]
    assert standing(records) == {"b": 1, "a": 2}
    assert row_of(records, "a")["strongest_attack"] == "square"


def test_a_model_without_the_worst_case_of_the_others_has_no_rank(make):
    records = [worst_case(make, "a"), make("a", "pgd"), make("b", "pgd", robust=0.9), worst_case(make, "c", 0.4)]
    assert standing(records) == {"a": 1, "c": 2, "b": None}
    assert row_of(records, "b")["notes"] == "fewer attacks: not run under worst-case"


def test_a_member_that_a_worst_case_lacks_is_missed(make):
    records = [
        worst_case(make, "a"), make("a", "pgd"), make("a", "spsa"),
        make("b", "worst-case", parameters={"attacks": ["pgd", "spsa"]}, attack_identity={"members": {"pgd": "x"}}),
    ]  # fmt: skip
    assert standing(records) == {"a": 1, "b": None}
    assert row_of(records, "b")["notes"] == "fewer attacks: not run under spsa"


def test_worst_cases_over_other_attacks_are_other_attacks(make):
    records = [worst_case(make, "a", attacks=("pgd",)), worst_case(make, "b", attacks=("pgd", "spsa"))]
    assert standing(records) == {"a": None, "b": None}


def test_the_audit_of_the_worst_case_counts_for_a_lower_run_without_one(make):
    worst, probe = worst_case(make, "a", 0.5), make("a", "pgd", robust=0.475, parameters={"steps": 80})
    assert row_of([worst, probe], "a", audited(worst, "pass"))["verdict"] == "pass"
    row = row_of([worst, probe], "a", audited(worst, "fail"))
    assert (row["verdict"], row["robust_accuracy"]) == ("fail", pytest.approx(0.475))
    assert pd.isna(row["rank"])


@pytest.mark.parametrize(
    ("verdict", "robust", "expected"),
    [
        ("undecided", 0.475, "undecided"),  # no lower than the audit's own probe, but for half an image
        ("undecided", 0.4, ""),  # the audit did not see this coming
        ("pass", 0.475, "pass"),
        ("pass", 0.4, ""),
        ("fail", 0.475, "fail"),
        ("fail", 0.1, "fail"),
    ],
)
def test_an_audit_counts_for_the_same_attack_at_more_work(make, verdict, robust, expected):
    a, probe = make("a", robust=0.5), make("a", robust=0.475, parameters={"steps": 20})
    more, other = make("a", robust=robust, parameters={"steps": 80}), make("a", "spsa", robust=robust - 0.05)
    judged = {a.id: make_audit(a, check(verdict, records=(a.id, probe.id)))}
    row = row_of([a, probe, more], "a", judged)
    assert (row["record"], row["verdict"]) == (more.id, expected)
    assert pd.isna(row["rank"]) == (expected != "pass")
    assert row_of([a, probe, other], "a", judged)["verdict"] == ""  # another attack: nothing is known of it


@pytest.mark.parametrize(
    ("verdict", "robust", "expected"),
    [("pass", 0.475, ""), ("pass", 0.4925, "pass"), ("undecided", 0.4925, "undecided"), ("fail", 0.4925, "")],
)
def test_an_audit_counts_for_another_attack_within_a_point(make, verdict, robust, expected):
    a, other = make("a", robust=0.5, images=400), make("a", "spsa", robust=robust, images=400)
    row = row_of([a, other], "a", audited(a, verdict))
    assert (row["record"], row["verdict"]) == (other.id, expected)


def test_a_failure_at_another_eps_is_told_where_nothing_was_audited(make):
    a, other = make("a", robust=0.5), make("b", robust=0.4)
    elsewhere = [make("a", eps=1 / 255, robust=0.9), make("b", eps=1 / 255, robust=0.8)]
    averaged = make("a", eps=1 / 255, mc=10, robust=0.9)
    ranked = reporting.leaderboard([a, other, *elsewhere, averaged], audited(a, "fail") | audited(other, "pass"))
    notes = ranked.set_index("record")["notes"]
    assert notes[elsewhere[0].id] == "audit failed at eps 8/255"
    assert notes[elsewhere[1].id] == notes[averaged.id] == ""
    assert pd.isna(ranked.set_index("record")["rank"][elsewhere[0].id])


def test_an_attack_that_was_met_at_no_setting_is_named_once(make):
    settings = [{"steps": 10}, {"steps": 20}]
    records = [make("a", "pgd", parameters=chosen) for chosen in settings]
    records += [make("a", "spsa", parameters=chosen) for chosen in settings] + [
        make("b", "pgd", parameters=settings[0])
    ]
    assert row_of(records, "b")["notes"] == "fewer attacks: not run under pgd (steps=20), spsa"


FIXATIONS = {"attack": "fixation", "attack_identity": {"applies_to": "glimpsing"}}


def test_an_attack_on_fixations_is_not_asked_of_a_model_without(make):
    records = [
        make("ram", "pgd", robust=0.5), make("ram", robust=0.4, **FIXATIONS),
        make("cnn", "pgd", robust=0.6, glimpses=0),
        make("blind", "pgd", robust=0.7, glimpses=0, gradient_mode="strongest"),
    ]  # fmt: skip
    assert standing(records) == {"cnn": 1, "ram": 2, "blind": None}
    assert row_of(records, "blind")["notes"] == "fewer attacks: not run under fixation"


def test_one_look_through_glimpses_makes_a_glimpsing_model(make):
    records = [
        make("ram", "pgd"), make("ram", **FIXATIONS),
        make("other", "pgd", glimpses=0), make("other", "noise", knowledge="none", eps=4 / 255),
    ]  # fmt: skip
    assert standing(records, eps=8 / 255) == {"ram": 1, "other": None}


def test_gradient_modes_tell_attacks_apart(make):
    records = [
        make("ram", gradient_mode="strongest", robust=0.4), make("ram", gradient_mode="detached", robust=0.8),
        make("cnn", gradient_mode=None),
    ]  # fmt: skip
    table = reporting.table(records)
    found = set(zip(table["model"], table["attack_variant"], strict=True))
    assert found == {("ram", ""), ("ram", "detached gradients"), ("cnn", "")}
    assert standing([records[0], records[2]]) == {"cnn": 1, "ram": 2}  # None is what a model without modes has


def test_precisions_tell_attacks_apart(make):
    records = [make("cnn"), make("cnn", precision="bfloat16")]
    assert sorted(reporting.table(records)["attack_variant"]) == ["", "bfloat16"]
    assert list(reporting.table(records[1:])["attack_variant"]) == ["bfloat16"]  # nor does one alone hide it


def test_the_noise_of_an_attack_tells_it_apart(make):
    records = [make("ram"), make("ram", noise=[("policy", "replayed"), ("first_fixation", "fresh")])]
    table = reporting.table(records)
    assert set(table["attack_variant"]) == {"", "noise: first_fixation fresh; policy replayed"}
    assert set(table["model_variant"]) == {""}


def test_a_mode_that_is_a_model_s_only_one_tells_nothing_apart(make):
    """A glimpsing model attacked in one mode and a network without modes met the same attack: both have a rank."""
    records = [make("ram", gradient_mode="detached", robust=0.4), make("cnn", gradient_mode=None)]
    assert reporting.table(records)["attack_variant"].tolist() == ["", ""]
    assert standing(records) == {"cnn": 1, "ram": 2}


def test_a_model_with_its_noise_frozen_is_another_model(make):
    frozen = make("ram", noise=[("policy", "frozen"), ("first_fixation", "frozen")], robust=0.9)
    table = reporting.table([make("ram", robust=0.5), frozen]).set_index("record")
    assert table.loc[frozen.id, "model_variant"] == "first_fixation, policy frozen"
    assert set(table["attack_variant"]) == {""}
    ranked = reporting.leaderboard([make("ram", robust=0.5), frozen])
    assert list(ranked["model_variant"]) == ["first_fixation, policy frozen", ""]
    two = [make("ram", weights="1" * 64), make("ram", weights="2" * 64, noise=[("policy", "frozen")])]
    assert set(reporting.table(two)["model_variant"]) == {"weights 11111111", "weights 22222222, policy frozen"}


def test_other_models_that_an_attack_is_made_on_are_no_other_attack(make):
    records = [
        make(name, "transfer", attack_identity={"surrogates": {"x": digest * 64}}) for name, digest in ("a1", "b2")
    ]
    assert standing(records) == {"a": 1, "b": 1}
    assert set(reporting.table(records)["attack_variant"]) == {""}


def test_probes_make_no_ranking_and_no_row_and_are_asked_of_nobody(make):
    found, judged = probed(make)
    others = [make("cnn", name, robust=0.4) for name in ("pgd", "square", "fgsm")]
    worst = make("cnn", "worst-case", robust=0.4, parameters={"attacks": ["pgd", "square"]},
                 attack_identity={"members": {"pgd": "x", "square": "y"}})  # fmt: skip
    ranked = reporting.leaderboard([*found.values(), *others, worst], judged | audited(worst, "pass"))
    assert list(ranked["eps"].unique()) == [8 / 255]  # at half the eps only probes were run
    assert list(zip(ranked["rank"], ranked["model"], ranked["model_variant"], strict=True)) == [
        (1, "ram", ""), (2, "cnn", ""),
    ]  # fmt: skip
    assert ranked["strongest_attack"].iloc[0] == "worst-case"  # though twice the work leaves as much
    runs = reporting.table(list(found.values()), judged).set_index("record")
    assert {name for name, record in found.items() if not runs.loc[record.id, "probe"]} == set(ORDINARY)
    assert set(runs.loc[[found[name].id for name in ORDINARY], "attack_variant"]) == {""}
    assert runs.loc[found["twice pgd"].id, "attack_variant"] == "steps=20"


def test_twice_the_work_is_not_asked_of_models_without_a_worst_case(make):
    a, b, twice = make("a", robust=0.5), make("b", robust=0.4), make("a", robust=0.5, parameters={"steps": 20})
    judged = {a.id: make_audit(a, check("pass", records=(a.id, twice.id)))} | audited(b, "pass")
    ranked = reporting.leaderboard([a, b, twice], judged)
    assert list(zip(ranked["model"], ranked["rank"], strict=True)) == [("a", 1), ("b", 2)]
    assert list(ranked["attacks"]) == [1, 1]


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_what_a_probe_finds_beyond_counts_and_does_not_hide_the_verdict(make, verdict):
    a, twice = make("a", robust=0.5), make("a", robust=0.45, parameters={"steps": 20})
    row = row_of([a, twice], "a", {a.id: make_audit(a, check(verdict, records=(a.id, twice.id)))})
    assert (row["robust_accuracy"], row["strongest_attack"]) == (pytest.approx(0.45), "pgd (steps=20)")
    assert (row["record"], row["probe"], row["verdict"]) == (twice.id, True, verdict)
    assert pd.isna(row["rank"]) == (verdict == "fail")


def test_a_model_that_met_only_probes_at_a_budget_is_not_listed_beside_others(make):
    a, half, b = make("a"), make("a", eps=4 / 255), make("b", eps=4 / 255)
    judged = {a.id: make_audit(a, check(records=(a.id, half.id)))}
    ranked = reporting.leaderboard([a, half, b], judged)
    assert set(zip(ranked["model"], ranked["eps"], strict=True)) == {("a", 8 / 255), ("b", 4 / 255)}
    assert set(ranked["image_sets"]) == {1}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}, {"model": "b"}], ["first 40 images"] * 2),
        ([{}, {"images": 200}], ["first 40 images", "first 200 images"]),
        ([{}, {"first_index": 7, "images": 1}], ["first 40 images", "image 7"]),
        ([{"first_index": 5}, {"images": 1}], ["images 5 to 44", "first image"]),
        ([{}, {"size": "224"}], ["first 40 images"] * 2),  # the size is part of the threat
    ],
)
def test_a_set_of_images_goes_by_words(make, changes, names):
    records = [make(**change) for change in changes]
    assert image_set_names(records) == names
    assert set(reporting.table(records)["images_text"]) == set(names)


def test_sets_of_the_same_words_are_told_apart(make):
    records = [make(), make(data_sha256="e" * 64)]
    assert image_set_names(records) == [f"first 40 images ({image_set(record)})" for record in records]


def test_scattered_images_are_counted(make):
    record = make()
    record.configuration["dataset"]["indices"] = list(range(0, 80, 2))
    assert image_set_names([record]) == ["40 images"]
