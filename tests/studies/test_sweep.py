"""What a sweep says of (t, M) is what a model of t glimpses says on the same noise, and what records say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_lpm import statistics
from robustbench_lpm.datasets.examples import Examples
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.runner import Silent
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import Data, resolve_attack, resolve_data
from robustbench_lpm.studies import glimpses
from robustbench_lpm.studies import study as studies
from robustbench_lpm.studies.invariance import warped
from robustbench_lpm.studies.sweep import Sweep, make_sweep

IMAGES = 14


def turned_digits() -> Data:
    """Digits that are hard to read, so that draws, glimpses and averages differ."""
    data = resolve_data("digits")

    def read(indices: Sequence[int]) -> Examples:
        examples = data.read(indices)
        return replace(examples, images=[warped(image[None], angle=55.0)[0] for image in examples.images])

    return replace(data, read=read)


def swept(model: str = "ramlpm", **options: Any) -> Sweep:
    given: dict[str, Any] = {"glimpses": (1, 3, 6, 8), "mc": (2, 3), "draws": 2, "limit": IMAGES}
    return make_sweep(model, turned_digits(), **given | options)[0]


def accuracies(study: Sweep) -> dict[tuple[int, int], float]:
    return {(row["glimpses"], row["mc"]): row["accuracy"] for row in studies.run(study).rows}


@pytest.mark.parametrize("model", ["ramlpm", "ram"])
def test_a_cell_is_the_model_of_so_many_glimpses_on_the_same_noise(model: str) -> None:
    found = accuracies(swept(model))
    examples = turned_digits().read(range(IMAGES))
    images, labels = torch.stack(examples.images), examples.labels
    assert len(set(found.values())) > 5  # cells differ, so that a mix-up would show
    for t in (1, 3, 6, 8):
        classifier = zoo.load_model(model, glimpses=t).classifier
        runs = torch.stack([
            classifier(images, classifier.sample_noise(Addresses.of(0, range(IMAGES), "clean", run)))
            for run in range(6)
        ])  # fmt: skip
        for m in (1, 2, 3):
            averaged = runs.unflatten(0, (6 // m, m)).mean(1)
            assert found[t, m] == pytest.approx(float((averaged.argmax(2) == labels).double().mean()), abs=1e-12)


def test_single_runs_are_the_clean_draws_of_a_record() -> None:
    found = accuracies(swept(glimpses=range(1, 7)))
    plan = make_plan(
        zoo.load_model("ramlpm"), resolve_attack("noise"), turned_digits(), Options(eps=0.1, limit=IMAGES, draws=6)
    )
    looks = glimpses.looks(plan, purpose="clean")
    expected = {t: statistics.mean_draw(looks.correct(1, t)).value for t in range(1, 7)}
    assert {t: found[t, 1] for t in range(1, 7)} == expected


def test_how_the_work_is_split_and_what_else_is_asked_change_nothing() -> None:
    study = swept("ram")
    whole = studies.run(study)
    assert studies.run(replace(study, chunk=1)).rows == whole.rows
    fewer = accuracies(swept("ram", glimpses=(3,), mc=(3,)))
    assert fewer == {cell: value for cell, value in accuracies(study).items() if cell in {(3, 1), (3, 3)}}


def test_every_run_serves_every_m() -> None:
    study = swept("ram", mc=(4,), draws=2, glimpses=(2,))
    rows = studies.run(study).rows
    assert [(row["mc"], row["draws"]) for row in rows] == [(1, 8), (4, 2)]
    odd = swept("ram", mc=(2, 5), draws=1, glimpses=(2,))
    assert {row["mc"]: row["draws"] for row in studies.run(odd).rows} == {1: 5, 2: 2, 5: 1}
    assert studies.total_passes(odd) == 5 * IMAGES


def test_intervals_count_images() -> None:
    row = studies.run(swept("ram", limit=24, glimpses=(2,), mc=(1,), draws=3)).rows[0]
    assert row["images"] == 24
    assert (row["accuracy_low"], row["accuracy_high"]) == statistics.wilson(row["accuracy"], 24)
    few = studies.run(swept("ram", limit=5, glimpses=(2,), mc=(1,))).rows[0]
    assert few["accuracy_low"] is None


def test_a_deterministic_model_runs_once() -> None:
    study = swept("ram-centre", glimpses=(1, 6))
    assert (study.mc, study.draws, studies.total_passes(study)) == ((1,), 1, IMAGES)
    assert [row["mc"] for row in studies.run(study).rows] == [1, 1]


def test_the_card_s_glimpses_are_told() -> None:
    study, usual = make_sweep("ramlpm", resolve_data("digits"), glimpses=[9, 2], mc=[1], limit=1)
    assert (usual, study.models[0].classifier.glimpses, study.glimpses) == (6, 9, (2, 9))


class Interrupting(Silent):
    """Counts passes, and presses Ctrl-C after so many images."""

    def __init__(self, after: int) -> None:
        self.after, self.passes = after, 0

    def spent(self, passes: int) -> None:
        self.passes += passes

    def finished(self, examples: int) -> None:
        if examples >= self.after:
            raise KeyboardInterrupt


def test_an_interrupted_sweep_goes_on_to_the_same_table(tmp_path: Path) -> None:
    study = replace(swept("ram"), chunk=1)  # blocks of 4 images
    expected = studies.run(study).rows
    with pytest.raises(KeyboardInterrupt):
        studies.run(study, tmp_path, Interrupting(after=8))
    watcher = Interrupting(after=IMAGES + 1)
    result = studies.run(study, tmp_path, watcher)
    assert result.rows == expected
    assert watcher.passes == 6 * (IMAGES - 8)
    studies.write(study, result, {"sweep.csv": b"table"}, tmp_path)
    assert not (tmp_path / ".partial").exists()


def test_blocks_of_another_configuration_are_not_taken(tmp_path: Path) -> None:
    study = replace(swept("ram"), chunk=1)
    with pytest.raises(KeyboardInterrupt):
        studies.run(study, tmp_path, Interrupting(after=8))
    other = replace(study, seed=1)
    assert studies.run(other, tmp_path).rows == studies.run(other).rows != studies.run(study).rows


def test_a_finished_sweep_is_read_and_another_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = swept(glimpses=(1, 2), mc=(1,))
    assert studies.finished(study, tmp_path) is None
    result = studies.run(study, tmp_path)
    studies.write(study, result, {"sweep.csv": b"table"}, tmp_path)
    assert studies.finished(study, tmp_path) == result
    assert studies.whole(study, tmp_path)
    (tmp_path / "sweep.csv").write_bytes(b"other")
    assert not studies.whole(study, tmp_path)
    with pytest.raises(LpmbenchError, match="differs in glimpses"):
        studies.finished(swept(glimpses=(2,), mc=(1,)), tmp_path)
    with pytest.raises(LpmbenchError, match="differs in models"):
        studies.finished(swept("ram", glimpses=(1, 2), mc=(1,)), tmp_path)
    with pytest.raises(LpmbenchError, match="differs in data_sha256, images"):
        studies.finished(swept(glimpses=(1, 2), mc=(1,), limit=IMAGES - 1), tmp_path)
    monkeypatch.setattr(studies, "versions", lambda: {"torch": "0.1"})
    assert studies.finished(study, tmp_path) is None


@pytest.mark.parametrize("content", ["{}", '{"id": "0", "configuration": {}, "table": [], "versions": {}}', "[1", "7"])
def test_what_is_no_sweep_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(LpmbenchError, match=r"sweep\.json"):
        studies.finished(swept(glimpses=(1,), mc=(1,), limit=1), tmp_path)


def test_where_numbers_come_from_is_stored(tmp_path: Path) -> None:
    study = swept(glimpses=(1, 2, 3), mc=(1, 2))
    studies.write(study, studies.run(study), {"sweep.csv": b"table"}, tmp_path)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert stored["id"] == study.id
    assert stored["command"] == (
        "lpmbench sweep ramlpm --glimpses 1..3 --dataset digits --size original --split test --limit 14 --mc 1,2 "
        "--draws 2 --seed 0"
    )
    assert stored["configuration"]["models"][0]["weights_sha256"] == study.models[0].weights_sha256
    assert stored["configuration"]["models"][0]["parameters"]["glimpses"] == 3
    assert stored["configuration"]["dataset"]["data_sha256"] == study.data.sha256(range(IMAGES))
    assert {"torch", "numpy", "robustbench-lpm"} <= stored["versions"].keys()
    assert stored["timing"]["hardware"]["cores"] > 0
    assert len(stored["table"]) == 6


MISTAKES = [
    (("cnn", "digits"), "sees an image whole"),
    (("ramlpm", "panda"), "predicts the labels 'digits', dataset 'panda' has the labels 'imagenet'"),
    (("ramlpm-imagenet", "panda"), "no weights"),
]


@pytest.mark.parametrize(("names", "reason"), MISTAKES)
def test_mistakes(names: tuple[str, str], reason: str) -> None:
    with pytest.raises(LpmbenchError, match=reason):
        make_sweep(names[0], resolve_data(names[1]), glimpses=(1,), mc=(1,), limit=1)


def test_numbers_that_are_none_are_refused() -> None:
    study = swept(glimpses=(1,), mc=(1,), limit=2)
    with torch.inference_mode():
        for parameter in study.models[0].classifier.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(LpmbenchError, match="NaN"):
        studies.run(study)


def test_the_estimate_grows_with_the_work() -> None:
    small, large = swept("ram", draws=1), swept("ram", draws=100)
    assert 0 < studies.estimate_seconds(small) < studies.estimate_seconds(large)
    assert np.isfinite(studies.estimate_seconds(large))
