"""Plots are drawn where there is something to draw, and can stand several to a page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.protocol.ranking import as_rows
from robustbench_lpm.reporting import plots
from robustbench_lpm.statistics import first_half
from tests.reporting.conftest import ORDINARY, probed


def figures(*records):
    runs = reporting.table(records)
    return plots.accuracy_plots(runs, reporting.leaderboard(records))


def test_the_clean_accuracy_is_the_point_at_zero_where_no_run_is(make):
    records = [make(clean=0.9, robust=0.5), make(clean=0.9, robust=0.25, eps=16 / 255)]
    curves = plots._curves(as_rows(reporting.table(records)))
    assert list(curves["x"]) == pytest.approx([0, 8 / 255, 16 / 255])
    assert list(curves["accuracy"]) == pytest.approx([0.9, 0.5, 0.25])
    at_zero = plots._curves(as_rows(reporting.table([make(eps=0.0, robust=0.8, clean=0.9)])))
    assert list(at_zero["accuracy"]) == pytest.approx([0.8])


def test_a_single_point_runs_with_failures_and_empty_tables_make_no_plot(make):
    for records in ([make(eps=0.0)], [make(failed=3)], []):
        assert figures(*records) == []


def test_one_plot_per_attack_and_one_for_the_lowest_of_them(make):
    found = figures(make(attack="p"), make(attack="q"), make(attack="n", knowledge="none"))
    assert [figure.attack for figure in found] == [plots.WORST, "p", "q", "n (control)"]


def test_image_sets_are_not_joined_in_one_plot(make):
    found = figures(make("a"), make("b", first_index=3))
    assert {figure.scene.rpartition(", ")[2] for figure in found} == {"first 40 images", "images 3 to 42"}


def test_drawings_are_sound_and_need_no_style_sheet(make):
    for figure in figures(make("a"), make("b", attack="q"), *(make(f"m{i}") for i in range(8))):
        root = ElementTree.fromstring(figure.standalone)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"style", "script", "image", "metadata"}
        assert "currentColor" in figure.inline
        assert len(figure.inline) < 8000  # a page holds dozens
        assert 'xmlns="http://www.w3.org/2000/svg"' in figure.standalone


def test_every_curve_is_labelled_at_its_end_and_no_two_labels_meet(make):
    names = [f"model-{i}" for i in range(14)]
    (figure,) = figures(*(make(name, robust=0.5 + i / 1000) for i, name in enumerate(names)))
    root = ElementTree.fromstring(figure.inline)
    groups = [group for group in root.iter("g") if group.get("class") == "series"]
    labels = {group.find("text").text: float(group.find("text").get("y")) for group in groups}
    assert set(labels) == set(names)
    heights = sorted(labels.values())
    assert min(b - a for a, b in pairwise(heights)) >= plots.LABELS - 0.2  # rounded to tenths
    assert heights[-1] < float(root.get("viewBox").split()[-1])


def test_a_model_has_the_same_look_in_every_plot(make):
    models = ["a", "b", "c"]
    found = figures(*(make(m, attack) for m in models for attack in "pq"), make("c", norm="l2"))
    looks = {}
    for figure in found:
        for group in ElementTree.fromstring(figure.inline).iter("g"):
            *_, line, marks, label = group
            looks.setdefault(label.text, set()).add(
                (line.get("stroke"), line.get("stroke-dasharray"), marks.get("fill"))
            )
    assert set(looks) == set(models)
    assert all(len(seen) == 1 for seen in looks.values())
    assert len({next(iter(seen)) for seen in looks.values()}) == 3


@pytest.mark.parametrize(
    ("norm", "budgets", "shown"),
    [
        ("linf", (2 / 255, 8 / 255, 0.1), ["0", "2/255", "8/255", "0.1"]),  # the units of headings and tables
        ("l2", (0.5, 1.0), ["0", "0.5", "1"]),
    ],
)
def test_the_axis_names_budgets_as_tables_do(make, norm, budgets, shown):
    records = [make(norm=norm, eps=eps) for eps in budgets]
    (figure,) = figures(*records)
    root = ElementTree.fromstring(figure.inline)
    numbers = [(float(t.get("x")), t.text) for t in root.findall("text") if t.get("text-anchor") == "middle"][:-1]
    assert {text for _, text in sorted(numbers)} <= set(shown)
    assert [text for _, text in sorted(numbers)][-1] == shown[-1]
    assert set(reporting.table(records)["eps_text"]) == set(shown[1:])


def test_every_model_has_a_look_of_its_own():
    assert len({str(plots.look(i)) for i in range(32)}) == 32


def test_no_curve_follows_the_luck_of_the_draws(make):
    """Two runs that are each right on one half of the draws only: chosen on one half, each is read on the other."""
    first = first_half(np.arange(20), 2)
    runs = [make(attack="p", robust=right, images=20, draws=2, seed=seed) for seed, right in enumerate((first, ~first))]
    table = reporting.table([make(attack="o", robust=0.75, images=20, draws=2), *runs])
    found = plots._best_so_far(as_rows(table.assign(forwards=table["attack"].map({"o": 10, "p": 100}))))
    assert list(found["accuracy"]) == pytest.approx([0.9, 0.75, 1.0])
    (of_one_attack,) = plots._strongest_of_each(as_rows(table[table["attack"] == "p"]))
    assert of_one_attack["robust_accuracy"] == 1.0


def test_probes_are_no_points(make):
    found, judged = probed(make)
    ordinary = [found[name] for name in ORDINARY]
    everything, alone = (
        plots.accuracy_plots(reporting.table(records, judged), reporting.leaderboard(records, judged))
        for records in (list(found.values()), ordinary)
    )
    assert [figure.attack for figure in alone] == [plots.WORST, "fgsm", "pgd", "square", "worst-case"]
    assert everything == alone  # line for line
