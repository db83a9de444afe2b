"""The limit of an attack of any length, against power laws that are known."""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_lpm.api import resolve_source
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.registry.tasks import resolve_attack, resolve_model
from robustbench_lpm.studies.convergence import doubled, extrapolated, flat_from
from tests.classifiers import Linear
from tests.studies.test_curve import linear

LENGTHS = 2.0 ** np.arange(5)


@pytest.mark.parametrize(("limit", "factor", "exponent"), [(0.2, 0.3, 0.5), (0.0, 0.5, 1.0), (0.4, 0.1, 2.0)])
def test_a_power_law_is_found(limit: float, factor: float, exponent: float) -> None:
    found = extrapolated(limit + factor * LENGTHS**-exponent)
    assert [float(value) for value in found] == pytest.approx([limit, factor, exponent], abs=1e-9)


def test_a_flat_curve_is_its_own_limit() -> None:
    assert float(extrapolated(np.full(4, 0.3))[0]) == pytest.approx(0.3)


def test_a_limit_is_no_negative_share_and_a_rise_is_chance() -> None:
    steep = extrapolated(np.array([0.6, 0.3, 0.05, 0.0]))
    assert float(steep[0]) == 0.0
    rising = np.array([0.2, 0.22, 0.24])
    assert float(extrapolated(rising)[0]) == pytest.approx(rising.mean())


def test_several_curves_at_once() -> None:
    curves = np.stack([0.2 + 0.3 * LENGTHS**-0.5, 0.1 + 0.4 / LENGTHS])
    assert extrapolated(curves)[0] == pytest.approx([0.2, 0.1], abs=1e-9)


def test_the_first_length_that_is_enough() -> None:
    rows = [{"passes": 2**n, "gain": gain} for n, gain in enumerate([None, 0.1, 0.02, 0.005, -0.01])]
    found = flat_from(rows)
    assert found is not None
    assert found["passes"] == 4
    assert flat_from(rows[:3]) is None


def test_steps_are_doubled_and_an_attack_has_some() -> None:
    model, data, _ = linear(8)
    assert isinstance(model, Linear)
    source, asked = resolve_source(data, Options(eps=0.1), data=None, trust=False), Options(eps=0.1)
    plans = doubled(resolve_model(model), resolve_attack("pgd", parameters={"steps": 5}), source, asked, 3)
    assert [plan.attack.parameters["steps"] for plan in plans] == [5, 10, 20, 40]
    with pytest.raises(LpmbenchError, match="'noise' has no steps"):
        doubled(resolve_model(model), resolve_attack("noise"), source, asked, 1)
