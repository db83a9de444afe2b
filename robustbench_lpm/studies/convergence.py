"""Accuracy against the length of an attack, doubled again and again: is there an end to what it takes, and where?

The limit is extrapolated from a power law, accuracy = limit + c · passes^-p with c >= 0, fitted by least squares. The
exponent is at least 1/2, as that of stochastic descent on a noisy gradient (Nemirovski et al. 2009, SIAM Journal on
Optimization 19, section 2), and at most 2: beyond, a curve is flat. The interval is a bootstrap over images, all
lengths of an image together, so that it covers the chance of which images were taken and of the fit; not another law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm import statistics
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.audit import twice
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records.audits import TOLERANCE
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.tasks import Attack, Data
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies.study import Row

EXPONENTS = np.linspace(0.5, 2.0, 16)
FEWEST = 3  # lengths: two parameters go through any two


@dataclass(frozen=True)
class Limit:
    """What an attack of any length is expected to leave, in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float


def doubled(model: LoadedModel, attack: Attack, data: Data, asked: Options, doublings: int) -> list[Plan]:
    """The runs: an attack as given, then with twice its steps, four times, and so on.

    Raises LpmbenchError for an attack without steps.
    """
    found = [make_plan(model, attack, data, asked)]
    for _ in range(doublings):
        longer = twice(attack, "steps")
        if longer is None:
            raise LpmbenchError(f"Attack '{attack.name}' has no steps that could be doubled.")
        attack = longer
        found.append(make_plan(model, attack, data, asked))
    return found


def rows_of(plans: Sequence[Plan], records: Sequence[RunRecord]) -> list[Row]:
    """A row for each length: accuracy, and by how much it is lower than at half the length.

    passes: forward passes of an image, at most. accuracy and gain in [0, 1], each with its 95 % interval; of the gain
    the verdict, whether it is "more" or "less" than one point.
    """
    rows = []
    for plan, before, record in zip(plans, [None, *records[:-1]], records, strict=True):
        rate, cost = record.robust_accuracy, plan.cost()
        row: Row = {
            "model": record.model, "attack": record.attack, "passes": cost.forwards if cost else None,
            "accuracy": rate.value, "accuracy_low": rate.low, "accuracy_high": rate.high,
            "gain": None, "gain_low": None, "gain_high": None, "verdict": "", "images": rate.n,
        }  # fmt: skip
        if before is not None:
            gain = before.correct.mean(axis=1) - record.correct.mean(axis=1)
            low, high = statistics.paired_interval(gain)
            verdict = "more" if low > TOLERANCE else "less" if high <= TOLERANCE else "undecided"
            row |= {"gain": float(gain.mean()), "gain_low": low, "gain_high": high, "verdict": verdict}
        rows.append(row)
    return rows


def flat_from(rows: Sequence[Row]) -> Row | None:
    """The first length from which on no doubling is seen to take more than a point; None where the last one still does.

    By the differences that were measured; `verdict` says which of them are certain.
    """
    found = None
    for row, after in zip(reversed(rows[:-1]), reversed(rows[1:]), strict=True):
        if after["gain"] > TOLERANCE:
            break
        found = row
    return found


def told_end(model: str, rows: Sequence[Row]) -> str:
    """From how many passes on the curve of a model is flat, in a sentence."""
    if first := flat_from(rows):
        return (
            f"{model}: from {first['passes']:,} passes on no doubling lowers it by more than a point on these images."
        )
    return f"{model}: the last doubling still lowers it by more than a point on these images."


def limit_of(records: Sequence[RunRecord]) -> Limit | None:
    """The extrapolated limit; None for fewer than three lengths."""
    if len(records) < FEWEST:
        return None
    per_image = np.stack([record.correct.mean(axis=1) for record in records], axis=1)
    value, low, high = statistics.ratio_interval(per_image, lambda means: extrapolated(means)[0])
    return Limit(value, low, high)


def extrapolated(accuracies: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """The limit, factor and exponent of the power law, (...,) each, for accuracies (..., k) at lengths 1, 2, 4, ...

    accuracy(length) = limit + factor · length^-exponent, of limits in [0, 1] and factors that are not negative.
    """
    lengths = 2.0 ** np.arange(accuracies.shape[-1])
    best = [np.full(accuracies.shape[:-1], np.inf)] + [np.zeros(accuracies.shape[:-1]) for _ in range(3)]
    mean = accuracies.mean(axis=-1)
    for exponent in EXPONENTS:
        law = lengths**-exponent
        spread = law - law.mean()
        factor = np.maximum((accuracies * spread).sum(axis=-1) / (spread**2).sum(), 0.0)
        # Where the line falls below 0, the best one through a limit of 0.
        factor = np.where(mean < factor * law.mean(), (accuracies * law).sum(axis=-1) / (law**2).sum(), factor)
        limit = np.clip(mean - factor * law.mean(), 0.0, 1.0)
        error = ((accuracies - limit[..., None] - factor[..., None] * law) ** 2).sum(axis=-1)
        better = error < best[0]
        for held, new in zip(best, (error, limit, factor, exponent), strict=True):
            np.copyto(held, new, where=better)
    return tuple(best[1:])
