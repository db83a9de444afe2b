"""Pairs of classifiers on the same images, and pairs of attacks on the same model: what the means alone cannot say.

A classifier is a model at an M. The average of M runs is another classifier than a single run, and was attacked as
such; so the same model at two M is a pair like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import tables, variants
from robustbench_lpm.reporting.cells import label, missing
from robustbench_lpm.reporting.escaping import plain
from robustbench_lpm.reporting.tables import MODEL, Ranking
from robustbench_lpm.statistics import MIN_IMAGES_FOR_INTERVAL, crossed, paired_interval

LOWEST = "lowest over all attacks"
UNEQUAL = "settings differ"
UNEQUAL_NOTE = "The attack ran at unequal settings, which may be part of the difference."


@dataclass(frozen=True)
class Classifier:
    """A model at an M; `notes` say what speaks against its rank."""

    name: str  # "ram, M = 10"
    model: str
    mc: int
    notes: str


@dataclass(frozen=True)
class Pair:
    """Two classifiers, by name, under one attack on the same images; shares in [0, 1]."""

    attack: str
    first: str
    second: str
    first_attack: str  # what each of them met: the attack that left it lowest, or the one attack at settings of its own
    second_attack: str
    note: str  # what makes the pair unequal; empty where nothing does
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
    """All pairs of classifiers at one budget, these by M and in the order of the ranking."""

    budget: str
    classifiers: list[Classifier]
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


Read = tuple[str, ...]  # the record that an accuracy is read from, or one for each half of the draws


class _Outcomes:
    """What became of every image in each run, worked out once."""

    def __init__(self, records: Sequence[RunRecord], runs: pd.DataFrame) -> None:
        self._records = {record.id: record for record in records}
        self._runs = runs
        self._found: dict[Read, tuple[NDArray[np.float64], NDArray[Any]]] = {}

    def record(self, read: Read) -> RunRecord:
        """The record, or the first of them."""
        return self._records[read[0]]

    def strongest(self, reads: Iterable[Read]) -> Read:
        """What is read of all these together."""
        every = {record for read in reads for record in read}
        return tables.strongest(self._runs[self._runs["record"].isin(every)]).records

    def of(self, read: Read) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The share of draws that are right, and the hash of the image, both (images,)."""
        if read not in self._found:
            first, last = self._records[read[0]], self._records[read[-1]]
            one = len(read) == 1
            right = (
                first.correct.mean(axis=1)
                if one
                else crossed(first.correct, first.first_half, last.correct, last.first_half)
            )
            self._found[read] = right, first.outcomes["input_sha256"].to_numpy(str)
        return self._found[read]

    def met_the_same(self, first: Read, second: Read) -> bool:
        """Whether two runs attacked the same images, in the same order."""
        return np.array_equal(self.of(first)[1], self.of(second)[1])


@dataclass(frozen=True)
class _Entry:
    """A classifier and the records that it is compared by."""

    classifier: Classifier
    glimpsing: bool
    attacks: dict[str, Read]  # by name and variant
    lowest: Read | None


@dataclass(frozen=True)
class _Meeting:
    """What a pair is made of, and what it says of the attacks."""

    attack: str
    first: Read
    second: Read
    first_attack: str
    second_attack: str
    note: str = ""


def compare(records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Comparison]:
    """Every pair of classifiers with a number, at every budget: under each attack that both met, and each under its
    lowest.

    Where two of unequal M met an attack of one name, but at no common settings (gradients are averaged over fewer draws
    of what is an average already), they are compared under the settings that each met, and the pair says so.

    runs and ranked are the tables of `tables`, records those that they were made from. Runs with failed examples stand
    aside, for what failed could lie on either side.
    """
    outcomes = _Outcomes(records, runs)
    failed = set(runs.loc[(runs["failed_examples"] > 0) | (runs["images"] == 0), "record"])
    runs = runs.assign(attack_variant=_variants_at_any_m(records, runs))
    labels = dict(zip(runs["record"], map(label, runs["attack"], runs["attack_variant"]), strict=True))
    glimpsing = tables.glimpsing(runs)
    found = []
    for budget, parts in _by_budget(tables.split(ranked)):
        entries = [_entry(runs, part, row, failed, glimpsing) for part in parts for row in part.rows]
        pairs = [
            _pair(a.classifier, b.classifier, met, outcomes)
            for a, b in combinations(entries, 2)
            for met in _meetings(a, b, labels, outcomes)
            if outcomes.met_the_same(met.first, met.second)
        ]
        if pairs:
            found.append(Comparison(budget, [entry.classifier for entry in entries], pairs))
    return found


def _variants_at_any_m(records: Sequence[RunRecord], runs: pd.DataFrame) -> list[str]:
    """What tells apart the attacks in the rows of `runs`, whatever the M that they met; a probe keeps its own."""
    probes = set(runs.loc[runs["probe"], "record"])
    ordinary = [record for record in records if record.id not in probes]
    told = dict(zip((record.id for record in ordinary), variants.of_attacks_at_any_m(ordinary), strict=True))
    return [told.get(record, own) for record, own in zip(runs["record"], runs["attack_variant"], strict=True)]


def _by_budget(parts: Sequence[Ranking]) -> list[tuple[str, list[Ranking]]]:
    """Rankings of the same images under the same threat, which differ in M, with what they share in words."""
    found: dict[tuple[Any, ...], dict[str, list[Ranking]]] = {}
    for part in parts:
        sets = found.setdefault((part.dataset, part.size, part.norm, part.eps), {})
        sets.setdefault(part.image_set, []).append(part)
    return [
        (tables.threat(together[0]) + (f", image set {images}" if len(sets) > 1 else ""), together)
        for sets in found.values()
        for images, together in sets.items()
    ]


def _entry(
    runs: pd.DataFrame, part: Ranking, row: Mapping[str, Any], failed: Set[str], glimpsing: Set[tuple[str, str]]
) -> _Entry:
    model = label(row["model"], row["model_variant"])
    classifier = Classifier(f"{model}, M = {part.mc}", model, part.mc, row["notes"])
    read = tuple(row["read_from"].split(", "))
    counts = not missing(row["robust_accuracy"]) and failed.isdisjoint(read)
    looks = (row["model"], row["model_variant"]) in glimpsing
    return _Entry(classifier, looks, _attacks(runs, part, row), read if counts else None)


def _meetings(a: _Entry, b: _Entry, labels: Mapping[str, str], outcomes: _Outcomes) -> Iterator[_Meeting]:
    """What two classifiers are compared under."""
    for attack in sorted(a.attacks.keys() & b.attacks.keys()):
        yield _Meeting(attack, a.attacks[attack], b.attacks[attack], attack, attack)
    across = a.classifier.mc != b.classifier.mc
    if across:
        yield from _at_unequal_settings(a, b, outcomes)
    if a.lowest and b.lowest:
        # Of one M the notes on the ranks say already who met less.
        unmet = [_unmet(a, b, outcomes), _unmet(b, a, outcomes)] if across else []
        told = [_joined(labels[record] for record in read) for read in (a.lowest, b.lowest)]
        yield _Meeting(LOWEST, a.lowest, b.lowest, told[0], told[1], " ".join(filter(None, unmet)))


def _at_unequal_settings(a: _Entry, b: _Entry, outcomes: _Outcomes) -> Iterator[_Meeting]:
    """The lowest that an attack of one name left of each, where it met them at no common settings."""
    shared = {
        variants.attack_but_for_settings(outcomes.record(a.attacks[name])) for name in a.attacks.keys() & b.attacks
    }
    mine, other = (_by_attack(entry.attacks.values(), outcomes) for entry in (a, b))
    for attack in sorted((mine.keys() & other.keys()) - shared):
        first, second = mine[attack], other[attack]
        name, *_, target = map(plain, attack)
        contrasts = [variants.contrast(*map(outcomes.record, ((one,), (two,)))) for one in first for two in second]
        settings = f"target={target}, {UNEQUAL}" if target else UNEQUAL
        told = [_joined(label(name, text) for text in texts) for texts in zip(*contrasts, strict=True)]
        yield _Meeting(label(name, settings), first, second, told[0], told[1], UNEQUAL_NOTE)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _by_attack(reads: Iterable[Read], outcomes: _Outcomes) -> dict[tuple[str, ...], Read]:
    """Of the runs of each attack, whatever its settings, the strongest."""
    found: dict[tuple[str, ...], list[Read]] = {}
    for read in reads:
        found.setdefault(variants.attack_but_for_settings(outcomes.record(read)), []).append(read)
    return {attack: outcomes.strongest(together) for attack, together in found.items()}


def _unmet(mine: _Entry, other: _Entry, outcomes: _Outcomes) -> str:
    """A sentence on the attacks, by name, that only the other met, where there are any."""
    met = {name for record in mine.attacks.values() for name in _names(outcomes.record(record))}
    absent = set()
    for record in other.attacks.values():
        attack = outcomes.record(record).configuration["attack"]
        asked = attack["knowledge"] != tables.CONTROL and (mine.glimpsing or attack.get("applies_to") != "glimpsing")
        absent |= {plain(attack["name"])} - met if asked else set()
    name = mine.classifier.name
    return f"{name} did not meet {', '.join(sorted(absent))}, so its lowest may lie too high." if absent else ""


def _names(record: RunRecord) -> set[str]:
    """What a run is a run of: its attack and, of a worst case, the attacks that it chose among."""
    attack = record.configuration["attack"]
    return {plain(attack["name"]), *tables.members(attack)}


def agree(records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame) -> list[Agreement]:
    """For every model and budget with at least two attacks, how far they agree, controls included."""
    outcomes = _Outcomes(records, runs)
    found = []
    for part in tables.split(ranked):
        for row in part.rows:
            attacks = _attacks(runs, part, row)
            if len(attacks) > 1:
                fallen = {name: outcomes.of(record)[0] <= 0.5 for name, record in attacks.items()}
                model = label(row["model"], row["model_variant"])
                found.append(_agreement(tables.heading(part), model, fallen))
    return found


def _attacks(runs: pd.DataFrame, part: Ranking, row: Mapping[str, Any]) -> dict[str, Read]:
    """What is read of each attack that a model met at a budget, by its name; of several runs the strongest. No
    probes."""
    budget = part.dataset, part.size, part.norm, part.eps, part.mc, part.image_set
    where = dict(zip((*tables.BUDGET, "image_set"), budget, strict=True)) | {column: row[column] for column in MODEL}
    mine = runs[(runs[list(where)] == list(where.values())).all(axis=1) & ~runs["probe"]]
    mine = mine[(mine["failed_examples"] == 0) & (mine["images"] > 0)]
    names = [label(*pair) for pair in zip(mine["attack"], mine["attack_variant"], strict=True)]
    by_name = mine.groupby(pd.Series(names, index=mine.index, dtype=str))
    return {str(name): tables.strongest(found).records for name, found in by_name}


def _pair(first: Classifier, second: Classifier, met: _Meeting, outcomes: _Outcomes) -> Pair:
    a, b = outcomes.of(met.first)[0], outcomes.of(met.second)[0]
    gap = a - b
    low, high = paired_interval(gap) if len(gap) >= MIN_IMAGES_FOR_INTERVAL else (None, None)
    return Pair(
        met.attack, first.name, second.name, met.first_attack, met.second_attack, met.note,
        len(gap), float(a.mean()), float(b.mean()), float(gap.mean()), low, high,
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
