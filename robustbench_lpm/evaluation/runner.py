"""Run a plan: attack every example, grade what comes back on noise the attack never saw, and write it down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.datasets.examples import Batch, batches_by_shape
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.evaluation.blocks import Arrays, BlockStore
from robustbench_lpm.evaluation.grading import predict, within_budget
from robustbench_lpm.evaluation.journal import Journal
from robustbench_lpm.evaluation.machine import hardware, versions
from robustbench_lpm.evaluation.oracle import ClassifierOracle, Ledger, pick
from robustbench_lpm.evaluation.planning import STORED_PICTURES, Plan, execution, make_plan
from robustbench_lpm.evaluation.tasks import (
    Attack,
    Data,
    data_from_tensors,
    resolve_attack,
    resolve_data,
    resolve_model,
)
from robustbench_lpm.hashing import sha256_of_image
from robustbench_lpm.norms import distance
from robustbench_lpm.randomness import generator
from robustbench_lpm.records import Picture, RunRecord, group_pictures, read, write
from robustbench_lpm.zoo import LoadedModel

PROGRESS = ".partial"
COSTS = ("forwards", "backwards", "glimpses")


class Progress(Protocol):
    """Who wants to know how far a run is."""

    def spent(self, passes: int) -> None:
        """The network has been through this many more images, forwards or backwards."""

    def finished(self, examples: int) -> None:
        """This many examples are done by now."""


class Silent:
    """Nobody watches."""

    def spent(self, passes: int) -> None: ...

    def finished(self, examples: int) -> None: ...


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
        surrogates: for the attack "transfer", the models that it is made on instead of all registered ones that fit.
        parameters: laid over those of the attack's card, e.g. {"steps": 100}.
        precision: of gradients and SPSA's probes: "float32", or "bfloat16", which is faster where the hardware has it.
            Whether an image has fallen, and its grade, are decided in float32.
        memory: GiB that the maps of one pass may take, about; it bounds how many images pass at once.
        out: where to write the record; None writes nothing.

    Returns:
        The record; `record.clean_accuracy` and `record.robust_accuracy` are rates with 95 % intervals.

    Raises:
        LpmbenchError: for anything that cannot be run as asked.
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


def run(plan: Plan, out: Path | None = None, progress: Progress | None = None) -> RunRecord:
    """Run a plan block by block; with `out`, what was done survives an interruption, and the record is written.

    Finished blocks are kept, and so is, now and then, what the attack on an unfinished one has come to. The record is
    the same, byte by byte, however often the run was interrupted. Members of a worst case run first, each with a record
    of its own; those that lie finished in `out` are read instead.
    """
    watcher = progress or Silent()
    made = _made_by_members(plan, out, watcher)
    record = _empty_record(plan)
    store = BlockStore(out / PROGRESS / record.folder_name if out is not None else None)
    store.open({"id": record.id, "execution": record.execution, "versions": record.versions, "stored": _stored(plan)})
    parts, done, seconds = [], 0, 0.0
    for number, indices in enumerate(plan.blocks):
        arrays = store.load(number)
        if arrays is None:
            journal = store.journal(number)
            try:
                arrays = run_block(plan, indices, watcher, first_position=done, made=made, journal=journal)
            except KeyboardInterrupt:
                journal.write()
                raise
            arrays["seconds"] = np.array(journal.seconds)
            store.save(number, arrays)
            journal.remove()
        parts.append(arrays)
        done, seconds = done + len(indices), seconds + float(arrays["seconds"])
        watcher.finished(done)
    record.outcomes = _outcomes(parts, plan.candidates)
    record.adversarials = group_pictures(_pictures(parts))
    record.timing = {"seconds": seconds, "hardware": hardware()}
    if out is not None:
        write(record, out)
    store.close()
    return record


@dataclass(frozen=True)
class Made:
    """What a member of a worst case has made, by the index of the example."""

    images: dict[int, NDArray[np.float32]]  # (C, H, W) each
    spent: dict[int, tuple[int, ...]]  # forwards, backwards, glimpses


def _made_by_members(plan: Plan, out: Path | None, progress: Progress) -> dict[str, Made]:
    """What the members of a worst case have made, by name; run now where no finished record lies in `out`."""
    made = {}
    for member in plan.members:
        record = finished_run(member, out) if out is not None else None
        record = record or run(member, out, progress)
        costs = record.outcomes[["index", *COSTS]].to_numpy()
        made[member.attack.name] = Made(
            images={picture.index: picture.adversarial for picture in record.pictures()},
            spent={int(index): tuple(map(int, spent)) for index, *spent in costs},
        )
    return made


def finished_run(plan: Plan, out: Path) -> RunRecord | None:
    """The record of this plan in `out`, if it lies there whole, made by the same versions in the same way."""
    expected = _empty_record(plan)
    folder = out / expected.folder_name
    try:
        record = read(folder)
    except LpmbenchError:
        return None
    same = (record.id, record.execution, record.versions) == (expected.id, expected.execution, expected.versions)
    return record if same and keeps_enough(record, plan) else None


def keeps_enough(record: RunRecord, plan: Plan) -> bool:
    """Whether a record of this plan stores as many images as the plan asks for: the id does not say."""
    return len(record.pictures()) >= min(_stored(plan), len(plan.indices))


def _stored(plan: Plan) -> int:
    return len(plan.indices) if plan.save_adversarials else STORED_PICTURES


def _empty_record(plan: Plan) -> RunRecord:
    import pandas as pd

    notes = [plan.attack.known_defects] if plan.attack.known_defects else []
    return RunRecord(
        configuration=plan.configuration,
        command=plan.command(),
        execution=execution(plan),
        versions=versions(),
        outcomes=pd.DataFrame(),
        notes=notes,
    )


def run_block(
    plan: Plan,
    indices: Sequence[int],
    progress: Progress,
    *,
    first_position: int = 0,
    made: Mapping[str, Made] | None = None,
    journal: Journal | None = None,
) -> Arrays:
    """Attack and grade some examples; arrays of what happened to each, in order, and the pictures to keep.

    made: of a worst case, by its members. journal: what the block had come to when it was interrupted.
    """
    examples = plan.data.read(indices)
    rows: dict[str, list[Any]] = {}
    order: list[int] = []
    pictures: list[Picture] = []
    for batch in batches_by_shape(examples):
        result, attacked = _run_batch(plan, batch, progress, made or {}, journal)
        for name, values in result.items():
            rows.setdefault(name, []).extend(values)
        order += batch.positions
        for row, position in enumerate(batch.positions):
            if first_position + position < _stored(plan):
                clean, adversarial = batch.images[row].numpy(), attacked[row].cpu().numpy()
                pictures.append(Picture(batch.indices[row], clean, adversarial))
    sorting = np.argsort(order)
    arrays = {name: np.asarray(values)[sorting] for name, values in rows.items()}
    return arrays | {f"picture.{name}": array for name, array in group_pictures(pictures).items()}


def _run_batch(
    plan: Plan, batch: Batch, progress: Progress, made: Mapping[str, Made], journal: Journal | None
) -> tuple[dict[str, list[Any]], Tensor]:
    images, labels = batch.images.to(plan.device), batch.labels.to(plan.device)
    mask = batch.masks.to(plan.device) if batch.masks is not None else None
    if not (bool((images >= 0).all()) and bool((images <= 1).all())):
        raise LpmbenchError(f"Data set '{plan.data.name}' holds images outside [0, 1].")
    targets = _targets(plan, batch.indices, labels)
    grading: dict[str, Any] = {
        "seed": plan.seed,
        "draws": plan.draws,
        "chunk": plan.chunk,
        "classes": plan.classes,
        "noise_control": plan.noise_control,
    }
    before = predict(plan.classifier, images, batch.indices, purpose="clean", **grading)
    found, choice, ledger = _attack(plan, batch.indices, images, labels, targets, mask, progress, made, journal)
    found = within_budget(found, images, plan.norm, plan.eps, mask)
    after = predict(plan.classifier, found, batch.indices, purpose="grade", **grading)
    progress.spent(len(images) * plan.grading_passes())
    inputs = [bytes.fromhex(sha256_of_image(image.numpy())) for image in batch.images]
    return {
        "index": batch.indices,
        "input_sha256": [np.frombuffer(digest, np.uint8) for digest in inputs],
        "label": labels.tolist(),
        "target": targets.tolist() if targets is not None else [-1] * len(images),
        "clean_predictions": before.tolist(),
        "predictions": after.tolist(),
        "linf": distance(found.double(), images.double(), "linf").tolist(),
        "l2": distance(found.double(), images.double(), "l2").tolist(),
        "forwards": ledger.forwards.tolist(),
        "backwards": ledger.backwards.tolist(),
        "glimpses": ledger.glimpses.tolist(),
        "choice": choice.tolist(),
    }, found


def _attack(
    plan: Plan,
    indices: Sequence[int],
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    mask: Tensor | None,
    progress: Progress,
    made: Mapping[str, Made],
    journal: Journal | None,
) -> tuple[Tensor, Tensor, Ledger]:
    """Attack one batch: for each image the strongest candidate, its position in `plan.candidates`, and the cost.

    Candidates are what the attack finds in each gradient mode of the plan; of a worst case, what its members made,
    whose cost counts too.
    """
    ledger = Ledger.empty(len(images))
    candidates = []
    for member in made.values():
        pixels = np.stack([member.images[index] for index in indices])
        candidates.append(torch.from_numpy(pixels).to(images))
        spent = torch.tensor([member.spent[index] for index in indices])
        for column, total in enumerate((ledger.forwards, ledger.backwards, ledger.glimpses)):
            total += spent[:, column]

    def oracle_of(classifier: Classifier, **options: Any) -> ClassifierOracle:
        return ClassifierOracle(
            classifier,
            images,
            indices,
            seed=plan.seed,
            classes=plan.classes,
            chunk=plan.chunk,
            mask=mask,
            select_draws=plan.select_draws,
            on_spent=progress.spent,
            **options,
        )

    arguments = plan.attack.parameters | ({"targets": targets} if targets is not None else {})
    if plan.surrogates:
        arguments["surrogates"] = [
            oracle_of(surrogate.classifier, stream=f"on {surrogate.name}") for surrogate in plan.surrogates
        ]
    for mode in plan.gradient_modes:
        oracle = oracle_of(
            plan.classifier,
            quick=plan.quick,
            gradient_mode=mode,
            noise_control=plan.noise_control,
            stream=mode or "",
            ledger=ledger,
            journal=journal,
        )
        if plan.attack.function is not None:
            candidate = {"found": images}
            for attack in oracle.resumable([plan.attack.function], candidate):  # a finished mode is kept as a whole
                candidate["found"] = attack(oracle, images.clone(), labels, norm=plan.norm, eps=plan.eps, **arguments)
            candidates.append(within_budget(candidate["found"], images, plan.norm, plan.eps, mask))
    choice = oracle.strongest(candidates, labels, targets)
    return pick(candidates, choice), choice, ledger


def _targets(plan: Plan, indices: Sequence[int], labels: Tensor) -> Tensor | None:
    """The class that each image shall be taken for: never its own label (the next class stands in for it)."""
    if plan.target is None:
        return None
    if plan.target == "random":
        shifts = [
            int(torch.randint(1, plan.classes, (1,), generator=generator(plan.seed, i, "target"))) for i in indices
        ]
        return (labels + torch.tensor(shifts, device=labels.device)) % plan.classes
    aimed = torch.full_like(labels, int(plan.target))
    return torch.where(aimed == labels, (aimed + 1) % plan.classes, aimed)


def _outcomes(parts: list[Arrays], candidates: Sequence[str]) -> Any:
    import pandas as pd

    names = [name for name in parts[0] if not name.startswith("picture.") and name != "seconds"]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    columns["input_sha256"] = np.array([bytes(row).hex() for row in columns["input_sha256"]])
    columns["choice"] = np.array(candidates if len(candidates) > 1 else [""], dtype=object)[columns["choice"]]
    listed = {name: list(values) if values.ndim > 1 else values for name, values in columns.items()}
    return pd.DataFrame(listed)


def _pictures(parts: list[Arrays]) -> list[Picture]:
    found = []
    for part in parts:
        groups = [name.removeprefix("picture.index.") for name in part if name.startswith("picture.index.")]
        for group in groups:
            arrays = (part[f"picture.{kind}.{group}"] for kind in ("index", "clean", "adversarial"))
            found += [Picture(int(i), clean, attacked) for i, clean, attacked in zip(*arrays, strict=True)]
    return found
