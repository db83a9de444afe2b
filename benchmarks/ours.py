"""Our attacks, made as `lpmbench attack` makes them: a plan, its blocks, and an oracle for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustbench_lpm.datasets.examples import Batch, batches_by_shape
from robustbench_lpm.options import Options, Precision
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.registry.tasks import Data, resolve_attack
from robustbench_lpm.registry.zoo import LoadedModel


def plan_for(
    model: LoadedModel,
    attack: str,
    source: Data,
    *,
    eps: float,
    count: int,
    precision: Precision,
    device: str,
    parameters: dict[str, Any],
    gradient_mode: str | None = None,
) -> Plan:
    """The plan of a run over the first images; a glimpsing model needs one gradient mode."""
    chosen = resolve_attack(attack, parameters=parameters)
    options = Options(eps=eps, limit=count, precision=precision, device=device, gradient_mode=gradient_mode)
    return make_plan(model, chosen, source, options)


def batches(plan: Plan) -> list[Batch]:
    """The plan's blocks, read; our data here are all of one shape."""
    return [batch for indices in plan.blocks for batch in batches_by_shape(plan.data.read(indices))]


def oracle_of(plan: Plan, batch: Batch, *, quick: bool = True) -> ClassifierOracle:
    """The oracle that a run gives its attack for one block; without `quick` in full precision."""
    rules = Rules(plan.options.seed, plan.classes, plan.chunk, plan.options.select_draws, plan.noise_control)
    (mode,) = plan.gradient_modes
    return ClassifierOracle(
        plan.classifier,
        batch.images.to(plan.options.device),
        batch.indices,
        rules,
        quick=plan.quick if quick else None,
        gradient_mode=mode,
    )


def run(plan: Plan, blocks: Sequence[Batch]) -> Tensor:
    """Attack all blocks; the adversarial images in order."""
    function = plan.attack.function
    if function is None:
        raise ValueError(f"'{plan.attack.name}' is a worst case over other attacks; measure those")
    found = []
    for batch in blocks:
        images, labels = batch.images.to(plan.options.device), batch.labels.to(plan.options.device)
        oracle = oracle_of(plan, batch)
        found.append(
            function(oracle, images, labels, norm=plan.options.norm, eps=plan.options.eps, **plan.attack.parameters)
        )
    return torch.cat(found)


def passes(plan: Plan, blocks: Sequence[Batch], steps: int, draws: int = 1) -> None:
    """The passes forward and back that so many steps of PGD make on these blocks, and nothing else.

    draws: of a stochastic model's noise at every step; the noise is drawn once.
    """
    (mode,) = plan.gradient_modes
    for batch in blocks:
        images = batch.images.to(plan.options.device)
        together = max(1, plan.chunk // len(images))  # draws that pass at once, as in a run
        parts = [oracle_of(plan, batch).noise(min(together, draws - first)) for first in range(0, draws, together)]
        for noise in parts * steps:
            pixels = images.detach().requires_grad_()
            torch.autograd.grad(plan.classifier(pixels, noise.values, gradient_mode=mode).sum(), pixels)


@torch.no_grad()
def queries(plan: Plan, blocks: Sequence[Batch], count: int) -> None:
    """The forward passes that so many queries of each image make on these blocks, and nothing else."""
    for batch in blocks:
        images = batch.images.to(plan.options.device)
        rows = images.repeat(-(-plan.chunk // len(images)), 1, 1, 1)[: plan.chunk]
        total = count * len(images)
        for first in range(0, total, len(rows)):
            plan.classifier(rows[: total - first])
