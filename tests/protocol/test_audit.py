"""The audit on planted cases: what hides its gradients, or breaks its attack, fails; what is honest passes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.api import prepare
from robustbench_lpm.attacks.contract import Oracle
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution import runner
from robustbench_lpm.norms import Norm
from robustbench_lpm.protocol.audit import _verdict, auditable, looks, twice
from robustbench_lpm.protocol.plan import Plan
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.records import audits, runs
from robustbench_lpm.records.audits import Audit
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack
from robustbench_lpm.statistics import paired_interval
from tests.attacks.test_closed_forms import linear_data
from tests.classifiers import NoisyLinear
from tests.planted import Detached, Loud, Quantised, RandomFrontEnd, Remembering, StraightThrough, Tiring

IMAGES = 200
SQUARE = resolve_attack("square", parameters={"queries": 100, "draws": 2})


def audited(model: Any, attack: Any, dataset: Any = "digits", **options: Any) -> Audit:
    given = {"eps": 0.1, "limit": IMAGES, "draws": 10, "black_box": (SQUARE,)} | options
    return robustbench_lpm.audit(model, attack, dataset, **given)


def failed(audit: Audit) -> set[str]:
    return {check.name for check in audit.checks if check.verdict == "fail"}


def cnn() -> nn.Module:
    return zoo.load_model("cnn").classifier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "attack", "parameters", "limit", "caught_by"),
    [
        (lambda: Loud(cnn()), "pgd", {"steps": 10}, 100, "white-box vs black-box"),
        (lambda: Quantised(cnn()), "pgd", {"steps": 10}, 100, "direction"),
        (lambda: Detached(cnn()), "pgd", {"steps": 10}, 100, "direction"),
        (lambda: RandomFrontEnd(cnn()), "pgd", {"steps": 10, "eot": 1}, IMAGES, "twice the draws"),
        (lambda: "cnn", "cleverhans-spsa", {"iterations": 5, "pairs": 8}, 32, "iterated vs one step"),
    ],
    ids=["logits x 1000", "quantising front end", "detached gradients", "no EOT", "cleverhans-spsa"],
)
def test_a_planted_fault_fails(model: Any, attack: str, parameters: dict[str, Any], limit: int, caught_by: str) -> None:
    audit = audited(model(), attack, parameters=parameters, limit=limit)
    assert audit.verdict == "fail"
    assert caught_by in failed(audit)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "eps"), [("cnn", 0.2), ("cnn-at", 0.1)])
def test_honest_networks_pass(model: str, eps: float) -> None:
    """An undefended network that an attack leaves nothing of, and a trained defence that keeps most of its accuracy."""
    audit = audited(model, "apgd-margin", eps=eps, parameters={"steps": 20})
    assert audit.verdict == "pass", [check for check in audit.checks if check.verdict != "pass"]


@pytest.mark.slow
def test_the_noisy_linear_classifier_passes() -> None:
    audit = audit_of_the_noisy_linear_classifier()
    assert audit.verdict == "pass", [check for check in audit.checks if check.verdict != "pass"]
    assert "unbounded" in {check.name for check in audit.checks if check.verdict == "not applicable"}


def audit_of_the_noisy_linear_classifier(**options: Any) -> Audit:
    weight, images, labels = linear_data(400)
    excess = (images * weight).flatten(1).sum(1) - torch.linspace(0, 0.04 * float(weight.abs().sum()), len(images))
    images = images - (excess / weight.square().sum())[:, None, None, None] * weight
    given: dict[str, Any] = {"eps": 0.02, "limit": 400, "draws": 200, "parameters": {"steps": 10, "eot": 2}}
    return audited(NoisyLinear(weight, sigma=1.0), "pgd", (images, labels), **(given | options))


def test_a_worst_case_is_doubled_in_its_gradient_attacks() -> None:
    worst = resolve_attack("worst-case")
    doubled = twice(worst, "steps")
    assert doubled is not None
    before, after = ({m.name: m.parameters for m in attack.members} for attack in (worst, doubled))
    assert after["momentum"]["steps"] == 2 * before["momentum"]["steps"]
    assert after["square"] == before["square"]
    assert twice(resolve_attack("noise"), "steps") is None


class Tiny(nn.Module):
    """A linear classifier of few pixels: an audit of it takes a moment."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, images: Tensor) -> Tensor:
        if self.blind:
            images = images.detach() + 0 * images
        margin = images.flatten(1).sum(1) - 8
        return torch.stack([margin, -margin], dim=1)


def tiny_data(n: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    return images, (images.flatten(1).sum(1) < 8).long()


def test_evidence_and_verdicts(tmp_path: Any) -> None:
    options: dict[str, Any] = {"parameters": {"steps": 5}, "out": tmp_path}
    honest = audited(Tiny(blind=False), "pgd", tiny_data(250), **options)
    blind = audited(Tiny(blind=True), "pgd", tiny_data(250), **options)
    assert honest.verdict == "pass"
    assert {"direction", "white-box vs black-box"} <= failed(blind)
    for check in honest.checks:
        if check.verdict != "not applicable":
            assert check.low is not None
            assert check.high is not None
            assert check.judged is not None
            assert check.reference is not None
            assert check.low <= check.judged - check.reference + 0.01
            assert check.high >= check.judged - check.reference - 0.01
    written = {audit.record: audit for audit in map(audits.read, (tmp_path / "audits").glob("*.json"))}
    assert written[honest.record].verdict == "pass"
    assert written[blind.record].checks == blind.checks


def shy(oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, share: float = 1.0) -> Tensor:
    """Crosses the line with a share of the images, but with none where eps is large."""
    towards = (2.0 * labels - 1)[:, None, None, None] * (-1 if eps < 0.9 else 0)
    return images - eps * towards * (torch.tensor(oracle.indices) < 250 * share)[:, None, None, None]


@pytest.mark.parametrize(("share", "verdict"), [(1.0, "pass"), (0.8, "fail")])
def test_a_result_of_nothing_cannot_be_too_high(share: float, verdict: str) -> None:
    """Without a bound this attack leaves every image; what it made fall within eps has fallen without a bound too."""
    audit = audited(Tiny(blind=False), shy, tiny_data(250), eps=0.4, parameters={"share": share}, limit=250)
    (check,) = [check for check in audit.checks if check.name == "unbounded"]
    assert check.judged == pytest.approx(1 - share)
    assert check.verdict == verdict


@pytest.mark.parametrize("model", [lambda: Remembering(Tiny(False)), lambda: Tiring(Tiny(False), patience=60)])
def test_answers_that_depend_on_what_was_asked_before_fail(model: Any, tmp_path: Any) -> None:
    audit = audited(model(), "pgd", tiny_data(64), parameters={"steps": 20}, eps=0.1, limit=64, out=tmp_path)
    assert "same answers" in failed(audit)
    assert audit.verdict == "fail"
    assert any(not record.steady for record in runs.read_all(tmp_path))


class Turned(nn.Module):
    """A noisy linear margin; its gradient is turned away from the true one by an angle, in a plane with another."""

    def __init__(self, cosine: float) -> None:
        super().__init__()
        weight, aside = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        aside -= weight * (weight * aside).sum() / weight.square().sum()
        aside *= weight.norm() / aside.norm()
        self.weight, self.seen = weight, cosine * weight + (1 - cosine**2) ** 0.5 * aside

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"weight": addresses.normal("weight", 1, 8, 8)}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        change = 2 * noise["weight"]  # a single draw's gradient is mostly noise
        margin = ((self.seen + change) * images).flatten(1).sum(1)
        right = ((self.weight + change) * images).flatten(1).sum(1)
        margin = margin + (right - margin).detach() - 0.5 * self.weight.sum()
        return torch.stack([margin, -margin], dim=1)


@pytest.mark.parametrize(("cosine", "verdict"), [(1.0, "pass"), (0.8, "pass"), (0.1, "fail"), (-1.0, "fail")])
def test_directions_are_those_of_expected_gradients(cosine: float, verdict: str) -> None:
    audit = audited(Turned(cosine), "fgsm", (torch.full((32, 1, 8, 8), 0.5), torch.zeros(32).long()), limit=32)
    (check,) = [check for check in audit.checks if check.name == "direction"]
    assert check.judged == pytest.approx(cosine, abs=0.1)
    assert check.low is not None
    assert check.high is not None
    assert check.low <= cosine - 1 <= check.high
    assert check.verdict == verdict


@pytest.mark.slow
def test_a_straight_through_gradient_fails_nothing() -> None:
    """Rounding to 8 bits changes nothing that an attack of 0.1 would see, and the identity is its best gradient."""
    audit = audited(StraightThrough(cnn(), levels=255), "apgd-margin", eps=0.2, parameters={"steps": 20})
    assert audit.verdict == "pass", [check for check in audit.checks if check.verdict != "pass"]


def test_an_audit_goes_on_until_it_is_decided() -> None:
    """50 images can bound no difference by two points; 100 that are all misclassified can."""
    few: dict[str, Any] = {"parameters": {"steps": 5}, "limit": 50, "eps": 0.3}
    assert audited(Tiny(blind=False), "pgd", tiny_data(800), **few).verdict == "undecided"
    audit = audited(Tiny(blind=False), "pgd", tiny_data(800), until_decided=True, **few)
    assert audit.verdict == "pass", [check for check in audit.checks if check.verdict != "pass"]
    images = {check.name: check.images for check in audit.checks}
    assert images["twice the steps"] >= 96
    assert images["attack vs noise"] == 50  # that was plain at once, and is not asked again
    assert "until_decided=True" in audit.command


def test_a_stronger_attack_is_judged_before_anything_else_is_asked() -> None:
    """20 small steps do what FGSM does, and 40 take much more: all that is asked besides would be asked again."""
    given: dict[str, Any] = {"eps": 0.1, "limit": 200, "parameters": {"steps": 20}}
    plan, asked = auditable(prepare("cnn", "momentum", "digits", **given)), []

    def obtain(run: Plan) -> RunRecord:
        asked.append((run.attack.name, run.attack.parameters.get("steps")))
        return runner.run(run)

    seen = looks(plan, [], obtain, until_decided=True)
    judged, audit = next(seen)
    assert judged.attack.parameters["steps"] == 20
    assert audit.verdict == "fail"
    assert {check.name for check in audit.checks} == {"iterated vs one step", "attack vs noise", "twice the steps"}
    assert set(asked) == {("momentum", 20), ("momentum", 40), ("fgsm", None), ("noise", None)}
    judged, audit = next(seen)
    assert judged.attack.parameters["steps"] == 40


class Lottery(nn.Module):
    """Right by chance: any change of the image, or of the noise, is another coin."""

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"phase": addresses.uniform("phase")}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        margin = (1e4 * images.flatten(1).mean(1) + 2 * torch.pi * noise["phase"]).sin()
        return torch.stack([margin, -margin], dim=1)


def test_where_draws_are_the_chance_more_of_them_are_graded_on_the_same_images() -> None:
    data = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(100).long()
    plan = auditable(prepare(Lottery(), "pgd", data, eps=0.1, limit=50, draws=2, parameters={"steps": 1}))
    (_, first), (second, _) = itertools.islice(looks(plan, [], runner.run, until_decided=True), 2)
    assert first.verdict == "undecided"
    assert second.options.draws == 8
    assert second.indices == plan.indices
    assert second.attack.parameters == plan.attack.parameters


@pytest.mark.slow
def test_where_a_short_attack_gains_from_more_work_the_strong_one_is_judged() -> None:
    """Restarts find a little more each time they are doubled; momentum is compared with all that was asked, and PGD."""
    given: dict[str, Any] = {"eps": 0.1, "limit": 200, "parameters": {"steps": 1}}
    plan = auditable(prepare("cnn", "pgd", "digits", **given))
    (judged, first), (stronger, second) = itertools.islice(looks(plan, [], runner.run, until_decided=True), 2)
    assert (judged.attack.name, stronger.attack.name) == ("pgd", "momentum")
    assert stronger.attack.parameters["steps"] == 200
    assert first.verdict == "fail"
    checks = {check.name: check for check in second.checks}
    assert checks["attack vs first attack"].verdict != "fail"
    assert checks["attack vs first attack"].against == "pgd"
    assert {"attack vs noise", "iterated vs one step", "twice the steps"} <= checks.keys()


def test_few_images_decide_little() -> None:
    audit = audited(Tiny(blind=False), "pgd", tiny_data(40), parameters={"steps": 5})
    assert audit.verdict == "undecided"


def test_no_budget_no_audit() -> None:
    with pytest.raises(LpmbenchError, match="above 0"):
        audited(Tiny(blind=False), "pgd", tiny_data(40), eps=0.0)


def test_paired_interval_against_agresti_and_min() -> None:
    """On zeros and ones it is their formula: (c* - b*) / n* ± z sqrt(b* + c* - (c* - b*)² / n*) / n*, half added."""
    differences = np.array([1.0] * 7 + [-1.0] * 2 + [0.0] * 91)
    low, high = paired_interval(differences)
    b, c, n = 2.5, 7.5, 102
    half = 1.959964 * np.sqrt(b + c - (c - b) ** 2 / n) / n
    assert (low, high) == pytest.approx(((c - b) / n - half, (c - b) / n + half), abs=1e-6)


def test_how_many_equal_pairs_bound_a_difference() -> None:
    assert paired_interval(np.zeros(195))[1] <= 0.01 < paired_interval(np.zeros(190))[1]
    assert paired_interval(np.zeros(96))[1] <= 0.02 < paired_interval(np.zeros(95))[1]


@pytest.mark.parametrize(("changed", "verdict"), [(0, "pass"), (1, "pass"), (2, "undecided"), (8, "fail")])
def test_what_200_images_decide(changed: int, verdict: str) -> None:
    differences = np.zeros(200)
    differences[:changed] = 1
    assert _verdict(*paired_interval(differences)) == verdict
