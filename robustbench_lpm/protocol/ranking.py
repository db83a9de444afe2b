"""Variants of models and attacks, the strongest run of a model, and ranks. No torch.

Models are compared at one budget (data, size, norm, eps, M) on the same images and under the same attacks. Two runs
are of the same attack if its name and all its settings agree; a variant says in words where they do not.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from typing import Any

import pandas as pd

from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.records.audits import TOLERANCE
from robustbench_lpm.records.runs import UNSTEADY, RunRecord
from robustbench_lpm.statistics import Rate, rate_of

# What decides which images a run attacks, beside the name and the size of the dataset.
IMAGE_KEYS = ("split", "data_sha256", "indices", "channels", "crop", "parameters")
# Records and checkpoints that an attack used: they differ from model to model, though the attack is the same.
USED = ("members", "surrogates")
STRONGEST = "strongest"  # of all gradient modes, for each image: the default
FROZEN = "frozen"
ALWAYS = "precision"  # named wherever it is not the default, even if all runs agree
LONGEST = 80  # characters of settings; longer ones are named by a hash

CONTROL = "none"  # the knowledge of an attack that is a control, like random noise
WORST_CASE = "worst-case"
BUDGET = ["dataset", "size", "norm", "eps", "mc"]
MODEL = ["model", "model_variant"]
TIE = 1e-12  # accuracies that differ by rounding alone
VERDICTS = ("pass", "undecided", "fail", "")  # of several runs of equal accuracy the first in this order decides
RATES = (
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high",
)  # fmt: skip
COLUMNS = (
    "dataset", "size", "norm", "eps", "eps_text", "mc", "image_set", "images_text", "images", "rank",
    "model", "model_variant",
    *RATES, "strongest_attack", "attacks", "members", "chosen", "probe", "verdict", "audit", "image_sets", "notes",
    "record",  # of the run that decides: the lowest on all draws
    "read_from",  # the record that robust_accuracy is read from; two, for the first and second half, where these differ
    "audited",  # the record whose audit counts for the model, "" where none does
)  # fmt: skip

Row = dict[str, Any]  # of a table, by column


def as_rows(table: pd.DataFrame) -> list[Row]:
    """The rows of a table."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def grouped(rows: Iterable[Row], columns: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by what they have in these columns, sorted by it."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[column] for column in columns)].append(row)
    return dict(sorted(found.items()))


# Variants: which runs ask the same question


def image_set(record: RunRecord) -> str:
    """A short name for the images that a run attacked: equal for equal images."""
    dataset = record.configuration["dataset"]
    return sha256_of_value([dataset["name"], dataset["size"], *(dataset.get(key) for key in IMAGE_KEYS)])[:8]


def image_set_names(records: Sequence[RunRecord]) -> list[str]:
    """For each record its `image_set` in words, such as "first 200 images"; with the set's short name where others of
    that dataset and size would have the same words."""
    sets: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    keys = [(record.dataset, record.size, _images_in_words(record)) for record in records]
    for record, key in zip(records, keys, strict=True):
        sets[key].add(image_set(record))
    return [
        key[-1] + (f" ({image_set(record)})" if len(sets[key]) > 1 else "")
        for record, key in zip(records, keys, strict=True)
    ]


def _images_in_words(record: RunRecord) -> str:
    indices = list(record.configuration["dataset"]["indices"])
    count, first = len(indices), min(indices, default=0)
    if indices != list(range(first, first + count)) or not count:
        return f"{count} images"
    if count == 1:
        return "first image" if first == 0 else f"image {first}"
    return f"first {count} images" if first == 0 else f"images {first} to {first + count - 1}"


def label(name: str, variant: str) -> str:
    """A model or attack with its variant."""
    return f"{name} ({variant})" if variant else name


def model_name(row: Row) -> str:
    """The model of a run, or of a row of the ranking."""
    return label(row["model"], row["model_variant"])


def attack_name(run: Row) -> str:
    """The attack of a run."""
    return label(run["attack"], run["attack_variant"])


def noise_text(record: RunRecord, *, frozen: bool | None = None) -> str:
    """The noise of a run where it is not the default, such as "first_fixation, policy frozen".

    frozen: True for frozen noise only, which makes another model, False for the rest, which makes another attack.
    """
    sources: dict[str, list[str]] = defaultdict(list)
    for source, mode in sorted(map(tuple, record.configuration["evaluation"].get("noise") or [])):
        if frozen in (None, mode == FROZEN):
            sources[str(mode)].append(str(source))
    return "; ".join(f"{', '.join(found)} {mode}" for mode, found in sorted(sources.items()))


def model_variants(records: Sequence[RunRecord]) -> list[str]:
    """For each record, what distinguishes its model from others of that name: its checkpoint, and frozen noise."""
    identities: dict[str, set[str]] = defaultdict(set)
    weights: dict[str, set[str]] = defaultdict(set)
    for model in (record.configuration["model"] for record in records):
        identities[model["name"]].add(sha256_of_value(model))
        weights[model["name"]].add(str(model.get("weights_sha256")))
    found = []
    for record in records:
        model, checkpoint = record.configuration["model"], ""
        if (count := len(identities[model["name"]])) > 1:
            by_weights = count == len(weights[model["name"]]) and model.get("weights_sha256")
            checkpoint = f"weights {by_weights[:8]}" if by_weights else f"model {sha256_of_value(model)[:8]}"
        found.append(", ".join(filter(None, (checkpoint, noise_text(record, frozen=True)))))
    return found


def attack_variants(records: Sequence[RunRecord], probes: Set[str] = frozenset(), *, any_mc: bool = False) -> list[str]:
    """For each record, what distinguishes its attack from others of that name at the same budget, M and images.

    probes: ids of runs that change no other attack's variant. any_mc: runs of every M are distinguished together, so
    that equal names and variants are equal attacks.
    """
    keys = [(r.dataset, r.size, r.threat, r.eps, image_set(r), r.attack, any_mc or r.mc) for r in records]
    modes: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for record, key in zip(records, keys, strict=True):
        if record.id not in probes:
            modes[key, record.model].add(str(record.configuration["evaluation"].get("gradient_mode")))
    # Gradient modes make several attacks only where one model met several: a model without modes, and one that was
    # attacked in a single mode, are under the same attack.
    by_mode = {key for (key, _), found in modes.items() if len(found) > 1}
    settings = [_settings(record, key in by_mode) for record, key in zip(records, keys, strict=True)]
    every: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    ordinary: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for record, key, own in zip(records, keys, settings, strict=True):
        every[key].append(own)
        ordinary[key] += [own] if record.id not in probes else []
    pairs = zip(keys, settings, strict=True)
    return [_difference(own, [*ordinary[key], own] if ordinary[key] else every[key]) for key, own in pairs]


def contrast(first: RunRecord, second: RunRecord) -> tuple[str, str]:
    """The settings in which the attacks of two runs differ, e.g. ("eot=10", "eot=2"); members' as "pgd: eot=10"."""
    both = [_settings(record, by_mode=True) for record in (first, second)]
    return _difference(both[0], both, 3 * LONGEST), _difference(both[1], both, 3 * LONGEST)


def attack_but_for_settings(record: RunRecord) -> tuple[str, ...]:
    """The attack of a run without its settings: name, code, knowledge, target."""
    attack, target = record.configuration["attack"], record.configuration["threat"].get("target")
    return (*(str(attack[key]) for key in ("name", "entry", "knowledge")), "" if target is None else str(target))


def members(attack: Row) -> list[str]:
    """The names of the members of a worst case; empty for any other attack."""
    named = attack.get("members") or (attack["parameters"].get("attacks") if attack["name"] == WORST_CASE else None)
    return [str(name) for name in named or []]


def _settings(record: RunRecord, by_mode: bool) -> Row:
    """All that distinguishes an attack from others of its name."""
    attack, evaluation = record.configuration["attack"], record.configuration["evaluation"]
    mode = evaluation.get("gradient_mode")
    return {
        **{key: value for key, value in attack.items() if key not in ("name", "parameters", *USED)},
        # Absent where it is the default, so that settings which are named by a hash keep their name.
        **({"precision": evaluation["precision"]} if evaluation.get("precision") else {}),
        **attack["parameters"],
        "target": record.configuration["threat"].get("target"),
        "gradient_mode": None if mode == STRONGEST or not by_mode else mode,
        "noise": noise_text(record, frozen=False) or None,
    }


def _flat(settings: Row, outer: str = "") -> Row:
    """Nested tables as one, keys joined by dots."""
    found: Row = {}
    for key, value in settings.items():
        found |= _flat(value, f"{outer}{key}.") if isinstance(value, dict) else {f"{outer}{key}": value}
    return {key.removeprefix("settings."): value for key, value in found.items()}


def _difference(mine: Row, all_of_them: Sequence[Row], longest: int = LONGEST) -> str:
    """The settings in which one attack differs from others of its name, e.g. "steps=10" or "pgd: eot=10, steps=20"."""
    own, others = _flat(mine), [_flat(other) for other in all_of_them]
    differing = [
        key
        for key in {key for other in others for key in other}
        if own.get(key) is not None and (key == ALWAYS or any(other.get(key) != own[key] for other in others))
    ]
    by_member: dict[str, list[str]] = defaultdict(list)
    for member, name, key in sorted((*key.rpartition(".")[::2], key) for key in differing):
        by_member[member].append(_setting(name, own[key]))
    text = "; ".join((f"{member}: " if member else "") + ", ".join(named) for member, named in by_member.items())
    return f"settings {sha256_of_value(mine)[:8]}" if len(text) > longest else text


def _setting(key: str, value: Any) -> str:
    special = {"gradient_mode": "{} gradients", "precision": "{}", "made_on": "made on {}", "noise": "noise: {}"}
    return special[key].format(value) if key in special else f"{key}={json.dumps(value)}"


# The strongest of several runs


def strongest(runs: Sequence[Row]) -> tuple[Rate, tuple[str, ...]]:
    """Accuracy under the strongest of the runs of one model, chosen on one half of the graded draws and read on the
    other, both ways round; and the record that it was read from, or two, on the first and on the second half.

    The lowest accuracy over whole runs would be biased: chosen and read on the same draws, it is lower the more runs
    there are. Where both halves choose one run, or nothing was drawn, this is that run's own accuracy. `runs` are rows
    of the table of runs, one at least.
    """
    # Equal runs are ordered by what does not depend on the draws, so that no choice uses the half that it is read on.
    ordered = sorted(runs, key=lambda run: (run["probe"], *_name(run)))
    first, second = _first_lowest(ordered, "robust_second_half"), _first_lowest(ordered, "robust_first_half")
    value = float(first["robust_accuracy"])
    if first["record"] == second["record"]:
        lowest = _lowest(runs)[0]  # of equal runs the one that the ranking names
        same = abs(lowest["robust_accuracy"] - value) <= TIE
        return rate_of(value, int(first["images"])), (lowest["record"] if same else first["record"],)
    weight = (_weight(first) + _weight(second)) / 2
    value = weight * float(first["robust_first_half"]) + (1 - weight) * float(second["robust_second_half"])
    return rate_of(value, min(int(first["images"]), int(second["images"]))), (first["record"], second["record"])


def _name(run: Row) -> tuple[str, str, str]:
    return run["attack"], run["attack_variant"], run["record"]


def _first_lowest(runs: Sequence[Row], column: str) -> Row:
    """The first of the runs that are lowest in a column, or the first of all where no run has a number."""
    return next((run for run in runs if run[column] <= _minimum(runs, column) + TIE), runs[0])


def _minimum(runs: Iterable[Row], column: str) -> float:
    """The least number in a column, NaN where there is none."""
    return min((run[column] for run in runs if not math.isnan(run[column])), default=math.nan)


def _weight(run: Row) -> float:
    """The share of the first half among the graded draws of a run."""
    graded = int(run["images"]) * int(run["draws"])
    return (graded + 1) // 2 / graded


def _lowest(runs: Sequence[Row]) -> list[Row]:
    """The runs of the lowest accuracy, the deciding one first; probes only where no other run is as low."""
    ordered = sorted(runs, key=lambda run: (run["probe"], VERDICTS.index(run["verdict"]), *_name(run)))
    equal = [run for run in ordered if run["robust_accuracy"] <= _minimum(runs, "robust_accuracy") + TIE]
    return [run for run in equal if not run["probe"]] or equal or ordered


def columns_of(name: str, rate: Rate) -> dict[str, float | None]:
    """A rate in the columns of a table."""
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


# Ranks


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per model and budget, with the columns of COLUMNS, from the table of runs (`reporting.table`): ranked by
    robust accuracy (mean-draw) under the `strongest` of the attacks that are not controls.

    Only a model whose audit passes has a rank, and none with failed examples or with fewer attacks than the others;
    `notes` says why not, and undecided ones stand before the rest. Where nothing is audited there are no ranks: the
    rows are in the order of their accuracy. `image_sets` counts the sets of images at this budget; ranks hold within
    one `image_set`.

    Probes, the runs of an audit, are not required of other models, and a model (or one with frozen noise) that has only
    probes at a budget is not listed there; but a probe that is lower than the other runs of its model counts.
    """
    every, rows = as_rows(runs), []
    looking = glimpsing(every)
    for budget in grouped(every, BUDGET).values():
        sets = [list(grouped(met, MODEL).values()) for met in grouped(budget, ["image_set"]).values()]
        sets = [[mine for mine in models if not all(run["probe"] for run in mine)] for models in sets]
        sets = sorted(filter(None, sets), key=lambda models: -max(run["images"] for mine in models for run in mine))
        for models in sets:
            rows += [row | {"image_sets": len(sets)} for row in _ranked(models, looking)]
    _note_failures_elsewhere(rows)
    ranked = pd.DataFrame(rows, columns=list(COLUMNS))
    return ranked.astype({"rank": "Int64"} | dict.fromkeys(("eps", *RATES), "float64"))


def split(ranked: pd.DataFrame) -> list[list[Row]]:
    """The rows of a ranking in parts of one budget and one set of images each, in which models can be compared."""
    return [as_rows(part) for _, part in ranked.groupby([*BUDGET, "image_set"], sort=False)]


def glimpsing(runs: Sequence[Row]) -> set[tuple[str, str]]:
    """The glimpsing models (name, variant), by any of their runs."""
    return {(run["model"], run["model_variant"]) for run in runs if run["glimpses"] > 0 or run["gradient_mode"]}


def _note_failures_elsewhere(rows: list[Row]) -> None:
    """Note on a result without an audit that others of its model (at another eps or on other images) failed theirs."""
    same = [column for column in BUDGET if column != "eps"] + MODEL
    for group in grouped(rows, same).values():
        failed = ", ".join(dict.fromkeys(row["eps_text"] for row in group if row["verdict"] == "fail"))
        for row in group:
            if failed and not row["verdict"]:
                row["notes"] = "; ".join(filter(None, (row["notes"], f"audit failed at eps {failed}")))


def _ranked(models: Sequence[list[Row]], looking: Set[tuple[str, str]]) -> list[Row]:
    """The rows of one budget and image set from the runs of each model, best first, those without a rank last."""
    scored = [run for mine in models for run in mine if run["knowledge"] != CONTROL and not run["probe"]]
    rows = []
    for mine in models:
        looks = (mine[0]["model"], mine[0]["model_variant"]) in looking
        rows.append(_row_of(mine, [run for run in scored if looks or run["applies_to"] != "glimpsing"]))
    audited = any(row["verdict"] for row in rows)
    for row in rows:
        if row["rank"] and row["verdict"] != "pass":
            why = f"audit {row['verdict']}" if row["verdict"] else "not audited, as others here are"
            row |= {"rank": False, "notes": why if audited else ""}
    scores = [round(row["robust_accuracy"], 12) for row in rows if row["rank"]]
    for row in rows:
        row["rank"] = 1 + sum(s > round(row["robust_accuracy"], 12) for s in scores) if row["rank"] else None
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: those with a rank, then those with nothing against them but that an audit has not decided,
    or that there is none, then the rest, best first."""
    score = -1.0 if math.isnan(row["robust_accuracy"]) else round(row["robust_accuracy"], 12)
    apart = row["notes"] not in ("", "audit undecided")
    return row["rank"] is None, row["rank"] or 0, apart, -score, row["model"], row["model_variant"]


def _row_of(mine: Sequence[Row], expected: Sequence[Row]) -> Row:
    """The row of one model; `rank` says only whether it may have one. expected: all runs of attacks it should meet."""
    scored = [run for run in mine if run["knowledge"] != CONTROL]
    equal = _lowest(scored or mine)
    accuracy, read_from = strongest(scored or mine)
    row = {column: equal[0][column] for column in COLUMNS if column in equal[0]}
    row |= columns_of("robust_accuracy", accuracy) | {"read_from": ", ".join(read_from), "audited": ""}
    if not scored:  # controls do not measure robustness, so no number is shown
        row |= dict.fromkeys(("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"), math.nan)
        row |= dict.fromkeys(("verdict", "audit", "members", "chosen", "read_from"), "")
    obstacles = _obstacles(scored, expected)
    if judged := _judged(equal[0], scored):
        row |= {"verdict": judged["verdict"], "audit": judged["audit"], "audited": judged["record"]}
        if judged["verdict"] == "fail":
            obstacles.append(f"audit failed: {judged['failed_checks']}")
    attacks = _labels(equal) | _labels(run for run in scored if run["record"] in read_from)
    return row | {
        "rank": not obstacles,
        "strongest_attack": "" if math.isnan(row["robust_accuracy"]) else ", ".join(sorted(attacks)),
        "attacks": len(_labels(run for run in scored if not run["probe"])),
        "notes": "; ".join(obstacles),
    }


def _judged(deciding: Row, scored: Sequence[Row]) -> Row | None:
    """The run whose audit counts for a model: the deciding one, or its worst case, or, for a probe, the lowest that was
    audited, or a run of the deciding attack at other settings, or an audited run that is hardly higher.

    Otherwise a run without an audit that is a few tenths of a point lower by chance would hide the verdict.
    """
    if not scored or deciding["verdict"]:
        return deciding if scored else None
    audited = [run for run in scored if run["verdict"]]
    worst = [run for run in audited if run["members"]]
    others = audited if deciding["probe"] else _audited_at_other_settings(deciding, scored)
    near = [run for run in audited if run["robust_accuracy"] <= deciding["robust_accuracy"] + TOLERANCE]
    passed = [run for run in near if run["verdict"] != "fail"]  # one that fails says nothing of another attack
    return next(iter(_lowest(worst or others or passed)), None)


def _audited_at_other_settings(deciding: Row, scored: Sequence[Row]) -> list[Row]:
    """The audited runs of the deciding attack whose verdict still holds: a failure always does, any other only if the
    deciding run is not clearly lower than all runs of those audits."""
    compared = [run for run in scored if run["attack"] == deciding["attack"] and (run["probe"] or run["verdict"])]
    holds = deciding["robust_accuracy"] >= _minimum(compared, "robust_accuracy") - TOLERANCE
    return [run for run in compared if run["verdict"] and (holds or run["verdict"] == "fail")]


def _obstacles(scored: Sequence[Row], expected: Sequence[Row]) -> list[str]:
    """Why a model cannot be ranked, its audit apart."""
    if not scored:
        return ["met no attack, only controls"]
    found = []
    if failed := sum(run["failed_examples"] for run in scored):
        found.append(f"{failed} example(s) failed")
    elif any(UNSTEADY in run["notes"] for run in scored):
        found.append(f"{UNSTEADY[0].lower()}{UNSTEADY[1:]}")
    elif any(math.isnan(run["robust_accuracy"]) for run in scored):
        found.append("a run without images")
    if absent := _absent(scored, expected):
        # An attack that is missing at all of its settings goes by its name alone.
        of_attacks = {name: _labels(runs) for (name,), runs in grouped(expected, ["attack"]).items()}
        whole = {name: labels for name, labels in of_attacks.items() if labels <= absent}
        brief = sorted({*whole, *absent.difference(*whole.values())})
        found.append(f"fewer attacks: not run under {', '.join(brief)}")
    return found


def _absent(scored: Sequence[Row], expected: Sequence[Row]) -> set[str]:
    """The attacks that a model should have met and did not.

    Where all models with a worst case share one, they are compared under it and its members: other attacks on one of
    them count against it and are not required of the others. An attack whose audit has passed, so that twice its work
    changed nothing, is not required at the settings that another model needed.
    """
    worst = [run for run in expected if run["members"]]
    shared = set.intersection(*map(_labels, grouped(worst, MODEL).values())) if worst else set()
    met = _labels(scored)
    if not shared or not shared <= met:
        settled = {run["attack"] for run in scored if run["verdict"] == "pass" and not run["members"]}
        return (shared or _labels(run for run in expected if run["attack"] not in settled)) - met
    asked = _member_names(worst) & {run["attack"] for run in expected}
    return asked - {run["attack"] for run in scored} - _member_names(scored)


def _member_names(runs: Iterable[Row]) -> set[str]:
    return {name for run in runs if run["members"] for name in json.loads(run["members"])}


def _labels(runs: Iterable[Row]) -> set[str]:
    return set(map(attack_name, runs))
