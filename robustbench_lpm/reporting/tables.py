"""From records to tables: one row per run, and a ranking per budget. Plain numbers; formatting happens elsewhere."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.records import RunRecord
from robustbench_lpm.reporting.cells import label
from robustbench_lpm.reporting.escaping import plain
from robustbench_lpm.statistics import Rate

COLUMNS = (
    "rank",  # of the model at this budget, on the run that decides it
    "dataset", "size", "norm", "eps", "eps_text", "mc", "image_set",
    "model", "model_variant",  # variants tell apart what shares a name; empty otherwise
    "attack", "attack_variant", "knowledge", "target", "gradient_mode",
    "stochastic", "draws", "images",
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high",
    "robust_majority", "robust_worst_of_k", "clean_flip_rate", "target_rate",
    "forwards", "backwards", "glimpses",  # means per example
    "seconds", "failed_examples", "notes", "record", "command",
)  # fmt: skip
RATES = (
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high",
)  # fmt: skip
RANKING_COLUMNS = (
    "dataset", "size", "norm", "eps", "eps_text", "mc", "image_set", "images", "rank", "model", "model_variant",
    *RATES, "strongest_attack", "attacks", "image_sets", "notes", "record",
)  # fmt: skip
BUDGET = ["dataset", "size", "norm", "eps", "mc"]
CONTROL = "none"  # the knowledge of an attack that is a control, like random noise
# What decides which images a run attacks, beside the name and the size of the data set.
IMAGE_KEYS = ("split", "data_sha256", "indices", "channels", "crop", "parameters")
NUMBERS = (
    "eps", *RATES, "robust_majority", "robust_worst_of_k", "clean_flip_rate", "target_rate",
    "forwards", "backwards", "glimpses", "seconds",
)  # fmt: skip


def in_order(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Records sorted by what they are, so that the order in which files were found shows nowhere; repeats dropped."""
    unique: dict[tuple[str, str], tuple[tuple[Any, ...], RunRecord]] = {}
    for record in records:
        identity = record.id, sha256_of_value(record.outcomes.to_json())
        key = (*_sort_key(record), *identity, _circumstances(record))
        if identity not in unique or key < unique[identity][0]:
            unique[identity] = key, record
    return [record for _, record in sorted(unique.values(), key=lambda pair: pair[0])]


def _sort_key(record: RunRecord) -> tuple[Any, ...]:
    return record.dataset, record.size, record.norm, record.eps, record.mc, record.model, record.attack


def _circumstances(record: RunRecord) -> str:
    """All that two runs with one id and equal outcomes may still differ in, spelled so that it can be sorted."""
    varying = record.command, record.execution, record.versions, record.failures, record.notes, record.timing
    return json.dumps(varying, sort_keys=True, default=str)


def seconds(record: RunRecord) -> float:
    """How long the run took, NaN when its timing is gone (or unreadable: no hash protects it)."""
    value = record.timing.get("seconds")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def failed_examples(record: RunRecord) -> int:
    """How many of the examples asked for have no outcome."""
    return len(record.configuration["dataset"]["indices"]) - len(record.outcomes)


def image_set(record: RunRecord) -> str:
    """A short name for the images that a run attacked: equal names, equal images."""
    dataset = record.configuration["dataset"]
    return sha256_of_value([dataset["name"], dataset["size"], *(dataset.get(key) for key in IMAGE_KEYS)])[:8]


def table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per record, with the columns of COLUMNS; shares in [0, 1], absent numbers NaN."""
    records = in_order(records)
    models, attacks = _model_variants(records), _attack_variants(records)
    rows = [
        _row(record) | {"model_variant": model, "attack_variant": attack}
        for record, model, attack in zip(records, models, attacks, strict=True)
    ]
    runs = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, "float64"))
    decided = ranking(runs)
    ranks = dict(zip(decided["record"], decided["rank"], strict=True))
    runs["rank"] = pd.array([ranks.get(record, pd.NA) for record in runs["record"]], dtype="Int64")
    return runs


def _row(record: RunRecord) -> dict[str, Any]:
    evaluation, threat = record.configuration["evaluation"], record.configuration["threat"]
    return {
        "dataset": plain(record.dataset),
        "size": plain(record.size),
        "norm": plain(record.norm),
        "eps": record.eps,
        "eps_text": format_eps(record.eps),
        "mc": record.mc,
        "image_set": image_set(record),
        "model": plain(record.model),
        "attack": plain(record.attack),
        "knowledge": plain(record.configuration["attack"]["knowledge"]),
        "target": plain("" if threat.get("target") is None else threat["target"]),
        "gradient_mode": plain(evaluation.get("gradient_mode") or ""),
        "stochastic": record.stochastic,
        "draws": int(evaluation["draws"]) if record.stochastic else 1,
        "images": len(record.outcomes),
        **(_outcomes(record) if len(record.outcomes) else {}),
        "seconds": seconds(record),
        "failed_examples": failed_examples(record),
        "notes": plain("; ".join(record.notes)),
        "record": record.id,
        "command": plain(record.command),
    }


def _outcomes(record: RunRecord) -> dict[str, float | None]:
    """The numbers of a run of which at least one example came through."""
    target_rate = record.target_rate
    return {
        **_rate("clean_accuracy", record.clean_accuracy),
        **_rate("robust_accuracy", record.robust_accuracy),
        "robust_majority": record.robust_majority.value,
        "robust_worst_of_k": record.robust_worst_of_k.value,
        "clean_flip_rate": record.clean_flip_rate,
        "target_rate": target_rate.value if target_rate else None,
        **{cost: float(record.outcomes[cost].mean()) for cost in ("forwards", "backwards", "glimpses")},
    }


def _rate(name: str, rate: Rate) -> dict[str, float | None]:
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def _model_variants(records: Sequence[RunRecord]) -> list[str]:
    """For each record, what tells its model from others of that name: two checkpoints are two models."""
    models = [record.configuration["model"] for record in records]
    identities: dict[str, set[str]] = defaultdict(set)
    weights: dict[str, set[str]] = defaultdict(set)
    for model in models:
        identities[model["name"]].add(sha256_of_value(model))
        weights[model["name"]].add(str(model.get("weights_sha256")))
    variants = []
    for model in models:
        name = model["name"]
        if len(identities[name]) == 1:
            variants.append("")
        elif len(identities[name]) == len(weights[name]) and model.get("weights_sha256"):
            variants.append(f"weights {plain(model['weights_sha256'])[:8]}")
        else:
            variants.append(f"model {sha256_of_value(model)[:8]}")
    return variants


def _attack_variants(records: Sequence[RunRecord]) -> list[str]:
    """For each record, what tells its attack from others of that name at the same budget and images."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        settings[_attack_key(record)].append(_attack_settings(record))
    return [_difference(_attack_settings(record), settings[_attack_key(record)]) for record in records]


def _attack_key(record: RunRecord) -> tuple[Any, ...]:
    return record.dataset, record.size, record.norm, record.eps, record.mc, image_set(record), record.attack


def _attack_settings(record: RunRecord) -> dict[str, Any]:
    attack = record.configuration["attack"]
    settings = {key: value for key, value in attack.items() if key not in ("name", "parameters")}
    return settings | attack["parameters"] | {"target": record.configuration["threat"].get("target")}


def _difference(mine: dict[str, Any], all_of_them: list[dict[str, Any]]) -> str:
    """The settings in which one attack differs from its namesakes, e.g. "steps=10"."""
    keys = sorted({key for other in all_of_them for key in other})
    differing = [key for key in keys if any(other.get(key) != mine.get(key) for other in all_of_them)]
    text = ", ".join(f"{key}={json.dumps(mine[key])}" for key in differing if mine.get(key) is not None)
    if differing and (not text or len(text) > 60):
        text = f"settings {sha256_of_value(mine)[:8]}"
    return plain(text)


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per model and budget, from the rows of `table`: ranked by the lowest robust accuracy (mean-draw) over
    the attacks that are not controls, models compared only on the same images and under the same attacks.

    A model with failed examples, or that met fewer attacks than its neighbours, has no rank; `notes` says why.
    `image_sets` counts the sets of images that were met at this budget; ranks hold within one `image_set`.
    """
    rows: list[dict[str, Any]] = []
    for _, budget in runs.groupby(BUDGET, sort=True):
        sets = sorted(budget.groupby("image_set"), key=lambda item: (-int(item[1]["images"].max()), str(item[0])))
        for _, group in sets:
            rows += [row | {"image_sets": len(sets)} for row in _ranked(group)]
    ranked = pd.DataFrame(rows, columns=list(RANKING_COLUMNS))
    return ranked.astype({"rank": "Int64"} | dict.fromkeys(("eps", *RATES), "float64"))


def _ranked(group: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of one budget and image set, best first, those without a rank last."""
    met = _attack_labels(group[group["knowledge"] != CONTROL])
    rows = [_standing(mine, met) for _, mine in group.groupby(["model", "model_variant"], sort=True)]
    scores = [round(row["robust_accuracy"], 12) for row in rows if row["rank"]]
    for row in rows:
        row["rank"] = 1 + sum(s > round(row["robust_accuracy"], 12) for s in scores) if row["rank"] else None
    return sorted(rows, key=lambda r: (r["rank"] is None, r["rank"] or 0, r["model"], r["model_variant"]))


def _standing(mine: pd.DataFrame, met: set[str]) -> dict[str, Any]:
    """One model's row; `rank` says only whether it may have one."""
    scored = mine[mine["knowledge"] != CONTROL]
    obstacles = _obstacles(scored, met)
    shown = scored if len(scored) else mine
    lowest = shown.sort_values(["robust_accuracy", "attack", "attack_variant", "record"], na_position="last").iloc[0]
    equal = shown[np.isclose(shown["robust_accuracy"], lowest["robust_accuracy"], rtol=0, atol=1e-12)]
    row = {column: lowest[column] for column in RANKING_COLUMNS if column in lowest.index}
    if not len(scored):  # surviving a control says nothing, so nothing is shown for it
        row |= dict.fromkeys(("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"), float("nan"))
    return row | {
        "rank": not obstacles,
        "strongest_attack": ", ".join(sorted(_attack_labels(equal))) if len(scored) else "",
        "attacks": len(_attack_labels(scored)),
        "notes": "; ".join(obstacles),
    }


def _obstacles(scored: pd.DataFrame, met: set[str]) -> list[str]:
    """Why a model cannot be ranked."""
    if not len(scored):
        return ["met no attack, only controls"]
    found = []
    if failed := int(scored["failed_examples"].sum()):
        found.append(f"{failed} example(s) failed")
    elif scored["robust_accuracy"].isna().any():
        found.append("a run without images")
    if absent := met - _attack_labels(scored):
        found.append(f"fewer attacks: did not meet {', '.join(sorted(absent))}")
    return found


def _attack_labels(runs: pd.DataFrame) -> set[str]:
    return {label(name, variant) for name, variant in zip(runs["attack"], runs["attack_variant"], strict=True)}


@dataclass(frozen=True)
class Ranking:
    """The part of a ranking in which models can be compared: one budget, one set of images."""

    dataset: str
    size: str
    norm: str
    eps: float
    eps_text: str
    mc: int
    image_set: str
    several_sets: bool
    rows: list[dict[str, Any]]


def split(ranked: pd.DataFrame) -> list[Ranking]:
    """A ranking cut into the parts in which models can be compared."""
    parts = []
    for key, group in ranked.groupby([*BUDGET, "image_set"], sort=False):
        dataset, size, norm, eps, mc, images = cast("tuple[str, str, str, float, int, str]", key)
        rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in group.to_dict("records")]
        several = rows[0]["image_sets"] > 1
        parts.append(Ranking(dataset, size, norm, eps, rows[0]["eps_text"], mc, images, several, rows))
    return parts
