"""A curve says of every eps what a linear model's margins say, and what attacks at one eps find."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import robustbench_lpm
from robustbench_lpm import statistics
from robustbench_lpm.api import resolve_source
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.runner import run
from robustbench_lpm.norms import Norm, farthest
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model
from robustbench_lpm.studies.curve import Comparison, Curve, as_table, compare, curve_of, search_plans, write
from tests.classifiers import Linear, NoisyLinear

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def linear(images: int = 40, sigma: float = 0.0, highest: float = 2.0) -> tuple[Linear, tuple[Tensor, Tensor], Tensor]:
    """A linear model, grey images and their margins: spread from -0.5 on, so that some are wrong as they are."""
    weight = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))
    margins = torch.linspace(-0.5, highest, images)
    direction = weight / weight.square().sum()
    pixels = 0.5 + margins[:, None, None, None] * direction
    bias = -0.5 * float(weight.sum())
    model = NoisyLinear(weight, bias, sigma) if sigma else Linear(weight, bias)
    return model, (pixels, torch.zeros(images, dtype=torch.long)), model.margin(pixels)


def curve_on(model: Linear, data: tuple[Tensor, Tensor], norm: Norm, **options: Any) -> Curve:
    source = resolve_source(data, Options(eps=0.1), data=None, trust=False)
    asked = Options(eps=0.1, norm=norm, **options)
    plans = search_plans(resolve_model(model), resolve_attack("fmn"), source, asked)
    assert [plan.options.eps for plan in plans] == [farthest(norm, 36)]
    return curve_of([run(plan) for plan in plans])


@pytest.mark.parametrize("norm", DUAL)
def test_the_curve_of_a_linear_model_is_that_of_its_margins(norm: Norm) -> None:
    """An image of margin m > 0 falls at m / ||w||_dual. In l1 too: one pixel has room for that."""
    model, data, margins = linear(highest=0.9)
    found = curve_on(model, data, norm)
    distances = margins.double().clamp_min(0) / model.weight.flatten().norm(p=DUAL[norm])
    assert norm != "l1" or distances.max() < 0.5 - float((data[0] - 0.5).abs().max())
    for eps in np.linspace(0, 1.1 * float(distances.max()), 30):
        # Distances are found to a per cent (l1: five).
        accuracy, near = float(found.at(eps).mean()), 1.06 if norm == "l1" else 1.011
        lowest, highest = (float((distances > eps * factor).double().mean()) for factor in (1.0, 1 / near))
        assert lowest - 1e-12 <= accuracy <= highest + 1e-12
    assert found.at(0.0).mean() == pytest.approx(float((margins > 0).double().mean()))


def test_the_table_has_a_row_for_every_step() -> None:
    found = Curve(np.array([0.2, 0.1, 0.2, 0.0] * 6), np.array([1.0, 1, 0.5, 0] * 6), np.array([0.0, 0.25, 0, 0] * 6))
    table = found.table()
    assert table["eps"].tolist() == [0.0, 0.1, 0.2]
    # (1 + 1 + 0.5 + 0) / 4, then the second image keeps a quarter, then nothing else remains.
    assert table["accuracy"].tolist() == pytest.approx([0.625, 0.4375, 0.0625])
    assert tuple(table.loc[1, ["accuracy_low", "accuracy_high"]]) == statistics.wilson(0.4375, 24)
    assert replace(found, draws=20).table()["majority"].tolist() == [0.5, 0.25, 0.0]


def test_a_stochastic_image_keeps_its_clean_share_until_half_of_the_draws_are_wrong() -> None:
    """Where noise has sigma 0.5, an image of margin m is right with probability Φ(m / 0.5), and falls to a half."""
    model, data, margins = linear(sigma=0.5)
    found = curve_on(model, data, "linf", draws=400, select_draws=100)
    expected = 0.5 * (1 + torch.erf(margins / 0.5 / math.sqrt(2)))
    assert np.abs(found.clean - expected.numpy()).max() < 5 * 0.5 / math.sqrt(400)
    clear = margins.numpy() > 0.5
    assert np.abs(found.attacked[clear] - 0.5).mean() < 0.1
    distances = margins.numpy()[clear] / float(model.weight.abs().sum())
    assert np.median(found.distances[clear] / distances) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("attack", "eps", "verdict"), [
    ("apgd-margin", 0.02, "agree"), ("apgd-margin", 0.05, "agree"), ("noise", 0.04, "above"),
])  # fmt: skip
def test_attacks_at_one_eps_are_judged(attack: str, eps: float, verdict: str) -> None:
    model, data, _ = linear(100)
    found = curve_on(model, data, "linf")
    record = robustbench_lpm.evaluate(model, attack, data, eps=eps)
    beside = compare(found, record)
    assert beside.verdict == verdict
    assert beside.accuracy == record.robust_accuracy.value
    assert beside.majority == beside.accuracy  # of a deterministic model
    assert beside.majority_on_curve == pytest.approx(found.at(eps).mean())
    told = beside.told("fmn", stochastic=False)
    assert ("they agree" in told) == (verdict == "agree")
    assert verdict == "agree" or f"significantly {verdict} the curve" in told


def test_a_curve_that_is_too_high_is_told() -> None:
    low = Comparison("apgd-margin", 0.1, 0.3, None, None, 0.2, 0.5, -0.4, -0.2)
    assert low.verdict == "below"
    assert low.told("fmn", stochastic=True) == (
        "At eps 0.1 apgd-margin leaves 20.0 % of the images to most draws, significantly below the curve's 50.0 % "
        "(difference -40.0 to -20.0 points): fmn misses perturbations that exist, and the curve is too high here."
    )


def test_attacks_on_a_stochastic_model_are_compared_by_majority() -> None:
    """Best attacks leave an image of margin m to most draws where m > eps ||w||_1, whatever the noise; fewer draws."""
    model, data, margins = linear(60, sigma=0.5)
    found = curve_on(model, data, "linf", draws=50, select_draws=50)
    eps = 0.03
    record = robustbench_lpm.evaluate(model, "apgd-margin", data, eps=eps, draws=50)
    beside = compare(found, record)
    share = float((margins > eps * model.weight.abs().sum()).double().mean())
    assert beside.majority == pytest.approx(share, abs=0.1)
    assert beside.verdict == "agree"
    assert beside.accuracy < found.at(eps).mean()  # the mean draw falls further


def test_of_several_gradient_modes_the_nearest_counts() -> None:
    """Each runs by itself: within one run the strongest would be chosen."""
    plans = search_plans(
        zoo.load_model("ram"), resolve_attack("fmn", parameters={"steps": 3}), resolve_data("digits"),
        Options(eps=0.1, limit=4, draws=2, select_draws=2),
    )  # fmt: skip
    assert len(plans) == len({plan.options.gradient_mode for plan in plans}) > 1
    records = [run(plan) for plan in plans[:2]]
    found = curve_of(records)
    distances = np.stack([record.outcomes["linf"] for record in records])
    assert found.distances.tolist() == distances.min(axis=0).tolist()
    for image, mode in enumerate(distances.argmin(axis=0)):
        assert found.attacked[image] == records[mode].correct[image].mean()


def test_an_attack_that_spends_its_budget_makes_no_curve() -> None:
    model, data, _ = linear()
    source = resolve_source(data, Options(eps=0.1), data=None, trust=False)
    with pytest.raises(LpmbenchError, match=r"'pgd' spends all of eps; .* ddn, deepfool, fab, fmn"):
        search_plans(resolve_model(model), resolve_attack("pgd"), source, Options(eps=0.1))


def test_what_is_written_says_where_it_comes_from(tmp_path: Path) -> None:
    model, data, _ = linear(6)
    source = resolve_source(data, Options(eps=0.1), data=None, trust=False)
    loaded = resolve_model(model)
    plans = search_plans(loaded, resolve_attack("fmn", parameters={"steps": 5}), source, Options(eps=0.1))
    fixed = make_plan(loaded, resolve_attack("fgsm"), source, Options(eps=0.1))
    found = curve_of([run(plan) for plan in plans])
    beside = [compare(found, run(fixed))]
    tables = {"comparisons": as_table(beside), "table": found.table()}
    write("curve", "lpmbench curve linear", [*plans, fixed], tables, {"curve.csv": b"table"}, tmp_path)
    stored = json.loads((tmp_path / "curve.json").read_text())
    assert stored["configuration"]["runs"] == [plan.id for plan in (*plans, fixed)]
    assert stored["table"][0]["accuracy_low"] is None  # below 20 images
    assert stored["comparisons"][0]["verdict"] == beside[0].verdict
    assert as_table(beside)["attack"].tolist() == ["fgsm"]
    assert (tmp_path / "curve.csv").read_bytes() == b"table"
