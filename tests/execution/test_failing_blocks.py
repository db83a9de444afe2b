"""Where memory runs out a block is tried again in halves; one that fails is recorded so; the rest goes on, in sight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor

import robustbench_lpm
from robustbench_lpm.api import FailedBlocks
from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.datasets.examples import Examples
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution import computing
from robustbench_lpm.execution.recording import PROGRESS, finished_run
from robustbench_lpm.execution.runner import Silent, run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import resolve_attack, resolve_model, worst_case_over
from tests.classifiers import NoisyLinear
from tests.execution.test_runner import contents, plan_of
from tests.watchers import Listening

BAD = (2, 5)  # examples that an attack cannot do


class Picky:
    """Noise of the budget's size for all images but some; of more than `room` at once there is no room."""

    __name__ = "picky"

    def __init__(self, error: Exception, bad: tuple[int, ...] = BAD, room: int = 10**9) -> None:
        self.error, self.bad, self.room = error, bad, room
        self._calls: SimpleQueue[list[int]] = SimpleQueue()  # Python does not see into it: it is no part of the code

    @property
    def calls(self) -> list[list[int]]:
        """The indices of each batch since they were last asked for."""
        return [self._calls.get() for _ in range(self._calls.qsize())]

    def __call__(self, oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        self._calls.put(list(oracle.indices))
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(images)} GiB.")
        if set(self.bad) & set(oracle.indices):
            raise self.error
        offsets = oracle.choices().uniform("offset", *images.shape[1:])
        return images + eps * (2 * offsets - 1)


def planned(attack: Any, n: int = 12, chunk: int = 4, **options: Any) -> Plan:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = resolve_model(NoisyLinear(torch.linspace(-1, 1, 64).reshape(1, 8, 8), sigma=0.5).eval())
    given: dict[str, Any] = {"eps": 0.05, "draws": 5} | options
    plan = make_plan(model, resolve_attack(attack), data_from_tensors(images, torch.arange(n) % 2), Options(**given))
    return dataclasses.replace(
        plan, chunk=chunk, members=tuple(dataclasses.replace(m, chunk=chunk) for m in plan.members)
    )


def failed_run(plan: Plan, out: Path | None = None, **options: Any) -> records.RunRecord:
    record = run(plan, out, **options)
    assert record.failures
    return record


EXHAUSTED: list[tuple[Exception, str]] = [
    (MemoryError(), "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB."), "out of memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
]


@pytest.mark.parametrize(("error", "reason"), EXHAUSTED, ids=lambda value: type(value).__name__)
def test_where_memory_runs_out_a_block_is_cut_down_to_single_images_and_the_rest_goes_on(
    error: Exception, reason: str, tmp_path: Path
) -> None:
    attack = Picky(error)
    record = failed_run(planned(attack), tmp_path)
    assert record.failures == [
        {"block": 0, "indices": [2], "error": reason},
        {"block": 1, "indices": [5], "error": reason},
    ]
    assert record.outcomes["index"].to_list() == [i for i in range(12) if i not in BAD]
    assert attack.calls[:5] == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    incomplete = records.read(record.path or tmp_path)  # it is whole, and says what it lacks
    assert incomplete.failures == record.failures
    unhurt = run(planned(Picky(error, bad=())))
    kept = unhurt.outcomes[~unhurt.outcomes["index"].isin(BAD)]
    for column in ("index", "linf", "l2", "forwards", "choice"):
        assert record.outcomes[column].to_list() == kept[column].to_list()
    assert [list(row) for row in record.outcomes["predictions"]] == [list(row) for row in kept["predictions"]]


@pytest.mark.parametrize(("error", "reason"), [
    (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    (LpmbenchError("The model gives NaN logits;\nno."), "The model gives NaN logits; no"),
    (RuntimeError("shapes differ:\n (3,) and\n (4,)"), "RuntimeError: shapes differ: (3,) and (4,)"),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_any_other_error_is_met_once_and_told_with_the_model_and_the_attack(error: Exception, reason: str) -> None:
    attack = Picky(error)
    record = failed_run(planned(attack))
    assert attack.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert record.failures == [
        {"block": 0, "indices": [0, 1, 2, 3], "error": reason},
        {"block": 1, "indices": [4, 5, 6, 7], "error": reason},
    ]
    assert record.outcomes["index"].to_list() == [8, 9, 10, 11]
    told = (
        f"NoisyLinear under picky: 8 of 12 example(s) failed: {reason.rstrip('.')}. The same command tries them again."
    )
    assert str(FailedBlocks(record)) == told


@pytest.mark.parametrize("error", [LpmbenchError("2.png cannot be read."), ValueError("no picture")], ids=str)
def test_images_that_cannot_be_read_fail_alone(error: Exception) -> None:
    attack = Picky(error, bad=())
    plan = planned(attack)

    def read(indices: Sequence[int]) -> Examples:
        if set(BAD) & set(indices):
            raise error
        return plan.data.read(indices)

    record = failed_run(dataclasses.replace(plan, data=dataclasses.replace(plan.data, read=read)))
    assert attack.calls == [[0, 1, 3], [4, 6, 7], [8, 9, 10, 11]]
    assert [failure["indices"] for failure in record.failures] == [[2], [5]]
    assert all(str(error).rstrip(".") in failure["error"] for failure in record.failures)


def test_what_fits_in_halves_is_whole_and_says_so(tmp_path: Path) -> None:
    record = run(planned(Picky(ValueError(), bad=(), room=2)), tmp_path)
    assert record.failures == []
    assert record.outcomes["index"].to_list() == list(range(12))
    *_, note = record.notes
    assert note.startswith("Memory ran out: block(s) 0, 1, 2 were computed in parts")
    assert records.read(record.path or tmp_path).notes == record.notes
    assert finished_run(planned(Picky(ValueError(), bad=(), room=2)), tmp_path) is not None
    assert len(record.pictures()) == 12  # those of both halves


def test_the_same_command_tries_again_what_failed_and_that_alone(tmp_path: Path) -> None:
    error = RuntimeError("not today")
    first = failed_run(planned(Picky(error)), tmp_path)
    assert finished_run(planned(Picky(error)), tmp_path) is None
    said = Listening()
    again = Picky(error)
    second = failed_run(planned(again), tmp_path, watcher=said)
    assert said.lines == ["4 example(s) failed before (RuntimeError: not today); they are tried again"] * 2
    calls = again.calls
    assert [0, 1, 2, 3] in calls
    assert [8, 9, 10, 11] not in calls
    assert first.failures == second.failures
    healed = run(planned(Picky(error, bad=())), tmp_path)
    straight = run(planned(Picky(error, bad=())), tmp_path / "straight")
    assert contents(healed.path or tmp_path) == contents(straight.path or tmp_path)
    assert not (tmp_path / PROGRESS).exists()


def test_where_nothing_can_be_computed_there_is_a_record_without_rows(tmp_path: Path) -> None:
    record = failed_run(planned(Picky(RuntimeError("never"), bad=tuple(range(12)))), tmp_path)
    assert len(records.read(record.path or tmp_path).outcomes) == 0
    assert sum(len(failure["indices"]) for failure in record.failures) == 12


def test_a_worst_case_lacks_what_a_member_could_not_do(tmp_path: Path) -> None:
    """The strongest of fewer attacks is not the worst case over all of them."""
    picky = Picky(RuntimeError("no"))
    attack = worst_case_over([resolve_attack("noise"), resolve_attack(picky)])
    record = failed_run(planned(attack), tmp_path)
    assert [(failure["indices"], failure["error"]) for failure in record.failures] == [
        ([0, 1, 2, 3], "the member 'picky' failed on it"),
        ([4, 5, 6, 7], "the member 'picky' failed on it"),
    ]
    picky.bad = ()
    healed = run(planned(attack), tmp_path)
    straight = run(planned(attack), tmp_path / "straight")
    assert healed.outcomes["choice"].to_list() == straight.outcomes["choice"].to_list()
    assert contents(healed.path or tmp_path) == contents(straight.path or tmp_path)


def test_from_python_a_failure_is_an_error_that_holds_the_rest() -> None:
    images = torch.rand(3, 1, 8, 8)
    model = NoisyLinear(torch.ones(1, 8, 8))
    with pytest.raises(FailedBlocks, match="1 of 3 example") as caught:
        robustbench_lpm.evaluate(model, Picky(MemoryError()), (images, torch.zeros(3)), eps=0.1, draws=2)
    assert len(caught.value.record.outcomes) == 2
    assert "\n" not in str(caught.value)


def test_a_disk_that_fails_is_no_failure_of_a_block(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        run(planned(Picky(OSError("the disk is gone"))), tmp_path)
    assert not list(tmp_path.rglob("record.json"))


NAN_SOMETIMES = """
import torch
class Sometimes(torch.nn.Module):
    def __init__(self, *, channels, classes):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(classes))
    def forward(self, x):
        logits = x.flatten(1).sum(1, keepdim=True) * self.w
        return torch.where(x.mean((1, 2, 3), keepdim=True)[..., 0, 0] > 0.35, torch.nan, logits)
"""


def test_the_command_ends_with_one_line_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes_nan.py").write_text(NAN_SOMETIMES)
    torch.save({"w": torch.ones(10)}, tmp_path / "w.pt")
    (tmp_path / "nan.toml").write_text(
        'name = "nan"\nsummary = "NaN for bright images"\nentry = "sometimes_nan:Sometimes"\nlabels = "digits"\n'
        "classes = 10\n[input]\nchannels = 1\n"
    )
    line = f"attack --model {tmp_path}/nan.toml --checkpoint {tmp_path}/w.pt --trust --attack noise --eps 0.01"
    words = [*line.split(), "--limit", "30", "--threads", "1", "--out", str(tmp_path / "runs")]
    assert lpmbench(words) == 1
    shown = capsys.readouterr()
    (complaint,) = shown.err.strip().splitlines()
    assert complaint.startswith("lpmbench: 1 run(s) are not whole: nan under noise: ")
    assert "NaN logits" in complaint
    assert complaint.endswith("The same command tries them again.")
    assert "FAILED" in shown.out
    (record,) = records.read_all(tmp_path / "runs")
    assert len(record.outcomes) == 0
    assert lpmbench(words) == 1
    assert "failed before" in capsys.readouterr().out
    assert lpmbench(["report", "--results", str(tmp_path / "runs")]) == 0


def test_a_block_that_is_interrupted_has_not_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        computing.compute(plan_of(n=2), 0, (0, 1), Stop())


class Stop(Silent):
    def spent(self, passes: int) -> None:
        raise KeyboardInterrupt
