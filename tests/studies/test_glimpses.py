"""What is said of single glimpses agrees with what the grader says of whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.recurrent_attention import Glance, RecurrentAttention
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.runner import run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies import glimpses

FAST = {"steps": 2, "eot": 1}


class Stepping(RecurrentAttention):
    """Means glimpse 2 for (brightness, 0.1), glimpse 3 for (brightness, 0.2); answers 0, from glimpse `turns` on 1."""

    def __init__(self, *, turns: int = 2, glimpses: int = 3, sigma: float = 0.1) -> None:
        super().__init__(glimpses=glimpses, sigma=sigma)
        self.turns, self.idle = turns, nn.Parameter(torch.zeros(1))

    def start(self, images: Tensor, runs: int) -> int:
        return 0

    def glance(self, images: Tensor, fixations: Tensor, state: int) -> Glance:
        brightness, t = images.flatten(1).mean(1), state + 1
        logits = brightness[:, None] * 0 + torch.eye(10)[int(t >= self.turns)]
        mean = torch.stack([brightness, torch.full_like(brightness, 0.1 * t)], dim=1)
        return Glance(logits, mean, brightness, t)


def planned(
    model: str | LoadedModel = "ramlpm", *, limit: int = 12, draws: int = 4, mc: int = 1, seed: int = 3
) -> Plan:
    attack = resolve_attack("pgd", parameters=FAST)
    data = resolve_data("digits")
    return make_plan(
        resolve_model(model),
        attack,
        data,
        Options(
            eps=0.1,
            limit=limit,
            draws=draws,
            mc=mc,
            seed=seed,
            gradient_mode=None if model == "cnn" else "detached",
            save_adversarials=True,
        ),
    )


@pytest.mark.parametrize("model", ["ramlpm", "ram"])
def test_all_glimpses_of_one_run_are_the_record_to_the_bit(model: str) -> None:
    plan = planned(model)
    record = run(plan)
    clean = glimpses.looks(plan, purpose="clean", runs=(1, 2))
    moved = glimpses.looks(plan, glimpses.adversarials(record), purpose="grade", runs=(1, 2))
    assert np.array_equal(clean.predictions[1][:, :, -1], record.clean_predictions)
    assert np.array_equal(moved.predictions[1][:, :, -1], record.predictions)
    table = glimpses.accuracy_table(clean, moved, {})
    (row,) = table[(table["mc"] == 1) & (table["glimpses"] == 6)].to_dict("records")
    assert row["clean_accuracy"] == record.clean_accuracy.value
    assert row["attacked_accuracy"] == record.robust_accuracy.value


def test_m_runs_are_those_that_the_grader_averages() -> None:
    averaged = run(planned(mc=3))
    found = glimpses.looks(planned(), glimpses.adversarials(averaged), purpose="grade", runs=(1, 3))
    assert np.array_equal(found.predictions[3][:, :, -1], averaged.predictions)


def test_t_glimpses_are_the_truncated_model_on_clean_images() -> None:
    plan = planned()
    found = glimpses.looks(plan, purpose="clean")
    for t in (1, 4):
        fewer = glimpses.truncated(plan.model, "ramlpm", t)
        record = run(planned(fewer))
        assert fewer.classifier.glimpses == t
        assert record.configuration["model"]["parameters"]["glimpses"] == t
        assert record.configuration["model"]["weights_sha256"] == plan.model.weights_sha256
        assert np.array_equal(found.predictions[1][:, :, t - 1], record.clean_predictions)


def test_a_truncated_run_names_the_study_that_repeats_it() -> None:
    plan = planned(glimpses.truncated(planned().model, "ramlpm", 2))
    command = replace(plan, attack=replace(plan.attack, command="glimpses")).command()
    assert command.startswith("lpmbench glimpses ramlpm --attack pgd --dataset digits ")


def test_the_table_is_sorted_by_the_glimpses_of_a_decision() -> None:
    plan = planned(limit=2, draws=2)
    clean = glimpses.looks(plan, purpose="clean", runs=(3, 1))
    table = glimpses.accuracy_table(clean, clean, {})
    assert (table["glimpses_per_decision"] == table["mc"] * table["glimpses"]).all()
    assert table["glimpses_per_decision"].is_monotonic_increasing
    six = table[table["glimpses_per_decision"] == 6]
    assert six[["mc", "glimpses", "forwards_per_decision"]].to_numpy().tolist() == [[1, 6, 1], [3, 2, 3]]
    assert table["adaptive_accuracy"].isna().all()
    assert table["clean_accuracy_low"].isna().all()  # two images have no interval


def stepping(**parameters: float) -> Plan:
    network = Stepping(**parameters)  # type: ignore[arg-type]
    data = resolve_data("digits")
    return make_plan(resolve_model(network), resolve_attack("noise"), data, Options(eps=0.1, limit=30, draws=3))


def test_accuracy_jumps_at_the_glimpse_that_knows() -> None:
    plan = stepping(turns=2)
    found = glimpses.looks(plan, purpose="clean")
    share = float((found.labels == 1).mean())
    accuracies = glimpses.accuracy_table(found, found, {})["clean_accuracy"].tolist()
    assert accuracies == pytest.approx([float((found.labels == 0).mean()), share, share])


def test_the_shift_of_aims_is_that_of_the_image_and_noise_alone_moves_nothing_here() -> None:
    plan = stepping()
    pixels = {i: image.numpy() for i, image in enumerate(plan.data.read(range(30)).images)}
    brighter = {i: (image * 0.5 + 0.25).astype(np.float32) for i, image in pixels.items()}
    still = glimpses.looks(plan, purpose="grade")
    table = glimpses.fixation_table(still, glimpses.looks(plan, brighter, purpose="grade"))
    expected = np.mean([abs(brighter[i].mean() - pixels[i].mean()) for i in pixels])
    assert table["glimpse"].tolist() == [2, 3]
    assert table["shift"].tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert (table["shift_low"] < table["shift"]).all()
    assert (table["shift"] < table["shift_high"]).all()
    assert table["restlessness"].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_distance_of_pairs_by_hand() -> None:
    points = np.array([[[0, 0], [3, 4], [0, 0]]], np.float32)  # distances 5, 0, 5
    assert glimpses._mean_distance_of_pairs(points).tolist() == pytest.approx([10 / 3])
    assert np.isnan(glimpses._mean_distance_of_pairs(points[:, :1])).all()


@pytest.mark.parametrize("policy", ["centre", "random"])
def test_control_policies_have_no_aims_to_move(policy: str) -> None:
    plan = planned(zoo.load_model("ramlpm", policy=policy), limit=3, draws=2)
    record = run(plan)
    moved = glimpses.looks(plan, glimpses.adversarials(record), purpose="grade", runs=(1, 2))
    still = glimpses.looks(plan, purpose="grade")
    assert np.array_equal(moved.predictions[1][:, :, -1], record.predictions)
    assert np.array_equal(still.fixations, moved.fixations)
    assert (glimpses.fixation_table(still, moved)["shift"] == 0).all()
    assert list(moved.predictions) == ([1] if policy == "centre" else [1, 2])
    assert glimpses.trace(plan, 0, record.pictures()[0].clean, 0)["labels"].shape == (6,)


def test_one_glimpse_moves_no_fixation() -> None:
    plan = planned(zoo.load_model("ramlpm", glimpses=1), limit=2, draws=2)
    found = glimpses.looks(plan, purpose="grade")
    assert glimpses.fixation_table(found, found).empty


def looked(predictions: list[list[int]]) -> glimpses.Looks:
    """Looks of one glimpse, the labels 0."""
    said = np.array(predictions)[:, :, None]
    where = np.zeros((*said.shape, 2), np.float32)
    return glimpses.Looks(tuple(range(len(said))), np.zeros(len(said), np.int64), {1: said}, where, where)


def test_turned_images_come_first_in_the_draw_that_turned() -> None:
    before = looked([[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    after = looked([[0, 0, 1], [0, 2, 2], [0, 0, 0]])
    assert glimpses.turned(before, after, 2) == [(1, 1), (0, 2)]
    assert glimpses.turned(before, after, 9) == [(1, 1), (0, 2), (2, 0)]
    assert glimpses.turned(before, after, 0) == []


@pytest.mark.parametrize("model", ["ramlpm", "ram"])
def test_a_trace_is_the_graders_draw_and_sees_what_lies_there(model: str) -> None:
    plan = planned(model, limit=2, draws=2)
    found = glimpses.looks(plan, purpose="grade")
    ramp = np.linspace(0, 1, 32, dtype=np.float32)[None, None].repeat(32, 1)  # brightness tells the column
    image = plan.data.read([1]).images[0].numpy()
    trace = glimpses.trace(plan, 1, image, 1)
    assert trace["fixations"] == pytest.approx(found.fixations[1, 1], abs=1e-3)
    assert trace["labels"].tolist() == found.predictions[1][1, 1].tolist()
    trace, cells = glimpses.trace(plan, 1, ramp, 0), glimpses.cells(plan)
    x = cells + trace["fixations"][0]
    inside = (np.abs(x) < 0.6).all(axis=1) & (np.abs(cells) < 0.35).all(axis=1)
    assert inside.sum() > 20
    assert trace["seen"][0, inside, 0] == pytest.approx((x[inside, 0] * 16 + 15.5) / 31, abs=0.01)


def test_models_that_see_whole_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match="'cnn' sees an image whole"):
        glimpses.looks(planned("cnn", limit=1), purpose="clean")
