"""What an attack must tell the reader, such as a stage that failed, stands in the record, however the run went."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.api import prepare
from robustbench_lpm.attacks import autoattack_adapter
from robustbench_lpm.attacks.contract import Oracle
from robustbench_lpm.execution import journal
from robustbench_lpm.execution.runner import run, told_failures
from robustbench_lpm.norms import Norm
from robustbench_lpm.protocol.plan import Plan
from tests.classifiers import FairGlimpsing, Linear
from tests.execution.test_journal import Interrupt
from tests.execution.test_runner import contents

LEFT_OUT = "Square of AutoAttack failed and is left out: "


def planned(model: nn.Module, attack: Any, shape: tuple[int, ...] = (1, 6, 6), n: int = 6, **options: Any) -> Plan:
    images = 0.3 + 0.4 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    plan = prepare(model, attack, (images, torch.zeros(n)), **({"eps": 0.05, "draws": 2} | options))
    return dataclasses.replace(plan, chunk=2)


def firm(shape: tuple[int, ...]) -> Linear:
    """No image falls, so that every stage comes to its turn."""
    return Linear(torch.linspace(-1, 1, shape[0] * shape[1] * shape[2]).reshape(shape), bias=500.0)


@pytest.mark.parametrize(("shape", "norm", "left_out"), [
    ((3, 24, 32), "l2", True), ((3, 32, 32), "l2", False), ((3, 24, 32), "linf", False),
])  # fmt: skip
def test_a_stage_of_autoattack_that_fails_is_left_out_and_the_others_count(
    shape: tuple[int, ...], norm: str, left_out: bool
) -> None:
    options: dict[str, Any] = {"norm": norm, "parameters": {"steps": 2, "queries": 30}}
    record = run(planned(firm(shape), "autoattack", shape, n=3, **options))
    assert [note.startswith(LEFT_OUT + "RuntimeError: ") for note in record.notes if "AutoAttack" in note] == [
        True
    ] * left_out
    assert (record.outcomes["l2"] > 0).all()


def test_where_every_stage_fails_the_attack_has_failed() -> None:
    """It is the network that fails then, not a stage."""

    class Narrow(Linear):
        def forward(self, images: Tensor) -> Tensor:
            if images.requires_grad and len(images) == 2:  # as many as a block has, but not at the door
                raise RuntimeError("no way back")
            return super().forward(images)

    shape = (1, 6, 6)
    record = run(planned(Narrow(firm(shape).weight), "autoattack-rand", n=4, parameters={"steps": 2}))
    assert "no way back" in told_failures(record)


def talking(oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, steps: int = 4) -> Tensor:
    """Tells something in its first step, of each image in its own words."""
    for step in oracle.resumable(range(steps), {}):
        if step == 0:
            oracle.note("The first step is odd", f"image {oracle.indices[0]}")
        oracle(images, oracle.noise())
    return images + eps


@pytest.mark.parametrize("share", [0.1, 0.2, 0.45, 0.8])
def test_a_note_outlives_an_interruption(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two gradient modes: what the first has told is not asked for again when it goes on in the second."""
    monkeypatch.setattr(journal, "WRITE_EVERY", 0.0)
    options: dict[str, Any] = {"gradient_mode": "strongest"}
    straight = run(planned(FairGlimpsing(0.9), talking, **options), tmp_path / "straight")
    assert straight.notes[-1] == "The first step is odd: image 0"
    assert sum("odd" in note for note in straight.notes) == 1
    spent = int(straight.outcomes["forwards"].sum())
    with pytest.raises(KeyboardInterrupt):
        run(planned(FairGlimpsing(0.9), talking, **options), tmp_path / "broken", Interrupt(int(spent * share)))
    resumed = run(planned(FairGlimpsing(0.9), talking, **options), tmp_path / "broken")
    assert contents(resumed.path or tmp_path) == contents(straight.path or tmp_path)
    assert resumed.notes == straight.notes


def test_memory_that_runs_out_in_a_stage_is_no_failure_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(autoattack_adapter, "_square", greedy)
    record = run(planned(firm((1, 6, 6)), "autoattack", n=2, parameters={"steps": 1, "queries": 5}))
    assert "out of memory" in told_failures(record)
