"""Certificates hold and are nearly as large as they can be, where the true radius has a closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry.admission import handed_over
from robustbench_lpm.registry.own_data import data_of_ones_own
from robustbench_lpm.registry.tasks import resolve_data
from robustbench_lpm.statistics import lower_bound
from robustbench_lpm.studies import study as studies
from robustbench_lpm.studies.certify import certificates, make_certificates
from robustbench_lpm.studies.invariance import make_invariance
from tests.architectures.test_smoothing import card_of
from tests.classifiers import Linear, NoisyLinear

SIGMA = 0.1
WEIGHT = torch.tensor([[[3.0, -1.0], [2.0, 0.5]]])
LENGTH = float(WEIGHT.norm())


def at_distances(distances: Tensor) -> tuple[Tensor, float]:
    """Images at these distances from the boundary, on its side of class 0 where they are positive; the bias."""
    return 0.5 + distances[:, None, None, None] * (WEIGHT / LENGTH), -0.5 * float(WEIGHT.sum())


def table_of(network: nn.Module, images: Tensor, labels: Tensor, **settings: Any) -> pd.DataFrame:
    """Certificates of a two-class network of 2 x 2 pixels; large batches, for they are quick."""
    given: dict[str, Any] = {"sigma": SIGMA, "device": "cpu"} | settings
    study = certificates([handed_over(network)], data_of_ones_own((images, labels)), **given)
    return pd.DataFrame(studies.run(replace(study, chunk=2**13)).rows)


def test_the_radius_of_a_linear_classifier_is_nearly_its_distance_and_never_more() -> None:
    distances = SIGMA * torch.linspace(0.8, 2.2, 200)
    distances[::2] *= -1
    images, bias = at_distances(distances)
    samples, alpha = 40_000, 1e-5  # that one of 200 is wrong has a probability of 0.2 %
    table = table_of(Linear(WEIGHT, bias), images, (distances < 0).long(), samples=samples, alpha=alpha)
    share = table["radius"].to_numpy() / distances.abs().numpy()
    assert share.max() <= 1
    assert np.median(share) >= 0.95
    assert (table["prediction"] == table["label"]).all()
    # The bound by Clopper and Pearson, from scipy's beta distribution, and the paper's theorem.
    votes = table["votes"].to_numpy()
    lower = beta.ppf(alpha, votes, samples - votes + 1)
    assert table["radius"].to_numpy() == pytest.approx(SIGMA * norm.ppf(lower), rel=1e-9)


def test_it_abstains_on_the_boundary_and_saturates_far_from_it() -> None:
    images, bias = at_distances(torch.tensor([0.0, 0.45]))
    table = table_of(Linear(WEIGHT, bias), images, torch.zeros(2), samples=1000)
    assert table["prediction"].tolist() == [-1, 0]
    assert table["radius"].tolist() == pytest.approx([0, SIGMA * norm.ppf(0.001**0.001)])


def test_the_noise_of_a_stochastic_model_counts_in_the_votes() -> None:
    """With noise s on the margin the most frequent answer has the probability Φ(m / sqrt(sigma² ||w||² + s²))."""
    distance, own, samples = 0.1, 0.5, 40_000
    images, bias = at_distances(torch.tensor([distance]))
    table = table_of(NoisyLinear(WEIGHT, bias, sigma=own), images, torch.zeros(1), samples=samples, draws=2000)
    expected = norm.cdf(distance * LENGTH / np.hypot(SIGMA * LENGTH, own))
    error = np.sqrt(expected * (1 - expected) / samples)
    assert table["votes"][0] / samples == pytest.approx(expected, abs=4 * error)
    assert table["radius"][0] < SIGMA * norm.ppf(expected) < distance
    alone = norm.cdf(distance * LENGTH / own)  # without noise on the image
    assert table["natural"][0] == pytest.approx(alone, abs=4 * np.sqrt(alone * (1 - alone) / 2000))


def test_the_lower_bound_covers_the_truth_as_often_as_it_says() -> None:
    truth, trials, alpha = 0.7, 50, 0.05
    counts = np.random.default_rng(0).binomial(trials, truth, 20_000)
    missed = float((lower_bound(counts, trials, alpha) > truth).mean())
    assert 0.5 * alpha < missed <= alpha + 4 * np.sqrt(alpha / 20_000)
    assert lower_bound(np.array([0, 50]), 50, alpha).tolist() == pytest.approx([0, alpha ** (1 / 50)])


def test_selection_and_estimate_are_on_different_noise() -> None:
    """On the boundary the class of most selection votes wins about half of the votes of the estimate, not more."""
    images, bias = at_distances(torch.zeros(400))
    table = table_of(Linear(WEIGHT, bias), images, torch.zeros(400), samples=25, select=25)
    share = table["votes"].mean() / 25
    assert abs(share - 0.5) < 4 * 0.5 / (25 * 400) ** 0.5  # on the same noise it would be 0.58
    assert table["selected"].nunique() == 2


def test_natural_accuracy_is_the_clean_accuracy_of_other_studies() -> None:
    data = resolve_data("digits")
    table = pd.DataFrame(studies.run(make_certificates(["ram"], data, 0.2, limit=40, samples=2, select=2)).rows)
    other = studies.run(make_invariance(["ram"], data, {"scale": (1,)}, limit=40, draws=4)).rows
    assert table["natural"].mean() == other[0]["accuracy"] < 1


def test_the_table_does_not_depend_on_the_batch_and_survives_an_interruption(tmp_path: Path) -> None:
    study = make_certificates(["cnn"], resolve_data("digits"), 0.6, limit=11, samples=40, select=10)
    whole = studies.run(study).rows
    assert studies.run(replace(study, chunk=3)).rows == whole

    class Impatient:
        def spent(self, number: int) -> None: ...

        def finished(self, examples: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        studies.run(study, tmp_path, Impatient())
    (kept,) = (tmp_path / ".partial").iterdir()
    assert any(kept.iterdir())
    assert studies.run(study, tmp_path).rows == whole


def test_passes_are_counted() -> None:
    study = make_certificates(["cnn", "ram"], resolve_data("digits"), 0.2, limit=3, samples=30, select=7, draws=2)
    assert [study.passes(model) for model in study.models] == [38, 39]
    passes = []

    class Counting:
        def spent(self, number: int) -> None:
            passes.append(number)

        def finished(self, examples: int) -> None: ...

    studies.run(study, progress=Counting())
    assert sum(passes) == studies.total_passes(study) == 3 * 77


def test_the_sigma_of_a_card_is_the_default_and_replaced_by_another(tmp_path: Path) -> None:
    card, data = str(card_of("cnn", tmp_path, 0.3)), resolve_data("digits")
    study = make_certificates([card], data, limit=2)
    assert (study.sigma, study.models[0].classifier.smoothing) == (0.3, 0.3)
    assert study.runs(study.models[0]) == 1  # without the noise on the image it is deterministic
    other = make_certificates([card], data, 0.1, limit=2)
    assert (other.sigma, other.models[0].classifier.smoothing) == (0.1, 0.1)
    assert other.id != study.id


def test_mistakes() -> None:
    data = resolve_data("digits")
    with pytest.raises(LpmbenchError, match="--sigma"):
        make_certificates(["cnn"], data, limit=2)
    with pytest.raises(LpmbenchError, match="above 0"):
        make_certificates(["cnn"], data, -1.0, limit=2)
