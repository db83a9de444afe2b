"""Random noise: the control that every attack must beat."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.norms import Norm, uniform_in_ball


@Declaration(cost=lambda tries: Cost(0, choices=tries))
def noise(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    tries: PositiveInt = 1,
) -> Tensor:  # fmt: skip
    """A point drawn uniformly from the ball around each image; of several tries the strongest, on selection noise."""
    candidates = [uniform_in_ball(images, norm, eps, oracle.choices()) for _ in range(tries)]
    return oracle.choose(candidates, labels, targets)
