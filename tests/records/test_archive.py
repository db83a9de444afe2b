"""What is published reads back as it was, whoever alters a part of it is found out, and what decides keeps images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import robustbench_lpm
from robustbench_lpm.cli import run
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records import archive, audits
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.archive import INDEX, LEVELS, OUTCOMES, PICTURES, Archive
from robustbench_lpm.records.runs import RunRecord
from tests.records.test_records import evaluated
from tests.reporting.conftest import check, make_audit


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    """Runs in three norms, one of them of a stochastic model, with all their images."""
    out = tmp_path_factory.mktemp("runs")
    made = [
        evaluated(out, stochastic=stochastic, norm=norm, save_adversarials=True)
        for stochastic, norm in ((False, "linf"), (True, "linf"), (False, "l1"), (False, "l0"))
    ]
    return [records.read(record.path) for record in made if record.path]


def published(originals: list[RunRecord]) -> Archive:
    """Three images of each run, and an audit of the first in one norm."""
    judged = [make_audit(record, check()) for record in originals if record.norm == "linf" and not record.stochastic]
    return Archive([archive.with_pictures(record, record.pictures()[:3]) for record in originals], judged)


def test_it_reads_back_as_it_was(originals: list[RunRecord], tmp_path: Path) -> None:
    archive.write(tmp_path / "one", published(originals))
    found = archive.read(tmp_path / "one")
    assert [audit.record for audit in found.audits] == [originals[0].id]
    assert sorted(record.id for record in found.records) == sorted(record.id for record in originals)
    for original in originals:
        (mine,) = [record for record in found.records if record.id == original.id]
        assert records.content_of(mine) == records.content_of(original)
        assert mine.timing == original.timing
        assert mine.outcomes.to_json() == original.outcomes.to_json()
        for picture, before in zip(mine.pictures(), original.pictures()[:3], strict=True):
            np.testing.assert_array_equal(picture.clean, before.clean)
            assert np.abs(picture.adversarial - before.adversarial).max() <= 0.501 / LEVELS


def test_equal_contents_make_equal_bytes(originals: list[RunRecord], tmp_path: Path) -> None:
    archive.write(tmp_path / "one", published(originals))
    archive.write(tmp_path / "two", published(originals[::-1]))
    archive.write(tmp_path / "three", archive.read(tmp_path / "one"))
    archive.add(tmp_path / "three", published(originals[:1]), {record.id for record in originals})
    for name in (INDEX, OUTCOMES, PICTURES):
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("one", "two", "three")}) == 1, name


def test_readers_of_records_find_them(originals: list[RunRecord], tmp_path: Path) -> None:
    archive.write(tmp_path / "results/records/digits", published(originals))
    found = records.read_all(tmp_path / "results")
    assert len(found) == len(originals)
    assert audits.read_for(found).keys() == {originals[0].id}


@pytest.mark.parametrize("name", [INDEX, OUTCOMES, PICTURES])
def test_an_altered_file_is_found_out(name: str, originals: list[RunRecord], tmp_path: Path) -> None:
    archive.write(tmp_path, published(originals))
    content = (tmp_path / name).read_bytes()
    for place in np.linspace(0, len(content) - 2, 40).astype(int):
        if name == INDEX and b'"timing"' in content[place - 200 : place + 200]:
            continue  # no hash protects seconds and hosts
        (tmp_path / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(LpmbenchError):
            archive.read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(LpmbenchError):
        archive.read(tmp_path)


def test_an_image_elsewhere_than_its_row_says_is_found_out(originals: list[RunRecord]) -> None:
    (picture, *_) = originals[0].pictures()
    row = originals[0].outcomes.set_index("index").loc[picture.index]
    step = 1 / LEVELS
    records.check_picture(archive.rounded(picture), row, "here", step)
    moved = np.clip(picture.adversarial + 3 * step * np.sign(picture.adversarial - picture.clean), 0, 1)
    with pytest.raises(LpmbenchError, match="not at the distance"):
        records.check_picture(replace(picture, adversarial=moved.astype(np.float32)), row, "here", step)


def test_what_decides_no_more_loses_its_images(originals: list[RunRecord], tmp_path: Path) -> None:
    first, second, third, _ = originals
    archive.write(tmp_path, published([first, second]))
    archive.add(tmp_path, published([third]), {second.id, third.id})
    kept = {record.id: len(record.pictures()) for record in archive.read(tmp_path).records}
    assert kept == {first.id: 0, second.id: 3, third.id: 3}


def test_publishing_again_replaces_a_run_and_its_audit(originals: list[RunRecord], tmp_path: Path) -> None:
    archive.write(tmp_path, published(originals))
    again = replace(originals[0], notes=["run again"])
    archive.add(tmp_path, Archive([again]), set())
    found = archive.read(tmp_path)
    assert len(found.records) == len(originals)
    assert found.audits == []
    assert [record.notes for record in found.records if record.id == again.id] == [["run again"]]


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_full_disk_leaves_what_was_published(
    written: int, originals: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.write(tmp_path / "digits", published(originals))
    before = {path.name: path.read_bytes() for path in (tmp_path / "digits").iterdir()}
    calls, write = iter(range(9)), records.write_atomically

    def fail(path: Path, content: bytes) -> None:
        if next(calls) == written:
            raise OSError("disk full")
        write(path, content)

    monkeypatch.setattr(records, "write_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        archive.add(tmp_path / "digits", published(originals[:1]), set())
    assert {path.name: path.read_bytes() for path in (tmp_path / "digits").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]  # nothing half done is left


def test_publish_keeps_images_of_what_decides_and_verify_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for attack, model in (("fgsm", "cnn"), ("pgd", "cnn"), ("pgd", "ram")):
        robustbench_lpm.evaluate(
            model, attack, "digits", eps=0.1, limit=24, draws=4, out=tmp_path / "runs", parameters={"eot": 1},
            gradient_mode="detached" if model == "ram" else None,
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["publish", "runs", "--pictures", "2"]) == 0
    kept = {(r.model, r.attack): len(r.pictures()) for r in records.read_all(tmp_path / "results")}
    assert kept == {("cnn", "fgsm"): 0, ("cnn", "pgd"): 2, ("ram", "pgd"): 2}
    assert run(["verify", "results", "--strict"]) == 0
    assert "3 of 3 records verified" in capsys.readouterr().out
    index = tmp_path / "results/records/digits" / INDEX
    before = index.read_bytes()
    assert run(["publish", "runs", "--pictures", "2"]) == 0
    assert index.read_bytes() == before
    index.write_bytes(before.replace(b'"eps": 0.1', b'"eps": 0.2'))
    assert run(["verify", "results"]) == 1
    assert "altered" in capsys.readouterr().err


def test_no_image_of_photographs_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No card says that a user's own arrays may be published."""
    evaluated(tmp_path / "runs", stochastic=False)
    monkeypatch.chdir(tmp_path)
    assert run(["publish", "runs"]) == 0
    (record,) = records.read_all(tmp_path / "results")
    assert record.pictures() == []
    assert len(record.outcomes) > 0
    assert not list(tmp_path.glob("results/records/*/pictures.safetensors"))


def test_a_run_with_failures_is_not_published(
    originals: list[RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = originals[0].outcomes.iloc[1:].reset_index(drop=True)
    failure = {"indices": [int(originals[0].outcomes["index"].iloc[0])], "error": "out of memory"}
    records.write(replace(originals[0], outcomes=rows, adversarials={}, failures=[failure]), tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    assert run(["publish", "runs"]) == 1
    assert "1 block(s) failed" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_an_archive_of_a_newer_version_is_refused(originals: list[RunRecord], tmp_path: Path) -> None:
    archive.write(tmp_path, published(originals))
    header, *rest = (tmp_path / INDEX).read_text().splitlines()
    newer = archive.sealed(json.loads(header) | {"schema_version": 99})
    (tmp_path / INDEX).write_text("\n".join([json.dumps(newer), *rest]) + "\n")
    with pytest.raises(LpmbenchError, match="schema_version is 99; this version reads 1"):
        archive.read(tmp_path)
