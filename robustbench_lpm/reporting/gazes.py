"""Where glimpsing models looked at stored examples: kept in a file beside the page, drawn over its pictures.

`lpmbench report --scanpaths` looks once and writes the file; whoever makes the page again needs no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import read_json, write_atomically

FILE = Path("json") / "scanpaths.json"
SCHEMA_VERSION = 1

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Gaze:
    """One draw's look at an example before and after the attack, on the same noise."""

    record: str
    index: int  # of the example
    draw: int  # of the grader, from 0
    clean: Points  # T fixations (x, y); the image is [-1, 1]², y down
    adversarial: Points


def write(gazes: Iterable[Gaze], out: Path) -> Path:
    """Write the file below `out`; its path."""
    ordered = sorted(gazes, key=lambda gaze: (gaze.record, gaze.index))
    content = {"schema_version": SCHEMA_VERSION, "scanpaths": [asdict(gaze) for gaze in ordered]}
    write_atomically(out / FILE, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return out / FILE


def read(out: Path) -> dict[tuple[str, int], Gaze]:
    """What lies below `out`, by record and example; empty where there is no file. Raises LpmbenchError for another."""
    if not (out / FILE).is_file():
        return {}
    content = read_json(out / FILE)
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {content['schema_version']}")
        found = [_gaze(entry) for entry in content["scanpaths"]]
    except (KeyError, TypeError, ValueError) as error:
        raise LpmbenchError(
            f"{out / FILE} is no file of scanpaths: {error}; `lpmbench report --scanpaths` makes one."
        ) from None
    return {(gaze.record, gaze.index): gaze for gaze in found}


def _gaze(entry: Mapping[str, Any]) -> Gaze:
    paths = {name: [(float(x), float(y)) for x, y in entry[name]] for name in ("clean", "adversarial")}
    if not all(math.isfinite(value) for path in paths.values() for point in path for value in point):
        raise ValueError("a fixation is no number")
    return Gaze(str(entry["record"]), int(entry["index"]), int(entry["draw"]), **paths)
