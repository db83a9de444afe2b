"""Our results in RobustBench's format: one JSON file per dataset, norm and model, for tools that read those.

The keys are RobustBench's, the protocol is ours: `autoattack_acc`, by which their tools sort, holds the mean-draw
accuracy under the strongest attack in our records, and `footnote` says so. Values without a key in their format are
under `lpmbench`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.protocol.ranking import RATES, Row, model_name, split
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import cells
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.tables import model_card
from robustbench_lpm.statistics import MIN_IMAGES_FOR_INTERVAL

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}  # their names of folders
ARXIV = re.compile(r"arXiv[ :]*(\d{4}\.\d{4,5})", re.IGNORECASE)
# "Kiritani and Ono 2020, ...": the authors of a paper, where that is what a source begins with.
NAME = r"[A-Z][\w'’-]+"
AUTHORS = re.compile(rf"({NAME}(?: {NAME})*(?: et al\.| and {NAME}(?: {NAME})*)?) (?:19|20)\d\d\b")


def to_robustbench(records: Sequence[RunRecord], ranked: pd.DataFrame) -> dict[str, str]:
    """The files by their paths, such as "robustbench/digits/Linf/cnn.json".

    RobustBench shows one eps for each dataset and norm. So do these files: the eps with most images and models,
    without averaging. With fewer than 20 images there is no file.
    """
    known = {record.id: record for record in records}
    best: dict[tuple[str, str], list[Row]] = {}
    for part in split(ranked):
        row = part[0]
        if row["mc"] == 1 and row["images"] >= MIN_IMAGES_FOR_INTERVAL:
            key = row["dataset"], row["norm"]
            best[key] = max(best.get(key, part), part, key=_merit)
    found: dict[str, str] = {}
    for row in (row for part in best.values() for row in part if not cells.missing(row["robust_accuracy"])):
        folder = f"robustbench/{_file_name(row['dataset'])}/{NORMS.get(row['norm'], _file_name(row['norm']))}"
        name = _file_name(model_name(row))
        content = json.dumps(_entry(known[row["record"]], row), indent=2, ensure_ascii=False)
        found[f"{folder}/{name}.json"] = f"{content}\n"
    return found


def _merit(part: Sequence[Row]) -> tuple[Any, ...]:
    """Which ranking of a dataset and norm is written: audited, of most images and models, at the smallest eps."""
    audited = any(row["verdict"] for row in part)
    return audited, max(row["images"] for row in part), len(part), -part[0]["eps"]


def _entry(record: RunRecord, row: Row) -> dict[str, Any]:
    """What one file holds. Accuracies are text in per cent with two decimals, as theirs are."""
    model = record.configuration["model"]
    card = model_card(record)
    source, summary = (plain(card.source), plain(card.summary)) if card else ("", "")
    paper, authors = ARXIV.search(source), AUTHORS.match(source)
    robust, verdict = f"{100 * row['robust_accuracy']:.2f}", cells.verdict(row["verdict"])
    footnote = (
        "Not AutoAttack: mean-draw accuracy under the strongest of the attacks of lpmbench "
        f"({row['strongest_attack']}) on {row['images']} images; audit: {verdict}"
    )
    return {
        "link": f"https://arxiv.org/abs/{paper.group(1)}" if paper else "",
        "name": model_name(row),
        "authors": authors.group(1) if authors else "",
        "additional_data": False,
        "number_forward_passes": row["mc"],
        "dataset": row["dataset"],
        "venue": source or "N/A",
        "architecture": plain(model["entry"]).rpartition(":")[2],
        "eps": row["eps_text"],
        "clean_acc": f"{100 * row['clean_accuracy']:.2f}",
        "reported": robust,
        "autoattack_acc": robust,
        "footnote": f"{footnote}; {row['notes']}." if row["notes"] else f"{footnote}.",
        "unreliable": row["verdict"] == "fail",
        "lpmbench": {
            "summary": summary,
            "rank": None if cells.missing(row["rank"]) else int(row["rank"]),
            "notes": row["notes"],
            "verdict": row["verdict"],
            "size": row["size"],
            "images": int(row["images"]),
            "image_set": row["image_set"],
            "stochastic": record.stochastic,
            "strongest_attack": row["strongest_attack"],
            **{name: None if cells.missing(row[name]) else float(row[name]) for name in RATES},
            "record": row["record"],
            "read_from": row["read_from"].split(", "),
            "weights_sha256": model.get("weights_sha256"),
            "command": plain(record.command),
        },
    }


def _file_name(name: str) -> str:
    """A name that is safe in a path; if it had to be changed, a hash keeps it unique."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:80]
    return safe if safe == name else f"{safe or 'unnamed'}-{sha256_of_value(name)[:6]}"
