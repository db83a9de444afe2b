"""The benchmark programs run and compare like with like. Nothing here looks at a clock."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import jobs, markdown, reference, training_cost
from benchmarks.__main__ import main
from benchmarks.groups import GROUPS, groups_for
from benchmarks.subjects import Place
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards, zoo

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_group_prints_a_table_and_writes_every_timing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "found.json"
    command = [sys.executable, "-m", "benchmarks", "startup", "--rounds", "2", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "lpmbench models" in ran.stdout
    found = json.loads(out.read_text())
    assert {"torch", "robustbench-lpm"} <= set(found["versions"])
    (table,) = found["groups"]["startup"]["tables"]
    assert {len(row["seconds"]) for row in table["rows"]} == {2}


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = CliRunner().invoke(main, ["startup", "--out", str(tmp_path / "file" / "found.json")])
    assert ran.exit_code == 1
    assert "cannot be written" in ran.output
    assert "lpmbench models" not in ran.output


def test_a_device_that_is_not_there_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["startup", "--device", "cuda:99", "--out", str(tmp_path / "found.json")])
    assert ran.exit_code == 1
    assert "cuda:99" in ran.output
    assert "lpmbench models" not in ran.output


def test_an_unknown_group_is_refused() -> None:
    ran = CliRunner().invoke(main, ["sppsa"])
    assert ran.exit_code == 2
    assert all(name in ran.output for name in GROUPS)


def test_the_group_of_a_gpu_is_measured_there_alone() -> None:
    assert groups_for("cuda") == groups_for("cuda:1") == ["gpu-digits", "gpu-photos", "gpu-training"]
    assert {*groups_for("cpu"), *groups_for("cuda")} == {*GROUPS}
    assert not {*groups_for("cpu")} & {*groups_for("cuda")}


STOCHASTIC = {"gradient_mode": "detached"}
ATTACKS = [
    ("cnn", "pgd", {"steps": 3}, {}, jobs.passes, {"steps": 3}),
    ("ramlpm", "pgd", {"steps": 2, "eot": 5}, STOCHASTIC, jobs.passes, {"steps": 2, "draws": 5} | STOCHASTIC),
    ("cnn", "spsa", {"iterations": 2, "pairs": 3}, {}, jobs.queries, {"each": 12}),
]


@pytest.mark.parametrize(("model", "attack", "parameters", "options", "alone", "settings"), ATTACKS)
def test_the_passes_alone_are_as_many_as_the_attack_makes(
    model: str, attack: str, parameters: dict[str, Any], options: dict[str, Any], alone: Any, settings: dict[str, Any]
) -> None:
    place, subject = Place("ours", "cpu"), {"model": model, "dataset": "digits", "count": 2}
    parameters = parameters | {"early_stop": False}
    made = jobs.own(place, attack=attack, eps=0.1, precision="float32", parameters=parameters, **subject, **options)
    floor = alone(place, **subject, **settings)
    counted = [job.facts(job.work())["evaluations"] for job in (made, floor)]
    assert counted[0] == counted[1] > 0


def test_a_training_moves_the_weights_and_its_passes_alone_do_not() -> None:
    losses = {}
    for bare in (False, True):
        setting: dict[str, Any] = {"model": "resnet18-cifar10", "side": 32, "batch": 4, "steps": 2}
        job = jobs.training(Place("ours", "cpu"), precision="32-true", bare=bare, **setting)
        losses[bare] = [job.facts(job.work())["loss"] for _ in range(3)]
    assert len({*losses[False]}) == 3
    assert len({*losses[True]}) == 1


def test_the_cost_of_adversarial_training_is_that_of_its_passes(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name in ("digits-cnn", "digits-cnn-at"):
        recipe = cards.recipe(name)
        training_cost.tell(cards.model("cnn"), recipe, side=32, count=10**9, batch=2)
        (flops, memory) = re.search(r": (\S+) FLOP; .*: (\S+) GiB", capsys.readouterr().out).groups()
        found.append((float(flops) / recipe.epochs, float(memory) / recipe.batch_size))
    (plain, kept), (adversarial, kept_by_most) = found
    # A step of the attack takes no gradients of weights, which are a third of a pass.
    steps = cards.recipe("digits-cnn-at").parameters["steps"]
    assert plain * (1 + steps * 0.6) < adversarial < plain * (1 + steps)
    assert kept == pytest.approx(kept_by_most, rel=0.1)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_loop_that_ramlpm_is_compared_with_computes_the_same(runs: int) -> None:
    card = cards.model("ramlpm-sim2mnist")
    torch.manual_seed(0)
    classifier = zoo.wrap(zoo.build(card), card).double().eval().requires_grad_(False)
    images = torch.rand(2, 1, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 2])
    drawn = classifier.sample_noise(Addresses.of(0, range(2 * runs), "attack"))
    noise = {source: values.double() for source, values in drawn.items()}
    pixels = images.clone().requires_grad_()
    logits = classifier(pixels, noise)
    torch.testing.assert_close(
        reference.forward(classifier, images, noise), logits.unflatten(0, (runs, 2)).mean(0), atol=1e-12, rtol=0
    )
    loss = torch.nn.functional.cross_entropy(logits, labels.repeat(runs), reduction="sum") / runs
    (gradient,) = torch.autograd.grad(loss, pixels)
    expected = reference.gradient(classifier, images, labels, noise)
    torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=0)


def test_the_tables_in_the_docs_are_what_was_measured() -> None:
    measured = sorted((ROOT / "benchmarks" / "measured").glob("*.json"))
    assert measured
    page = (ROOT / "docs" / "performance.md").read_text()
    for path in measured:
        assert markdown.tables(json.loads(path.read_text())) in page, f"print it: python -m benchmarks.markdown {path}"
