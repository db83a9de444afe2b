"""Old blocks are used where nothing that decides their bits has changed, and nowhere else; alterations are noticed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_lpm.execution import recording, runner
from robustbench_lpm.execution.blocks import Block, BlockStore
from robustbench_lpm.execution.recording import PROGRESS, finished_run
from robustbench_lpm.execution.runner import run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol import plan as planning
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import resolve_attack, resolve_model, worst_case_over
from tests.classifiers import NoisyLinear
from tests.execution.test_runner import Interrupt, contents
from tests.watchers import Listening

Change = Callable[[pytest.MonkeyPatch], dict[str, Any]]  # what is laid over the options of the plan


def plan_of(
    scale: float = 1.0, brighter: float = 0.0, steps: int = 3, surrogate: float | None = None, **options: Any
) -> Plan:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + brighter
    weight = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    attack = resolve_attack("pgd", parameters={"steps": steps})
    if surrogate is not None:
        other = dataclasses.replace(
            resolve_model(NoisyLinear(weight).eval()), identity={"name": "other", "parameters": surrogate}
        )
        attack = dataclasses.replace(resolve_attack("transfer", parameters={"steps": 2}), surrogates=(other,))
    model = resolve_model(NoisyLinear(weight * scale, sigma=0.5).eval())
    given: dict[str, Any] = {"eps": 0.05, "draws": 3} | options
    plan = make_plan(model, attack, data_from_tensors(images, torch.arange(12) % 2), Options(**given))
    return dataclasses.replace(plan, chunk=4)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _other_versions(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    found = recording.versions() | {"torch": "1.13"}
    patch.setattr(recording, "versions", lambda: found)
    return {}


def _other_threads(_: pytest.MonkeyPatch) -> dict[str, Any]:
    torch.set_num_threads(2)
    return {}


def _other_code(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(runner, "code_sha256", lambda: "edited")
    return {}


def _other_code_of_a_user(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(planning, "sha256_of_object", lambda _: "edited")
    return {}


# What decides the bits without being part of a run's id: the manifest sees it, and says what it was.
UNNAMED: dict[str, tuple[Change, str]] = {
    "versions": (_other_versions, "torch"),
    "threads": (_other_threads, "threads"),
    "the package's code": (_other_code, "package"),
    "code of a user's own": (_other_code_of_a_user, "attack, dataset, model"),
    "pictures to keep": (lambda _: {"save_adversarials": True}, "stored"),
}
# What is part of the id: another run, in another folder.
NAMED: dict[str, dict[str, Any]] = {
    "the attack's card": {"steps": 4},
    "the checkpoint": {"scale": 1.5},
    "the dataset": {"brighter": 0.25},
    "seed": {"seed": 1},
    "eps": {"eps": 0.06},
}


def interrupted(out: Path, after: int = 8, **options: Any) -> list[Path]:
    """The blocks of a run that was interrupted after two of three."""
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(**options), out, Interrupt(after))
    return sorted((out / PROGRESS).rglob("block-*"))


def written(record: records.RunRecord) -> dict[str, bytes]:
    assert record.path is not None
    return contents(record.path)


@pytest.mark.parametrize("name", UNNAMED)
def test_blocks_of_another_manifest_are_computed_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, differing = UNNAMED[name]
    blocks = interrupted(tmp_path / "old")
    for path in blocks:  # were they used, they would be found out to be damaged
        path.write_bytes(b"old")
    options, said = change(monkeypatch), Listening()
    record = run(plan_of(**options), tmp_path / "old", said)
    assert said.lines == [f"2 finished block(s) were computed with other {differing}: they are computed again"]
    assert written(record) == written(run(plan_of(**options), tmp_path / "new"))


@pytest.mark.parametrize("name", NAMED)
def test_blocks_of_another_run_stay_out_of_it(name: str, tmp_path: Path) -> None:
    interrupted(tmp_path / "old")
    changed = plan_of(**NAMED[name])
    assert changed.id != plan_of().id
    assert written(run(changed, tmp_path / "old")) == written(run(changed, tmp_path / "new"))
    assert len(list((tmp_path / "old" / PROGRESS).rglob("block-*"))) == 2  # they still serve their own run


def test_surrogates_of_other_parameters_make_old_blocks_stale(tmp_path: Path) -> None:
    said = Listening()
    interrupted(tmp_path, surrogate=1.0)
    run(plan_of(surrogate=2.0), tmp_path, said)
    assert said.lines == ["2 finished block(s) were computed with other NoisyLinear: they are computed again"]


def test_members_that_were_computed_again_make_the_choice_stale(tmp_path: Path) -> None:
    def plan() -> Plan:
        attack = worst_case_over([resolve_attack("noise"), resolve_attack("pgd", parameters={"steps": 2})])
        made = make_plan(plan_of().model, attack, plan_of().data, Options(eps=0.05, draws=3))
        return dataclasses.replace(made, chunk=4)

    class Late(Interrupt):
        """In the second block of the worst case itself, each of its members having one."""

        calls = 0

        def finished(self, examples: int) -> None:
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path, Late(0))
    (manifest,) = (tmp_path / PROGRESS).rglob("manifest.json")
    content = json.loads(manifest.read_text())
    assert set(content["members"]) == {"noise", "pgd"}
    content["members"]["noise"] = "0" * 64
    manifest.write_text(json.dumps(content, indent=1, sort_keys=True))
    said = Listening()
    run(plan(), tmp_path, said)
    assert said.lines == ["2 finished block(s) were computed with other noise: they are computed again"]


def _flip(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def _unfail(content: bytes) -> bytes:
    assert b"false" in content  # "halved": changed to what is as long
    return content.replace(b"false", b"true ")


DAMAGES: list[Callable[[bytes], bytes]] = [
    _flip,
    _unfail,
    lambda content: content[:100],
    lambda _: b"",
    lambda _: b"\xff" * 64,
    lambda _: b"\x02" + b"\0" * 7 + b"{}",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_block_that_was_altered_is_noticed_and_computed_again(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    first, second = interrupted(tmp_path / "broken")
    first.write_bytes(damage(first.read_bytes()))
    before = second.stat().st_mtime_ns
    said = Interrupt(8)
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(), tmp_path / "broken", said)
    assert said.lines == [
        "block-000000.safetensors is not what was written: it was altered or damaged, and is computed again"
    ]
    assert second.stat().st_mtime_ns == before
    assert written(run(plan_of(), tmp_path / "broken")) == written(run(plan_of(), tmp_path / "straight"))


def test_a_block_under_the_name_of_another_is_noticed(tmp_path: Path) -> None:
    first, second = interrupted(tmp_path / "broken")
    second.write_bytes(first.read_bytes())
    (foreign, _) = interrupted(tmp_path / "foreign", seed=1)
    first.write_bytes(foreign.read_bytes())
    said = Listening()
    record = run(plan_of(), tmp_path / "broken", said)
    assert len(said.lines) == 2
    assert written(record) == written(run(plan_of(), tmp_path / "straight"))


def test_a_record_that_was_altered_is_noticed_and_made_again(tmp_path: Path) -> None:
    record = run(plan_of(), tmp_path)
    before = written(record)
    assert record.path is not None
    path = record.path / records.OUTCOMES
    path.write_bytes(_flip(path.read_bytes()))
    said = Listening()
    assert finished_run(plan_of(), tmp_path, said.lines.append) is None
    (line,) = said.lines
    assert line.startswith("not used, and run again: ")
    assert "altered" in line
    assert written(run(plan_of(), tmp_path, again=False)) == before


def test_a_record_of_other_versions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(plan_of(), tmp_path)
    _other_versions(monkeypatch)
    said = Listening()
    assert finished_run(plan_of(), tmp_path, said.lines.append) is None
    assert said.lines == ["run again, for the stored record was made with other torch"]


def test_what_a_killed_process_left_beside_a_record_goes(tmp_path: Path) -> None:
    interrupted(tmp_path / "broken")
    expected = written(run(plan_of(), tmp_path / "straight"))
    (name,) = [path.name for path in (tmp_path / "straight").iterdir()]
    (tmp_path / "broken" / name).mkdir()
    (tmp_path / "broken" / name / ".outcomes.parquet.abc123").write_bytes(b"half")
    assert written(run(plan_of(), tmp_path / "broken")) == expected


def test_what_is_said_of_a_block_is_kept_with_it(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "run")
    store.open({})
    block = Block({"seconds": np.array(1.5)}, ({"block": 0, "indices": [3], "error": "no"},), halved=True)
    store.write(0, block)
    found = store.read(0)
    assert found is not None
    assert (found.failures, found.halved, float(found.arrays["seconds"])) == (block.failures, True, 1.5)
    store.leave()
