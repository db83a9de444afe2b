"""The worst case over several attacks: fair because it is chosen on noise of its own, as strong as its members."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import robustbench_lpm
from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.recording import PROGRESS, finished_run
from robustbench_lpm.execution.runner import Silent, run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import Attack, resolve_attack, resolve_data, resolve_model, worst_case_over
from tests.attacks.test_closed_forms import linear_data
from tests.classifiers import Fair, NoisyLinear

WEIGHT = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
TINY: dict[str, dict[str, Any]] = {
    "noise": {},
    "fgsm": {"eot": 1},
    "pgd": {"steps": 2, "eot": 1},
    "square": {"queries": 4, "draws": 2},
}


def worst_of(*names: str, **changed: dict[str, Any]) -> Attack:
    return worst_case_over([resolve_attack(name, parameters=changed.get(name, TINY.get(name))) for name in names])


def by_attack(folder: Path) -> dict[str, RunRecord]:
    return {record.attack: record for record in records.read_all(folder)}


def test_the_worst_case_is_fair_and_the_least_of_the_graded_results_is_not(tmp_path: Path) -> None:
    """Acceptance 1 of the protocol. Each member scores p, and so does the strongest for each image.

    Whoever takes for each image the lowest of the accuracies that the members were graded with keeps their bad luck:
    on 40 draws each of the four is off by sqrt(p (1 - p) / 40), and the least of four by about as much below p.
    """
    p, images = 0.8, torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(400, dtype=torch.long)
    record = robustbench_lpm.evaluate(Fair(p), worst_of(*TINY), (images, labels), eps=0.1, draws=40, out=tmp_path)
    found = by_attack(tmp_path)
    standard_error = math.sqrt(p * (1 - p) / 16_000)
    for honest in found.values():
        assert abs(honest.robust_accuracy.value - p) < 4 * standard_error
    assert record.outcomes["linf"].min() > 0
    assert min(record.choices.values()) > 40  # the choice is a real one

    naive = np.min([found[name].correct.mean(1) for name in TINY], axis=0).mean()
    print(f"p = {p}: the worst case scores {record.robust_accuracy.value:.3f}, the least of its members {naive:.3f}")
    assert naive < p - 0.5 * math.sqrt(p * (1 - p) / 40)


def test_the_worst_case_has_the_power_of_its_strongest_member(tmp_path: Path) -> None:
    """Acceptance 2 of the protocol: mean Φ((m - eps ||w||_1) / sigma), and noise beside PGD changes not one image."""
    weight, images, labels = linear_data(100)
    eps, sigma = 0.02, 1.0
    reach = eps * float(weight.abs().sum())
    excess = (images * weight).flatten(1).sum(1) - torch.linspace(0, 2 * reach, len(images))
    images = images - (excess / weight.square().sum())[:, None, None, None] * weight
    model = NoisyLinear(weight, sigma=sigma)
    attack = worst_of("noise", "pgd", pgd={"steps": 10, "eot": 2})
    record = robustbench_lpm.evaluate(model, attack, (images, labels), eps=eps, draws=100, out=tmp_path)
    margins = (model.margin(images) - reach) / sigma
    expected = float((0.5 * (1 + torch.erf(margins / math.sqrt(2)))).mean())
    assert 0.2 < expected < 0.8
    assert abs(record.robust_accuracy.value - expected) < 0.01
    assert record.choices == {"pgd": 100}
    assert record.predictions.tolist() == by_attack(tmp_path)["pgd"].predictions.tolist()


def plan_of(attack: Attack, n: int = 12, **options: Any) -> Plan:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = resolve_model(NoisyLinear(WEIGHT, sigma=0.5).eval())
    given: dict[str, Any] = {"eps": 0.05, "draws": 5, "select_draws": 6} | options
    return make_plan(model, attack, data_from_tensors(images, torch.arange(n) % 2), Options(**given))


def in_blocks_of(plan: Plan, chunk: int) -> Plan:
    return dataclasses.replace(plan, chunk=chunk, members=tuple(in_blocks_of(m, chunk) for m in plan.members))


def outcomes(record: RunRecord) -> dict[str, list[Any]]:
    return {name: [np.asarray(value).tolist() for value in column] for name, column in record.outcomes.items()}


def test_the_record_says_what_was_chosen_and_what_it_cost(tmp_path: Path) -> None:
    record = run(plan_of(worst_of(*TINY)), tmp_path)
    members = by_attack(tmp_path)
    assert set(members) == {"worst-case", *TINY}
    assert set(record.outcomes["choice"]) <= set(TINY)
    assert record.choices == {name: list(record.outcomes["choice"]).count(name) for name in record.choices}
    assert sum(record.choices.values()) == len(record.outcomes)
    assert record.configuration["attack"]["members"] == {name: members[name].id for name in TINY}
    spent = {part: sum(members[name].outcomes[part] for name in TINY) for part in ("forwards", "backwards", "glimpses")}
    assert (record.outcomes["forwards"] == spent["forwards"] + len(TINY) * 6).all()  # choosing on 6 selection draws
    assert (record.outcomes["backwards"] == spent["backwards"]).all()
    assert (record.outcomes["glimpses"] == spent["glimpses"]).all()


def test_each_image_is_that_of_the_member_chosen_for_it(tmp_path: Path) -> None:
    record = run(plan_of(worst_of(*TINY)), tmp_path)
    made = {
        name: {picture.index: picture.adversarial for picture in member.pictures()}
        for name, member in by_attack(tmp_path).items()
    }
    for picture, choice in zip(record.pictures(), record.outcomes["choice"], strict=True):
        assert np.array_equal(picture.adversarial, made[choice][picture.index])


def test_the_same_bits_with_and_without_a_folder_and_in_blocks_of_any_size(tmp_path: Path) -> None:
    plan = plan_of(worst_of(*TINY))
    expected = outcomes(run(plan))
    assert outcomes(run(plan, tmp_path)) == expected
    assert outcomes(run(in_blocks_of(plan, 5))) == expected


def test_members_that_lie_there_are_not_run_again(tmp_path: Path) -> None:
    plan = plan_of(worst_of(*TINY))
    run(next(member for member in plan.members if member.attack.name == "pgd"), tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(written) == 1
    run(plan, tmp_path)
    everything = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert len(everything) == 5
    assert written.items() <= everything.items()
    run(plan, tmp_path, again=True)
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert sum(again[path] != stamp for path, stamp in everything.items()) == 1  # the worst case itself


class InterruptAt(Silent):
    """Ctrl-C when a block is finished for the nth time, whoever's block it is."""

    def __init__(self, call: int) -> None:
        self.left = call

    def finished(self, examples: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != records.TIMING)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_interrupted_worst_case_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Three blocks for each of two members and for the worst case: cut in a member, then in the choice."""
    plan = in_blocks_of(plan_of(worst_of("noise", "pgd")), 4)
    run(plan, tmp_path / "straight")
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(plan, broken, InterruptAt(5))
    assert [record.attack for record in records.read_all(broken)] == ["noise"]
    with pytest.raises(KeyboardInterrupt):
        run(plan, broken, InterruptAt(5))  # PGD's three again, two of them read; then two of the worst case
    assert set(by_attack(broken)) == {"noise", "pgd"}
    assert finished_run(plan, broken) is None
    run(plan, broken)
    assert contents(broken) == contents(tmp_path / "straight")
    assert not (broken / PROGRESS).exists()
    assert finished_run(plan, broken) is not None


def test_members_for_glimpsing_models_alone_take_part_where_there_are_glimpses() -> None:
    attack, digits = worst_of("noise", "gaze", gaze={"steps": 1, "eot": 1}), resolve_data("digits")

    def planned(model: str) -> Plan:
        return make_plan(resolve_model(model), attack, digits, Options(eps=0.1, limit=2, draws=2))

    assert planned("cnn").candidates == ("noise",)
    assert planned("ram").candidates == ("noise", "gaze")
    alone = run(planned("cnn"))
    assert alone.choices == {}  # of one candidate nothing is chosen
    assert alone.outcomes["forwards"].sum() == 0
    record = run(planned("ram"))
    assert sum(record.choices.values()) == 2
    assert list(record.configuration["attack"]["members"]) == ["noise", "gaze"]


def test_members_that_cannot_aim_are_left_out_of_an_aimed_worst_case() -> None:
    assert plan_of(worst_of("noise", "pgd"), target=0).candidates == ("pgd",)
    with pytest.raises(LpmbenchError, match="cannot aim"):
        plan_of(worst_of("noise"), target=0)


def test_the_norms_of_a_worst_case_are_those_that_all_members_know() -> None:
    linf_only = dataclasses.replace(resolve_attack("fgsm"), norms=("linf",))
    with pytest.raises(LpmbenchError, match="works in linf"):
        plan_of(worst_case_over([resolve_attack("noise"), linf_only]), norm="l2")


CARD = """
name = "both"
summary = "noise or PGD"
members = ["noise", "pgd"]
knowledge = "white-box"
norms = ["linf", "l2"]
targeted = true
"""


def test_settings_reach_the_members_and_the_command_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.toml").write_text(CARD)
    line = "attack --model cnn --attack ./both.toml --eps 0.1 --limit 3 --threads 1 --set pgd.steps=2"
    assert lpmbench(line.split()) == 0
    found = by_attack(tmp_path / "runs")
    assert set(found) == {"noise", "pgd", "both"}
    assert found["pgd"].configuration["attack"]["parameters"]["steps"] == 2
    assert found["pgd"].outcomes["backwards"].max() <= 2
    assert found["both"].configuration["attack"]["parameters"]["settings"] == {"pgd": {"steps": 2}}
    assert found["both"].command.endswith("--set pgd.steps=2")
    again = shlex.split(found["both"].command.removeprefix("lpmbench "))
    capsys.readouterr()
    assert lpmbench([*again, "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("already run") == 3


def test_every_graded_draw_is_new_to_members_and_choice() -> None:
    """An attack that learns the selection noise by heart gains nothing that the grader would see."""

    def greedy(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        offsets = [oracle.choices().uniform("offset", *images.shape[1:]) for _ in range(8)]
        return oracle.choose([(images + eps * (2 * o - 1)).clamp(0, 1) for o in offsets], labels)

    images = torch.rand(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    attack = worst_case_over([resolve_attack(greedy), resolve_attack("noise")])
    record = robustbench_lpm.evaluate(Fair(0.7), attack, (images, torch.zeros(400)), eps=0.1, draws=20)
    assert record.choices["greedy"] > 300  # it looks far stronger on the noise that it was made for
    assert abs(record.robust_accuracy.value - 0.7) < 4 * (0.7 * 0.3 / 8_000) ** 0.5


def test_members_are_told_apart_by_name() -> None:
    with pytest.raises(LpmbenchError, match="two of them are called 'pgd'"):
        worst_case_over([resolve_attack("pgd"), resolve_attack("pgd", parameters={"steps": 2})])


def test_a_worst_case_of_nothing() -> None:
    with pytest.raises(LpmbenchError, match="No attack of 'worst-case' can attack"):
        robustbench_lpm.evaluate("cnn", worst_case_over([resolve_attack("gaze")]), "digits", eps=0.1, limit=2)
