"""Runs: split, interrupted or repeated, they end in the same bytes; padding stays; a user's module is left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.recording import PROGRESS, finished_run
from robustbench_lpm.execution.runner import run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.grading import within_budget
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model
from tests.classifiers import Fair, Linear, NoisyLinear
from tests.watchers import Listening

WEIGHT = torch.linspace(-1, 1, 64).reshape(1, 8, 8)


def plan_of(n: int = 12, attack: str = "pgd", **options: Any) -> Plan:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 2
    given: dict[str, Any] = {"eps": 0.05, "draws": 5} | options
    model = resolve_model(NoisyLinear(WEIGHT, sigma=0.5).eval())
    parameters = {"steps": 3, "restarts": 2} if attack == "pgd" else {"iterations": 2, "pairs": 3}
    return make_plan(
        model, resolve_attack(attack, parameters=parameters), data_from_tensors(images, labels), Options(**given)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != records.TIMING}


@pytest.mark.parametrize("attack", ["pgd", "spsa"])
def test_outcomes_do_not_depend_on_the_size_of_blocks(attack: str) -> None:
    plan = plan_of(attack=attack)
    whole = run(dataclasses.replace(plan, chunk=12)).outcomes
    pieces = run(dataclasses.replace(plan, chunk=5)).outcomes
    for column in whole.columns:
        assert [np.asarray(a).tolist() for a in whole[column]] == [np.asarray(b).tolist() for b in pieces[column]]


class Interrupt(Listening):
    """Ctrl-C after so many examples."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def finished(self, examples: int) -> None:
        if examples >= self.after:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    plan = dataclasses.replace(plan_of(), chunk=4)
    straight = run(plan, tmp_path / "straight").path
    for after in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "broken", Interrupt(after))
    assert finished_run(plan, tmp_path / "broken") is None
    kept = list((tmp_path / "broken" / PROGRESS).rglob("block-*"))
    assert len(kept) == 2
    stamps = [path.stat().st_mtime_ns for path in kept]
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "broken", Interrupt(8))
    assert [path.stat().st_mtime_ns for path in kept] == stamps  # nothing was computed again
    resumed = run(plan, tmp_path / "broken").path
    assert straight is not None
    assert resumed is not None
    assert contents(straight) == contents(resumed)
    assert not (tmp_path / "broken" / PROGRESS).exists()
    assert finished_run(plan, tmp_path / "broken") is not None


def test_another_seed_is_another_run() -> None:
    first, second = plan_of(), plan_of(seed=1)
    assert run(first).id != run(second).id
    assert run(first).predictions.tolist() != run(second).predictions.tolist()


def test_padding_pixels_are_never_perturbed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, size in enumerate([(12, 8), (8, 12), (10, 10), (12, 6)]):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(50, 200, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    source = resolve_data("imagefolder", size="original", data=tmp_path)

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = images.mean(dim=(1, 2, 3))
            return torch.stack([value + 9, value * 0], dim=1)

    record = robustbench_lpm.evaluate(Mean(), "pgd", source, eps=0.1, parameters={"steps": 3})
    examples = source.read(range(4))
    assert sorted(np.shape(p.clean) for p in record.pictures()) == [(3, 10, 10), (3, 12, 12), (3, 12, 12), (3, 12, 12)]
    for picture, mask in zip(record.pictures(), examples.masks, strict=True):
        moved = np.abs(picture.adversarial - picture.clean)
        assert moved.max() > 0.09
        if mask is not None:
            assert moved[:, ~mask[0].numpy()].max() == 0


def test_random_targets_are_never_the_label_and_are_kept_in_the_record() -> None:
    record = run(plan_of(target="random"))
    assert (record.outcomes["target"] == 1 - record.outcomes["label"]).all()  # of two classes, the other one
    assert record.target_rate is not None
    assert record.target_rate.value == pytest.approx(1 - record.robust_accuracy.value)


def test_an_attack_that_learns_its_noise_by_heart_gains_nothing() -> None:
    """An attack that keeps, of many candidates, the one that fails on the noise it saw, is graded on other noise."""

    def lucky(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        noise, best, fewest = oracle.noise(4), images.clone(), torch.full((len(images),), 2.0)
        for _ in range(30):
            offsets = oracle.choices().uniform("offset", *images.shape[1:])
            candidate = (images + eps * (2 * offsets - 1)).clamp(0, 1)
            right = (oracle(candidate, noise).argmax(-1) == labels).float().mean(0)
            best[right < fewest], fewest = candidate[right < fewest], torch.minimum(fewest, right)
        seen.append(fewest)
        return best

    seen: list[Tensor] = []
    images = torch.rand(500, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    record = robustbench_lpm.evaluate(Fair(0.7), lucky, (images, torch.zeros(500)), eps=0.1, draws=20)
    assert float(torch.cat(seen).mean()) < 0.3  # on the four draws it saw it looks far stronger than 0.7
    assert abs(record.robust_accuracy.value - 0.7) < 4 * (0.7 * 0.3 / 10_000) ** 0.5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"norm": "l3"}, "Unknown norm 'l3'. Did you mean 'l2'?"),
    ({"eps": float("nan")}, "finite"),
    ({"mc": 0}, "mc must be"),
    ({"draws": 0}, "draws must be"),
    ({"limit": 0}, "limit"),
    ({"target": 2}, "out of range"),
    ({"target": "panda"}, "target class"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_requests_are_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LpmbenchError, match=message) as error:
        plan_of(**options)
    assert "\n" not in str(error.value)


def test_images_outside_the_box_and_labels_out_of_range_are_errors() -> None:
    with pytest.raises(LpmbenchError, match=r"\[0, 1\]"):
        data_from_tensors(torch.full((2, 1, 8, 8), 1.5), torch.zeros(2))
    with pytest.raises(LpmbenchError, match="Label 7 is out of range"):
        robustbench_lpm.evaluate(Linear(WEIGHT), "pgd", (torch.rand(1, 1, 8, 8), torch.tensor([7])), eps=0.1)
    with pytest.raises(LpmbenchError, match="cannot read images"):
        robustbench_lpm.evaluate(Linear(WEIGHT), "pgd", (torch.rand(1, 1, 5, 7), torch.tensor([0])), eps=0.1)


def test_what_an_attack_returns_is_projected_and_checked() -> None:
    originals = torch.rand(3, 1, 4, 4)
    pulled = within_budget(originals + 5, originals, "l2", 0.5, None)
    assert float((pulled - originals).flatten(1).norm(dim=1).max()) <= 0.5 + 1e-6
    assert pulled.max() <= 1
    with pytest.raises(LpmbenchError, match="shape"):
        within_budget(originals[:2], originals, "linf", 0.1, None)
    with pytest.raises(LpmbenchError, match="finite"):
        within_budget(originals * torch.nan, originals, "linf", 0.1, None)
    mask = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    assert torch.equal(within_budget(originals + 5, originals, "linf", 0.1, mask), originals)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_cheats_is_pulled_back(norm: str) -> None:
    """An attack of one's own that returns other images entirely scores no more than the budget allows."""

    def replace(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        return torch.zeros_like(images)

    images = torch.full((4, 1, 8, 8), 0.5)
    record = robustbench_lpm.evaluate(Linear(WEIGHT), replace, (images, torch.zeros(4)), eps=0.01, norm=norm)
    assert record.outcomes[norm].max() <= 0.01 + 1e-6
    assert record.attack == "replace"


def test_a_module_is_its_settings_too() -> None:
    """Two modules with equal weights but another sigma are two models: their runs must not share an id."""
    images, labels = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    weight = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    runs = [
        robustbench_lpm.evaluate(NoisyLinear(weight, sigma=sigma), "noise", (images, labels), eps=0.1)
        for sigma in (1.0, 2.0, 1.0)
    ]
    assert runs[0].id == runs[2].id != runs[1].id
