"""Run a plan: attack every example, grade what comes back on noise the attack never saw, and write it down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from robustbench_lpm.budgets import format_eps, parse_eps_list, several
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.evaluation.attacking import Made, Progress, Silent, stored
from robustbench_lpm.evaluation.blocks import Block, BlockStore
from robustbench_lpm.evaluation.computing import compute
from robustbench_lpm.evaluation.journal import Journal
from robustbench_lpm.evaluation.keeping import NotKept
from robustbench_lpm.evaluation.machine import code_sha256
from robustbench_lpm.evaluation.own_data import OwnData, data_of_ones_own
from robustbench_lpm.evaluation.planning import Plan, make_plan
from robustbench_lpm.evaluation.recording import PROGRESS, Tell, empty_record, fill, finished_run, to_nobody, write_down
from robustbench_lpm.evaluation.tasks import Attack, Data, resolve_attacks, resolve_data, resolve_model
from robustbench_lpm.randomness import isolated_globals
from robustbench_lpm.records import RunRecord
from robustbench_lpm.zoo import LoadedModel

log = logging.getLogger("robustbench_lpm")

Model = str | Path | Callable[..., Any] | LoadedModel
OneAttack = str | Callable[..., Tensor] | Attack
OneEps = float | str | SupportsFloat
Several = list[Any] | tuple[Any, ...]
Source = str | Path | OwnData | Data

COSTS = ("forwards", "backwards", "glimpses")
PATIENCE = 0.2  # seconds between two looks at what others are computing


class Options(TypedDict, total=False):
    """The other keywords of `evaluate`."""

    norm: str
    size: str | None
    data: Path | str | None
    limit: int | None
    mc: int
    draws: int
    gradient_mode: str | None
    noise: str | Iterable[str]
    surrogates: Sequence[str | nn.Module | LoadedModel] | None
    target: str | int | None
    seed: int
    device: str
    parameters: dict[str, Any] | None
    out: Path | str | None
    save_adversarials: bool
    precision: str
    memory: float
    trust: bool
    name: str | None
    labels_fit: bool


@overload
def evaluate(
    model: Model, attack: OneAttack, dataset: Source = ..., *, eps: OneEps, **options: Unpack[Options]
) -> RunRecord: ...
@overload
def evaluate(
    model: Model, attack: Several, dataset: Source = ..., *, eps: OneEps | Several, **options: Unpack[Options]
) -> list[RunRecord]: ...
@overload
def evaluate(
    model: Model, attack: OneAttack, dataset: Source = ..., *, eps: Several, **options: Unpack[Options]
) -> list[RunRecord]: ...
def evaluate(
    model: Model,
    attack: OneAttack | Several,
    dataset: Source = "digits",
    *,
    eps: OneEps | Several,
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
    name: str | None = None,
    labels_fit: bool = False,
) -> RunRecord | list[RunRecord]:
    """How accurate a model stays under an attack.

    Args:
        model: a registered name, a path to a card, or any module or function from images (B, C, H, W) in [0, 1] to
            logits (B, K). A copy of it is evaluated, in eval mode. A stochastic module offers `sample_noise`; one that
            draws from the global generators is found out and seeded.
        attack: a registered name, a path to a card, or a function with the signature of `attacks.pgd.pgd`. The name
            "worst-case" takes, for each image, the strongest of the attacks on its card. A list runs them all.
        dataset: a registered name, a path to a card, or images and labels of your own: a pair (images, labels) of
            tensors, arrays or lists, a torch Dataset of such examples, or a DataLoader. Images are floats
            (N, C, H, W) in [0, 1], or uint8; labels (N,) are whole numbers from 0.
        eps, norm: the budget in pixel values, a number or text like "8/255"; a list tries each. "linf" or "l2".
        limit: the first so many examples of the pinned order.
        mc: attack and grade the average of so many Monte-Carlo runs of a stochastic model.
        draws: held-out draws of noise on which a stochastic model is graded.
        gradient_mode: of a glimpsing model; None takes, for each image, the strongest of all it knows.
        noise: who controls a stochastic model's noise while it is attacked: "frozen", "replayed", "fresh" or
            "averaged" (the default) for all sources, or a list like ["policy=frozen", "first_fixation=replayed"].
        surrogates: for the attack "transfer", the models that it is made on instead of those on its card.
        parameters: laid over those of the attack's card, e.g. {"steps": 100}; of several attacks, each takes those
            that it knows.
        precision: of gradients and SPSA's probes: "float32", or "bfloat16", which is faster where the hardware has it.
            Whether an image is misclassified, and its grade, are decided in float32.
        memory: GiB that the maps of one pass may take, about; it bounds how many images pass at once.
        labels_fit: a model and a data set of other labels, or of other numbers of classes, run together only with it:
            it says that the labels are the same.
        out: where to write the record; None writes nothing.
        name: what a model handed over is called in the record; by default its class.

    Returns:
        The record; `record.clean_accuracy` and `record.robust_accuracy` are rates with 95 % intervals. Where `attack`
        or `eps` is a list, the list of records: every eps of the first attack, then those of the next.

    Raises:
        LpmbenchError: for anything that cannot be run as asked. Where only some examples failed it is a FailedBlocks,
            whose `record` holds the others. Of several runs those that fail do not stop the others: a FailedRuns comes
            at the end, whose `records` are what was made.
    """
    options: dict[str, Any] = {
        "norm": norm, "limit": limit, "mc": mc, "draws": draws, "gradient_mode": gradient_mode, "noise": noise,
        "target": target, "seed": seed, "device": device, "save_adversarials": save_adversarials,
        "precision": precision, "memory": memory, "labels_fit": labels_fit,
    }  # fmt: skip
    several_wanted = several(attack) or several(eps)
    attacks: list[OneAttack] = list(attack) if several(attack) else [attack]  # type: ignore[list-item]
    budgets = parse_eps_list(eps, norm)
    with untouched():
        source = resolve_source(dataset, size=size, data=data, limit=limit, trust=trust)
        chosen = resolve_attacks(attacks, parameters=parameters, surrogates=surrogates, trust=trust)
        loaded = resolve_named(model, name, trust=trust, device=device)
        folder = Path(out) if out is not None else None
        if not several_wanted:
            return _told(run(make_plan(loaded, chosen[0], source, eps=budgets[0], **options), folder))
        runs = [(each, budget) for each in chosen for budget in budgets]
        return _run_all(runs, lambda each, budget: make_plan(loaded, each, source, eps=budget, **options), folder)


def _run_all(
    runs: Sequence[tuple[Attack, float]], plan: Callable[[Attack, float], Plan], out: Path | None
) -> list[RunRecord]:
    """The records of several runs in their order; those that fail do not stop the others."""
    records: list[RunRecord] = []
    failed: list[str] = []
    for attack, eps in runs:
        try:
            records.append(_told(run(plan(attack, eps), out)))
        except NotKept:
            raise
        except FailedBlocks as error:
            records.append(error.record)
            failed.append(in_one_line(error))
        except Exception as error:  # whatever it is, the other runs do not share it
            log.debug("%s at eps %s failed", attack.name, eps, exc_info=error)
            failed.append(f"{attack.name} at eps {format_eps(eps)}: {in_one_line(error)}")
    if failed:
        raise FailedRuns(records, failed, len(runs))
    return records


def _told(record: RunRecord) -> RunRecord:
    """The record, once its notes have been told to whoever listens to our log; where nobody does, on stderr."""
    for note in record.notes:
        log.warning("%s under %s: %s", record.model, record.attack, note)
    return record


def prepare(
    model: Model,
    attack: OneAttack,
    dataset: Source,
    *,
    size: str | None = None,
    data: Path | str | None = None,
    device: str = "cpu",
    parameters: dict[str, Any] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    trust: bool = False,
    limit: int | None = None,
    name: str | None = None,
    **options: Any,
) -> Plan:
    """The plan of what `evaluate` is asked for; options are those of `make_plan`."""
    source = resolve_source(dataset, size=size, data=data, limit=limit, trust=trust)
    (chosen,) = resolve_attacks([attack], parameters=parameters, surrogates=surrogates, trust=trust)
    loaded = resolve_named(model, name, trust=trust, device=device)
    return make_plan(loaded, chosen, source, device=device, limit=limit, **options)


def resolve_source(
    dataset: Source,
    *,
    size: str | None = None,
    data: Path | str | None = None,
    limit: int | None = None,
    trust: bool = False,
) -> Data:
    """Labelled images by name, by the path of a card, or as users hold them."""
    if isinstance(dataset, str | Path):
        return resolve_data(str(dataset), size=size, data=Path(data) if data else None, trust=trust)
    return dataset if isinstance(dataset, Data) else data_of_ones_own(dataset, limit)


def resolve_named(model: Model, name: str | None, *, trust: bool, device: str) -> LoadedModel:
    """A model, one handed over under a name of the user's choice. Raises LpmbenchError for another that is named."""
    if isinstance(model, str | Path | LoadedModel) and name is not None:
        own = model.name if isinstance(model, LoadedModel) else model
        raise LpmbenchError(f"name='{name}' is for a model handed over from Python; '{own}' has a name already.")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise LpmbenchError(f"name={name!r} must be a few words that tell the model from others.")
    return resolve_model(model, trust=trust, device=device, name=name)


@contextmanager
def untouched() -> Iterator[None]:
    """Gradients are at hand whatever the caller has switched off; his global generators are as they were afterwards."""
    with torch.inference_mode(False), torch.enable_grad(), isolated_globals(0):
        yield


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
            **plan.code,
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


class FailedRuns(LpmbenchError):
    """Some of several runs failed; `records` are what was made, `errors` the reasons, each in a line."""

    def __init__(self, records: list[RunRecord], errors: list[str], runs: int) -> None:
        self.records, self.errors = records, errors
        super().__init__(f"{len(errors)} of {runs} runs failed: {'; '.join(errors)}")


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
