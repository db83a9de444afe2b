"""The table of runs: one row per record, plain numbers, text in one line without control characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.protocol import ranking
from robustbench_lpm.protocol.ranking import RATES, Row, columns_of
from robustbench_lpm.records.audits import Audit, probes
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import AttackCard, Card, Kind, ModelCard
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain

CardT = TypeVar("CardT", bound=Card)
COLUMNS = (
    "rank",  # of the model at this budget, on the run that decides it
    "dataset", "size", "norm", "eps", "eps_text", "mc", "image_set",
    "images_text",  # the set of images in words; unique within a dataset and size
    "model", "model_variant",  # variants distinguish runs of the same name; empty otherwise
    "attack", "attack_variant", "knowledge", "target", "gradient_mode",
    "applies_to", "members",  # the models an attack is for; the members of a worst case, as JSON
    "stochastic", "draws", "images",
    *RATES,
    "ranked_accuracy",  # of the model in the ranking, on the run that decides it, with or without a rank; else empty
    "robust_first_half", "robust_second_half",  # of the graded draws; both on all draws if the model has no noise
    "robust_majority", "robust_worst_of_k", "clean_flip_rate", "target_rate",
    "forwards", "backwards", "glimpses",  # means per example
    "chosen",  # gradient modes or members of a worst case, with the number of examples
    "probe",  # whether the run exists only for an audit
    "verdict", "failed_checks", "audit",  # of the audit of the run; "" if there is none
    "seconds", "failed_examples", "notes", "record", "command",
)  # fmt: skip
NUMBERS = (
    "eps", *RATES, "ranked_accuracy", "robust_first_half", "robust_second_half",
    "robust_majority", "robust_worst_of_k", "clean_flip_rate", "target_rate",
    "forwards", "backwards", "glimpses", "seconds",
)  # fmt: skip


def in_order(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Records sorted by their content, so that the order of files does not matter; repeats dropped."""
    unique: dict[tuple[str, str], tuple[tuple[Any, ...], RunRecord]] = {}
    for record in records:
        identity = record.id, sha256_of_value(record.outcomes.to_json())
        what = record.dataset, record.size, record.threat, record.eps, record.mc, record.model, record.attack
        # The only fields in which two runs with one id and equal outcomes may differ.
        varying = record.command, record.execution, record.versions, record.failures, record.notes, record.timing
        key = (*what, *identity, json.dumps(varying, sort_keys=True, default=str))
        if identity not in unique or key < unique[identity][0]:
            unique[identity] = key, record
    return [record for _, record in sorted(unique.values(), key=lambda pair: pair[0])]


def table(records: Sequence[RunRecord], audits: Mapping[str, Audit] | None = None) -> pd.DataFrame:
    """One row per record, with the columns of COLUMNS; shares in [0, 1], absent numbers NaN.

    audits: by the id of the record that they judge.
    """
    records, audits = in_order(records), audits or {}
    found = probes(records, audits)
    models, attacks = ranking.model_variants(records), ranking.attack_variants(records, found)
    images = ranking.image_set_names(records)
    rows = [
        _row(record)
        | _judgement(audits.get(record.id))
        | {
            "model_variant": plain(model),
            "attack_variant": plain(attack),
            "images_text": text,
            "probe": record.id in found,
        }
        for record, model, attack, text in zip(records, models, attacks, images, strict=True)
    ]
    types: dict[str, Any] = dict.fromkeys(NUMBERS, "float64") | {"probe": bool}
    runs = pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)
    decided = ranking.ranking(runs)
    ranks = dict(zip(decided["record"], decided["rank"], strict=True))
    ranked = dict(zip(decided["record"], decided["robust_accuracy"], strict=True))
    runs["ranked_accuracy"] = runs["record"].map(ranked).astype("float64")
    runs["rank"] = pd.array([ranks.get(record, pd.NA) for record in runs["record"]], dtype="Int64")
    return runs


def _row(record: RunRecord) -> Row:
    evaluation, threat = record.configuration["evaluation"], record.configuration["threat"]
    attack = record.configuration["attack"]
    members = [plain(name) for name in ranking.members(attack)]
    seconds: Any = record.timing.get("seconds")  # no hash protects it
    timed = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return {
        "dataset": plain(record.dataset),
        "size": plain(record.size),
        "norm": plain(record.threat),
        "eps": record.eps,
        "eps_text": cells.eps(record.eps, record.threat),
        "mc": record.mc,
        "image_set": ranking.image_set(record),
        "model": plain(record.model),
        "attack": plain(record.attack),
        "knowledge": plain(attack["knowledge"]),
        "target": plain("" if threat.get("target") is None else threat["target"]),
        "gradient_mode": plain(evaluation.get("gradient_mode") or ""),
        "applies_to": plain(attack.get("applies_to", "any")),
        "members": json.dumps(members, ensure_ascii=False) if members else "",
        "chosen": ", ".join(f"{plain(name)} {count}" for name, count in record.choices.items()),
        "stochastic": record.stochastic,
        "draws": int(evaluation["draws"]) if record.stochastic else 1,
        "images": len(record.outcomes),
        **(_outcomes(record) if len(record.outcomes) else {}),
        "seconds": float(seconds) if timed else float("nan"),
        "failed_examples": len(record.configuration["dataset"]["indices"]) - len(record.outcomes),
        "notes": plain("; ".join(record.notes)),
        "record": record.id,
        "command": plain(record.command),
    }


def _judgement(audit: Audit | None) -> dict[str, str]:
    """The columns about the audit of a run."""
    failed = [check for check in audit.checks if check.verdict == "fail" and check.decides] if audit else []
    return {
        "verdict": audit.verdict if audit else "",
        "failed_checks": ", ".join(plain(check.name) for check in failed),
        "audit": "; ".join(map(cells.evidence_line, failed)),
    }


def _outcomes(record: RunRecord) -> dict[str, float | None]:
    """The numbers of a run that has at least one outcome."""
    target_rate = record.target_rate
    first, second = record.robust_halves
    return {
        **columns_of("clean_accuracy", record.clean_accuracy),
        **columns_of("robust_accuracy", record.robust_accuracy),
        "robust_first_half": first,
        "robust_second_half": second,
        "robust_majority": record.robust_majority.value,
        "robust_worst_of_k": record.robust_worst_of_k.value,
        "clean_flip_rate": record.clean_flip_rate,
        "target_rate": target_rate.value if target_rate else None,
        **{cost: float(record.outcomes[cost].mean()) for cost in ("forwards", "backwards", "glimpses")},
    }


def model_card(record: RunRecord) -> ModelCard | None:
    """The registered card of a record's model; None where the card of that name is another model's, or checkpoint's."""
    model, card = record.configuration["model"], _card(cards.model, "model", record.model)
    if card is None or (card.entry, card.parameters) != (model["entry"], model.get("parameters", {})):
        return None
    expected = card.weights.sha256 if card.weights else None  # None: the user provides the weights
    return card if expected in (None, model.get("weights_sha256")) else None


def attack_card(record: RunRecord) -> AttackCard | None:
    """The registered card of a record's attack, None where that of its name is another one; its settings may differ."""
    attack, card = record.configuration["attack"], _card(cards.attack, "attack", record.attack)
    if card is None:
        return None
    both_worst_cases = bool(card.members) and "members" in attack
    return card if card.entry == attack["entry"] or both_worst_cases else None


def _card(read: Callable[[str], CardT], kind: Kind, name: str) -> CardT | None:
    """A registered card; None where there is none of this name, or it cannot be read."""
    try:
        return read(name) if name in cards.names(kind) else None
    except LpmbenchError:
        return None
