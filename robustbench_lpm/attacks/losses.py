"""The losses that attacks minimise, per draw and image. Targets, if given, are the classes to be predicted."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.errors import LpmbenchError

Loss = Literal["cross-entropy", "margin", "probability-margin", "dlr"]

RULED_OUT = 100.0  # logits below the lowest of those that are numbers
TINY = 1e-12  # the denominator of a ratio of logits that are all alike


def objective(loss: str, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The attacker's loss (N, B), lower is better for the attack, of logits (N, B, K) and labels (B,).

    "probability-margin" is the margin of probabilities (arXiv 2411.15210).
    Raises ValueError for a loss that does not exist, and LpmbenchError for "dlr" of too few classes.
    """
    logits = finite(logits)
    if loss == "margin":
        return margin(logits, labels) if targets is None else -margin(logits, targets)
    if loss == "probability-margin":  # of several draws those that are decided already count little
        probabilities = logits.softmax(-1)
        return margin(probabilities, labels) if targets is None else -margin(probabilities, targets)
    if loss == "cross-entropy":
        return -cross_entropy(logits, labels) if targets is None else cross_entropy(logits, targets)
    if loss == "dlr":
        return logits_ratio(logits, labels) if targets is None else targeted_logits_ratio(logits, labels, targets)
    raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, not '{loss}'")


def finite(logits: Tensor) -> Tensor:
    """Logits (..., K) in which classes that the model rules out, at -inf, are far below all others instead.

    Differences and means of infinite numbers are NaN; such losses cannot be compared or differentiated.
    """
    known = logits.detach()
    lowest = known.masked_fill(known.isneginf(), torch.inf).amin(-1, keepdim=True)
    return logits.clamp_min(lowest - RULED_OUT)  # whether there are any or not: to ask would wait for the device


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, (N, B): negative exactly where another class wins (Carlini and Wagner 2017)."""
    index = labels.expand(logits.shape[:-1])[..., None]
    others = logits.scatter(-1, index, -torch.inf).amax(-1)
    return _logits_of(logits, labels) - others


def lead(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """z_y - z_other, (N, B), for another class of each image (B,)."""
    return _logits_of(logits, labels) - _logits_of(logits, others)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y, (N, B)."""
    return F.cross_entropy(logits.movedim(-1, 1), labels.expand(logits.shape[:-1]), reduction="none")


def logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """(z_y - max_{j != y} z_j) / (z_1st - z_3rd), (N, B): less the DLR loss of Croce and Hein 2020, equation 6.

    Invariant to shifts and scalings of the logits. Raises LpmbenchError with fewer than 3 classes.
    """
    ranked = _ranked(logits, 3)
    return margin(logits, labels) / (ranked[..., 0] - ranked[..., 2]).clamp_min(TINY)


def targeted_logits_ratio(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), (N, B): less the targeted DLR loss of Croce and Hein 2020, eq. 7.

    Raises LpmbenchError with fewer than 4 classes.
    """
    ranked = _ranked(logits, 4)
    return lead(logits, labels, targets) / (ranked[..., 0] - ranked[..., 2:4].mean(-1)).clamp_min(TINY)


def _ranked(logits: Tensor, needed: int) -> Tensor:
    """The largest logits (N, B, needed), in decreasing order."""
    if logits.shape[-1] < needed:
        aimed = " with a target" if needed == 4 else ""
        raise LpmbenchError(f"The loss 'dlr'{aimed} needs {needed} classes or more; the model has {logits.shape[-1]}.")
    return logits.topk(needed).values


def _logits_of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(-1, classes.expand(logits.shape[:-1])[..., None]).squeeze(-1)


def succeeded(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Whether each draw predicts another class than the label, or the target: (N, B)."""
    predictions = logits.argmax(-1)
    return predictions != labels if targets is None else predictions == targets
