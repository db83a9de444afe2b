"""An audit reads back as it was written, a broken one is one clear error, and it travels with its record."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import robustbench_lpm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sealed
from robustbench_lpm.records import audits
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.audits import Audit, Check
from robustbench_lpm.records.runs import RunRecord
from tests.classifiers import Linear
from tests.reporting.conftest import EPS, ORDINARY, Make, check, make_and_read, make_audit, probed

FAILED = Check(
    "white-box vs black-box", "Is it as strong?", "fail", 0.62, 0.401, 0.141, 0.297, 64, "square", "", ("a" * 64,)
)
PASSED = Check("doubled steps", "Does it stay?", "pass", 0.5, 0.5, -0.01, 0.005, 64, "pgd (steps=20)")
OPEN = Check("more eps", "Does it fall?", "undecided", 0.5, 0.49, -0.05, 0.07, 24)
ABSENT = Check("eps = 1", "Does it reach 0?", "not applicable", note="the model is stochastic")
COSINE = Check("direction", "Do they agree?", "pass", -0.25, 0.5, -0.8, -0.7, 24, unit="cosine")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a record, writes it, and reads it back."""
    return make_and_read(tmp_path / "made")


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """A run, written."""
    images, labels = torch.full((4, 1, 2, 2), 0.5), torch.tensor([0, 1, 0, 1])
    return robustbench_lpm.evaluate(
        Linear(torch.ones(1, 2, 2), -2.0), "pgd", (images, labels), eps=0.1, out=tmp_path / "runs"
    )


def audit_of(record: RunRecord, *checks: Check) -> Audit:
    return Audit(
        record.id, record.folder_name, record.model, record.attack, list(checks), "lpmbench audit x", {"torch": "2"}
    )


def written(record: RunRecord, *checks: Check) -> Path:
    assert record.path is not None
    return audits.write(audit_of(record, *checks), record.path.parent)


def test_an_audit_reads_back_as_it_was_written(record: RunRecord) -> None:
    path = written(record, FAILED, PASSED, OPEN, ABSENT, COSINE)
    assert audits.read(path) == audit_of(record, FAILED, PASSED, OPEN, ABSENT, COSINE)
    assert record.path is not None
    assert path == record.path.parent / "audits" / f"{record.path.name}.json"
    first = path.read_bytes()
    assert written(record, FAILED, PASSED, OPEN, ABSENT, COSINE).read_bytes() == first


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([PASSED, FAILED, OPEN], "fail"),
        ([PASSED, ABSENT, COSINE], "pass"),
        ([PASSED, OPEN], "undecided"),
        ([ABSENT], "undecided"),  # nothing spoke for the result
        ([], "undecided"),
    ],
)
def test_the_verdict_over_all_checks(checks: list[Check], verdict: str, record: RunRecord) -> None:
    assert audit_of(record, *checks).verdict == verdict


def first_check(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["checks"][0].update(changes)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer schema": (lambda c: c.update(schema_version=3), "schema_version is 3; this version reads 1, 2"),
    "no schema": (lambda c: c.pop("schema_version"), "schema_version is None"),
    "no checks": (lambda c: c.pop("checks"), "is not a valid audit: key 'checks' is missing"),
    "checks that are no list": (lambda c: c.update(checks=7), "is not a valid audit: key 'checks'"),
    "a check that is no object": (lambda c: c.update(checks=[1]), "is not a valid audit"),
    "an unknown field": (lambda c: c.update(score=1), "is not a valid audit"),
    "an unknown field of a check": (first_check(score=1), "is not a valid audit"),
    "an unknown verdict": (first_check(verdict="splendid"), "key 'checks.0.verdict': Input should be 'pass', 'fail'"),
    "an unknown unit": (first_check(unit="apples"), "key 'checks.0.unit': Input should be 'share' or 'cosine'"),
    "a verdict that is no text": (first_check(verdict=["pass"]), "key 'checks.0.verdict'"),
    "a name that is no text": (first_check(name=7), "key 'checks.0.name': Input should be a valid string"),
    "a number that is text": (first_check(judged="0.5"), "key 'checks.0.judged': Input should be a valid number"),
    "no number": (first_check(low=float("nan")), "its seal is not the sha256"),
    "images that are no number": (first_check(images="all"), "key 'checks.0.images': Input should be a valid integer"),
    "records that are no ids": (first_check(records=[1]), "key 'checks.0.records.0': Input should be a valid string"),
    "a record that is no text": (lambda c: c.update(record=["x"]), "key 'record': Input should be a valid string"),
    "another record": (lambda c: c.update(record="0" * 64), "the file was altered"),
    "another folder": (lambda c: c.update(folder_name="x--" + "0" * 12), "the file was altered"),
}


@pytest.mark.parametrize("breaking", BROKEN)
def test_a_broken_audit_is_one_clear_error(breaking: str, record: RunRecord) -> None:
    path = written(record, FAILED)
    change, complaint = BROKEN[breaking]
    content = json.loads(path.read_text())
    change(content)
    with contextlib.suppress(ValueError):  # NaN cannot be sealed
        content = sealed(content)  # as a forger would
    path.write_text(json.dumps(content))
    with pytest.raises(LpmbenchError) as error:
        audits.read_for([record])
    assert complaint in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change", [lambda c: c.update(command="other"), first_check(verdict="pass"), lambda c: c.pop("seal")]
)
def test_a_change_anywhere_breaks_the_seal(change: Callable[[dict[str, Any]], object], record: RunRecord) -> None:
    path = written(record, FAILED)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(LpmbenchError, match="its seal is not the sha256 of what it says; the file was altered"):
        audits.read_for([record])


def test_an_audit_of_the_first_version_is_read_with_and_without_a_seal(record: RunRecord) -> None:
    path = written(record, FAILED)
    bare = json.loads(path.read_text()) | {"schema_version": 1}
    del bare["seal"]
    for content in (bare, sealed(bare)):
        path.write_text(json.dumps(content))
        assert audits.read_for([record])[record.id].verdict == "fail"
    path.write_text(json.dumps(sealed(bare) | {"command": "other"}))
    with pytest.raises(LpmbenchError, match="its seal is not"):
        audits.read_for([record])


def test_a_file_that_is_no_audit_is_one_clear_error(record: RunRecord) -> None:
    path = written(record, FAILED)
    path.write_text("{")
    with pytest.raises(LpmbenchError, match="cannot be read as JSON"):
        audits.read_for([record])


def test_an_audit_under_the_name_of_another_record_is_found_out(record: RunRecord) -> None:
    path = written(record, PASSED)
    stranger = path.with_name(f"x--{'0' * 12}.json")
    path.rename(stranger)
    with pytest.raises(LpmbenchError, match="the file was altered"):
        audits.read(stranger)


def test_audits_are_found_beside_their_records(record: RunRecord) -> None:
    assert audits.read_for([record]) == audits.read_for([replace(record, path=None)]) == {}
    written(record, PASSED)
    assert audits.read_for([record])[record.id].verdict == "pass"
    assert audits.read_for([]) == {}


def test_of_two_audits_of_one_record_the_worse_verdict_stands(record: RunRecord, tmp_path: Path) -> None:
    written(record, FAILED)
    again = replace(record, path=None)
    records.write(again, tmp_path / "zz")
    audits.write(audit_of(record, PASSED), tmp_path / "zz")
    for order in ([record, again], [again, record]):
        assert audits.read_for(order)[record.id].verdict == "fail"


def test_what_only_an_audit_asked_for_is_a_probe(make: Make) -> None:
    found, judged = probed(make)
    expected = {record.id for name, record in found.items() if name not in ORDINARY}
    assert audits.probes(list(found.values()), judged) == expected
    assert audits.probes(list(found.values())[::-1], judged) == expected
    assert audits.probes(list(found.values()), {}) == set()
    assert audits.probes([found["half"]], judged) == set()  # the judged run is not among these


def test_a_budget_that_was_asked_for_makes_its_runs_ordinary(make: Make) -> None:
    """What an audit took for its own at half the eps is ordinary where the model met anything else there."""
    found, judged = probed(make)
    half = {found[name].id for name in ("half", "half pgd", "half square")}
    noise = make("ram", "noise", knowledge="none", draws=4, eps=EPS / 2)
    expected = audits.probes(list(found.values()), judged) - half
    assert audits.probes([*found.values(), noise], judged) == expected
    other = make("cnn", "noise", knowledge="none", eps=EPS / 2)  # of another model: says nothing of this one
    assert audits.probes([*found.values(), other], judged) == expected | half


def test_a_judged_run_or_a_member_of_an_ordinary_worst_case_is_no_probe(make: Make) -> None:
    found, judged = probed(make)
    everything = audits.probes(list(found.values()), judged)
    twice = found["twice"]
    judged[twice.id] = make_audit(twice)
    assert audits.probes(list(found.values()), judged) == everything - {twice.id, found["twice pgd"].id}
    single = make("ram", robust=0.6, draws=4, eps=EPS / 4)
    whole = make("ram", "worst-case", draws=4, eps=EPS / 4, attack_identity={"members": {"pgd": single.id}})
    given = {found["pgd"].id: make_audit(found["pgd"], check(records=(found["pgd"].id, single.id)))}
    assert audits.probes([found["pgd"], single], given) == {single.id}
    assert audits.probes([found["pgd"], single, whole], given) == set()
