"""What an attack announces is what it spends: the passes of every attack, its choices, and a model's single answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.api import prepare
from robustbench_lpm.architectures.recurrent_attention import Trajectory
from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.attacks.pgd import fgsm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.runner import run
from robustbench_lpm.norms import Norm, project
from robustbench_lpm.protocol.audit import twice
from robustbench_lpm.protocol.plan import Plan
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.tasks import resolve_attack, resolve_model
from tests.small import budget, small

IMAGES = 0.3 + 0.4 * torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))
LABELS = torch.zeros(3, dtype=torch.long)
# These spend all that they announce. AutoAttack does not: with fewer than ten classes its targeted stages are fewer.
EXACT = {
    "apgd-ce", "apgd-dlr", "apgd-margin", "art-pgd", "autoattack-rand", "cleverhans-pgd", "cleverhans-spsa", "ddn",
    "fgsm", "fmn", "gaze", "momentum", "noise", "pgd", "pgd-kiritani2020", "rays", "spsa", "spsa-kiritani2020",
    "square", "transfer",
}  # fmt: skip


class Sure(nn.Module):
    """Five classes, the first by far; it glimpses twice, and knows two gradient modes."""

    glimpses, gradient_modes = 2, ("detached", "reparameterised")

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Tensor:
        level = (images.flatten(1) * torch.linspace(-1, 1, images[0].numel())).sum(1)
        return torch.stack([50 + level, *(0.1 * k * level + k for k in range(4))], dim=1)

    def look(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Trajectory:
        means = torch.stack([part.flatten(1).mean(1) for part in images.chunk(2, dim=-1)], dim=1).expand(2, -1, -1)
        logits = self(images, noise).expand(2, -1, -1)
        return Trajectory(logits, means, fixations=means.detach(), baselines=means[..., 0].detach())


class Unsure(Sure):
    """The same with noise on its answers."""

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"level": addresses.normal("level")}

    def forward(
        self, images: Tensor, noise: dict[str, Tensor] | None = None, *, gradient_mode: str = "detached"
    ) -> Tensor:
        assert noise is not None
        return super().forward(images) + noise["level"][:, None] * torch.arange(5)


def planned(model: nn.Module, attack: Any, **options: Any) -> Plan:
    return prepare(model, attack, (IMAGES, LABELS), **({"eps": 0.05, "select_draws": 4} | options))


def announced(plan: Plan) -> Cost:
    costs = [part.cost() for part in (plan, *plan.members)]
    return Cost(sum(c.forwards for c in costs if c), sum(c.backwards for c in costs if c))


@pytest.mark.parametrize("name", cards.names("attack"))
@pytest.mark.parametrize("model", [Sure(), Unsure()], ids=["deterministic", "stochastic"])
def test_every_registered_attack_spends_what_it_announces(name: str, model: nn.Module) -> None:
    """No image is misclassified here, so that none leaves early."""
    attack = small(name, [resolve_model(Sure()), resolve_model(Unsure())])
    plan = planned(model, attack, norm=attack.norms[0])
    if plan.cost() is None and not plan.members:
        pytest.skip("it announces nothing")
    spent = run(plan).outcomes
    if plan.cost() is not None:
        for column, most in (("forwards", announced(plan).forwards), ("backwards", announced(plan).backwards)):
            assert spent[column].max() <= most
            assert name not in EXACT or set(spent[column]) == {most}, column


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_misclassified_images_spend_no_more_than_is_announced(precision: str) -> None:
    for name in ("pgd", "apgd-margin", "spsa"):
        options = {"limit": 4, "eps": 0.1, "parameters": budget(name), "precision": precision}
        plan = prepare("cnn", name, "digits", **options)
        assert (run(plan).outcomes["forwards"] <= announced(plan).forwards).all()


@Declaration(cost=lambda eot: Cost(2 * (2 * eot + 40), 4 * eot))
def ones_own(oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, eot: int = 20) -> Tensor:
    """Three ways of asking, two steps each."""
    found = images
    for _ in range(2):
        gradients, losses, logits = oracle.gradient(
            found, oracle.noise(eot), lambda logits: objective("margin", logits, labels)
        )
        draws = eot if oracle.stochastic else 1
        assert losses.shape == (draws, len(images))
        assert logits.shape == (draws, len(images), oracle.classes)
        current = found.detach().requires_grad_()
        by_hand = objective("margin", oracle(current, oracle.noise(eot)), labels).mean(0)
        (gradients,) = torch.autograd.grad(by_hand.sum(), current)
        pairs = torch.cat([found.expand(eot, *found.shape) + 0.01, found.expand(eot, *found.shape) - 0.01])
        assert oracle.probe(pairs, oracle.noise(eot, paired=True)).shape == (2 * eot, len(images), oracle.classes)
        found = project(found - eps * gradients.sign(), images, norm, eps)
    return found


@pytest.mark.parametrize("parameters", [{}, {"rounds": 3}])
def test_a_declaration_names_the_budget(parameters: dict[str, int]) -> None:
    """Its own names, the defaults of the function, and a deterministic classifier asked once."""

    @Declaration(cost=lambda rounds, votes, stochastic: Cost(rounds * votes, stochastic), steps=("rounds",))
    def named(oracle: Oracle, images: Tensor, labels: Tensor, *, rounds: int = 5, votes: int = 7, **_: Any) -> Tensor:
        return images

    attack = resolve_attack(named, parameters=parameters)
    steps = parameters.get("rounds", 5)
    assert attack.cost(stochastic=True) == Cost(7 * steps, 1)
    assert attack.cost(stochastic=False) == Cost(steps, 0)
    doubled = twice(attack, "steps")
    assert (doubled.parameters if doubled else {}) == {name: 2 * value for name, value in parameters.items()}


def test_an_attack_without_a_declaration_runs_and_announces_nothing() -> None:
    def still(oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float) -> Tensor:
        return images

    plan = planned(Sure(), still, gradient_mode="detached")
    assert plan.cost() is None
    assert run(plan).outcomes["forwards"].sum() == 0


def test_a_cost_asks_for_parameters_that_exist() -> None:
    with pytest.raises(LpmbenchError, match="in the cost of fgsm: 'eto'"):
        Declaration(cost=lambda eto: Cost(eto))(fgsm)


@pytest.mark.parametrize("noise", [(), "frozen"])
@pytest.mark.parametrize("model", [Sure(), Unsure()], ids=["deterministic", "stochastic"])
def test_a_model_without_noise_is_asked_once_by_an_attack_of_ones_own(model: nn.Module, noise: Any) -> None:
    if isinstance(model, Unsure) or not noise:
        plan = planned(model, ones_own, noise=noise, gradient_mode="detached")
        spent, draws = run(plan).outcomes, 20 if plan.stochastic else 1
        assert set(spent["forwards"]) == {2 * (2 * draws + 40)} == {announced(plan).forwards}
        assert set(spent["backwards"]) == {4 * draws} == {announced(plan).backwards}


def test_eot_changes_nothing_for_a_model_without_noise() -> None:
    found = [
        robustbench_lpm.evaluate(Sure(), ones_own, (IMAGES, LABELS), eps=0.05, parameters={"eot": eot})
        for eot in (1, 7)
    ]
    assert found[0].outcomes["l2"].tolist() == found[1].outcomes["l2"].tolist()
