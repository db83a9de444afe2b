"""The worst transformation of a grid, where a classifier that looks at one pixel makes it derivable."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.admission import handed_over
from robustbench_lpm.registry.own_data import data_of_ones_own
from robustbench_lpm.registry.tasks import resolve_data
from robustbench_lpm.studies import study as studies
from robustbench_lpm.studies.spatial import Spatial, make_spatial, spatial
from tests.classifiers import Fair

SIDE, ROW, COLUMN = 9, 4, 6
AT = 0.5


class OnePixel(nn.Module):
    """Class 0 where one pixel is brighter than a half, with Gaussian noise of this deviation on it."""

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__()
        self.sigma, self.stochastic = sigma, sigma > 0

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"pixel": addresses.normal("pixel")}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        pixel = images[:, 0, ROW, COLUMN] - AT
        pixel = pixel + self.sigma * noise["pixel"] if noise else pixel
        return torch.stack([pixel, torch.zeros_like(pixel)], dim=1)


def noise_images(count: int = 60) -> Tensor:
    """Pixels between 0.35 and 1, none within 0.02 of a half: many images have a dark pixel somewhere, not all."""
    images = 0.35 + 0.65 * torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) ** 0.3
    return images.where((images - AT).abs() > 0.02, 0.55)


def study_of(network: nn.Module, images: Tensor, **settings: Any) -> Spatial:
    given: dict[str, Any] = {"rotation": 90, "translation": 1, "steps": (3, 3), "device": "cpu"} | settings
    labels = torch.zeros(len(images), dtype=torch.long)
    return spatial([handed_over(network)], data_of_ones_own((images, labels)), **given)


def accuracies(study: Spatial) -> dict[str, float]:
    return {row["searched"]: row["accuracy"] for row in studies.run(study).rows}


def seen_pixels(images: Tensor, angles: tuple[int, ...], reach: int) -> Tensor:
    """The pixels that quarter turns and moves by whole pixels bring to the place, (transformations, B)."""
    found = []
    for turns, right, down in itertools.product(angles, range(-reach, reach + 1), range(-reach, reach + 1)):
        found.append(images.rot90(turns, dims=(2, 3))[:, 0, ROW - down, COLUMN - right])
    return torch.stack(found)


def test_the_worst_case_is_the_darkest_pixel_in_reach() -> None:
    images = noise_images()
    study = study_of(OnePixel(), images)
    assert len(study.grid()) == 27
    found = accuracies(study)
    expected = {
        "none": seen_pixels(images, (0,), 0), "rotation": seen_pixels(images, (-1, 0, 1), 0),
        "translation": seen_pixels(images, (0,), 1), "grid": seen_pixels(images, (-1, 0, 1), 1),
    }  # fmt: skip
    for searched, pixels in expected.items():
        assert found[searched] == pytest.approx(float((pixels.amin(0) > AT).double().mean()), abs=1e-12)
    assert found["mean"] == pytest.approx(float((expected["grid"] > AT).double().mean()), abs=1e-12)
    assert found["grid"] < found["translation"] < found["none"]
    assert found["grid"] < found["random"] < found["none"]


def test_black_comes_in_from_outside() -> None:
    """A move by three brings what is outside to a place that is two from the edge."""
    white = torch.ones(4, 1, SIDE, SIDE)
    found = accuracies(study_of(OnePixel(), white, rotation=0, translation=3, steps=(1, 3)))
    assert (found["none"], found["rotation"], found["translation"]) == (1, 1, 0)


def test_a_stochastic_model_is_graded_on_other_draws_than_it_was_searched_on() -> None:
    """The darkest pixel p is chosen almost surely, and right with probability Φ((p - 1/2) / sigma)."""
    images, sigma, draws = noise_images(40), 0.1, 400
    found = accuracies(study_of(OnePixel(sigma), images, draws=draws, select=60))
    for searched, pixels in {"none": seen_pixels(images, (0,), 0), "grid": seen_pixels(images, (-1, 0, 1), 1)}.items():
        right = norm.cdf((pixels.amin(0).numpy() - AT) / sigma)
        error = np.sqrt((right * (1 - right)).sum() / draws) / len(images)
        assert found[searched] == pytest.approx(right.mean(), abs=4 * error)


def test_a_choice_that_is_lucky_gains_nothing() -> None:
    """A classifier that is right with probability p on every image, whatever is done to it, scores p at worst too."""
    images, p, draws = noise_images(60), 0.7, 60
    study = study_of(Fair(p), images, draws=draws, select=3)
    found = accuracies(study)
    error = (p * (1 - p) / (len(images) * draws)) ** 0.5
    assert found["grid"] == pytest.approx(p, abs=4 * error)
    assert found["random"] == pytest.approx(p, abs=4 * error)


def test_a_random_search_tries_as_many_as_it_says_for_each_image() -> None:
    study = study_of(OnePixel(), noise_images(30), random=5)
    tried = study.candidates(range(30))["random"]
    assert tried.sum(1).tolist() == [5] * 30
    assert len({tuple(row) for row in tried.tolist()}) > 25
    assert torch.equal(study.candidates([7])["random"][0], tried[7])
    assert study.candidates([0])["grid"].all()
    of_all = accuracies(replace(study, random=27))
    assert of_all["random"] == of_all["grid"]


def test_passes_are_counted_and_the_command_repeats_it() -> None:
    study = make_spatial(
        ["ram", "cnn"], resolve_data("digits"), limit=5, steps=(3, 1), select=2, draws=3, rotation=20, random=2
    )
    assert [study.passes(model) for model in study.models] == [2 * 3 + 3 * 5, 3 + 5]
    passes = []

    class Counting:
        def spent(self, number: int) -> None:
            passes.append(number)

        def finished(self, examples: int) -> None: ...

    rows = studies.run(study, progress=Counting()).rows
    assert sum(passes) == studies.total_passes(study)
    assert len(rows) == 12
    words = "--rotation 20 --translation 3 --random 2 --select 2 --steps 3,1 --dataset digits"
    assert study.command().startswith(f"lpmbench spatial ram cnn {words}")


def test_mistakes() -> None:
    with pytest.raises(LpmbenchError, match="must be odd"):
        study_of(OnePixel(), noise_images(4), steps=(4, 3))
