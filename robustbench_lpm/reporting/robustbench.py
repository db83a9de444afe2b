"""Our results as RobustBench keeps its own: one JSON file per data set, norm and model, for tools that read those.

The keys are theirs, the protocol is not: `autoattack_acc`, by which their tools sort, holds the mean-draw accuracy
under the strongest of the attacks that our records show, and `footnote` says so. What their format has no key for
stands under `lpmbench`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import cells, provenance, tables
from robustbench_lpm.reporting.escaping import plain
from robustbench_lpm.reporting.tables import Ranking
from robustbench_lpm.statistics import MIN_IMAGES_FOR_INTERVAL

NORMS = {"linf": "Linf", "l2": "L2"}  # their names of folders
ARXIV = re.compile(r"arXiv[ :]*(\d{4}\.\d{4,5})", re.IGNORECASE)
# "Kiritani and Ono 2020, ...": the authors of a paper, where that is what a source begins with.
NAME = r"[A-Z][\w'’-]+"
AUTHORS = re.compile(rf"({NAME}(?: {NAME})*(?: et al\.| and {NAME}(?: {NAME})*)?) (?:19|20)\d\d\b")


def to_robustbench(records: Sequence[RunRecord], ranked: pd.DataFrame) -> dict[str, str]:
    """The files by their paths, such as "robustbench/digits/Linf/cnn.json".

    RobustBench shows one eps for each data set and norm; so do these files: that at which most images met most models,
    without averaging. Of fewer than 20 images there is no file.
    """
    known = {record.id: record for record in records}
    found: dict[str, str] = {}
    for part in _budgets(ranked):
        for row in part.rows:
            if cells.missing(row["robust_accuracy"]):
                continue
            name = cells.label(row["model"], row["model_variant"])
            folder = f"robustbench/{_file_name(part.dataset)}/{NORMS.get(part.norm, _file_name(part.norm))}"
            content = _entry(known[row["record"]], part, row)
            found[f"{folder}/{_file_name(name)}.json"] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return found


def _budgets(ranked: pd.DataFrame) -> list[Ranking]:
    """Of each data set and norm the ranking that is written."""
    best: dict[tuple[str, str], Ranking] = {}
    for part in tables.split(ranked):
        if part.mc != 1 or part.rows[0]["images"] < MIN_IMAGES_FOR_INTERVAL:
            continue
        key = part.dataset, part.norm
        if key not in best or _merit(part) > _merit(best[key]):
            best[key] = part
    return list(best.values())


def _merit(part: Ranking) -> tuple[Any, ...]:
    return part.audited, max(row["images"] for row in part.rows), len(part.rows), -part.eps


def _entry(record: RunRecord, part: Ranking, row: Mapping[str, Any]) -> dict[str, Any]:
    """What one file holds. Accuracies are text in per cent with two decimals, as theirs are."""
    model = record.configuration["model"]
    card = provenance.model_card(record)
    source, summary = (plain(card.source), plain(card.summary)) if card else ("", "")
    paper, authors = ARXIV.search(source), AUTHORS.match(source)
    return {
        "link": f"https://arxiv.org/abs/{paper.group(1)}" if paper else "",
        "name": cells.label(row["model"], row["model_variant"]),
        "authors": authors.group(1) if authors else "",
        "additional_data": False,
        "number_forward_passes": part.mc,
        "dataset": part.dataset,
        "venue": source or "N/A",
        "architecture": plain(model["entry"]).rpartition(":")[2],
        "eps": part.eps_text,
        "clean_acc": f"{100 * row['clean_accuracy']:.2f}",
        "reported": f"{100 * row['robust_accuracy']:.2f}",
        "autoattack_acc": f"{100 * row['robust_accuracy']:.2f}",
        "footnote": _footnote(part, row),
        "unreliable": row["verdict"] == "fail",
        "lpmbench": {
            "summary": summary,
            "rank": None if cells.missing(row["rank"]) else int(row["rank"]),
            "notes": row["notes"],
            "verdict": row["verdict"],
            "size": part.size,
            "images": int(row["images"]),
            "image_set": part.image_set,
            "stochastic": record.stochastic,
            "strongest_attack": row["strongest_attack"],
            **{name: None if cells.missing(row[name]) else float(row[name]) for name in tables.RATES},
            "record": row["record"],
            "read_from": row["read_from"].split(", "),
            "weights_sha256": model.get("weights_sha256"),
            "command": plain(record.command),
        },
    }


def _footnote(part: Ranking, row: Mapping[str, Any]) -> str:
    words = [
        "Not AutoAttack: mean-draw accuracy under the strongest of the attacks of lpmbench",
        f"({row['strongest_attack']}) on {row['images']} images; audit: {cells.verdict(row['verdict'])}",
    ]
    return " ".join(words) + ("." if not row["notes"] else f"; {row['notes']}.")


def _file_name(name: str) -> str:
    """A name that is safe in a path; what had to change is told apart by a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:80]
    return safe if safe == name else f"{safe or 'unnamed'}-{sha256_of_value(name)[:6]}"
