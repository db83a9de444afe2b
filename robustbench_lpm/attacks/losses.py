"""What attacks minimise, per draw and image. Targets, when given, are classes to reach instead of labels to leave."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["cross-entropy", "margin"]


def objective(loss: str, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The attacker's loss (N, B), lower is better for the attack, of logits (N, B, K) and labels (B,)."""
    if loss == "margin":
        return margin(logits, labels) if targets is None else -margin(logits, targets)
    if loss == "cross-entropy":
        return -cross_entropy(logits, labels) if targets is None else cross_entropy(logits, targets)
    raise ValueError(f"loss must be 'cross-entropy' or 'margin', not '{loss}'")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, (N, B): negative exactly where the label is beaten (Carlini and Wagner 2017)."""
    index = labels.expand(logits.shape[:-1])[..., None]
    others = logits.scatter(-1, index, -torch.inf).amax(-1)
    return logits.gather(-1, index).squeeze(-1) - others


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y, (N, B)."""
    return F.cross_entropy(logits.movedim(-1, 1), labels.expand(logits.shape[:-1]), reduction="none")


def succeeded(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Whether each draw says something else than the label, or says the target: (N, B)."""
    predictions = logits.argmax(-1)
    return predictions != labels if targets is None else predictions == targets
