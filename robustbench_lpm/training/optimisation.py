"""A recipe's optimiser and schedule for a network's parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

from robustbench_lpm.architectures.classifier import offered
from robustbench_lpm.cards import RecipeCard
from robustbench_lpm.errors import LpmbenchError, unknown


def make_optimiser(network: nn.Module, recipe: RecipeCard) -> Optimizer:
    """The optimiser, with each group at its own rate: recipe.groups where it names one, else the learning rate."""
    grouping = offered(network, "parameter_groups")
    found: dict[str, list[nn.Parameter]] = grouping() if grouping else {"all": list(network.parameters())}
    for name in recipe.groups:
        if name not in found:
            raise unknown(f"parameter group in recipe {recipe.name}", name, found)
    groups: list[dict[str, Any]] = [
        {"name": name, "params": parameters, "lr": recipe.groups.get(name, recipe.learning_rate)}
        for name, parameters in found.items()
    ]
    _check_whole(network, [parameter for parameters in found.values() for parameter in parameters])
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=recipe.weight_decay)


def _check_whole(network: nn.Module, grouped: list[nn.Parameter]) -> None:
    # A parameter that is in no group would silently never train.
    missing = {id(p) for p in network.parameters()} - {id(p) for p in grouped}
    if missing:
        raise LpmbenchError(f"parameter_groups() of {type(network).__name__} leaves out {len(missing)} parameter(s).")


def make_schedule(optimiser: Optimizer, recipe: RecipeCard, steps: int) -> LRScheduler:
    """The schedule over `steps` optimiser steps in all; it moves every group by the same factors."""
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimiser, max_lr=[group["lr"] for group in optimiser.param_groups], total_steps=steps)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimiser, T_max=steps)
    return ConstantLR(optimiser, factor=1.0)


def rates(optimiser: Optimizer) -> dict[str, float]:
    """Columns of the log: the learning rate of now, of each group where there are several."""
    if len(optimiser.param_groups) == 1:
        return {"learning_rate": float(optimiser.param_groups[0]["lr"])}
    return {f"learning_rate_{group['name']}": float(group["lr"]) for group in optimiser.param_groups}
