"""Read, write and check audits: what speaks for and against a result, check by check. Knows nothing about torch.

An audit judges one record (one attack, or the worst case over several, on one model). It lies in
`audits/RECORD_FOLDER_NAME.json` beside the records that it compares. Every check asks one question whose evidence is
two numbers and the 95 % interval of their difference; the verdict follows from that interval alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records import RunRecord, read_json, write_atomically

AUDITS = "audits"
SCHEMA_VERSION = 1
Verdict = Literal["pass", "fail", "undecided", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One question about a result, and what was found.

    judged and reference are the two numbers that are compared (shares in [0, 1], or cosines); low and high bound their
    difference, judged - reference, at 95 %. They are None where the check does not apply.
    """

    name: str  # e.g. "white-box vs black-box"
    question: str
    verdict: Verdict
    judged: float | None = None
    reference: float | None = None
    low: float | None = None
    high: float | None = None
    images: int = 0
    against: str = ""  # what the reference is, e.g. "square"
    note: str = ""
    records: tuple[str, ...] = ()  # ids of the records compared with


@dataclass
class Audit:
    """All checks of one result."""

    record: str  # the id of the judged record
    folder_name: str  # its folder's name
    model: str
    attack: str
    checks: list[Check]
    command: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """fail if any check fails; pass if every check that applies passes; else undecided."""
        return overall(self.checks)


def overall(checks: Sequence[Check]) -> Verdict:
    """The verdict over several checks."""
    verdicts = {check.verdict for check in checks} - {"not applicable"}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "undecided"


def write(audit: Audit, out: Path) -> Path:
    """Write an audit below `out`; its path."""
    path = out / AUDITS / f"{audit.folder_name}.json"
    content = {"schema_version": SCHEMA_VERSION, **asdict(audit)}
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return path


def read(path: Path) -> Audit:
    """Read an audit. Raises LpmbenchError for a file that is not one."""
    content = read_json(path)
    if (version := content.pop("schema_version", None)) != SCHEMA_VERSION:
        raise LpmbenchError(f"{path}: schema_version is {version}; this version reads {SCHEMA_VERSION}.")
    try:
        checks = [_check(entry) for entry in content.pop("checks")]
        return Audit(checks=checks, **content)
    except (TypeError, KeyError, ValueError) as error:
        raise LpmbenchError(f"{path} is not a valid audit: {error}.") from None


def _check(entry: dict[str, Any]) -> Check:
    check = Check(**entry | {"records": tuple(entry["records"])})
    if check.verdict not in get_args(Verdict):
        raise ValueError(f"verdict '{check.verdict}'")
    for number in (check.judged, check.reference, check.low, check.high):
        if number is not None and not isinstance(number, int | float):
            raise TypeError(f"{number!r} is no number")
    return check


def read_for(records: Sequence[RunRecord]) -> dict[str, Audit]:
    """The audits that lie beside records, by the id of the record that they judge."""
    folders = sorted({record.path.parent / AUDITS for record in records if record.path is not None})
    ids = {record.id for record in records}
    found = [read(path) for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    return {audit.record: audit for audit in found if audit.record in ids}
