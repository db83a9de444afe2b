"""Run a plan: attack every example, grade what comes back on noise the attack never saw, and write it down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.evaluation.attacking import Made, Progress, Silent, stored
from robustbench_lpm.evaluation.blocks import Block, BlockStore
from robustbench_lpm.evaluation.computing import compute
from robustbench_lpm.evaluation.journal import Journal
from robustbench_lpm.evaluation.machine import code_sha256, sources_sha256
from robustbench_lpm.evaluation.planning import Plan, make_plan
from robustbench_lpm.evaluation.recording import PROGRESS, Tell, empty_record, fill, finished_run, to_nobody, write_down
from robustbench_lpm.evaluation.tasks import (
    Attack,
    Data,
    data_from_tensors,
    resolve_attack,
    resolve_data,
    resolve_model,
)
from robustbench_lpm.records import RunRecord
from robustbench_lpm.zoo import LoadedModel

COSTS = ("forwards", "backwards", "glimpses")
PATIENCE = 0.2  # seconds between two looks at what others are computing


def evaluate(
    model: str | nn.Module | LoadedModel,
    attack: str | Callable[..., Tensor] | Attack,
    dataset: str | tuple[Tensor, Tensor] | Data = "digits",
    *,
    eps: float,
    norm: str = "linf",
    size: str | None = None,
    data: Path | str | None = None,
    limit: int | None = None,
    mc: int = 1,
    draws: int = 20,
    gradient_mode: str | None = None,
    noise: str | Iterable[str] = (),
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    target: str | int | None = None,
    seed: int = 0,
    device: str = "cpu",
    parameters: dict[str, Any] | None = None,
    out: Path | str | None = None,
    save_adversarials: bool = False,
    precision: str = "float32",
    memory: float = 2.0,
    trust: bool = False,
) -> RunRecord:
    """How accurate a model stays under an attack.

    Args:
        model: a registered name, a path to a card, or any module from images (B, C, H, W) in [0, 1] to logits (B, K).
            It is evaluated in eval mode and left as it was. A stochastic module offers `sample_noise`; one that draws
            from torch's global generator is found out and seeded.
        attack: a registered name, a path to a card, or a function with the signature of `attacks.pgd.pgd`. The name
            "worst-case" takes, for each image, the strongest of the attacks on its card.
        dataset: a registered name, a path to a card, or a pair (images, labels).
        eps, norm: the budget in pixel values; "linf" or "l2".
        limit: the first so many examples of the pinned order.
        mc: attack and grade the average of so many Monte-Carlo runs of a stochastic model.
        draws: held-out draws of noise on which a stochastic model is graded.
        gradient_mode: of a glimpsing model; None takes, for each image, the strongest of all it knows.
        noise: who controls a stochastic model's noise while it is attacked: "frozen", "replayed", "fresh" or
            "averaged" (the default) for all sources, or a list like ["policy=frozen", "first_fixation=replayed"].
        surrogates: for the attack "transfer", the models that it is made on instead of those on its card.
        parameters: laid over those of the attack's card, e.g. {"steps": 100}.
        precision: of gradients and SPSA's probes: "float32", or "bfloat16", which is faster where the hardware has it.
            Whether an image has fallen, and its grade, are decided in float32.
        memory: GiB that the maps of one pass may take, about; it bounds how many images pass at once.
        out: where to write the record; None writes nothing.

    Returns:
        The record; `record.clean_accuracy` and `record.robust_accuracy` are rates with 95 % intervals.

    Raises:
        LpmbenchError: for anything that cannot be run as asked. Where only some examples failed it is a FailedBlocks,
            whose `record` holds the others.
    """
    options: dict[str, Any] = {
        "eps": eps, "norm": norm, "size": size, "data": data, "limit": limit, "mc": mc, "draws": draws,
        "gradient_mode": gradient_mode, "noise": noise, "surrogates": surrogates, "target": target, "seed": seed,
        "device": device, "parameters": parameters, "save_adversarials": save_adversarials, "precision": precision,
        "memory": memory, "trust": trust,
    }  # fmt: skip
    with left_as_it_was(model):
        return run(prepare(model, attack, dataset, **options), Path(out) if out is not None else None)


def prepare(
    model: str | nn.Module | LoadedModel,
    attack: str | Callable[..., Tensor] | Attack,
    dataset: str | tuple[Tensor, Tensor] | Data,
    *,
    size: str | None = None,
    data: Path | str | None = None,
    device: str = "cpu",
    parameters: dict[str, Any] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    trust: bool = False,
    **options: Any,
) -> Plan:
    """The plan of what `evaluate` is asked for; options are those of `make_plan`."""
    if isinstance(dataset, str):
        source = resolve_data(dataset, size=size, data=Path(data) if data else None, trust=trust)
    else:
        source = dataset if isinstance(dataset, Data) else data_from_tensors(*dataset)
    loaded = resolve_model(model, trust=trust, device=device)
    chosen = resolve_attack(attack, parameters=parameters, surrogates=surrogates, trust=trust)
    return make_plan(loaded, chosen, source, device=device, **options)


@contextmanager
def left_as_it_was(model: object) -> Iterator[None]:
    """Freeze a user's module and put it in eval mode; afterwards every part is as it was."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    plain = [parameter for parameter in wanted if parameter.is_contiguous()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)
        for parameter in plain:  # the order of memory that passes like best was ours
            parameter.data = parameter.data.contiguous()


def run(
    plan: Plan,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    again: bool = True,
    tell: Tell = to_nobody,
    workers: Workers | None = None,
    wait: bool = True,
) -> RunRecord:
    """Run a plan block by block; with `out`, what was done survives an interruption, and the record is written.

    Finished blocks are kept, and so is, now and then, what the attack on an unfinished one has come to. The record is
    the same, byte by byte, however often the run was interrupted. Members of a worst case run first, each with a record
    of its own; those that lie finished in `out` are read instead. Processes that run the same plan in the same `out`
    share its blocks: each computes those that no other one has taken, and one of them writes the record.

    Args:
        again: whether to run what lies finished in `out`; False reads it instead, also where another process has
            finished it just now.
        tell: given a line for the reader about anything unexpected.
        workers: who computes the blocks; None computes them here, one after the other.
        wait: whether to wait for blocks that other processes are computing.

    Raises:
        TakenByOthers: without `wait`, where other processes are computing all that is left.
        FailedBlocks: where some examples could not be computed, after the record of all others was written; to run it
            again tries them again.
        NotKept: where something could not be written, as on a full disk.
    """
    watcher = progress or Silent()
    made = _made_by_members(plan, out, watcher, tell, workers, wait)
    record = empty_record(plan)
    store = BlockStore(out / PROGRESS / record.folder_name if out is not None else None, tell)
    with _one_thread_for(store.folder):
        store.open(_manifest(plan, record, made))
        try:
            if not again and out is not None and (found := finished_run(plan, out)) is not None:
                store.close()
                return found
            blocks = _blocks(plan, store, watcher, made, tell, workers, wait)
            fill(record, plan, blocks)
            with store.writing():
                write_down(record, plan, out)
                if not record.failures:
                    store.close()
        finally:
            store.leave()
    if record.failures:
        raise FailedBlocks(record)
    return record


_running: dict[Path, threading.Lock] = {}


@contextmanager
def _one_thread_for(folder: Path | None) -> Iterator[None]:
    """Two threads of one process that run the same plan do so one after the other: their locks on files are one."""
    if folder is None:
        yield
        return
    with _running.setdefault(folder.absolute(), threading.Lock()):
        yield


def _manifest(plan: Plan, record: RunRecord, made: Mapping[str, Made]) -> dict[str, Any]:
    """What decides the bits of a run's blocks: where any of it differs, old blocks are worth nothing."""
    manifest: dict[str, Any] = {
        "id": record.id,
        "execution": record.execution,
        "versions": record.versions,
        "stored": stored(plan),
        "code": {
            "package": code_sha256(),
            "attack": sources_sha256([plan.attack.function]),
            "model": sources_sha256([type(plan.model.classifier.network)]),
        },
    }
    if plan.surrogates:
        manifest["surrogates"] = {surrogate.name: surrogate.identity for surrogate in plan.surrogates}
    if made:  # the same runs may have been computed again, elsewhere, to other bits
        manifest["members"] = {name: member.sha256() for name, member in made.items()}
    return manifest


def _blocks(
    plan: Plan,
    store: BlockStore,
    watcher: Progress,
    made: Mapping[str, Made],
    tell: Tell,
    workers: Workers | None,
    wait: bool,
) -> list[Block]:
    """Every block of a plan: read, computed, or waited for where another process has taken it."""
    workers = workers or Here()
    job = workers.job(plan, made, watcher)
    waiting = dict(enumerate(plan.blocks))
    found: dict[int, Block] = {}
    working: set[int] = set()
    told = False

    def finish(number: int, block: Block) -> None:
        found[number] = block
        done = sum(len(plan.blocks[other]) for other in found)
        watcher.finished(done)

    try:
        while waiting or working:
            taken = False
            for number, indices in list(waiting.items()):
                block = store.read(number)
                if block is None and job.free() and store.claim(number):
                    block = store.read(number)  # another process may have finished it just now
                    if block is None:
                        working.add(number)
                        job.start(number, indices, store.journal(number))
                    else:
                        store.release(number)
                if block is not None:
                    finish(number, block)
                if block is not None or number in working:
                    del waiting[number]
                    taken = True
                if working and not job.free():  # the rest can wait until there is room
                    break
            for number, block, journal in job.finished():
                store.write(number, block)
                journal.remove()
                store.release(number)
                working.remove(number)
                finish(number, block)
                taken = True
            if not taken:
                theirs = bool(waiting) and not working and job.free()
                if theirs and not wait:
                    raise TakenByOthers(plan, len(waiting))
                if theirs and not told:
                    told = True
                    tell(f"waiting for {len(waiting)} block(s) that another process is computing")
                time.sleep(PATIENCE)
    finally:
        job.end()
    return [found[number] for number in sorted(found)]


class Job(Protocol):
    """The blocks of one plan as they are computed."""

    def free(self) -> bool:
        """Whether another block can be started."""

    def start(self, number: int, indices: Sequence[int], journal: Journal) -> None:
        """Compute a block, or have it computed."""

    def finished(self) -> list[tuple[int, Block, Journal]]:
        """The blocks that are done by now, each told once."""

    def end(self) -> None:
        """Nothing more is wanted; what is not done may be dropped."""


class Workers(Protocol):
    """Who computes blocks."""

    def job(self, plan: Plan, made: Mapping[str, Made], progress: Progress) -> Job:
        """Be ready for the blocks of a plan."""


class Here:
    """This process computes, one block after the other."""

    def job(self, plan: Plan, made: Mapping[str, Made], progress: Progress) -> Job:
        return _JobHere(plan, made, progress)


class _JobHere:
    def __init__(self, plan: Plan, made: Mapping[str, Made], progress: Progress) -> None:
        self._plan, self._made, self._progress = plan, made, progress
        self._done: list[tuple[int, Block, Journal]] = []

    def free(self) -> bool:
        return not self._done

    def start(self, number: int, indices: Sequence[int], journal: Journal) -> None:
        try:
            block = compute(self._plan, number, indices, self._progress, made=self._made, journal=journal)
        except KeyboardInterrupt:
            journal.write()
            raise
        self._done.append((number, block, journal))

    def finished(self) -> list[tuple[int, Block, Journal]]:
        done, self._done = self._done, []
        return done

    def end(self) -> None: ...


class TakenByOthers(LpmbenchError):
    """Other processes are computing all that is left of a run."""

    def __init__(self, plan: Plan, blocks: int) -> None:
        super().__init__(f"{plan.attack.name} on {plan.model.name}: another process is computing {blocks} block(s).")


class FailedBlocks(LpmbenchError):
    """Some examples could not be computed; `record` holds all others."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        super().__init__(f"{told_failures(record)}. The same command tries them again.")


def told_failures(record: RunRecord) -> str:
    """How many examples of a run failed, and the first reason, in one line without its full stop."""
    failed = sum(len(failure["indices"]) for failure in record.failures)
    reason = str(record.failures[0]["error"]).rstrip(".")
    total = len(record.configuration["dataset"]["indices"])
    return f"{record.model} under {record.attack}: {failed} of {total} example(s) failed: {reason}"


def _made_by_members(
    plan: Plan, out: Path | None, progress: Progress, tell: Tell, workers: Workers | None, wait: bool
) -> dict[str, Made]:
    """What the members of a worst case have made, by name; run now where no finished record lies in `out`."""
    made = {}
    for member in plan.members:
        record = finished_run(member, out) if out is not None else None
        try:
            record = record or run(member, out, progress, again=False, tell=tell, workers=workers, wait=wait)
        except FailedBlocks as error:
            record = error.record
        costs = record.outcomes[["index", *COSTS]].to_numpy()
        made[member.attack.name] = Made(
            images={picture.index: picture.adversarial for picture in record.pictures()},
            spent={int(index): tuple(map(int, spent)) for index, *spent in costs},
        )
    return made
