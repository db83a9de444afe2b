"""Attacks of cleverhans (Papernot et al. 2018) behind our contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.art_adapter import seed_of
from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.norms import Norm
from robustbench_lpm.randomness import isolated_globals


@Declaration(cost=lambda steps, eot: Cost(steps * eot, steps * eot))
def cleverhans_pgd(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 40, step_size: PositiveFloat | None = None, eot: PositiveInt = 1,
) -> Tensor:  # fmt: skip
    """cleverhans' projected gradient descent (cross-entropy, random start); parameters as in `pgd`.

    eot: draws of noise over whose mean probabilities a stochastic classifier's cross-entropy is taken.
    """
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    if eps == 0:
        return images.clone()
    length = min(eps, 2.5 * eps / steps if step_size is None else step_size)  # it refuses steps longer than eps
    with isolated_globals(seed_of(oracle)):
        return projected_gradient_descent(
            oracle.view(eot), images, eps, length, steps, rand_init=True, **_options(norm, labels, targets)
        ).detach()


# Two queries for each of its samples, and one of the iterate.
@Declaration(cost=lambda iterations, pairs: Cost(iterations * (2 * pairs + 1)))
def cleverhans_spsa(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    iterations: PositiveInt = 40, pairs: PositiveInt = 64, delta: PositiveFloat = 0.01,
    learning_rate: PositiveFloat = 0.01,
) -> Tensor:  # fmt: skip
    """cleverhans' SPSA unchanged, for comparison only: it evaluates 2x ± delta and ignores the perturbation so far.

    `pairs` is its `spsa_samples`: twice as many queries a step. It works on one image at a time.
    """
    from cleverhans.torch.attacks.spsa import spsa

    found = []
    for row in range(len(images)):
        alone = oracle.rows(torch.tensor([row], device=images.device))
        part = slice(row, row + 1)
        options = _options(norm, labels[part], targets[part] if targets is not None else None)
        options |= {"learning_rate": learning_rate, "delta": delta, "spsa_samples": pairs}
        with isolated_globals(seed_of(alone)):
            found.append(spsa(alone.view(), images[part], eps, nb_iter=iterations, **options).detach())
    return torch.cat(found)


def _options(norm: Norm, labels: Tensor, targets: Tensor | None) -> dict[str, Any]:
    """The common arguments under cleverhans' names."""
    return {
        "norm": np.inf if norm == "linf" else 2, "clip_min": 0.0, "clip_max": 1.0, "sanity_checks": False,
        "y": labels if targets is None else targets, "targeted": targets is not None,
    }  # fmt: skip
