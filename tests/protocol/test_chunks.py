"""How many rows pass at once: as many as a GPU's memory holds. What was measured once is kept, what runs out halved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lpm.execution import computing
from robustbench_lpm.execution.blocks import MANIFEST, BlockStore
from robustbench_lpm.execution.recording import PROGRESS, finished_run
from robustbench_lpm.execution.runner import run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.chunks import GIB, LARGEST_BLOCK, rows_within
from robustbench_lpm.protocol.plan import Plan, execution, make_plan
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import resolve_attack, resolve_model
from tests.classifiers import NoisyLinear
from tests.execution.test_runner import Interrupt, contents, plan_of
from tests.watchers import Listening

MIB = 2**20
ROOMS: list[tuple[float, float, int, int]] = [
    (40 * GIB, 2 * MIB, 4096, 4096),  # 20480 would fit; more than the most is no faster
    (40 * GIB, 150 * MIB, 512, 256),  # 273 fit
    (256, 1, 1000, 256),
    (255, 1, 1000, 128),
    (256, 1, 200, 128),
    (0.5, 1, 4096, 1),  # where nothing fits, one row is tried
]


@pytest.mark.parametrize(("room", "each", "most", "expected"), ROOMS)
def test_rows_fill_the_room_with_a_power_of_two(room: float, each: float, most: int, expected: int) -> None:
    assert rows_within(room, each, most) == expected


@pytest.mark.parametrize(("chunk", "block"), [(1, 1), (64, 64), (512, 512), (4096, LARGEST_BLOCK)])
def test_a_block_is_at_most_a_chunk_and_never_larger_than_the_limit(chunk: int, block: int) -> None:
    plan = dataclasses.replace(plan_of(n=2), chunk=chunk, indices=tuple(range(1000)))
    assert {len(part) for part in plan.blocks[:-1]} <= {block}
    assert [index for part in plan.blocks for index in part] == list(range(1000))
    assert execution(plan)["block_size"] == block
    assert execution(plan)["chunk"] == chunk


def measured(chunk: int, **options: Any) -> Plan:
    return dataclasses.replace(plan_of(**options), chunk=chunk, measured=True)


def test_a_run_that_is_resumed_keeps_the_chunk_that_was_measured_first(tmp_path: Path) -> None:
    straight = run(measured(4), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(measured(4), tmp_path / "broken", Interrupt(8))
    kept = sorted((tmp_path / "broken" / PROGRESS).rglob("block-*"))
    stamps = [path.stat().st_mtime_ns for path in kept]
    said = Listening()
    with pytest.raises(KeyboardInterrupt):
        run(measured(6), tmp_path / "broken", Interrupt(8))  # more memory is free now
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    resumed = run(measured(2), tmp_path / "broken", said)
    assert said.lines == []
    assert resumed.execution == straight.execution == execution(measured(4))
    assert straight.path is not None
    assert resumed.path is not None
    assert contents(resumed.path) == contents(straight.path)
    assert finished_run(measured(8), tmp_path / "broken") is not None
    again = run(measured(8), tmp_path / "broken")  # is read
    assert again.execution["chunk"] == 4


def test_a_chunk_that_was_not_measured_is_not_taken_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(measured(4), tmp_path, Interrupt(8))
    said = Listening()
    record = run(dataclasses.replace(measured(6), measured=False), tmp_path, said)
    assert said.lines == ["2 finished block(s) were computed with other block_size, chunk: they are computed again"]
    assert record.execution["chunk"] == 6
    assert finished_run(dataclasses.replace(measured(4), measured=False), tmp_path) is None


def test_sizes_are_taken_over_only_where_nothing_else_differs(tmp_path: Path) -> None:
    def manifest(chunk: int, threads: int = 1) -> dict[str, Any]:
        return {"id": "x", "execution": {"device": "cuda", "threads": threads, "block_size": chunk, "chunk": chunk}}

    def opened(wanted: dict[str, Any]) -> dict[str, Any]:
        store = BlockStore(tmp_path / "run")
        used = store.open(wanted, measured=True)
        store.leave()
        assert json.loads((tmp_path / "run" / MANIFEST).read_text()) == used
        return used

    assert opened(manifest(4)) == manifest(4)
    assert opened(manifest(8)) == manifest(4)
    assert opened(manifest(8, threads=2)) == manifest(8, threads=2)
    assert opened(manifest(4, threads=2)) == manifest(8, threads=2)


class Cramped(NoisyLinear):
    """Has room for so many rows at once."""

    room = 10**9

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(images)} GiB.")
        return super().forward(images, noise)


def cramped(images: int, chunk: int, room: int) -> Plan:
    """A plan with 16 draws for each gradient, on a model with room for so many rows."""
    pixels = torch.rand(images, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = resolve_model(Cramped(torch.linspace(-1, 1, 64).reshape(1, 8, 8), sigma=0.5).eval())
    attack = resolve_attack("pgd", parameters={"steps": 2, "eot": 16})
    data = data_from_tensors(pixels, torch.arange(images) % 2)
    plan = make_plan(model, attack, data, Options(eps=0.05, draws=3))
    plan.model.classifier.network.room = room
    return dataclasses.replace(plan, chunk=chunk, measured=True)


@pytest.fixture(autouse=True)
def _nothing_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "_fitting", {})


def test_where_many_draws_of_one_image_do_not_fit_fewer_are_taken_at_once() -> None:
    record = run(cramped(images=1, chunk=16, room=4))
    assert record.failures == []
    assert record.notes[-1].startswith("Memory ran out: block(s) 0 were")
    whole = run(cramped(images=1, chunk=16, room=16))
    assert record.predictions.tolist() == whole.predictions.tolist()


def test_what_fitted_serves_the_next_blocks() -> None:
    plan = cramped(images=12, chunk=4, room=2)
    tried: list[int] = []
    network = plan.model.classifier.network
    network.register_forward_pre_hook(lambda _, given: tried.append(len(given[0])))
    record = run(plan)
    assert record.failures == []
    assert record.notes[-1].startswith("Memory ran out: block(s) 0, 1, 2 were")
    assert tried[0] == 4
    assert max(tried[1:]) == 2
    again = dataclasses.replace(plan, measured=False)  # a CPU's chunk was not measured: every block tries it
    tried.clear()
    run(again)
    assert tried.count(4) == 3
