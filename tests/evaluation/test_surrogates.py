"""Attacks that need another model, or a model that looks: who the surrogates are, and what the attacks do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm import cards, records, reporting, zoo
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.evaluation.planning import make_plan
from robustbench_lpm.evaluation.tasks import (
    resolve_attack,
    resolve_data,
    resolve_model,
    resolve_surrogates,
    worst_case_over,
)
from robustbench_lpm.records import RunRecord
from robustbench_lpm.zoo import LoadedModel
from tests.classifiers import FairGazing, Linear

WEIGHT = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
BASELINES = {"cnn", "cnn-at", "resnet18", "ram", "ramlpm"}
SEEDS = {"ram-seed1", "ramlpm-seed1"}


def registered_for(target: str | LoadedModel) -> set[str]:
    model = resolve_model(target)
    return {
        found.name for found in resolve_surrogates(resolve_attack("transfer"), model, resolve_data("digits"), "cpu")
    }


@pytest.mark.parametrize(("target", "beside_baselines"), [
    ("cnn", set()),
    ("ramlpm", {"ramlpm-seed1"}),
    ("ram", {"ram-seed1"}),
    ("ramlpm-rectangular", set()),  # a network of its own
])  # fmt: skip
def test_baselines_and_other_seeds_of_the_target_but_nothing_with_its_weights(
    target: str, beside_baselines: set[str]
) -> None:
    """Of controls only the target's own network from another seed takes part: the others copy weights, or are odd."""
    assert registered_for(target) == (BASELINES - {target}) | beside_baselines


@pytest.mark.parametrize(("target", "left_out"), [
    ("ramlpm-seed1", {"ram-seed1"}),
    ("ramlpm-random", {"ramlpm", "ramlpm-seed1", "ram-seed1"}),  # it has the weights of ramlpm
])  # fmt: skip
def test_who_attacks_a_control(target: str, left_out: set[str]) -> None:
    assert registered_for(target) == BASELINES - left_out


def test_a_target_of_fewer_glimpses_has_the_weights_of_the_whole() -> None:
    assert "ramlpm" not in registered_for(zoo.load_model("ramlpm", glimpses=2))


def test_a_module_of_ones_own_meets_all_baselines() -> None:
    assert registered_for(resolve_model(nn.Flatten())) == BASELINES


def test_every_surrogate_on_the_card_has_weights_and_reads_what_the_data_set_shows() -> None:
    for dataset, names in dict(cards.attack("transfer").surrogates or {}).items():
        for card in map(cards.model, names):
            assert zoo.weights_missing(card) is None, card.name
            assert zoo.fits(card, cards.dataset(dataset)), card.name
            assert card.control_of is None or card.name in SEEDS, card.name


def test_surrogates_that_a_run_names_make_another_attack(tmp_path: Path) -> None:
    """Those of the card, named or not, make one attack, whatever the target; others stand in its variant."""
    usual = carried_over(tmp_path)
    named = carried_over(tmp_path, surrogates=list(usual.configuration["attack"]["surrogates"]))
    assert named.id == usual.id
    other = robustbench_lpm.evaluate(
        "resnet18", "transfer", "digits", eps=0.1, limit=3, parameters={"steps": 2, "eot": 1}
    )
    odd = carried_over(tmp_path, surrogates=["cnn-at", nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))])
    digest = odd.configuration["attack"]["surrogates"]["Sequential"][:8]
    found = reporting.table([usual, other, odd]).set_index("record")["attack_variant"]
    assert found.to_dict() == {usual.id: "", other.id: "", odd.id: f"made on Sequential {digest}, cnn-at"}
    worst = resolve_attack("worst-case", surrogates=["cnn-at"])
    plan = make_plan(resolve_model("resnet18"), worst, resolve_data("digits"), eps=0.1, limit=1)
    assert plan.configuration["attack"]["made_on"] == "cnn-at"


def test_data_that_no_registered_model_knows() -> None:
    images, labels = torch.rand(2, 1, 4, 4), torch.zeros(2)
    with pytest.raises(LpmbenchError, match="No registered model fits 'custom' as a surrogate") as error:
        robustbench_lpm.evaluate(Linear(WEIGHT), "transfer", (images, labels), eps=0.1)
    assert "\n" not in str(error.value)
    quick = worst_case_over([resolve_attack("fgsm"), resolve_attack("transfer")])
    record = robustbench_lpm.evaluate(Linear(WEIGHT).eval(), quick, (images, labels), eps=0.1)
    assert record.notes == [f"Left out of worst-case: transfer. {error.value}"]
    found = robustbench_lpm.audit(Linear(WEIGHT), "fgsm", (images, labels), eps=0.1, black_box=["transfer"])
    (check,) = [check for check in found.checks if check.name == "white-box vs transfer"]
    assert (check.verdict, check.note) == ("not applicable", str(error.value))


def carried_over(tmp_path: Path, **options: Any) -> RunRecord:
    given: dict[str, Any] = {"eps": 0.1, "limit": 3, "parameters": {"steps": 2, "eot": 1}, "out": tmp_path}
    written = robustbench_lpm.evaluate("cnn", "transfer", "digits", **(given | options))
    return records.read(written.path or tmp_path)


def test_the_record_names_the_surrogates_and_their_weights(tmp_path: Path) -> None:
    record = carried_over(tmp_path, surrogates=["cnn-at", "resnet18"])
    digests = {name: cards.model(name).weights.sha256 for name in ("cnn-at", "resnet18")}  # type: ignore[union-attr]
    assert record.configuration["attack"]["surrogates"] == digests
    assert record.outcomes["forwards"].tolist() == [2] * 3  # choosing between two, once each; no gradient is counted
    assert record.outcomes["backwards"].sum() == 0
    assert "--surrogate cnn-at --surrogate resnet18" in record.command
    assert record.id != carried_over(tmp_path, surrogates=["cnn-at"]).id


def test_one_surrogate_costs_the_target_nothing(tmp_path: Path) -> None:
    assert carried_over(tmp_path, surrogates=["cnn-at"]).outcomes["forwards"].sum() == 0


def test_a_module_may_be_a_surrogate() -> None:
    """Made on the same weights it is as strong as a white-box attack; on their opposite it helps the target."""
    images = torch.full((8, 1, 4, 4), 0.5)
    model, drop = Linear(WEIGHT, bias=5.0), 0.1 * float(WEIGHT.abs().sum())

    def margins(surrogate: nn.Module) -> Tensor:
        record = robustbench_lpm.evaluate(
            model, "transfer", (images, torch.zeros(8)), eps=0.1, surrogates=[surrogate], parameters={"steps": 3}
        )
        return model.margin(torch.stack([torch.from_numpy(picture.adversarial) for picture in record.pictures()]))

    clean = model.margin(images)
    torch.testing.assert_close(clean - margins(Linear(WEIGHT)), torch.full((8,), drop))
    torch.testing.assert_close(margins(Linear(-WEIGHT)) - clean, torch.full((8,), drop))


def test_surrogates_of_a_worst_case_go_to_the_members_that_are_carried_over() -> None:
    attack = resolve_attack("worst-case", surrogates=["resnet18"])
    plan = make_plan(resolve_model("cnn"), attack, resolve_data("digits"), eps=0.1, limit=1)
    carried = {member.attack.name: [model.name for model in member.surrogates] for member in plan.members}
    assert carried["transfer"] == ["resnet18"]
    assert {name for name, models in carried.items() if models} == {"transfer"}
    assert "--surrogate resnet18" in plan.command()


def test_gaze_moves_the_means_away_from_the_centre() -> None:
    """What the fair glimpsing classifier is good for: its means depend on the image, and the attack finds out how."""
    model = FairGazing(0.9)
    images = 0.5 + 0.2 * (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5)
    record = robustbench_lpm.evaluate(
        model, "gaze", (images, torch.zeros(20)), eps=0.1, draws=2, parameters={"steps": 5}, save_adversarials=True
    )
    moved = torch.stack([torch.from_numpy(picture.adversarial) for picture in record.pictures()])
    halves = torch.stack([part.flatten(1).mean(1) for part in (moved - images).chunk(2, dim=-1)], dim=1)
    torch.testing.assert_close(halves.abs(), torch.full_like(halves, 0.1))  # all that the budget allows, in each half


def test_surrogates_of_one_name_on_a_card_are_told_apart() -> None:
    """The name keys the noise that an attack meets on a surrogate."""
    attack = replace(resolve_attack("transfer"), surrogates=["ram", "ram"])
    found = resolve_surrogates(attack, resolve_model("cnn"), resolve_data("digits"), "cpu")
    assert [model.name for model in found] == ["ram (1)", "ram (2)"]


def test_surrogates_of_one_class_are_told_apart() -> None:
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    record = robustbench_lpm.evaluate(
        Linear(weight), "transfer", (images, torch.zeros(3, dtype=torch.long)), eps=0.1,
        surrogates=[Linear(weight), Linear(-weight)], parameters={"steps": 2},
    )  # fmt: skip
    found = record.configuration["attack"]["surrogates"]
    assert list(found) == ["Linear (1)", "Linear (2)"]
    assert len(set(found.values())) == 2
