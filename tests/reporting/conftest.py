"""Small records with outcomes that can be counted by hand, written to disk and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustbench_lpm.hashing import sha256_of_image
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.audits import Audit, Check, Verdict
from robustbench_lpm.records.runs import Picture, RunRecord

Make = Callable[..., RunRecord]
EPS = 8 / 255
CLASSES = 10


def make_record(
    model: str = "cnn",
    attack: str = "pgd",
    *,
    robust: float | Sequence[Sequence[bool]] = 0.5,
    clean: float = 0.9,
    images: int = 40,
    draws: int = 1,
    stochastic: bool | None = None,
    select_draws: int = 5,
    eps: float = EPS,
    knowledge: str = "white-box",
    dataset: str = "digits",
    size: str = "original",
    norm: str = "linf",
    mc: int = 1,
    target: int | None = None,
    target_share: float = 0.0,
    failed: int = 0,
    first_index: int = 0,
    stored: int = 0,
    shape: tuple[int, int, int] = (1, 8, 8),
    seed: int = 0,
    weights: str | None = "a" * 64,
    data_sha256: str = "d" * 64,
    parameters: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    timing: dict[str, Any] | None = None,
    glimpses: int = 30,
    gradient_mode: str | None = None,
    noise: Sequence[tuple[str, str]] = (),
    precision: str | None = None,
    choice: Sequence[str] | None = None,
    attack_identity: dict[str, Any] | None = None,
    class_names: dict[int, str] | None = None,
) -> RunRecord:
    """A record whose accuracies are exactly `robust` and `clean`; the label of image i is i mod 10.

    `robust` may also be a table (images, draws) of what was right. The first draws of an image are the right ones.
    """
    indices = list(range(first_index, first_index + images))
    images -= failed  # the last ones
    labels = np.arange(first_index, first_index + images) % CLASSES
    adversarial, clean_images = _pictures(images if stored else 0, stored, shape, eps, norm)
    pictures = [Picture(indices[i], clean_images[i], adversarial[i]) for i in range(min(stored, images))]
    wrong = labels + 1 if target is None else np.full(images, target)
    moved = [p.adversarial.astype(np.float64) - p.clean.astype(np.float64) for p in pictures]
    rows = pd.DataFrame(
        {
            "index": indices[:images],
            "input_sha256": [sha256_of_image(p.clean) for p in pictures] + ["f" * 64] * (images - len(pictures)),
            "label": labels,
            "target": -1 if target is None else target,
            "clean_predictions": list(_predictions(labels, labels + 1, clean, draws)),
            "predictions": list(_predictions(labels, wrong, robust, draws)),
            "linf": [float(np.abs(difference).max()) for difference in moved]
            + [eps if norm == "linf" else 0.0] * (images - len(pictures)),
            "l2": [float(np.linalg.norm(difference.ravel())) for difference in moved]
            + [eps] * (images - len(pictures)),
            "forwards": np.arange(images) + 100,
            "backwards": 7,
            "glimpses": glimpses,
        }
    )
    if choice is not None:
        rows["choice"] = list(choice)
    lists = ["clean_predictions", "predictions", "input_sha256"]
    rows = rows.astype(dict.fromkeys(lists, object))  # pandas takes an empty list for a column of floats
    return RunRecord(
        configuration={
            "model": {"name": model, "entry": "m:f", "parameters": {}, "labels": dataset, "weights_sha256": weights,
                      "stochastic": draws > 1 if stochastic is None else stochastic},
            "attack": {"name": attack, "entry": f"a:{attack}", "knowledge": knowledge,
                       "parameters": parameters or {"steps": 10}, **(attack_identity or {})},
            "dataset": {"name": dataset, "entry": "d:f", "size": size, "split": "test", "data_sha256": data_sha256,
                        "indices": indices},
            "threat": {"norm": norm, "eps": eps, "target": None if target is None else str(target)},
            "evaluation": {"mc": mc, "draws": draws, "select_draws": select_draws,
                           "gradient_mode": gradient_mode, "seed": seed,
                           **({"noise": [list(pair) for pair in noise]} if noise else {}),
                           **({"precision": precision} if precision else {})},
        },
        command=f"lpmbench attack --model '{model}' --attack '{attack}'",
        execution={"device": "cpu", "threads": 2, "block": 10},
        versions={"lpmbench": "0.1.0", "python": "3.11"},
        outcomes=rows,
        adversarials=records.group_pictures(pictures),
        failures=[{"block": 3, "indices": indices[images:], "error": "OutOfMemory: <b>too big</b>"}] if failed else [],
        notes=list(notes),
        timing={"seconds": 12.5, "hardware": {"cpu": "some"}, "host": "h"} if timing is None else timing,
        class_names=class_names or {},
    )  # fmt: skip


def data_of(html: str) -> dict[str, Any]:
    """What the script of a page draws: for each run, comparison and matrix of agreement its texts."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    stored = json.loads(found.group(1))

    def told(value: Any) -> Any:
        return [told(entry) for entry in value] if isinstance(value, list) else None if value is None else texts[value]

    texts = stored.pop("texts")
    assert len(texts) == len(set(texts))
    return {name: told(value) for name, value in stored.items()}


def make_audit(record: RunRecord, *checks: Check, **changes: Any) -> Audit:
    """An audit of a record, with these checks."""
    told: dict[str, Any] = {"model": record.model, "attack": record.attack, "command": f"lpmbench audit {record.model}"}
    return Audit(record=record.id, folder_name=record.folder_name, checks=list(checks), **told | changes)


def check(verdict: Verdict = "pass", name: str = "white-box vs black-box", **changes: Any) -> Check:
    """A check in which 62.0 % were compared with 40.1 %."""
    told: dict[str, Any] = {"question": "Is the white-box attack at least as strong?", "against": "square"}
    numbers = {"judged": 0.62, "reference": 0.401, "low": 0.141, "high": 0.297, "images": 64}
    return Check(name=name, verdict=verdict, **told | numbers | changes)


def probed(make: Make, verdict: Verdict = "pass", **changes: float) -> tuple[dict[str, RunRecord], dict[str, Audit]]:
    """A stochastic model's worst case and its audit: the runs by what they are, and the audit by the judged run.

    Ordinary are "worst", its members "pgd" and "square", and "fgsm"; the others are probes, and members of probes.
    """
    low = {"worst": 0.5, "twice": 0.5, "half": 0.75, "frozen": 0.25} | changes

    def members(steps: int = 10, **budget: Any) -> dict[str, RunRecord]:
        return {
            "pgd": make("ram", robust=0.8, draws=4, parameters={"steps": steps}, **budget),
            "square": make("ram", "square", robust=0.9, draws=4, knowledge="black-box", **budget),
        }

    def worst(name: str, among: dict[str, RunRecord], **budget: Any) -> RunRecord:
        identity = {"members": {attack: record.id for attack, record in among.items()}}
        parameters = {"attacks": list(among)}
        return make(
            "ram", "worst-case", robust=low[name], draws=4, parameters=parameters, attack_identity=identity, **budget
        )

    frozen = {"noise": [("policy", "frozen")]}
    own, doubled, half, still = members(), members(20), members(eps=EPS / 2), members(**frozen)
    found = {
        "worst": worst("worst", own), "twice": worst("twice", doubled), "half": worst("half", half, eps=EPS / 2),
        "frozen": worst("frozen", still, **frozen), "fgsm": make("ram", "fgsm", robust=0.9, draws=4),
        **own, "twice pgd": doubled["pgd"], **{f"half {name}": record for name, record in half.items()},
        **{f"frozen {name}": record for name, record in still.items()},
    }  # fmt: skip
    judged = found["worst"]
    compared = ("fgsm", "square", "half", "twice", "frozen")
    checks = [check(verdict, name, records=(judged.id, found[name].id)) for name in compared]
    return found, {judged.id: make_audit(judged, *checks)}


ORDINARY = ("worst", "pgd", "square", "fgsm")  # of what `probed` makes


def _predictions(labels: np.ndarray, wrong: np.ndarray, right: Any, draws: int) -> np.ndarray:
    """(images, draws): right in the share, or the table, of cells asked for."""
    table = np.asarray(right, dtype=bool) if np.ndim(right) == 2 else _first(len(labels), draws, float(right))
    return np.where(table, labels[:, None], (wrong % CLASSES)[:, None]).astype(np.int32)


def _first(images: int, draws: int, share: float) -> np.ndarray:
    flat = np.zeros(images * draws, dtype=bool)
    flat[: round(share * images * draws)] = True
    return flat.reshape(draws, images).T


def _pictures(
    images: int, stored: int, shape: tuple[int, int, int], eps: float, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Adversarial and clean images: a ramp, and the same with a checkerboard at the edge of the ball."""
    rng = np.random.default_rng(len(shape))
    clean = rng.uniform(0.3, 0.7, (min(images, stored), *shape)).astype(np.float32)
    step = np.float32(eps if norm == "linf" else eps / np.sqrt(np.prod(shape)))
    board = np.where(np.indices(shape).sum(axis=0) % 2, step, -step).astype(np.float32)
    return clean + board, clean


def make_and_read(folder: Path) -> Make:
    """Makes a record, writes it below a folder, and reads it back."""

    def made(*args: Any, **kwargs: Any) -> RunRecord:
        return records.read(records.write(make_record(*args, **kwargs), folder))

    return made


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a record, writes it, and reads it back: what the report sees went through the checks."""
    return make_and_read(tmp_path_factory.mktemp("runs"))
