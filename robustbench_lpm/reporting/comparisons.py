"""Pairs of models on the same images, and pairs of attacks on the same model: what the means alone cannot say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_lpm.records import RunRecord
from robustbench_lpm.reporting import tables
from robustbench_lpm.reporting.cells import label, missing
from robustbench_lpm.reporting.tables import MODEL, Ranking
from robustbench_lpm.statistics import MIN_IMAGES_FOR_INTERVAL, paired_interval

LOWEST = "lowest over all attacks"


@dataclass(frozen=True)
class Pair:
    """Two models under one attack on the same images; shares in [0, 1]."""

    attack: str
    first: str
    second: str
    images: int
    first_accuracy: float  # mean-draw
    second_accuracy: float
    difference: float  # first - second
    low: float | None  # its paired 95 % interval; None below 20 images
    high: float | None
    first_better: int  # images on which more of its draws are right than of the other's
    second_better: int


@dataclass(frozen=True)
class Comparison:
    """All pairs of models at one budget; `models` in the order of the ranking, with what speaks against their rank."""

    budget: str
    models: dict[str, str]
    pairs: list[Pair]

    @property
    def attacks(self) -> list[str]:
        """The attacks under which a pair met, the lowest over all of them first."""
        found = {pair.attack for pair in self.pairs}
        return sorted(found, key=lambda attack: (attack != LOWEST, attack))


@dataclass(frozen=True)
class Agreement:
    """How far the attacks on one model at one budget agree on which images fall.

    An image has fallen when at most half of the draws get it right. shares[i][j] is the share of images of which
    attacks i and j say the same; fallen[i] counts those that fell to attack i, alone[i] those that fell to it only.
    """

    budget: str
    model: str
    images: int
    attacks: list[str]
    fallen: list[int]
    alone: list[int]
    shares: list[list[float]]


class _Outcomes:
    """What became of every image in each run, worked out once."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self._records = {record.id: record for record in records}
        self._found: dict[str, tuple[NDArray[np.float64], NDArray[Any]]] = {}

    def of(self, record: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The share of draws that are right, and the hash of the image, both (images,)."""
        if record not in self._found:
            run = self._records[record]
            self._found[record] = run.correct.mean(axis=1), run.outcomes["input_sha256"].to_numpy(str)
        return self._found[record]

    def met_the_same(self, first: str, second: str) -> bool:
        """Whether two runs attacked the same images, in the same order."""
        return np.array_equal(self.of(first)[1], self.of(second)[1])


def compare(records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Comparison]:
    """Every pair of models with a number, at every budget: under each attack that both met, and each under its lowest.

    runs and ranked are the tables of `tables`, records those that they were made from. Runs with failed examples stand
    aside, for what failed could lie on either side.
    """
    outcomes = _Outcomes(records)
    failed = set(runs.loc[(runs["failed_examples"] > 0) | (runs["images"] == 0), "record"])
    found = []
    for part in tables.split(ranked):
        rows = {label(row["model"], row["model_variant"]): row for row in part.rows}
        attacked = {name: _attacks(runs, part, row) for name, row in rows.items()}
        for name, row in rows.items():
            if not missing(row["robust_accuracy"]) and row["record"] not in failed:
                attacked[name][LOWEST] = row["record"]
        pairs = [
            _pair(attack, a, b, outcomes.of(attacked[a][attack])[0], outcomes.of(attacked[b][attack])[0])
            for a, b in combinations(rows, 2)
            for attack in sorted(attacked[a].keys() & attacked[b].keys())
            if outcomes.met_the_same(attacked[a][attack], attacked[b][attack])
        ]
        if pairs:
            found.append(Comparison(tables.heading(part), {n: row["notes"] for n, row in rows.items()}, pairs))
    return found


def agree(records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Agreement]:
    """For every model and budget with at least two attacks, how far they agree, controls included."""
    outcomes = _Outcomes(records)
    found = []
    for part in tables.split(ranked):
        for row in part.rows:
            attacks = _attacks(runs, part, row)
            if len(attacks) > 1:
                fallen = {name: outcomes.of(record)[0] <= 0.5 for name, record in attacks.items()}
                model = label(row["model"], row["model_variant"])
                found.append(_agreement(tables.heading(part), model, fallen))
    return found


def _attacks(runs: pd.DataFrame, part: Ranking, row: Mapping[str, Any]) -> dict[str, str]:
    """The record of each attack that a model met at a budget, by its name; of several the lowest. No probes."""
    budget = part.dataset, part.size, part.norm, part.eps, part.mc, part.image_set
    where = dict(zip((*tables.BUDGET, "image_set"), budget, strict=True)) | {column: row[column] for column in MODEL}
    mine = runs[(runs[list(where)] == list(where.values())).all(axis=1) & ~runs["probe"]]
    mine = mine[(mine["failed_examples"] == 0) & (mine["images"] > 0)]
    ordered = mine.sort_values(["robust_accuracy", "record"], ascending=[False, False])
    names = [label(*pair) for pair in zip(ordered["attack"], ordered["attack_variant"], strict=True)]
    return dict(sorted(dict(zip(names, ordered["record"], strict=True)).items()))


def _pair(attack: str, first: str, second: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> Pair:
    gap = a - b
    low, high = paired_interval(gap) if len(gap) >= MIN_IMAGES_FOR_INTERVAL else (None, None)
    return Pair(
        attack, first, second, len(gap), float(a.mean()), float(b.mean()), float(gap.mean()), low, high,
        int((gap > 0).sum()), int((gap < 0).sum()),
    )  # fmt: skip


def _agreement(budget: str, model: str, fallen: Mapping[str, NDArray[np.bool_]]) -> Agreement:
    table = np.stack(list(fallen.values()))  # (attacks, images)
    shares = (table[:, None] == table[None]).mean(axis=2)
    alone = (table & (table.sum(axis=0) == 1)).sum(axis=1)
    counts = table.sum(axis=1).tolist(), alone.tolist()
    return Agreement(budget, model, table.shape[1], list(fallen), *counts, shares.tolist())


def plainly(found: Sequence[Comparison] | Sequence[Agreement]) -> list[dict[str, Any]]:
    """Comparisons and agreements as what JSON knows."""
    return [asdict(entry) for entry in found]
