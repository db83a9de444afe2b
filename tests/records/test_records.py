"""A record reads back as it was written, byte for byte, and whoever alters a part of it is found out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

import robustbench_lpm
from robustbench_lpm.budgets import NORMS
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import SEAL, sealed, sha256_of, sha256_of_value
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import ADVERSARIALS, OUTCOMES, RECORD, TIMING, Picture, RunRecord, check_picture
from tests.classifiers import Linear, NoisyLinear

N, EPS = 24, 0.05


def evaluated(out: Path, *, stochastic: bool, norm: str = "linf", save_adversarials: bool = False) -> RunRecord:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 4, 4, generator=generator)
    images = 0.5 + 0.3 * (torch.rand(N, 1, 4, 4, generator=generator) * 2 - 1)
    bias = 0.4 - 0.5 * float(weight.sum())
    model = NoisyLinear(weight, bias, sigma=1.0) if stochastic else Linear(weight, bias)
    labels = torch.arange(N) % 2
    attack, eps, parameters = ("noise", 3.0, {}) if norm == "l0" else ("pgd", EPS, {"steps": 3})
    return robustbench_lpm.evaluate(
        model, attack, (images, labels), eps=eps, norm=norm, draws=5, out=out, parameters=parameters,
        save_adversarials=save_adversarials,
    )  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, RunRecord]:
    """A deterministic and a stochastic run, written."""
    return {kind: evaluated(tmp_path_factory.mktemp("runs"), stochastic=kind) for kind in (False, True)}


@pytest.fixture(params=[False, True], ids=["deterministic", "stochastic"])
def original(request: pytest.FixtureRequest, originals: dict[bool, RunRecord]) -> RunRecord:
    return originals[request.param]


@pytest.fixture
def copy(original: RunRecord, tmp_path: Path) -> Path:
    """A copy of a run's folder, to be altered."""
    assert original.path is not None
    return Path(shutil.copytree(original.path, tmp_path / original.path.name))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != TIMING}


def test_a_record_reads_back_as_it_was_written(original: RunRecord) -> None:
    assert original.path is not None
    found = records.read(original.path)
    for name in (
        "configuration", "command", "execution", "versions", "class_names", "failures", "notes", "timing", "path", "id",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(original, name), name
    assert found.outcomes.columns.to_list() == list(records.COLUMNS)
    np.testing.assert_array_equal(found.predictions, original.predictions)
    np.testing.assert_array_equal(found.clean_predictions, original.clean_predictions)
    for column in ("index", "input_sha256", "label", "linf", "l2", "forwards", "backwards"):
        assert found.outcomes[column].to_list() == original.outcomes[column].to_list(), column
    assert found.robust_accuracy == original.robust_accuracy
    assert len(found.pictures()) == 16
    assert records.read(original.path / RECORD).id == original.id


def test_a_record_says_what_was_run(original: RunRecord) -> None:
    draws = 5 if original.stochastic else 1
    assert original.predictions.shape == original.clean_predictions.shape == (N, draws)
    assert (original.norm, original.eps, original.mc, original.attack) == ("linf", EPS, 1, "pgd")
    assert 0 < original.robust_accuracy.value < original.clean_accuracy.value < 1
    assert original.id == sha256_of_value(original.configuration)
    assert original.folder_name.endswith(f"--{original.id[:12]}")


def test_what_is_read_is_written_again_in_the_same_bytes(original: RunRecord, tmp_path: Path) -> None:
    assert original.path is not None
    folder = records.write(records.read(original.path), tmp_path)
    assert contents(folder) == contents(original.path)
    assert set(contents(folder)) == {RECORD, OUTCOMES, ADVERSARIALS}


def test_the_same_run_is_written_in_the_same_bytes(original: RunRecord, tmp_path: Path) -> None:
    assert original.path is not None
    again = evaluated(tmp_path, stochastic=original.stochastic)
    assert again.path is not None
    assert contents(again.path) == contents(original.path)


def test_nothing_of_the_clock_or_the_computer_is_in_the_record(original: RunRecord) -> None:
    assert original.path is not None
    text = (original.path / RECORD).read_text()
    assert "seconds" not in text
    assert "processor" not in text
    assert {"seconds", "hardware"} <= json.loads((original.path / TIMING).read_text()).keys()


def altered_json(folder: Path, change: Callable[[dict[str, Any]], object], *, hide: bool = True) -> None:
    content = json.loads((folder / RECORD).read_text())
    change(content)
    (folder / RECORD).write_text(json.dumps(sealed(content) if hide else content))


def in_record(change: Callable[[dict[str, Any]], object], *, hide: bool = True) -> Callable[[Path], None]:
    """Alter record.json; with hide=True also its seal, as a forger would."""
    return lambda folder: altered_json(folder, change, hide=hide)


def in_outcomes(change: Callable[[pd.DataFrame], pd.DataFrame], *, hide: bool) -> Callable[[Path], None]:
    """Alter the outcomes; with hide=True also their hash in record.json, as a forger would."""

    def alter(folder: Path) -> None:
        outcomes = change(pd.read_parquet(folder / OUTCOMES))
        outcomes.to_parquet(folder / OUTCOMES)
        if hide:
            altered_json(folder, lambda c: c["artefacts"].update({OUTCOMES: sha256_of(folder / OUTCOMES)}))

    return alter


def in_images(change: Callable[[dict[str, Any]], object], *, hide: bool) -> Callable[[Path], None]:
    """Alter the stored images; with hide=True also their hash in record.json."""

    def alter(folder: Path) -> None:
        arrays = {name: array.copy() for name, array in load_file(folder / ADVERSARIALS).items()}
        change(arrays)
        save_file(arrays, folder / ADVERSARIALS)
        if hide:
            altered_json(folder, lambda c: c["artefacts"].update({ADVERSARIALS: sha256_of(folder / ADVERSARIALS)}))

    return alter


def all_right(outcomes: pd.DataFrame) -> pd.DataFrame:
    draws = len(outcomes["predictions"][0])
    return outcomes.assign(predictions=[np.full(draws, label, np.int32) for label in outcomes["label"]])


def one_draw_more(outcomes: pd.DataFrame) -> pd.DataFrame:
    return outcomes.assign(predictions=[np.append(p, p[:1]) for p in outcomes["predictions"]])


def with_first(column: str, value: float | None) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda outcomes: outcomes.assign(**{column: [value, *outcomes[column][1:]]})


def moved(name: str, by: float) -> Callable[[dict[str, Any]], object]:
    def move(arrays: dict[str, Any]) -> None:
        array = arrays[f"{name}.1x4x4"]
        array[0, 0, 0, 0] += by

    return move


def both(*changes: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda content: [change(content) for change in changes]


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "outcomes": (in_outcomes(all_right, hide=False), "sha256 differs"),
    "a byte of the outcomes": (lambda f: flip_last_byte(f / OUTCOMES), "sha256 differs"),
    "a byte of the images": (lambda f: flip_last_byte(f / ADVERSARIALS), "sha256 differs"),
    "images": (in_images(moved("adversarial", 1e-3), hide=False), "sha256 differs"),
    "eps": (in_record(lambda c: c["configuration"]["threat"].update(eps=EPS / 2)), "id is not the sha256"),
    "eps by one ulp": (
        in_record(lambda c: c["configuration"]["threat"].update(eps=float(np.nextafter(EPS, 1)))),
        "id is not the sha256",
    ),
    "seed": (in_record(lambda c: c["configuration"]["evaluation"].update(seed=1)), "id is not the sha256"),
    "model": (in_record(lambda c: c["configuration"]["model"].update(name="better")), "id is not the sha256"),
    "a new key": (in_record(lambda c: c["configuration"].update(extra=1)), "id is not the sha256"),
    "id": (in_record(lambda c: c.update(id="0" * 64)), "id is not the sha256"),
    "hash of the outcomes": (in_record(lambda c: c["artefacts"].update({OUTCOMES: "0" * 64})), "sha256 differs"),
    "outcomes without a hash": (in_record(lambda c: c["artefacts"].pop(OUTCOMES)), "artefacts do not list"),
    "a foreign artefact": (in_record(lambda c: c["artefacts"].update({"../x": "0" * 64})), "'../x' is missing"),
    "no outcomes": (lambda f: (f / OUTCOMES).unlink(), f"'{OUTCOMES}' is missing"),
    "no images": (lambda f: (f / ADVERSARIALS).unlink(), f"'{ADVERSARIALS}' is missing"),
    "no record": (lambda f: (f / RECORD).unlink(), f"There is no {RECORD}"),
    "no JSON": (lambda f: (f / RECORD).write_text("{"), "cannot be read as JSON"),
    "no object": (lambda f: (f / RECORD).write_text("[]"), "must hold one JSON object"),
    "no configuration": (in_record(lambda c: c.pop("configuration")), "is not a valid record: KeyError"),
    "newer schema": (
        in_record(lambda c: c.update(schema_version=6)),
        "schema_version is 6; this version reads 1, 2, 3, 4, 5",
    ),
    "older schema": (in_record(lambda c: c.update(schema_version=0)), "schema_version is 0"),
    "no schema": (in_record(lambda c: c.pop("schema_version")), "schema_version is None"),
    "the command": (in_record(lambda c: c.update(command="lpmbench attack"), hide=False), "its seal is not"),
    "the threads": (in_record(lambda c: c["execution"].update(threads=64), hide=False), "its seal is not"),
    "a version": (in_record(lambda c: c["versions"].update(torch="9.9"), hide=False), "its seal is not"),
    "a note made up": (in_record(lambda c: c["notes"].append("audited"), hide=False), "its seal is not"),
    "a failure dropped": (in_record(lambda c: c.update(failures=[{}]), hide=False), "its seal is not"),
    "the name of a class": (in_record(lambda c: c.update(class_names={"0": "cat"}), hide=False), "its seal is not"),
    "no seal": (in_record(lambda c: c.pop(SEAL), hide=False), "its seal is not"),
    # A forger who mends the hashes is found out where the parts contradict each other.
    "rows left out": (in_outcomes(lambda o: o.iloc[1:], hide=True), "not one row for each example"),
    "rows in another order": (in_outcomes(lambda o: o.iloc[::-1], hide=True), "not one row for each example"),
    "rows twice": (in_outcomes(lambda o: pd.concat([o, o[-1:]]), hide=True), "not one row for each example"),
    "a failure made up": (
        in_record(lambda c: c["failures"].append({"indices": [0]})),
        "not one row for each example",
    ),
    "a column left out": (in_outcomes(lambda o: o.drop(columns="forwards"), hide=True), "lack the column(s) forwards"),
    "the choices left out": (in_outcomes(lambda o: o.drop(columns="choice"), hide=True), "lack the column(s) choice"),
    "a choice that is no text": (in_outcomes(with_first("choice", None), hide=True), "choice must hold text"),
    "a draw more": (in_outcomes(one_draw_more, hide=True), "graded draw(s) per example"),
    "beyond the budget": (in_outcomes(with_first("linf", 0.06), hide=True), "linf 0.06 exceeds eps 0.05"),
    "a distance that is no number": (in_outcomes(with_first("linf", np.nan), hide=True), "exceeds eps"),
    "another distance": (in_outcomes(with_first("linf", 0.04), hide=True), "not at the distance recorded"),
    "another distance in l2": (in_outcomes(with_first("l2", 0.01), hide=True), "not at the distance recorded"),
    "an adversarial pixel moved": (in_images(moved("adversarial", 1e-3), hide=True), "not at the distance recorded"),
    "both images moved": (
        in_images(both(moved("adversarial", 2**-10), moved("clean", 2**-10)), hide=True),
        "not the input recorded",
    ),
    "out of the box": (in_images(moved("adversarial", 1), hide=True), "leaves [0, 1]"),
    "a broken file": (
        lambda f: ((f / OUTCOMES).write_bytes(b"PAR1"), rehash(f, OUTCOMES)),
        "is not a valid record: ArrowInvalid",
    ),
}


def rehash(folder: Path, name: str) -> None:
    altered_json(folder, lambda c: c["artefacts"].update({name: sha256_of(folder / name)}))


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_noticed(tampering: str, originals: dict[bool, RunRecord], tmp_path: Path) -> None:
    whole = originals[True].path
    assert whole is not None
    copy = Path(shutil.copytree(whole, tmp_path / whole.name))
    tamper, complaint = TAMPERINGS[tampering]
    tamper(copy)
    with pytest.raises(LpmbenchError) as error:
        records.read(copy)
    assert complaint in str(error.value)
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_clock_may_differ(copy: Path) -> None:
    (copy / TIMING).unlink()
    assert records.read(copy).timing == {}


def test_a_configuration_with_its_own_id_is_another_record(copy: Path) -> None:
    """The id protects a configuration against changes, not against being written anew: its name gives it away."""
    altered_json(copy, lambda c: c["configuration"]["threat"].update(eps=0.5))
    altered_json(copy, lambda c: c.update(id=sha256_of_value(c["configuration"])))
    assert records.read(copy).folder_name != copy.name


@pytest.mark.parametrize("broken", [OUTCOMES, ADVERSARIALS, RECORD])
def test_a_record_that_was_half_written_is_no_record(
    broken: str, copy: Path, original: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when an older one of the same run lies there: its record.json does not speak for other files."""
    write = records.write_atomically

    def fail(path: Path, content: bytes) -> None:
        if path.name == broken:
            raise OSError("disk full")
        write(path, content)

    monkeypatch.setattr(records, "write_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write(replace(original), copy.parent)
    with pytest.raises(LpmbenchError, match=f"There is no {RECORD}"):
        records.read(copy)


def test_writing_leaves_no_temporary_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write_atomically(tmp_path / "deep/file", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write_atomically(tmp_path / "deep/file", b"new")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "deep").iterdir()] == [("file", b"old")]


def test_failed_examples_have_no_rows(original: RunRecord, tmp_path: Path) -> None:
    """A record with failures is whole when it holds all the others."""
    rest = replace(
        original,
        outcomes=original.outcomes.iloc[16:].reset_index(drop=True),
        adversarials={},
        failures=[{"indices": list(range(16)), "error": "out of memory"}],
    )
    folder = records.write(rest, tmp_path)
    assert len(records.read(folder).outcomes) == N - 16


def with_choices(record: RunRecord, names: list[str]) -> RunRecord:
    return replace(record, outcomes=record.outcomes.assign(choice=names))


def test_choices_are_counted(original: RunRecord, tmp_path: Path) -> None:
    chosen = with_choices(original, ["detached"] * 8 + ["score"] * 8 + ["reparameterised"] * 8)
    chosen.outcomes.loc[0, "choice"] = "score"
    found = records.read(records.write(chosen, tmp_path))
    assert list(found.choices.items()) == [("score", 9), ("reparameterised", 8), ("detached", 7)]
    assert with_choices(original, [""] * N).choices == {}


def test_outcomes_that_say_nothing_of_a_choice_are_written_as_without_one(original: RunRecord, tmp_path: Path) -> None:
    silent = replace(original, outcomes=original.outcomes.drop(columns="choice", errors="ignore"))
    assert silent.choices == {}
    found = records.read(records.write(silent, tmp_path))
    assert found.outcomes["choice"].to_list() == [""] * N
    assert found.choices == {}


def test_a_record_of_the_first_version_is_read(copy: Path, original: RunRecord) -> None:
    in_outcomes(lambda outcomes: outcomes.drop(columns="choice"), hide=True)(copy)
    altered_json(copy, lambda c: (c.update(schema_version=1), c.pop(SEAL), c.pop("class_names")), hide=False)
    found = records.read(copy)
    assert found.choices == {}
    assert found.id == original.id
    assert found.robust_accuracy == original.robust_accuracy
    flip_last_byte(copy / OUTCOMES)
    with pytest.raises(LpmbenchError, match="sha256 differs"):
        records.read(copy)


def test_all_records_below_a_folder(originals: dict[bool, RunRecord], tmp_path: Path) -> None:
    for depth, record in enumerate(originals.values()):
        assert record.path is not None
        shutil.copytree(record.path, tmp_path / "a" / str(depth) / record.path.name)
    assert {record.id for record in records.read_all(tmp_path)} == {record.id for record in originals.values()}
    with pytest.raises(LpmbenchError, match="There are no records below"):
        records.read_all(tmp_path / "nowhere")


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_the_distance_of_another_norm_is_a_column_of_its_runs_alone(norm: str, tmp_path: Path) -> None:
    others, record = (evaluated(tmp_path / name, stochastic=False, norm=name) for name in ("l2", norm))
    assert norm not in others.outcomes
    assert record.path is not None
    found = records.read(record.path)
    assert found.outcomes.columns.to_list() == [*records.COLUMNS, norm]
    pictures = found.pictures()
    for picture, distance in zip(pictures, found.outcomes[norm][: len(pictures)], strict=True):
        changes = np.abs(picture.adversarial.astype(float) - picture.clean)
        assert distance == pytest.approx((changes if norm == "l1" else changes > 0).sum(), abs=1e-9)
    assert 0 < found.outcomes[norm].max() <= record.eps
    found.outcomes = found.outcomes.drop(columns=norm)
    with pytest.raises(LpmbenchError, match=rf"lack the column\(s\) {norm}"):
        records.check(found)


@pytest.mark.parametrize("norm", NORMS)
def test_pictures_agree_with_their_rows(norm: str, tmp_path: Path) -> None:
    record = evaluated(tmp_path, stochastic=False, norm=norm)
    rows = record.outcomes.set_index("index")
    for picture in record.pictures():
        check_picture(picture, rows.loc[picture.index], "here")


PIXEL = np.zeros((1, 4, 4), np.float32)
PIXEL[0, 1, 2] = 1


@pytest.mark.parametrize(("part", "offset", "complaint"), [
    ("adversarial", 1e-4 * PIXEL, "not at the distance"),
    ("adversarial", -1e-4 * PIXEL, "not at the distance"),
    ("adversarial", np.roll(PIXEL, 1) * 10, "leaves"),
    ("adversarial", -10 * PIXEL, "leaves"),
    ("adversarial", np.nan * PIXEL, "leaves"),
    ("adversarial", 1e-6 * PIXEL, "not at the distance"),
    ("clean", 1e-4 * PIXEL, "not at the distance"),
])  # fmt: skip
def test_moved_pixels_are_found(
    part: str, offset: np.ndarray[Any, Any], complaint: str, originals: dict[bool, RunRecord]
) -> None:
    record = originals[False]
    picture = record.pictures()[3]
    row = record.outcomes.set_index("index").loc[picture.index]
    altered: Picture = replace(picture, **{part: getattr(picture, part) + offset.astype(np.float32)})
    with pytest.raises(LpmbenchError, match=complaint) as error:
        check_picture(altered, row, "here")
    assert f"here: adversarial image {picture.index} " in str(error.value)
