"""Accuracy against every eps, from one run of an attack that looks for the smallest perturbation.

The attack runs at the largest eps of its norm, so that the distances in its record are those that it found. At a
smaller eps an image is as accurate as it is clean if its adversarial example is farther than eps, else as its
adversarial example is on held-out draws. Of a stochastic model that is one that half of the draws get right: its curve
is an upper bound, and what it shares with attacks at one eps is the images that most draws get right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm import statistics
from robustbench_lpm.budgets import format_eps
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sealed, sha256_of, sha256_of_value
from robustbench_lpm.norms import farthest
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records.runs import RunRecord, write_atomically
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.tasks import Attack, Data, resolve_attack
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.versions import versions

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
Verdict = Literal["agree", "above", "below"]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """For N images how far the nearest adversarial example is, and the shares of draws that are right, (N,) each."""

    distances: Numbers
    clean: Numbers  # on the image as it is
    attacked: Numbers  # on the nearest adversarial example
    draws: int = 1  # that were graded; 1 of a deterministic model

    def at(self, eps: float) -> Numbers:
        """The share of draws that get each image right at this eps, (N,)."""
        return np.where(self.distances > eps, self.clean, self.attacked)

    def majority_at(self, eps: float) -> Numbers:
        """1 for each image that most draws get right at this eps, else 0, (N,).

        What was found is not: its graded draws are right about half of the time.
        """
        if self.draws == 1:
            return self.at(eps)
        return ((self.distances > eps) & (self.clean > 0.5)).astype(float)

    def table(self) -> pd.DataFrame:
        """A row for every eps from which on the accuracy is another: accuracy in [0, 1] with its 95 % interval, and the
        share of images that most draws get right."""
        import pandas as pd

        places = [float(eps) for eps in np.unique(np.concatenate([[0.0], self.distances]))]
        rows = [
            {"eps": eps, **_rate(statistics.rate(self.at(eps))), "majority": float(self.majority_at(eps).mean())}
            for eps in places
        ]
        return _with_floats(pd.DataFrame(rows)).assign(images=len(self.distances))


@dataclass(frozen=True)
class Comparison:
    """An attack at one eps beside the curve there; shares of images and their difference in [0, 1], paired by image.

    They are compared by majority, which of a deterministic model is the accuracy.
    """

    attack: str
    eps: float
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    majority: float  # share of images that most draws get right
    majority_on_curve: float
    low: float  # 95 % interval of the first less the second
    high: float

    @property
    def verdict(self) -> Verdict:
        if self.low <= 0 <= self.high:
            return "agree"
        return "above" if self.low > 0 else "below"

    def told(self, searcher: str, *, stochastic: bool) -> str:
        """What it means, in a sentence. searcher: the attack whose curve it is."""
        mine, on_curve = (f"{100 * share:.1f} %" for share in (self.majority, self.majority_on_curve))
        images = " of the images to most draws" if stochastic else ""
        numbers = f"At eps {format_eps(self.eps)} {self.attack} leaves {mine}{images}"
        interval = f"difference {100 * self.low:+.1f} to {100 * self.high:+.1f} points"
        if self.verdict == "agree":
            return f"{numbers}, the curve {on_curve}: they agree ({interval})."
        beside = f"{numbers}, significantly {self.verdict} the curve's {on_curve} ({interval})"
        if self.verdict == "above":
            return f"{beside}: {self.attack} misses perturbations that {searcher} finds."
        return f"{beside}: {searcher} misses perturbations that exist, and the curve is too high here."


def _rate(rate: statistics.Rate) -> dict[str, float | None]:
    return {"accuracy": rate.value, "accuracy_low": rate.low, "accuracy_high": rate.high}


def _with_floats(table: pd.DataFrame) -> pd.DataFrame:
    """A missing end of an interval is NaN."""
    return table.astype(dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high"), float))


def as_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row for each comparison; an empty table for none."""
    import pandas as pd

    rows = [vars(each) | {"verdict": each.verdict} for each in comparisons]
    return _with_floats(pd.DataFrame(rows)) if rows else pd.DataFrame()


def curve_of(records: Sequence[RunRecord]) -> Curve:
    """The curve of the runs of one attack in several gradient modes: for each image that of the smallest distance."""
    distances = np.stack([record.outcomes[record.norm].to_numpy(np.float64) for record in records])
    chosen = distances.argmin(axis=0), np.arange(distances.shape[1])
    clean, attacked = (
        np.stack([getattr(record, name).mean(axis=1) for record in records])[chosen]
        for name in ("clean_correct", "correct")
    )
    return Curve(distances[chosen], clean, attacked, records[0].correct.shape[1])


def compare(curve: Curve, record: RunRecord) -> Comparison:
    """A run at one eps, on the images of the curve, beside the curve."""
    found, expected = record.correct.mean(axis=1) > 0.5, curve.majority_at(record.eps)
    low, high = statistics.paired_interval(found - expected)
    rate: dict[str, Any] = _rate(record.robust_accuracy)
    return Comparison(
        record.attack, record.eps, **rate, majority=float(found.mean()), majority_on_curve=float(expected.mean()),
        low=low, high=high,
    )  # fmt: skip


def search_plans(model: LoadedModel, attack: Attack, data: Data, asked: Options) -> list[Plan]:
    """The runs of which the curve is made: at the largest eps, one for each gradient mode that is wanted.

    Raises LpmbenchError for an attack that does not look for the smallest perturbation.
    """
    if not attack.declaration.nearest:
        named = [name for name in cards.names("attack") if resolve_attack(name).declaration.nearest]
        raise LpmbenchError(
            f"Attack '{attack.name}' spends all of eps; a curve needs one that looks for the smallest perturbation: "
            f"{', '.join(named)}."
        )
    pixels = math.prod(data.read([0]).images[0].shape)
    asked = replace(asked, eps=farthest(asked.norm, pixels))
    plan = make_plan(model, attack, data, asked)
    if len(plan.gradient_modes) < 2:
        return [plan]
    # Within a run the strongest mode would be chosen, not the nearest.
    return [make_plan(model, attack, data, replace(asked, gradient_mode=mode)) for mode in plan.gradient_modes]


def write(
    study: str, command: str, plans: Sequence[Plan], tables: Mapping[str, pd.DataFrame], files: Mapping[str, bytes],
    out: Path,
) -> None:  # fmt: skip
    """Write the files of a study that is made of runs and, last, STUDY.json with their hashes and the tables."""
    path = out / f"{study}.json"
    path.unlink(missing_ok=True)  # of an earlier one: it does not describe these files
    for name, written in files.items():
        write_atomically(out / name, written)
    configuration = {"runs": [plan.id for plan in plans]}
    content = {
        "schema_version": SCHEMA_VERSION, "study": study, "id": sha256_of_value(configuration), "command": command,
        "configuration": configuration, "versions": versions(),
        "artefacts": {name: sha256_of(out / name) for name in files},
        **{name: _rows(table) for name, table in tables.items()},
    }  # fmt: skip
    write_atomically(path, (json.dumps(sealed(content), indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode())


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """For JSON, which has no NaN."""
    return [{str(name): value for name, value in row.items()} for row in table.replace(np.nan, None).to_dict("records")]
