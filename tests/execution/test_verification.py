"""Records are verified against the model; foreign adversarial images are graded like our own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.runner import run
from robustbench_lpm.execution.verification import check_random_numbers, verify
from robustbench_lpm.hashing import sealed, sha256_of_value
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.submissions import as_attack, check_budget, read_submission
from robustbench_lpm.registry.tasks import (
    Attack,
    Data,
    resolve_attack,
    resolve_data,
    resolve_model,
    worst_case_over,
)
from robustbench_lpm.registry.zoo import LoadedModel
from robustbench_lpm.studies import glimpses
from tests.classifiers import Linear, NoisyLinear


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """RAM-LPM under a short PGD, on disk."""
    out = tmp_path_factory.mktemp("runs")
    return robustbench_lpm.evaluate(
        "ramlpm", "pgd", "digits", eps=0.1, limit=6, draws=8, parameters={"steps": 2}, out=out, save_adversarials=True
    )


@pytest.fixture(scope="module")
def digits() -> Data:
    return resolve_data("digits")


def verdicts(folder: Path) -> dict[str, str]:
    return {claim: verdict for claim, verdict, _ in verify(folder)}


def test_an_honest_record_holds(finished: RunRecord) -> None:
    assert finished.path is not None
    assert set(verdicts(finished.path).values()) == {"holds"}
    assert len(verdicts(finished.path)) == 7


def test_a_record_that_claims_other_predictions_fails(finished: RunRecord, tmp_path: Path) -> None:
    """Forged with care: every hash is right, only the model does not agree."""
    assert finished.path is not None
    forged = records.read(finished.path)
    forged.outcomes["predictions"] = [[int(label)] * 8 for label in forged.labels]
    forged.outcomes["clean_predictions"] = [[int(label)] * 8 for label in forged.labels]
    for name in ("predictions", "clean_predictions"):
        forged.__dict__.pop(name, None)
    found = verdicts(records.write(forged, tmp_path))
    assert found["the record is whole"] == "holds"
    assert found["adversarial predictions repeat"] == "FAILS"


def graded(folder: Path, source: Data, eps: float) -> RunRecord:
    images = read_submission(folder, source)
    options = Options(eps=eps, draws=8)
    plan = make_plan(resolve_model("ramlpm"), as_attack(images), source, options, indices=sorted(images))
    check_budget(images, source, options.norm, eps, plan.indices)
    return run(plan)


def test_grading_our_own_images_gives_our_own_result(finished: RunRecord, digits: Data) -> None:
    assert finished.path is not None
    again = graded(finished.path, digits, 0.1)
    assert again.predictions.tolist() == finished.predictions.tolist()
    assert again.outcomes["forwards"].sum() == 0


def test_all_formats_grade_alike(finished: RunRecord, digits: Data, tmp_path: Path) -> None:
    """Rounded to 8 bits first, so that a PNG can hold them."""
    pictures = [(p.index, np.round(p.adversarial * 255).astype(np.uint8)) for p in finished.pictures()]
    (tmp_path / "npz").mkdir()
    (tmp_path / "png").mkdir()
    floats = np.stack([pixels.astype(np.float32) / np.float32(255) for _, pixels in pictures])
    np.savez(tmp_path / "npz" / "adversarials.npz", index=[i for i, _ in pictures], adversarial=floats)
    for index, pixels in pictures:
        Image.fromarray(pixels[0]).save(tmp_path / "png" / f"{index}.png")
    one, other = (graded(tmp_path / kind, digits, 0.1 + 1 / 255) for kind in ("npz", "png"))
    assert one.predictions.tolist() == other.predictions.tolist()
    assert one.id == other.id


def test_a_submission_beyond_its_budget_is_refused_not_pulled_back(finished: RunRecord, digits: Data) -> None:
    assert finished.path is not None
    with pytest.raises(LpmbenchError, match=r"Image \d+ is at linf distance 0.1, beyond eps 0.05"):
        graded(finished.path, digits, 0.05)


def bad_npz(folder: Path, index: list[int], adversarial: np.ndarray) -> None:
    np.savez(folder / "adversarials.npz", index=index, adversarial=adversarial)


@pytest.mark.parametrize(("index", "shape", "value", "message"), [
    ([0, 0], (2, 1, 32, 32), 0.5, "more than one image"),
    ([500], (1, 1, 32, 32), 0.5, "no example 500"),
    ([0], (1, 1, 32, 32), 1.5, r"pixels in \[0, 1\]"),
    ([0], (1, 1, 32, 32), float("nan"), r"pixels in \[0, 1\]"),
    ([0, 1], (1, 1, 32, 32), 0.5, r"must be \(N,\)"),
])  # fmt: skip
def test_bad_submissions(
    tmp_path: Path, digits: Data, index: list[int], shape: tuple[int, ...], value: float, message: str
) -> None:
    bad_npz(tmp_path, index, np.full(shape, value, np.float32))
    with pytest.raises(LpmbenchError, match=message):
        read_submission(tmp_path, digits)


def test_no_submission_at_all(tmp_path: Path, digits: Data) -> None:
    with pytest.raises(LpmbenchError, match="no PNG files"):
        read_submission(tmp_path, digits)


def made(attack: str | Attack, out: Path, model: str | LoadedModel = "ram", **options: Any) -> Path:
    given: dict[str, Any] = {"eps": 0.1, "limit": 4, "draws": 5, "gradient_mode": "detached"} | options
    record = run(make_plan(resolve_model(model), resolve_attack(attack), resolve_data("digits"), Options(**given)), out)
    return record.path or out


SHORT_PGD = resolve_attack("pgd", parameters={"steps": 2, "eot": 1})
SHORT_TRANSFER = resolve_attack("transfer", parameters={"steps": 1}, surrogates=["cnn", "cnn-at"])


@pytest.mark.parametrize(("attack", "options"), [
    (SHORT_PGD, {"noise": ["frozen"]}),
    (SHORT_PGD, {"noise": ["policy=frozen"]}),
    (SHORT_PGD, {"noise": ["policy=frozen", "first_fixation=replayed"], "mc": 2}),
    (SHORT_PGD, {"noise": ["fresh"]}),
    (SHORT_TRANSFER, {"gradient_mode": None}),
    (worst_case_over([resolve_attack("noise"), SHORT_PGD, SHORT_TRANSFER]), {}),
], ids=["frozen", "policy frozen", "mixed, averaged over 2", "fresh", "transfer", "worst case"])  # fmt: skip
def test_records_of_every_kind_hold(attack: Attack, options: dict[str, Any], tmp_path: Path) -> None:
    found = verdicts(made(attack, tmp_path, **options))
    assert set(found.values()) == {"holds"}
    assert len(found) == 7


def pretending(folder: Path, **changes: Any) -> Path:
    """The record in a folder with other words in its configuration, its id mended."""
    content = json.loads((folder / records.RECORD).read_text())
    for part, words in changes.items():
        content["configuration"][part] |= words
    content["id"] = sha256_of_value(content["configuration"])
    (folder / records.RECORD).write_text(json.dumps(sealed(content)))
    return folder


def test_the_frozen_draw_is_checked_and_no_other(tmp_path: Path) -> None:
    """Made with one source frozen, told with none (or another) frozen: predictions are those of another noise."""
    folder = made(SHORT_PGD, tmp_path, limit=16, eps=0.2, draws=20, noise=["policy=frozen"])
    assert set(verdicts(folder).values()) == {"holds"}
    for claimed in ([], [["first_fixation", "frozen"]]):
        found = verdicts(pretending(folder, evaluation={"noise": claimed}))
        assert found["the record is whole"] == "holds"
        assert found["adversarial predictions repeat"] == "FAILS"


def test_older_noise_is_not_checked(finished: RunRecord) -> None:
    evaluation = dict(finished.configuration["evaluation"])
    del evaluation["random_numbers"]
    older = replace(finished, configuration=finished.configuration | {"evaluation": evaluation})
    plain, noisy = Classifier(Linear(torch.ones(1, 2, 2))), Classifier(NoisyLinear(torch.ones(1, 2, 2), sigma=1.0))
    check_random_numbers(older, plain)
    check_random_numbers(finished, noisy)
    with pytest.raises(LpmbenchError, match="random numbers that this version no longer makes"):
        check_random_numbers(older, noisy)


def test_noise_that_the_model_does_not_have_fails(tmp_path: Path) -> None:
    folder = made("noise", tmp_path, "cnn", gradient_mode=None)
    claim, verdict, evidence = verify(pretending(folder, evaluation={"noise": [["policy", "frozen"]]}))[-1]
    assert (claim, verdict) == ("predictions repeat", "FAILS")
    assert "deterministic" in evidence


@pytest.fixture(scope="module")
def shortened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAM after two of its six glimpses, as `lpmbench glimpses` attacks it."""
    whole = resolve_model("ram")
    plan = make_plan(
        glimpses.truncated(whole, "ram", 2),
        SHORT_PGD,
        resolve_data("digits"),
        Options(eps=0.1, limit=16, draws=10, gradient_mode="detached", save_adversarials=True),
    )
    record = run(plan, tmp_path_factory.mktemp("shortened"))
    assert record.model == "ram (2 glimpses)"
    assert record.path is not None
    return record.path


@pytest.mark.parametrize("model", [None, "ram"])
def test_a_model_of_fewer_glimpses_is_built_as_the_record_says(shortened: Path, model: str | None) -> None:
    found = {claim: (verdict, evidence) for claim, verdict, evidence in verify(shortened, model=model)}
    assert {verdict for verdict, _ in found.values()} == {"holds"}
    assert found["weights"][1].endswith("run with glimpses = 2")


def test_the_number_of_glimpses_matters(shortened: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shortened, tmp_path / "copy"))
    parameters = json.loads((folder / records.RECORD).read_text())["configuration"]["model"]["parameters"]
    found = verdicts(pretending(folder, model={"parameters": parameters | {"glimpses": 6}}))
    assert found["the record is whole"] == found["weights"] == "holds"
    assert found["adversarial predictions repeat"] == "FAILS"


@pytest.mark.parametrize(("words", "reason"), [
    ({"name": "mine (2 glimpses)"}, "Unknown model 'mine (2 glimpses)'"),
    ({"parameters": {"glimpzes": 2}}, "Did you mean 'glimpses'?"),
    ({"parameters": {"glimpses": "two"}}, "parameter 'glimpses'"),
    ({"parameters": {"device": "cpu"}}, "device"),
])  # fmt: skip
def test_a_model_that_cannot_be_built_is_not_at_hand(
    shortened: Path, tmp_path: Path, words: dict[str, Any], reason: str
) -> None:
    folder = pretending(Path(shutil.copytree(shortened, tmp_path / "copy")), model=words)
    claim, verdict, evidence = verify(folder)[-1]
    assert (claim, verdict) == ("predictions repeat", "not checked")
    assert "the model is not available" in evidence
    assert reason in evidence
