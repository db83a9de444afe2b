"""A run that is interrupted inside a block goes on there, and ends in the same bytes as one that was left alone."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.execution import journal as journal_module
from robustbench_lpm.execution.journal import Journal
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.execution.runner import Silent, run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.oracle import Ledger, Loops
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model
from tests.classifiers import Linear, NoisyLinear
from tests.execution.test_runner import contents

# Deterministic and stochastic, with what makes an attack's loop more than one: restarts, gradient modes, nested loops,
# images that leave early, batches of unequal shape.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("ramlpm", "spsa", {"iterations": 2, "pairs": 6}),
    ("cnn", "pgd", {"steps": 6, "restarts": 2}),
    ("ramlpm", "pgd", {"steps": 2, "restarts": 2, "eot": 2}),
    ("cnn", "apgd-ce", {"steps": 8, "restarts": 2}),
    ("ram", "apgd-margin", {"steps": 4, "eot": 2}),
    ("cnn", "momentum", {"steps": 9}),
    ("ram", "momentum", {"steps": 4, "classes": 2}),
    ("ram", "square", {"queries": 8}),
    ("ram", "art:SquareAttack", {"max_iter": 4, "eot": 2}),
    ("cnn", "fmn", {"steps": 12}),
    ("cnn", "deepfool", {"steps": 4, "classes": 2}),
    ("ram", "fab", {"steps": 2, "classes": 2, "eot": 1}),
]


@pytest.fixture(autouse=True)
def _write_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "WRITE_EVERY", 0.0)


def plan_of(model: str, attack: str, parameters: dict[str, Any], **options: Any) -> Plan:
    given: dict[str, Any] = {"eps": 0.08, "limit": 6, "draws": 3} | options
    chosen = resolve_attack(attack, parameters=parameters)
    return dataclasses.replace(
        make_plan(resolve_model(model), chosen, resolve_data("digits"), Options(**given)), chunk=4
    )


class Interrupt(Silent):
    """Ctrl-C at the pass of the network after so many."""

    def __init__(self, after: int) -> None:
        self.left = after

    def spent(self, passes: int) -> None:
        self.left -= passes
        if self.left < 0:
            raise KeyboardInterrupt


@contextmanager
def counted(plan: Plan) -> Iterator[list[int]]:
    """The images that really pass the network, one entry for each pass."""
    passed: list[int] = []

    def note(_: object, arguments: tuple[Any, ...]) -> None:
        passed.append(len(arguments[0]))

    handle = plan.model.classifier.register_forward_pre_hook(note)
    try:
        yield passed
    finally:
        handle.remove()


def written(record_path: Path | None) -> dict[str, bytes]:
    assert record_path is not None
    return contents(record_path)


@pytest.mark.parametrize(("model", "attack", "parameters"), CASES, ids=lambda value: str(value))
def test_a_run_that_is_interrupted_inside_a_block_ends_in_the_same_bytes(
    model: str, attack: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(model, attack, parameters, limit=4)
    with counted(plan) as passed:
        straight = run(plan, tmp_path / "straight")
    whole = sum(passed)
    spent = int(straight.outcomes[["forwards", "backwards"]].to_numpy().sum())
    with counted(plan) as passed:
        for share in (0.3, 0.6, 0.9):  # what was counted before an interruption is told again
            with pytest.raises(KeyboardInterrupt):
                run(plan, tmp_path / "broken", Interrupt(int(spent * share)))
        resumed = run(plan, tmp_path / "broken")
    assert written(resumed.path) == written(straight.path)
    assert sum(passed) < 2 * whole  # from the start each time it would be 2.8 times as many
    assert not (tmp_path / "broken" / PROGRESS).exists()


def test_wherever_it_is_interrupted(tmp_path: Path) -> None:
    plan = plan_of("ram", "pgd", {"steps": 2, "restarts": 2, "eot": 2}, limit=4)
    straight = run(plan, tmp_path / "straight")
    spent = int(straight.outcomes[["forwards", "backwards"]].to_numpy().sum())
    for share in (0.02, 0.5, 0.97):
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / str(share), Interrupt(int(spent * share)))
        assert written(run(plan, tmp_path / str(share)).path) == written(straight.path), share


def interrupted(plan: Plan, out: Path, after: int = 150) -> Path:
    """Where a run that was interrupted in its first block keeps what that has come to."""
    with pytest.raises(KeyboardInterrupt):
        run(plan, out, Interrupt(after))
    (kept,) = (out / PROGRESS).rglob("journal-*")
    return kept


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


DAMAGES: list[Callable[[bytes], bytes]] = [_cut, _flip, lambda _: b"", lambda _: b"not a state at all"]


def test_a_damaged_journal_is_not_used(tmp_path: Path) -> None:
    plan = plan_of("cnn", "spsa", {"iterations": 4, "pairs": 12})
    with counted(plan) as passed:
        straight = run(plan, tmp_path / "straight")
    whole = sum(passed)
    for number, damage in enumerate(DAMAGES):
        kept = interrupted(plan, tmp_path / str(number))
        kept.write_bytes(damage(kept.read_bytes()))
        with counted(plan) as passed:
            resumed = run(plan, tmp_path / str(number))
        assert written(resumed.path) == written(straight.path), number
        assert sum(passed) == whole, number  # all of the work was done


def test_the_journal_of_another_run_or_block_is_not_used(tmp_path: Path) -> None:
    plan, other = (plan_of("cnn", "spsa", {"iterations": 4, "pairs": 12}, seed=seed) for seed in (0, 1))
    foreign, kept = interrupted(other, tmp_path / "other"), interrupted(plan, tmp_path / "broken")
    second = kept.with_name(kept.name.replace("000000", "000001"))
    second.write_bytes(kept.read_bytes())  # the first block's, under the name of the second's
    kept.write_bytes(foreign.read_bytes())
    assert written(run(plan, tmp_path / "broken").path) == written(run(plan, tmp_path / "straight").path)


def test_short_blocks_write_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(journal_module, "WRITE_EVERY", 30.0)
    monkeypatch.setattr(Journal, "write", lambda _: pytest.fail("a short block wrote a journal"))
    run(plan_of("cnn", "pgd", {"steps": 3}), tmp_path)


def test_an_attack_that_knows_nothing_of_it_is_repeated_but_not_its_finished_modes(tmp_path: Path) -> None:
    """The candidate of a gradient mode that is done is kept whole, whatever attack made it."""
    called: list[str | None] = []

    def shy(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        called.append(oracle.gradient_mode)
        noise = oracle.choices().uniform("offset", *images.shape[1:])
        gradients, _, _ = oracle.gradient(images, oracle.noise(1), lambda logits: logits.sum(-1))
        return images + eps * (noise - 0.5) + 0 * gradients

    plan = make_plan(
        resolve_model("ram"), resolve_attack(shy), resolve_data("digits"), Options(eps=0.1, limit=3, draws=2)
    )
    straight = run(plan, tmp_path / "straight")
    modes = called.copy()
    assert len(modes) == len(plan.gradient_modes) > 2
    called.clear()
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "broken", Interrupt(2 * 2 * 3))  # in the third mode
    resumed = run(plan, tmp_path / "broken")
    assert called == [*modes[:3], *modes[2:]]
    assert written(resumed.path) == written(straight.path)


def test_images_of_unequal_shape_go_on_too(tmp_path: Path) -> None:
    """Each shape of a block is a batch, attacked by itself: the finished one is not attacked again."""
    weight = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    model = resolve_model(NoisyLinear(weight, sigma=0.5).eval())
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    source = data_from_tensors(images, torch.arange(5) % 2)
    masks = [None, torch.ones(1, 8, 8, dtype=torch.bool)]

    def read(indices: Any) -> Any:
        examples = source.read(indices)
        return dataclasses.replace(examples, masks=[masks[i % 2] for i in examples.indices])

    attack = resolve_attack("pgd", parameters={"steps": 4, "eot": 1})
    plan = make_plan(model, attack, dataclasses.replace(source, read=read), Options(eps=0.05, draws=3))
    straight = run(plan, tmp_path / "straight")
    for after in (10, 25, 45):
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "broken", Interrupt(after))
    assert written(run(plan, tmp_path / "broken").path) == written(straight.path)


def loops_of(journal: Journal, draws: int = 0) -> Loops:
    ledger = Ledger.empty(2)
    ledger.draws += draws
    return journal.loops("call", ledger)


def walk(loops: Any, stop_after: int = 10**9) -> list[float]:
    """Two loops one after the other, the second around another, all drawing; stops (as killed) after so many draws."""
    drawn: list[float] = []
    state = {"sum": torch.zeros(1)}

    def number() -> float:
        loops.ledger.draws.add_(1)
        return float(Addresses.of(0, [0], "attack", loops.ledger.draws[:1]).uniform("number"))

    def draw() -> None:
        if len(drawn) == stop_after:
            raise KeyboardInterrupt
        drawn.append(number())
        state["sum"] = state["sum"] * 0.5 + drawn[-1]
        loops.ledger.forwards += 1

    for step in loops.over(range(10), [state]):
        if step == 3:
            break  # left early
        draw()
    for _ in loops.over("ab", [state]):
        draw()
        inner = {"product": torch.ones(2, 3).T}  # not contiguous
        for _ in loops.over(range(3), [state, inner]):  # it changes both
            draw()
            inner["product"] = inner["product"] * drawn[-1]
        state["sum"] = state["sum"] + inner["product"].sum()
    return [float(state["sum"]), float(loops.ledger.forwards.sum()), number(), len(drawn)]


@pytest.mark.parametrize("stop_after", range(11))
def test_loops_one_after_the_other_and_inside_one_another(stop_after: int, tmp_path: Path) -> None:
    *expected, draws = walk(loops_of(Journal(None)))
    assert draws == 11
    path = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        walk(loops_of(Journal(path, "run")), stop_after)
    *found, again = walk(loops_of(Journal(path, "run"), draws=99))  # its counts are set to what they were
    assert found == expected
    assert again <= 11 - stop_after + 1  # what the outer loop drew in its step is drawn again
    assert walk(loops_of(Journal(path, "another run")))[-1] == 11


def test_the_order_of_memory_is_kept(tmp_path: Path) -> None:
    """Networks may sum in another order when it differs."""
    image = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    journal = Journal(tmp_path / "journal", "run")
    journal.note("call/0", (3, {"0.image": image, "0.flags": torch.tensor([True, False])}))
    position, found = Journal(tmp_path / "journal", "run").snapshots["call/0"]
    assert position == 3
    assert torch.equal(found["0.image"], image)
    assert found["0.image"].stride() == image.stride()
    assert found["0.flags"].tolist() == [True, False]


def test_seconds_before_the_interruption_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "run")
    journal._seconds = 100.0
    journal.note("call/0", (0, {"0.x": torch.zeros(1)}))
    assert 100 <= Journal(tmp_path / "journal", "run").seconds < 130


def test_what_does_not_fit_a_loop_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for number in loops_of(Journal(path, "run")).over(range(4), [{"a": torch.zeros(1)}]):
        if number == 2:
            break
    kept = path.read_bytes()
    for steps, states in [(range(2), [{"b": torch.zeros(1)}]), (range(1), [{"a": torch.zeros(1)}]), (range(4), [])]:
        assert list(loops_of(Journal(path, "run")).over(steps, states)) == list(steps)
        path.write_bytes(kept)
    assert list(loops_of(Journal(path, "run")).over(range(4), [{"a": torch.zeros(1)}])) == [2, 3]


def test_misclassified_images_stay_misclassified(tmp_path: Path) -> None:
    """Of a deterministic model some images have left the loop when it is interrupted."""
    weight = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    bias = -float((images * weight).flatten(1).sum(1).median())
    model = resolve_model(Linear(weight, bias).eval())
    for attack, parameters in {"pgd": {"steps": 9}, "spsa": {"iterations": 5, "pairs": 8}}.items():
        source = data_from_tensors(images, torch.zeros(6, dtype=torch.long))
        plan = make_plan(model, resolve_attack(attack, parameters=parameters), source, Options(eps=0.02))
        straight = run(plan, tmp_path / attack)
        assert straight.outcomes["forwards"].nunique() > 1
        spent = int(straight.outcomes[["forwards", "backwards"]].to_numpy().sum())
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / f"{attack}-broken", Interrupt(int(spent * 0.8)))
        assert written(run(plan, tmp_path / f"{attack}-broken").path) == written(straight.path)


KILLED = [
    "--model ramlpm --attack spsa --set iterations=3 --set pairs=64 --limit 3",
    "--model ramlpm --attack pgd --steps 12 --set restarts=2 --set eot=2 --limit 3",
]
IMPATIENT = """
from robustbench_lpm.execution import journal
journal.WRITE_EVERY = 0.0
from robustbench_lpm.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", KILLED)
def test_a_killed_process_goes_on_inside_its_block(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process and a signal that it cannot answer, twice: once early, once further on."""
    arguments = ["attack", *words.split(), "--eps", "0.08", "--draws", "3", "--threads", "1", "--out"]
    for writes in (3, 25):
        process = subprocess.Popen([sys.executable, "-c", IMPATIENT, *arguments, "broken"], cwd=tmp_path)
        seen: set[int] = set()
        deadline = time.monotonic() + 120
        while len(seen) < writes:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            seen |= {path.stat().st_mtime_ns for path in (tmp_path / "broken").rglob("journal-*.safetensors")}
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = list((tmp_path / "broken" / PROGRESS).rglob("*.safetensors"))
    assert [path.name for path in kept] == ["journal-000000.safetensors"]  # no block was finished
    monkeypatch.chdir(tmp_path)
    for out in ("broken", "straight"):
        assert lpmbench([*arguments, out]) == 0
    (resumed,), (straight,) = (list((tmp_path / out).rglob("record.json")) for out in ("broken", "straight"))
    assert written(resumed.parent) == written(straight.parent)
    assert not (tmp_path / "broken" / PROGRESS).exists()
