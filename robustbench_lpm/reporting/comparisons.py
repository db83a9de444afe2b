"""Comparisons image by image: of two classifiers on the same images, and of two attacks on the same model.

A classifier is a model at an M. The average of M runs is another classifier than a single run, and was attacked as
such; so the same model at two M is a pair like any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_lpm.protocol import ranking
from robustbench_lpm.protocol.ranking import BUDGET, CONTROL, MODEL, Row, as_rows, attack_name, label, model_name
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.statistics import MIN_IMAGES_FOR_INTERVAL, crossed, paired_interval

LOWEST = "lowest over all attacks"
UNEQUAL = "settings differ"
UNEQUAL_NOTE = "The attack ran at unequal settings, which may be part of the difference."
ABOUT = [*BUDGET, "image_set", *MODEL]  # columns in which the runs of one row of a ranking agree


@dataclass(frozen=True)
class Pair:
    """Two classifiers, by name, under one attack on the same images; shares in [0, 1]."""

    attack: str
    first: str
    second: str
    first_attack: str  # the attack on each: its strongest, or the one attack with its settings
    second_attack: str
    note: str  # differences between the two attacks; empty if there are none
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
    """All pairs of classifiers at one budget, these by M and in the order of the ranking.

    A classifier has a name such as "ram, M = 10", its model and mc, and notes: why it has no rank.
    """

    budget: str
    classifiers: list[dict[str, Any]]
    pairs: list[Pair]

    @property
    def attacks(self) -> list[str]:
        """The attacks under which pairs are compared, the lowest over all of them first."""
        return sorted({pair.attack for pair in self.pairs}, key=lambda attack: (attack != LOWEST, attack))


@dataclass(frozen=True)
class Agreement:
    """How far the attacks on one model at one budget agree on the images that are misclassified.

    An image counts as misclassified if at most half of the draws are right. shares[i][j] is the share of images on
    which attacks i and j agree; misclassified[i] counts the images that attack i gets wrong, alone[i] those that no
    other does.
    """

    budget: str
    model: str
    images: int
    attacks: list[str]
    misclassified: list[int]
    alone: list[int]
    shares: list[list[float]]


Read = tuple[str, ...]  # the record that an accuracy is read from, or one for each half of the draws
# A comparison of a pair: the attack, the records read of each, the attack on each with its settings, and a note.
Meeting = tuple[str, Read, Read, str, str, str]


class _Outcomes:
    """The outcome of every image in each run, computed once."""

    def __init__(self, records: Sequence[RunRecord], runs: Iterable[Row]) -> None:
        self._records = {record.id: record for record in records}
        self._found: dict[Read, tuple[NDArray[np.float64], NDArray[Any]]] = {}
        self.failed = {run["record"] for run in runs if run["failed_examples"] > 0 or run["images"] == 0}
        self.runs = {run["record"]: run for run in runs}
        whole = [run for run in runs if run["record"] not in self.failed and not run["probe"]]
        self._by_row = ranking.grouped(whole, ABOUT)

    def record(self, read: Read) -> RunRecord:
        """The record, or the first of them."""
        return self._records[read[0]]

    def attacks(self, row: Row) -> dict[str, Read]:
        """The runs read for each attack on the model of a row of the ranking, by its name; of several runs the
        strongest. No probes."""
        by_name: dict[str, list[Row]] = defaultdict(list)
        for run in self._by_row.get(tuple(row[column] for column in ABOUT), []):
            by_name[attack_name(run)].append(run)
        return {name: ranking.strongest(runs)[1] for name, runs in sorted(by_name.items())}

    def by_attack(self, reads: Iterable[Read]) -> dict[tuple[str, ...], Read]:
        """Of the runs of each attack, whatever its settings, the strongest."""
        found: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
        for read in reads:
            found[ranking.attack_but_for_settings(self.record(read))] |= {name: self.runs[name] for name in read}
        return {attack: ranking.strongest(list(runs.values()))[1] for attack, runs in found.items()}

    def of(self, read: Read) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The share of draws that are right, and the hash of the image, both (images,)."""
        if read not in self._found:
            first, last = self._records[read[0]], self._records[read[-1]]
            right = first.correct.mean(axis=1)
            if len(read) > 1:
                right = crossed(first.correct, first.first_half, last.correct, last.first_half)
            self._found[read] = right, first.outcomes["input_sha256"].to_numpy(str)
        return self._found[read]


class _Entry(NamedTuple):
    """A classifier and the records that it is compared by."""

    classifier: dict[str, Any]
    glimpsing: bool
    attacks: dict[str, Read]  # by name and variant
    lowest: Read | None


def compare(records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Comparison]:
    """Every pair of classifiers, at every budget: under each attack on both, and each under its strongest.

    Two classifiers of unequal M may have an attack of one name at different settings only (for an average, gradients
    take fewer draws). They are compared at their own settings, and the pair says so.

    runs and ranked are the table of runs and the ranking, records those that they were made from. Runs with failed
    examples are left out, because the failed ones could be right or wrong.
    """
    outcomes = _Outcomes(records, _named_at_any_mc(records, as_rows(runs)))
    glimpsing = ranking.glimpsing(as_rows(runs))
    found = []
    for budget, rows in _by_budget(ranking.split(ranked)):
        entries = [_entry(row, outcomes, glimpsing) for row in rows]
        pairs = [
            _pair(a, b, met, outcomes)
            for a, b in combinations(entries, 2)
            for met in _meetings(a, b, outcomes)
            if np.array_equal(outcomes.of(met[1])[1], outcomes.of(met[2])[1])
        ]
        if pairs:
            found.append(Comparison(budget, [entry.classifier for entry in entries], pairs))
    return found


def _named_at_any_mc(records: Sequence[RunRecord], runs: Sequence[Row]) -> list[Row]:
    """The runs, with the names that distinguish their attacks, without M; a probe keeps its own name."""
    probes = {run["record"] for run in runs if run["probe"]}
    ordinary = [record for record in records if record.id not in probes]
    variants = ranking.attack_variants(ordinary, any_mc=True)
    told = {record.id: plain(variant) for record, variant in zip(ordinary, variants, strict=True)}
    return [run | {"attack_variant": told.get(run["record"], run["attack_variant"])} for run in runs]


def _by_budget(parts: Sequence[list[Row]]) -> list[tuple[str, list[Row]]]:
    """The rows of rankings of the same images under the same threat, which differ in M, with what they share in words.

    In the order in which budgets and sets of images come in the ranking.
    """
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for part in parts:
        sets = found.setdefault(tuple(part[0][column] for column in BUDGET if column != "mc"), {})
        sets.setdefault(part[0]["image_set"], []).extend(part)
    return [
        (f"{cells.threat(rows[0])}, {rows[0]['images_text']}", rows)
        for sets in found.values()
        for rows in sets.values()
    ]


def _entry(row: Row, outcomes: _Outcomes, glimpsing: Set[tuple[str, str]]) -> _Entry:
    model = model_name(row)
    classifier = {"name": f"{model}, M = {row['mc']}", "model": model, "mc": row["mc"], "notes": row["notes"]}
    read = tuple(row["read_from"].split(", "))
    counts = not cells.missing(row["robust_accuracy"]) and outcomes.failed.isdisjoint(read)
    looks = (row["model"], row["model_variant"]) in glimpsing
    return _Entry(classifier, looks, outcomes.attacks(row), read if counts else None)


def _meetings(a: _Entry, b: _Entry, outcomes: _Outcomes) -> Iterator[Meeting]:
    """The comparisons of two classifiers."""
    for attack in sorted(a.attacks.keys() & b.attacks.keys()):
        yield attack, a.attacks[attack], b.attacks[attack], attack, attack, ""
    across = a.classifier["mc"] != b.classifier["mc"]
    if across:
        yield from _at_unequal_settings(a, b, outcomes)
    if a.lowest and b.lowest:
        # At one M the notes on the ranks already say which model has fewer attacks.
        unmet = [_unmet(a, b, outcomes), _unmet(b, a, outcomes)] if across else []
        told = [_joined(attack_name(outcomes.runs[record]) for record in read) for read in (a.lowest, b.lowest)]
        yield LOWEST, a.lowest, b.lowest, told[0], told[1], " ".join(filter(None, unmet))


def _at_unequal_settings(a: _Entry, b: _Entry, outcomes: _Outcomes) -> Iterator[Meeting]:
    """The lowest accuracies under an attack of one name, if the two have no settings of it in common."""
    common = (outcomes.record(a.attacks[name]) for name in a.attacks.keys() & b.attacks)
    shared = set(map(ranking.attack_but_for_settings, common))
    mine, other = (outcomes.by_attack(entry.attacks.values()) for entry in (a, b))
    for attack in sorted((mine.keys() & other.keys()) - shared):
        first, second = mine[attack], other[attack]
        name, *_, target = map(plain, attack)
        contrasts = [
            ranking.contrast(outcomes.record((one,)), outcomes.record((two,))) for one in first for two in second
        ]
        settings = f"target={target}, {UNEQUAL}" if target else UNEQUAL
        told = [_joined(label(name, plain(text)) for text in texts) for texts in zip(*contrasts, strict=True)]
        yield label(name, settings), first, second, told[0], told[1], UNEQUAL_NOTE


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _unmet(mine: _Entry, other: _Entry, outcomes: _Outcomes) -> str:
    """A sentence on the attacks, by name, that were run on the other model only, if there are any."""
    met: set[str] = set()  # attacks and, of a worst case, those that it chose among
    for read in mine.attacks.values():
        attack = outcomes.record(read).configuration["attack"]
        met |= {plain(name) for name in (attack["name"], *ranking.members(attack))}
    absent = set()
    for read in other.attacks.values():
        attack = outcomes.record(read).configuration["attack"]
        if attack["knowledge"] != CONTROL and (mine.glimpsing or attack.get("applies_to") != "glimpsing"):
            absent |= {plain(attack["name"])} - met
    name = mine.classifier["name"]
    return f"{name} was not run under {', '.join(sorted(absent))}, so its lowest may be too high." if absent else ""


def _pair(first: _Entry, second: _Entry, met: Meeting, outcomes: _Outcomes) -> Pair:
    attack, read, other, *told = met
    a, b = outcomes.of(read)[0], outcomes.of(other)[0]
    gap = a - b
    low, high = paired_interval(gap) if len(gap) >= MIN_IMAGES_FOR_INTERVAL else (None, None)
    return Pair(
        attack, first.classifier["name"], second.classifier["name"], told[0], told[1], told[2],
        len(gap), float(a.mean()), float(b.mean()), float(gap.mean()), low, high,
        int((gap > 0).sum()), int((gap < 0).sum()),
    )  # fmt: skip


def agree(records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Agreement]:
    """For every model and budget with at least two attacks, how far they agree, controls included."""
    outcomes, found = _Outcomes(records, as_rows(runs)), []
    for row in (row for part in ranking.split(ranked) for row in part):
        attacks = outcomes.attacks(row)
        if len(attacks) > 1:
            wrong = {name: outcomes.of(read)[0] <= 0.5 for name, read in attacks.items()}
            found.append(_agreement(cells.heading(row), model_name(row), wrong))
    return found


def _agreement(budget: str, model: str, wrong: Mapping[str, NDArray[np.bool_]]) -> Agreement:
    table = np.stack(list(wrong.values()))  # (attacks, images)
    shares = (table[:, None] == table[None]).mean(axis=2)
    alone = (table & (table.sum(axis=0) == 1)).sum(axis=1)
    counts = table.sum(axis=1).tolist(), alone.tolist()
    return Agreement(budget, model, table.shape[1], list(wrong), *counts, shares.tolist())
