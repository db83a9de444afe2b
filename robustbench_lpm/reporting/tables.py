"""From records to tables: one row per run, and a ranking per budget. Plain numbers; formatting happens elsewhere."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.records.audits import TOLERANCE, Audit, probes
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import cells, evidence, variants
from robustbench_lpm.reporting.cells import label, missing
from robustbench_lpm.reporting.escaping import plain
from robustbench_lpm.statistics import Rate, rate_of

COLUMNS = (
    "rank",  # of the model at this budget, on the run that decides it
    "dataset", "size", "norm", "eps", "eps_text", "mc", "image_set",
    "model", "model_variant",  # variants tell apart what shares a name; empty otherwise
    "attack", "attack_variant", "knowledge", "target", "gradient_mode",
    "applies_to", "members",  # the models an attack is for; of a worst case what it chooses among, as JSON
    "stochastic", "draws", "images",
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high",
    "robust_first_half", "robust_second_half",  # on either half of the graded draws; both the whole where none is drawn
    "robust_majority", "robust_worst_of_k", "clean_flip_rate", "target_rate",
    "forwards", "backwards", "glimpses",  # means per example
    "chosen",  # what was chosen for how many examples: gradient modes, members of a worst case
    "probe",  # whether the run exists only for the sake of an audit
    "verdict", "failed_checks", "audit",  # of the audit of the run, "" where there is none; and what speaks against it
    "seconds", "failed_examples", "notes", "record", "command",
)  # fmt: skip
RATES = (
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high",
)  # fmt: skip
RANKING_COLUMNS = (
    "dataset", "size", "norm", "eps", "eps_text", "mc", "image_set", "images", "rank", "model", "model_variant",
    *RATES, "strongest_attack", "attacks", "members", "chosen", "probe", "verdict", "audit", "image_sets", "notes",
    "record",  # of the run that decides: the lowest on all draws
    "read_from",  # the record that robust_accuracy is read from; two, for the first and second half, where these differ
    "audited",  # the record whose audit speaks for the model, "" where none does
)  # fmt: skip
BUDGET = ["dataset", "size", "norm", "eps", "mc"]
CONTROL = "none"  # the knowledge of an attack that is a control, like random noise
WORST_CASE = "worst-case"
MODEL = ["model", "model_variant"]
TIE = 1e-12  # accuracies that differ by rounding alone
# Of several runs that leave the same accuracy the one that holds up best decides; what was judged goes first.
VERDICTS = ("pass", "undecided", "fail", "")
NUMBERS = (
    "eps", *RATES, "robust_first_half", "robust_second_half",
    "robust_majority", "robust_worst_of_k", "clean_flip_rate", "target_rate",
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


def table(records: Sequence[RunRecord], audits: Mapping[str, Audit] | None = None) -> pd.DataFrame:
    """One row per record, with the columns of COLUMNS; shares in [0, 1], absent numbers NaN.

    audits: those there are, by the id of the record that they judge.
    """
    records, audits = in_order(records), audits or {}
    found = probes(records, audits)
    models, attacks = variants.of_models(records), variants.of_attacks(records, found)
    rows = [
        _row(record) | _judgement(audits.get(record.id)) | {"model_variant": model, "attack_variant": attack}
        for record, model, attack in zip(records, models, attacks, strict=True)
    ]
    runs = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, "float64"))
    runs["probe"] = [record.id in found for record in records]
    runs = runs.astype({"probe": bool})  # also where there is no run
    decided = ranking(runs)
    ranks = dict(zip(decided["record"], decided["rank"], strict=True))
    runs["rank"] = pd.array([ranks.get(record, pd.NA) for record in runs["record"]], dtype="Int64")
    return runs


def _row(record: RunRecord) -> dict[str, Any]:
    evaluation, threat = record.configuration["evaluation"], record.configuration["threat"]
    attack = record.configuration["attack"]
    return {
        "dataset": plain(record.dataset),
        "size": plain(record.size),
        "norm": plain(record.norm),
        "eps": record.eps,
        "eps_text": format_eps(record.eps),
        "mc": record.mc,
        "image_set": variants.image_set(record),
        "model": plain(record.model),
        "attack": plain(record.attack),
        "knowledge": plain(attack["knowledge"]),
        "target": plain("" if threat.get("target") is None else threat["target"]),
        "gradient_mode": plain(evaluation.get("gradient_mode") or ""),
        "applies_to": plain(attack.get("applies_to", "any")),
        "members": json.dumps(members(attack), ensure_ascii=False) if members(attack) else "",
        "chosen": chosen(record),
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


def members(attack: dict[str, Any]) -> list[str]:
    """The names among which a worst case chooses; empty for any other attack."""
    if attack["name"] != WORST_CASE and not attack.get("members"):
        return []
    return [plain(name) for name in attack.get("members") or attack["parameters"].get("attacks") or []]


def chosen(record: RunRecord) -> str:
    """What was chosen for how many examples, such as "detached 60, reparameterised 4"."""
    return ", ".join(f"{plain(name)} {count}" for name, count in record.choices.items())


def _judgement(audit: Audit | None) -> dict[str, str]:
    """What an audit says of a run, in the columns of the table."""
    failed = evidence.failures(audit) if audit else []
    return {
        "verdict": audit.verdict if audit else "",
        "failed_checks": ", ".join(plain(check.name) for check in failed),
        "audit": "; ".join(evidence.comparison(check) for check in failed),
    }


def _outcomes(record: RunRecord) -> dict[str, float | None]:
    """The numbers of a run of which at least one example came through."""
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


def columns_of(name: str, rate: Rate) -> dict[str, float | None]:
    """A rate in the columns of a table."""
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per model and budget, from the rows of `table`: ranked by robust accuracy (mean-draw) under the strongest
    of the attacks that are not controls (`strongest`), models compared only on the same images and under the same
    attacks.

    A model with failed examples, with a result that its audit speaks against, or that met fewer attacks than its
    neighbours, has no rank, and neither has one that was not audited where others were; `notes` says why.
    `image_sets` counts the sets of images that were met at this budget; ranks hold within one `image_set`.

    Probes of an audit are asked of nobody, and a model (or one with frozen noise) that met only probes at a budget is
    not listed there; but what a probe found beyond the other runs of a model counts against it.
    """
    rows: list[dict[str, Any]] = []
    models = glimpsing(runs)
    for _, budget in runs.groupby(BUDGET, sort=True):
        listed = budget[~budget.groupby(["image_set", *MODEL])["probe"].transform("all")]
        sets = sorted(listed.groupby("image_set"), key=lambda item: (-int(item[1]["images"].max()), str(item[0])))
        for _, group in sets:
            rows += [row | {"image_sets": len(sets)} for row in _ranked(group, models)]
    _tell_of_failures_elsewhere(rows)
    ranked = pd.DataFrame(rows, columns=list(RANKING_COLUMNS))
    return ranked.astype({"rank": "Int64"} | dict.fromkeys(("eps", *RATES), "float64"))


def _tell_of_failures_elsewhere(rows: list[dict[str, Any]]) -> None:
    """Note on a result without an audit, where others at another eps (or on other images) failed theirs: the number is
    held to nothing, and there is reason to doubt it."""
    same = [column for column in BUDGET if column != "eps"] + MODEL
    failed: dict[tuple[Any, ...], dict[str, None]] = defaultdict(dict)
    for row in rows:
        if row["verdict"] == "fail":
            failed[tuple(row[column] for column in same)][row["eps_text"]] = None
    for row in rows:
        where = failed.get(tuple(row[column] for column in same))
        if where and not row["verdict"]:
            row["notes"] = "; ".join(part for part in (row["notes"], f"audit failed at eps {', '.join(where)}") if part)


def glimpsing(runs: pd.DataFrame) -> set[tuple[str, str]]:
    """The models (name, variant) that look through glimpses: any of their runs shows it."""
    seen = runs[(runs["glimpses"] > 0) | (runs["gradient_mode"] != "")]
    return set(zip(*(seen[column] for column in MODEL), strict=True))


def _ranked(group: pd.DataFrame, glimpsing: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of one budget and image set, best first, those without a rank last."""
    scored = group[(group["knowledge"] != CONTROL) & ~group["probe"]]
    rows = []
    for name, mine in group.groupby(MODEL, sort=True):
        expected = scored if name in glimpsing else scored[scored["applies_to"] != "glimpsing"]
        rows.append(_standing(mine, expected))
    if any(row["verdict"] for row in rows):
        for row in rows:
            _withhold_unless_audited(row)
    scores = [round(row["robust_accuracy"], 12) for row in rows if row["rank"]]
    for row in rows:
        row["rank"] = 1 + sum(s > round(row["robust_accuracy"], 12) for s in scores) if row["rank"] else None
    return sorted(rows, key=lambda r: (r["rank"] is None, r["rank"] or 0, r["model"], r["model_variant"]))


def _withhold_unless_audited(row: dict[str, Any]) -> None:
    """Take the rank of a model that nobody audited: beside audited ones, its number is held to less."""
    if row["rank"] and not row["verdict"]:
        row |= {"rank": False, "notes": "not audited, as others here are"}


def _standing(mine: pd.DataFrame, expected: pd.DataFrame) -> dict[str, Any]:
    """One model's row; `rank` says only whether it may have one. expected: all runs whose attacks it should meet."""
    scored = mine[mine["knowledge"] != CONTROL]
    equal = _lowest(scored if len(scored) else mine)
    row = {column: equal.iloc[0][column] for column in RANKING_COLUMNS if column in equal.columns}
    read = strongest(scored if len(scored) else mine)
    row |= columns_of("robust_accuracy", read.accuracy) | {"read_from": ", ".join(read.records)}
    if not len(scored):  # surviving a control says nothing, so nothing is shown for it
        row |= dict.fromkeys(("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"), float("nan"))
        row |= dict.fromkeys(("verdict", "audit", "members", "chosen", "read_from"), "")
    judged = _judged(equal, scored)
    row["audited"] = ""
    if judged is not None:
        row |= {"verdict": judged["verdict"], "audit": judged["audit"], "audited": judged["record"]}
    attacks = _attack_labels(equal) | _attack_labels(scored[scored["record"].isin(read.records)])
    obstacles = _obstacles(scored, expected)
    if judged is not None and judged["verdict"] == "fail":
        obstacles.append(f"audit failed: {judged['failed_checks']}")
    return row | {
        "rank": not obstacles,
        "strongest_attack": "" if missing(row["robust_accuracy"]) else ", ".join(sorted(attacks)),
        "attacks": len(_attack_labels(scored[~scored["probe"]])),
        "notes": "; ".join(obstacles),
    }


@dataclass(frozen=True)
class Reading:
    """How accurate a model is under the strongest of its runs, and the records that this was read from."""

    accuracy: Rate
    records: tuple[str, ...]  # one; or two, read on the first and on the second half of the draws


def strongest(runs: pd.DataFrame) -> Reading:
    """Accuracy under the strongest of the runs of one model, chosen on one half of the graded draws and read on the
    other, both ways round; `runs` are rows of `table`, one at least.

    The lowest accuracy over whole runs would be too low: the more runs, the luckier the lowest is on the draws that it
    is chosen by. Where both halves choose one run, this is that run's own accuracy; so it is where nothing was drawn.
    """
    # Equal runs follow what the draws did not decide, so that no choice knows of the half that it is read on.
    ordered = runs.sort_values(["probe", "attack", "attack_variant", "record"])
    first, second = _first_lowest(ordered, "robust_second_half"), _first_lowest(ordered, "robust_first_half")
    value = float(first["robust_accuracy"])
    if first["record"] == second["record"]:
        lowest = _lowest(runs).iloc[0]  # of equal runs the one that the ranking names
        alike = bool(np.isclose(lowest["robust_accuracy"], value, rtol=0, atol=TIE))
        return Reading(rate_of(value, int(first["images"])), (lowest["record"] if alike else first["record"],))
    weight = (_weight(first) + _weight(second)) / 2
    value = weight * float(first["robust_first_half"]) + (1 - weight) * float(second["robust_second_half"])
    images = min(int(first["images"]), int(second["images"]))
    return Reading(rate_of(value, images), (first["record"], second["record"]))


def _first_lowest(runs: pd.DataFrame, column: str) -> pd.Series[Any]:
    """The first of the rows that are lowest in a column; where no row has a number, the first of all."""
    values = runs[column].to_numpy()
    places = np.flatnonzero(values <= np.nanmin(values) + TIE) if not np.isnan(values).all() else [0]
    return runs.iloc[int(places[0])]


def _weight(run: pd.Series[Any]) -> float:
    """The share of the first half among the graded draws of a run."""
    cells = int(run["images"]) * int(run["draws"])
    return (cells + 1) // 2 / cells


def _lowest(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that leave the lowest accuracy, the one that decides first; probes only where no other run does."""
    ordered = runs.assign(merit=runs["verdict"].map(VERDICTS.index)).sort_values(
        ["probe", "merit", "attack", "attack_variant", "record"]
    )
    lowest = ordered["robust_accuracy"].min()
    equal = ordered[np.isclose(ordered["robust_accuracy"], lowest, rtol=0, atol=TIE)]
    equal = equal if equal["probe"].all() else equal[~equal["probe"]]
    return (equal if len(equal) else ordered).drop(columns="merit")


def _judged(equal: pd.DataFrame, scored: pd.DataFrame) -> pd.Series[Any] | None:
    """The run whose audit speaks for a model: the deciding one, or its worst case, which was compared with the others,
    or, for a probe, the lowest that was audited, or a run of the deciding attack at other settings.

    Without these, any run more than was audited, a few tenths of a point lower by luck, would hide the verdict.
    """
    if not len(scored):
        return None
    if not equal.iloc[0]["verdict"]:
        audited = scored[scored["verdict"] != ""]
        worst = audited[audited["members"] != ""]
        if len(worst):
            equal = _lowest(worst)
        else:
            equal = _lowest(audited if equal.iloc[0]["probe"] else _audited_at_other_settings(equal.iloc[0], scored))
    return equal.iloc[0] if len(equal) and equal.iloc[0]["verdict"] else None


def _audited_at_other_settings(deciding: pd.Series[Any], scored: pd.DataFrame) -> pd.DataFrame:
    """The audited runs of the deciding attack that still speak for it: more work than theirs clears no failure, but an
    audit that found nothing wrong did not see what takes clearly more than it and its probes did."""
    alike = scored[scored["attack"] == deciding["attack"]]
    audited = alike[alike["verdict"] != ""]
    found = alike[alike["probe"] | (alike["verdict"] != "")]["robust_accuracy"].min()
    return audited if deciding["robust_accuracy"] >= found - TOLERANCE else audited[audited["verdict"] == "fail"]


def _obstacles(scored: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """Why a model cannot be ranked, its audit apart."""
    if not len(scored):
        return ["met no attack, only controls"]
    found = []
    if failed := int(scored["failed_examples"].sum()):
        found.append(f"{failed} example(s) failed")
    elif scored["robust_accuracy"].isna().any():
        found.append("a run without images")
    if absent := _absent(scored, expected):
        found.append(f"fewer attacks: did not meet {', '.join(_briefly(absent, expected))}")
    return found


def _briefly(absent: set[str], expected: pd.DataFrame) -> list[str]:
    """Labels of attacks, but an attack that was not met at any of its settings by its name alone."""
    of_attacks = {str(name): _attack_labels(runs) for name, runs in expected.groupby("attack")}
    whole = {name: labels for name, labels in of_attacks.items() if labels <= absent}
    return sorted({*whole, *absent.difference(*whole.values())})


def _absent(scored: pd.DataFrame, expected: pd.DataFrame) -> set[str]:
    """The attacks that a model should have met and did not.

    Where models share a worst case, it and its members are what they are compared under: what one of them met beyond
    (an audit tries an attack at other settings, too) counts against it, and is not asked of the others.
    """
    shared = _shared_worst_cases(expected)
    met = _attack_labels(scored)
    if not shared or not shared <= met:
        return (shared or _attack_labels(expected)) - met
    members = _member_names(expected[expected["members"] != ""])
    return (members & set(expected["attack"])) - set(scored["attack"]) - _member_names(scored)


def _shared_worst_cases(runs: pd.DataFrame) -> set[str]:
    """The worst cases that all models met that met one."""
    worst = runs[runs["members"] != ""]
    labels = [_attack_labels(mine) for _, mine in worst.groupby(MODEL)]
    return set.intersection(*labels) if labels else set()


def _member_names(runs: pd.DataFrame) -> set[str]:
    return {name for members in runs["members"] if members for name in json.loads(members)}


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

    @property
    def audited(self) -> bool:
        """Whether any of its results was audited; where none was, ranks are an order and no more."""
        return any(row["verdict"] for row in self.rows)


def split(ranked: pd.DataFrame) -> list[Ranking]:
    """A ranking cut into the parts in which models can be compared."""
    parts = []
    for key, group in ranked.groupby([*BUDGET, "image_set"], sort=False):
        dataset, size, norm, eps, mc, images = cast("tuple[str, str, str, float, int, str]", key)
        rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in group.to_dict("records")]
        several = rows[0]["image_sets"] > 1
        parts.append(Ranking(dataset, size, norm, eps, rows[0]["eps_text"], mc, images, several, rows))
    return parts


def heading(ranking: Ranking) -> str:
    """What a ranking ranks: data, size, norm, budget, M; the images when others at this budget met others."""
    parts = [threat(ranking), f"M = {ranking.mc}"]
    return ", ".join([*parts, f"image set {ranking.image_set}"] if ranking.several_sets else parts)


def threat(ranking: Ranking) -> str:
    """What the models of a ranking met, whatever their M: data, size, norm, budget."""
    budget = f"{cells.norm(ranking.norm)} eps {ranking.eps_text}"
    return ", ".join([ranking.dataset, cells.size(ranking.size), budget])
