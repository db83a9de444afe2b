"""Read, write and check audits: the evidence for and against a result. Knows nothing about torch.

An audit judges one record (one attack, or the worst case over several, on one model). It is stored at
`audits/RECORD_FOLDER_NAME.json` beside the records that it compares. Every check asks one question; its evidence is
two numbers and the 95 % interval of their difference, and the interval alone decides the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from robustbench_lpm.errors import LpmbenchError, explained
from robustbench_lpm.hashing import SEAL, sealed, sha256_of_value
from robustbench_lpm.records.runs import RunRecord, checked, read_json, write_atomically

AUDITS = "audits"
SCHEMA_VERSION = 2
READABLE = (1, 2)  # version 1 had no seal at first
SEALED_SINCE = 2
# Of accuracy: a check fails if the difference is certainly above the first, passes if it is certainly below the second.
TOLERANCE, BOUND = 0.01, 0.02
Verdict = Literal["pass", "fail", "undecided", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One question about a result, and its answer.

    judged, reference: the two numbers compared, in the unit `unit`: shares in [0, 1], or cosines.
    low, high: the 95 % interval of judged - reference. All four are None where the check does not apply.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    unit: Literal["share", "cosine"] = "share"

    @property
    def decides(self) -> bool:
        """Whether a verdict rests on it: gradients are evidence alone.

        Past a front end that has no derivative, an attack through the identity is as strong as any. Where a wrong
        gradient does harm, other attacks are stronger.
        """
        return self.unit == "share"


@dataclass
class Audit:
    """All checks of one result."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    record: str  # the id of the judged record
    folder_name: str  # its folder's name
    model: str
    attack: str
    checks: list[Check]
    command: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """fail if any check that decides fails; pass if every such check that applies passes; else undecided."""
        verdicts = {check.verdict for check in self.checks if check.decides} - {"not applicable"}
        if "fail" in verdicts:
            return "fail"
        return "pass" if verdicts == {"pass"} else "undecided"


def _path_of(folder_name: str, folder: Path) -> Path:
    """Where the audit of the record folder/folder_name is stored."""
    return folder / AUDITS / f"{folder_name}.json"


def write(audit: Audit, out: Path) -> Path:
    """Write an audit below `out`; its path."""
    path = _path_of(audit.folder_name, out)
    content = sealed({"schema_version": SCHEMA_VERSION, **asdict(audit)})
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return path


def read(path: Path) -> Audit:
    """Read an audit. Raises LpmbenchError for a file that is not one."""
    audit = from_content(read_json(path), path)
    if path.stem != audit.folder_name:
        raise LpmbenchError(f"{path}: the name of the file is not that of the record it judges; the file was altered.")
    return audit


def from_content(content: dict[str, Any], path: Path) -> Audit:
    """The audit that says this, checked. path: named by the LpmbenchError."""
    stated = {key: value for key, value in checked(content, path, READABLE, SEALED_SINCE).items() if key != SEAL}
    del stated["schema_version"]
    try:
        audit = TypeAdapter(Audit).validate_json(json.dumps(stated), strict=True)
    except ValidationError as error:
        raise LpmbenchError(f"{path} is not a valid audit: {explained(error)}") from None
    if not audit.folder_name.endswith(f"--{audit.record[:12]}"):
        raise LpmbenchError(f"{path}: an audit's name is not that of the record it judges; the file was altered.")
    return audit


def read_for(records: Sequence[RunRecord]) -> dict[str, Audit]:
    """The audits stored beside records, or in the archive that they are in, by the id of the record that they judge.

    Of two audits of one record in two directories, the worse verdict counts. Raises LpmbenchError for a broken audit.
    """
    from robustbench_lpm.records import archive

    paths = sorted({record.path for record in records if record.path is not None})
    archives = [path for path in paths if (path / archive.INDEX).is_file()]
    folders = sorted({path.parent / AUDITS for path in paths})
    ids = {record.id for record in records}
    found = [read(path) for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    found += [audit for path in archives for audit in archive.read_audits(path)]
    found.sort(key=lambda audit: ("pass", "undecided", "fail").index(audit.verdict))
    return {audit.record: audit for audit in found if audit.record in ids}


def probes(records: Sequence[RunRecord], audits: Mapping[str, Audit]) -> set[str]:
    """The ids of the runs made only for an audit: a judged attack at another eps, at twice the work, with frozen noise,
    and the members of such worst cases.

    Ordinary runs are those that are judged themselves, members of worst cases that are no probes, and the other attacks
    that a result is compared with (one step, noise, black boxes). A judged attack at another eps is a probe only where
    its model met nothing else at that budget.
    """
    known = {record.id: record for record in records}
    judged = {name for name in audits if name in known}
    elsewhere: set[str] = set()  # at another eps
    otherwise: set[str] = set()  # at this eps
    for name in judged:
        for other in {other for check in audits[name].checks for other in check.records} & known.keys() - judged:
            if known[other].eps != known[name].eps and _frozen(known[other]) == _frozen(known[name]):
                elsewhere.add(other)
            elif known[other].attack == known[name].attack or _frozen(known[other]) != _frozen(known[name]):
                otherwise.add(other)
    candidates = _with_members(elsewhere | otherwise, known) - judged
    candidates -= _with_members(known.keys() - candidates, known)
    asked_for = {_budget(known[name]) for name in known.keys() - candidates}
    found = {name for name in candidates if name in otherwise or _budget(known[name]) not in asked_for}
    found = _with_members(found, known) & candidates
    return found - _with_members(known.keys() - found, known)


def _with_members(names: Iterable[str], known: Mapping[str, RunRecord]) -> set[str]:
    """Runs, and the members of the worst cases among them."""
    members = [known[name].configuration["attack"].get("members") or {} for name in names]
    return set(names) | {member for found in members for member in found.values() if member in known}


def _frozen(record: RunRecord) -> set[str]:
    """The sources of noise that were frozen in a run."""
    return {str(source) for source, mode in record.configuration["evaluation"].get("noise") or [] if mode == "frozen"}


def _budget(record: RunRecord) -> str:
    """A hash of which model met which images at which budget, and of which noise was frozen."""
    parts = record.configuration["model"], record.configuration["dataset"], record.threat, record.eps, record.mc
    return sha256_of_value([*parts, sorted(_frozen(record))])
