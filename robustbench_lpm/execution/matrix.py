"""A suite, resolved to the runs that it takes, before any of them starts: those that its card lists, the members of
their worst cases, and what an audit compares them with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lpm.budgets import parse_eps_list
from robustbench_lpm.errors import Attempt, LpmbenchError
from robustbench_lpm.execution.recording import blocks_kept, finished_run
from robustbench_lpm.protocol import audit
from robustbench_lpm.protocol.noise_control import FROZEN, can_freeze
from robustbench_lpm.protocol.plan import Plan, make_plan, vary
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import SuiteCard
from robustbench_lpm.registry.tasks import Attack, Data, LeftOut, resolve_attack, resolve_data, resolve_model
from robustbench_lpm.registry.zoo import LoadedModel


@dataclass(frozen=True)
class Judged:
    """Results of one model that are to be audited."""

    model: LoadedModel
    attacks: Sequence[Attack]
    source: Data
    budgets: Sequence[float]
    black_box: Sequence[Attack]
    planning: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a matrix."""

    plan: Plan
    listed: bool  # whether it is a result of its own, or only compared with one by an audit
    part: int  # of the card, counted from 0


@dataclass
class Matrix:
    """All that a suite runs, in order and each run once; and what is judged when that is done."""

    cells: list[Cell] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    sources: dict[int, Data] = field(default_factory=dict)  # by part
    left_out: dict[str, str] = field(default_factory=dict)  # data sets that are not at hand, and why not
    notes: list[str] = field(default_factory=list)  # what else is left out, and why

    def plan(
        self, model: LoadedModel, attack: Attack, source: Data, eps: float, planning: dict[str, Any]
    ) -> list[Plan]:
        """The plan of a run; none, and a note, where the attack has no model to be made on."""
        try:
            return [make_plan(model, attack, source, eps=eps, **planning)]
        except LeftOut as error:
            note = f"Left out: {attack.name} on {model.name}. {error}"
            self.notes += [note] if note not in self.notes else []
            return []

    def add(self, plan: Plan, part: int, *, listed: bool) -> None:
        """A run and, before it, the members of a worst case; one that is there already keeps the most images."""
        for member in plan.members:
            self.add(member, part, listed=listed)
        for position, cell in enumerate(self.cells):
            if cell.plan.id == plan.id:
                kept = cell.plan if cell.plan.save_adversarials else plan
                self.cells[position] = Cell(kept, cell.listed or listed, cell.part)
                return
        self.cells.append(Cell(plan, listed, part))


def resolve_suite(
    suite: SuiteCard,
    *,
    data: Mapping[str, Path] | Path | None = None,
    device: str = "cpu",
    trust: bool = False,
    attempt: Attempt = nullcontext,
) -> Matrix:
    """Every run of a suite, in the order of its card; optional parts whose data are not at hand are left out.

    data: where the data lie; a folder for all of them, or one for each data set by name. attempt: under which each
    model is loaded and each of its runs is planned; what fails in it is left out, if it keeps that to itself.

    Raises LpmbenchError for anything that cannot be run as asked.
    """
    found = Matrix()
    named = {part.dataset for part in suite.part}
    if isinstance(data, Mapping) and (unknown := sorted(data.keys() - named)):
        raise LpmbenchError(f"Suite '{suite.name}' has no data set '{unknown[0]}'; it has {', '.join(sorted(named))}.")
    for name in (name for part in suite.part for name in part.models):
        cards.model(name)  # a misspelt name is told before hours are spent on the others
    for number, part in enumerate(suite.part):
        folder = data.get(part.dataset) if isinstance(data, Mapping) else data
        try:
            source = resolve_data(part.dataset, size=part.size, data=folder, trust=trust)
        except LpmbenchError as error:
            # A folder that was given and does not hold the data is a mistake, not a choice.
            if not part.optional or folder is not None:
                raise
            found.left_out[part.dataset] = str(error)
            continue
        source = replace(source, fingerprint=cache(source.fingerprint))  # each plan asks for them again
        found.sources[number] = source
        budgets = parse_eps_list(part.eps, part.norm)
        planning: dict[str, Any] = {
            "norm": part.norm, "limit": part.limit, "draws": part.draws, "seed": part.seed, "device": device,
            "precision": part.precision, "labels_fit": part.labels_fit, "save_adversarials": part.save_adversarials,
        }  # fmt: skip
        attacks = {
            name: resolve_attack(name, parameters=part.parameters.get(name), settings=part.parameters, trust=trust)
            for name in dict.fromkeys([*part.attacks, *part.audit, *(part.black_box if part.audit else [])])
        }
        for name in part.models:
            with attempt(name):
                model = resolve_model(name, trust=trust, device=device)
                _add_model(found, part, number, model, attacks, budgets, planning, attempt)
    return found


def _add_model(
    found: Matrix,
    part: SuiteCard.Part,
    number: int,
    model: LoadedModel,
    attacks: Mapping[str, Attack],
    budgets: Sequence[float],
    planning: dict[str, Any],
    attempt: Attempt,
) -> None:
    """The runs of one model in a part of a suite."""
    source, classifier = found.sources[number], model.classifier
    # What only stochastic or glimpsing models have is asked of them alone: one part may hold all models.
    runs = part.mc if classifier.stochastic else [1]
    modes = part.gradient_modes if classifier.gradient_modes else [None]
    noise = part.noise if classifier.stochastic else []
    for mc, mode in itertools.product(runs, modes):
        own = planning | {"mc": mc, "gradient_mode": mode, "noise": noise}
        for attack in (attacks[other] for other in part.attacks):
            for eps in budgets if attack.applies(classifier) else ():
                with attempt(f"{model.name} under {attack.name}"):
                    for plan in found.plan(model, attack, source, eps, own):
                        found.add(plan, number, listed=True)
        black_box = [attacks[other] for other in part.black_box] if part.audit else []
        for attack in (attacks[other] for other in part.audit):
            with attempt(f"audit of {model.name} under {attack.name}"):
                plans = [
                    plan
                    for eps in (budgets if attack.applies(classifier) and attack.knowledge != "none" else ())
                    for plan in found.plan(model, attack, source, eps, own)
                ]
                probes = [probe for plan in plans for probe in runs_of_an_audit(plan, black_box)]
                found.judged += [Judged(model, [attack], source, budgets, black_box, own)] if plans else []
                for probe in probes:
                    found.add(probe, number, listed=False)


class _Unknown:
    """A record of which nothing is known yet: enough of one for the audit to say what it would ask for next."""

    id = ""

    def __init__(self, plan: Plan) -> None:
        self.correct = np.zeros((len(plan.indices), 1))


def runs_of_an_audit(judged: Plan, black_box: Sequence[Attack]) -> list[Plan]:
    """The runs for which `audit.judge` asks to judge a result, that of the result first."""
    asked: list[Plan] = []

    def obtain(plan: Plan) -> Any:
        asked.append(plan)
        return _Unknown(plan)

    if judged.stochastic:
        judged = vary(judged, save_adversarials=True)
    record: Any = obtain(judged)
    audit._against_others(judged, record, obtain, black_box)
    audit._against_other_budgets(judged, record, obtain)
    audit._against_twice_the_work(judged, record, obtain)
    if judged.stochastic and can_freeze(judged.model.classifier):
        asked.append(vary(judged, noise=[FROZEN]))
    return asked


@dataclass(frozen=True)
class Forecast:
    """What a cell will cost at most, and what of it lies there."""

    cell: Cell
    forwards: int | None  # of the attack, on all images; None where the attack does not say
    backwards: int | None
    grading: int
    seconds: float | None
    finished: bool
    blocks: int  # of an unfinished run, those that are finished


def forecast(cell: Cell, out: Path, seconds: Callable[[Plan], float | None], *, force: bool = False) -> Forecast:
    """Look ahead to one cell; nothing is written."""
    plan, images = cell.plan, len(cell.plan.indices)
    cost = plan.cost()
    finished = not force and finished_run(plan, out) is not None
    return Forecast(
        cell,
        cost.forwards * images if cost else None,
        cost.backwards * images if cost else None,
        plan.grading_passes() * images,
        0.0 if finished else seconds(plan),
        finished,
        0 if finished else blocks_kept(plan, out),
    )
