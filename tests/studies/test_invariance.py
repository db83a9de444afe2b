"""Warps do what their names say, and a curve is what the models say of the warped images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lpm import statistics
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data
from robustbench_lpm.studies import glimpses
from robustbench_lpm.studies import study as studies
from robustbench_lpm.studies.invariance import Invariance, make_invariance, warped

IMAGES = 12


def digits() -> tuple[Tensor, Tensor]:
    examples = resolve_data("digits").read(range(IMAGES))
    return torch.stack(examples.images), examples.labels


def blob(height: int, width: int, x: float, y: float) -> Tensor:
    """A soft spot of 2 pixels at x to the right and y down from the centre, in pixels."""
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    return torch.exp(-((columns - x)[None] ** 2 + (rows - y)[:, None] ** 2) / 8)[None, None]


def test_images_as_they_are_are_not_resampled() -> None:
    images, _ = digits()
    assert warped(images) is images


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_torch(quarters: int) -> None:
    images, _ = digits()
    expected = images.rot90(quarters, dims=(2, 3))
    assert torch.equal(warped(images, angle=90.0 * quarters), expected)
    resampled = warped(images, angle=90.0 * quarters + 1e-3)
    assert not torch.equal(resampled, expected)
    torch.testing.assert_close(resampled, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(41, 41), (41, 60), (64, 40)])
@pytest.mark.parametrize(("warp", "place"), [
    ({"angle": 90.0}, (0, -6)),  # right of the centre; against the clock, so now above it
    ({"angle": 60.0}, (3, -5.196)),
    ({"angle": 330.0}, (5.196, 3)),
    ({"scale": 0.5}, (3, 0)),
    ({"scale": 1.5}, (9, 0)),
    ({"angle": 90.0, "scale": 0.5}, (0, -3)),
])  # fmt: skip
def test_a_spot_goes_where_it_should(
    warp: dict[str, float], place: tuple[float, float], height: int, width: int
) -> None:
    found = warped(blob(height, width, 6, 0), **warp)
    if "scale" not in warp:
        torch.testing.assert_close(found, blob(height, width, *place), rtol=0, atol=0.06)
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    mass = found[0, 0] / found.sum()
    assert float((mass.sum(0) * columns).sum()) == pytest.approx(place[0], abs=0.1)
    assert float((mass.sum(1) * rows).sum()) == pytest.approx(place[1], abs=0.1)


def test_a_spot_grows_with_the_scale() -> None:
    spot = blob(64, 64, 0, 0)
    assert float(warped(spot, scale=2.0).sum() / spot.sum()) == pytest.approx(4, rel=0.01)


def test_moves_by_whole_pixels_are_shifts_with_zeros() -> None:
    images = torch.rand(2, 3, 10, 20, generator=torch.Generator().manual_seed(0))
    right, down = torch.zeros_like(images), torch.zeros_like(images)
    right[..., 4:], down[:, :, 3:] = images[..., :-4], images[:, :, :-3]
    torch.testing.assert_close(warped(images, right=0.2), right, rtol=0, atol=1e-5)
    torch.testing.assert_close(warped(images, down=0.3), down, rtol=0, atol=1e-5)


def test_zeros_come_in_and_nothing_leaves_the_box() -> None:
    white = torch.ones(1, 1, 32, 32)
    for warp in ({"angle": 45.0}, {"scale": 0.5}, {"right": 0.25}):
        found = warped(white, **warp)
        assert (float(found.min()), float(found.max())) == (0, 1)
    assert float(warped(white, scale=2.0).min()) == 1
    assert float(warped(white, scale=0.5).sum()) == pytest.approx(16**2, rel=0.01)


def studied(*names: str, **options: Any) -> Invariance:
    given: dict[str, Any] = {"limit": IMAGES, "draws": 3}
    values = options.pop("values", {"rotate": (0, 90), "scale": (1,), "translate": (0, 0.25)})
    return make_invariance(names, resolve_data("digits"), values, **given | options)


def accuracies(study: Invariance) -> dict[tuple[Any, ...], float]:
    return {
        (row["model"], row["mc"], row["transformation"], row["value"]): row["accuracy"]
        for row in studies.run(study).rows
    }


def test_curves_are_what_the_models_say_of_the_warped_images() -> None:
    found = accuracies(studied("ramlpm", "ram", "cnn", mc=(3,), draws=1))
    images, labels = digits()
    right = torch.zeros_like(images)
    right[..., 8:] = images[..., :-8]
    down = torch.zeros_like(images)
    down[:, :, 8:] = images[:, :, :-8]

    def accuracy(model: str, given: Tensor, m: int) -> float:
        classifier = zoo.load_model(model).classifier
        runs = torch.stack([
            classifier(given, classifier.sample_noise(Addresses.of(0, range(IMAGES), "clean", run)))
            for run in range(3)
        ])  # fmt: skip
        averaged = runs.unflatten(0, (3 // m, m)).mean(1)
        return float((averaged.argmax(2) == labels).double().mean())

    for model, ms in {"ramlpm": (1, 3), "ram": (1, 3), "cnn": (1,)}.items():
        for m in ms:
            as_it_is = accuracy(model, images, m)
            for kind, identity in {"rotate": 0, "scale": 1, "translate": 0}.items():
                assert found[model, m, kind, identity] == pytest.approx(as_it_is, abs=1e-12)
            turned = accuracy(model, images.rot90(1, dims=(2, 3)), m)
            assert found[model, m, "rotate", 90] == pytest.approx(turned, abs=1e-12)
            moved = (accuracy(model, right, m) + accuracy(model, down, m)) / 2
            assert found[model, m, "translate", 0.25] == pytest.approx(moved, abs=1e-12)
            assert turned < as_it_is
    assert ("cnn", 3, "rotate", 0) not in found  # a deterministic model has no average


def test_the_point_as_it_is_is_the_clean_accuracy_of_a_record() -> None:
    found = accuracies(studied("ram", values={"rotate": (0,)}, limit=60, draws=4))
    plan = make_plan(
        zoo.load_model("ram"), resolve_attack("noise"), resolve_data("digits"), Options(eps=0.1, limit=60, draws=4)
    )
    looks = glimpses.looks(plan, purpose="clean")
    clean = statistics.mean_draw(looks.correct(1, 6)).value
    assert clean < 1
    assert found["ram", 1, "rotate", 0] == clean


def test_the_image_as_it_is_passes_once() -> None:
    study = studied("ram", "cnn", values={"rotate": (0, 360, -360), "scale": (1,), "translate": (0, 0.1)})
    assert [study.passes(model) for model in study.models] == [3 * 3, 3]
    passes = []

    class Counting:
        def spent(self, number: int) -> None:
            passes.append(number)

        def finished(self, examples: int) -> None: ...

    rows = studies.run(study, progress=Counting()).rows
    assert sum(passes) == studies.total_passes(study) == IMAGES * 12
    assert len({row["accuracy"] for row in rows if row["model"] == "ram" and row["value"] != 0.1}) == 1


def test_models_of_one_name_are_told_apart() -> None:
    study = studied("cnn", "models/cnn.toml", values={"scale": (1,)})
    assert [row["model"] for row in studies.run(study).rows] == ["cnn (1)", "cnn (2)"]


def test_the_command_names_what_was_varied() -> None:
    study = studied("ramlpm", "cnn", values={"translate": (0.1, -0.1), "rotate": (0,)})
    assert study.command().startswith("lpmbench invariance ramlpm cnn --rotate 0 --translate -0.1,0.1 --dataset digits")
    assert replace(study, seed=1).id != study.id


def test_mistakes() -> None:
    with pytest.raises(LpmbenchError, match="factor above 0"):
        studied("cnn", values={"scale": (0, 1)})
    with pytest.raises(LpmbenchError, match="exactly one model"):
        studied("cnn", "ram", checkpoint=Path("models/cnn.safetensors"))
    with pytest.raises(LpmbenchError, match="predicts the labels 'imagenet'"):
        studied("efficientnet-lite0")
