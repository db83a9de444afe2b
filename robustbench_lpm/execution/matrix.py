"""Resolve a suite to its runs: those that its card lists, the members of worst cases, and those that audits need."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from robustbench_lpm.errors import Attempt, LpmbenchError
from robustbench_lpm.execution.recording import blocks_kept, finished_run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.audit import auditable, comparisons, runs_of
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import SuiteCard
from robustbench_lpm.registry.tasks import Attack, Data, LeftOut, resolve_attack, resolve_data, resolve_model
from robustbench_lpm.registry.zoo import LoadedModel


@dataclass
class Cell:
    """One run of a matrix; `look_ahead` sets its cost and progress."""

    plan: Plan
    listed: bool  # whether it is a result of its own, or only needed by an audit
    part: int  # of the card, counted from 0
    seconds: float | None = None  # None where the attack does not say what it costs
    finished: bool = False
    blocks: int = 0  # of an unfinished run, those that are finished

    @property
    def images(self) -> int:
        """How many are attacked."""
        return len(self.plan.indices)

    @property
    def passes(self) -> tuple[int | None, int | None]:
        """Forwards and backwards of the attack on all images; None where it does not say."""
        cost = self.plan.cost()
        return (cost.forwards * self.images, cost.backwards * self.images) if cost else (None, None)

    def look_ahead(self, out: Path, seconds: Callable[[Plan], float | None], *, force: bool = False) -> None:
        """Set what is finished and how many seconds it takes; nothing is written."""
        self.finished = not force and finished_run(self.plan, out) is not None
        self.seconds = 0.0 if self.finished else seconds(self.plan)
        self.blocks = 0 if self.finished else blocks_kept(self.plan, out)


@dataclass
class Matrix:
    """The runs of a suite, in order and each once, and the audits that follow."""

    cells: list[Cell] = field(default_factory=list)
    # With its black-box attacks, and whether it is audited until that is decided.
    judged: list[tuple[Plan, Sequence[Attack], bool]] = field(default_factory=list)
    sources: dict[int, Data] = field(default_factory=dict)  # by part
    left_out: dict[str, str] = field(default_factory=dict)  # datasets that are not available, and why not
    notes: list[str] = field(default_factory=list)  # what else is left out, and why

    def plan(self, model: LoadedModel, attack: Attack, source: Data, options: Options) -> list[Plan]:
        """The plan of a run; none, and a note, where the attack cannot be made."""
        try:
            return [make_plan(model, attack, source, options)]
        except LeftOut as error:
            note = f"Left out: {attack.name} on {model.name}. {error}"
            self.notes += [note] if note not in self.notes else []
            return []

    def add(self, plan: Plan, part: int, *, listed: bool) -> None:
        """Add a run and, before it, the members of a worst case; of equal runs, the one that keeps the most images."""
        for member in plan.members:
            self.add(member, part, listed=listed)
        for cell in self.cells:
            if cell.plan.id == plan.id:
                cell.plan = cell.plan if cell.plan.options.save_adversarials else plan
                cell.listed |= listed
                return
        self.cells.append(Cell(plan, listed, part))


def resolve_suite(
    suite: SuiteCard, *, data: Mapping[str, Path] | Path | None = None, device: str = "auto", trust: bool = False,
    attempt: Attempt = nullcontext,
) -> Matrix:  # fmt: skip
    """Every run of a suite, in the order of its card; optional parts whose data are not available are left out.

    data: the directory of the data, or one for each dataset by name. attempt: the context in which each model is
    loaded and each of its runs is planned; what fails in it is left out, if it suppresses the error.

    Raises LpmbenchError for anything that cannot be run as asked.
    """
    found = Matrix()
    named = {part.dataset for part in suite.part}
    if isinstance(data, Mapping) and (unknown := sorted(data.keys() - named)):
        raise LpmbenchError(f"Suite '{suite.name}' has no dataset '{unknown[0]}'; it has {', '.join(sorted(named))}.")
    for name in (name for part in suite.part for name in part.models):
        cards.model(name)  # a misspelt name fails before hours are spent on the others
    for number, part in enumerate(suite.part):
        directory = data.get(part.dataset) if isinstance(data, Mapping) else data
        try:
            source = resolve_data(part.dataset, size=part.size, data=directory, trust=trust)
        except LpmbenchError as error:
            # A directory that was given without the data is a mistake, not a choice.
            if not part.optional or directory is not None:
                raise
            found.left_out[part.dataset] = str(error)
            continue
        source = replace(source, fingerprint=cache(source.fingerprint))  # each plan asks for them again
        found.sources[number] = source
        attacks = {
            name: resolve_attack(name, parameters=part.parameters.get(name), settings=part.parameters, trust=trust)
            for name in dict.fromkeys([*part.attacks, *part.audit, *(part.black_box if part.audit else [])])
        }
        for name in part.models:
            with attempt(name):
                model = resolve_model(name, trust=trust, device=device)
                _add_model(found, part, number, model, attacks, device, attempt)
    return found


def _add_model(
    matrix: Matrix, part: SuiteCard.Part, number: int, model: LoadedModel, attacks: Mapping[str, Attack], device: str,
    attempt: Attempt,
) -> None:  # fmt: skip
    """The runs of one model in a part of a suite."""
    source, classifier = matrix.sources[number], model.classifier
    # Settings that only stochastic or glimpsing models have are left out for others: one part may list all models.
    runs = part.mc if classifier.stochastic else [1]
    modes = part.gradient_modes if classifier.gradient_modes else [None]
    for mc, mode in itertools.product(runs, modes):
        options = [replace(each, device=device) for each in part.options(mc=mc, gradient_mode=mode)]
        if not classifier.stochastic:
            options = [replace(each, noise=()) for each in options]
        for attack in (attacks[name] for name in part.attacks if attacks[name].applies(classifier)):
            for each in options:
                with attempt(f"{model.name} under {attack.name}"):
                    for plan in matrix.plan(model, attack, source, each):
                        matrix.add(plan, number, listed=True)
        black_box = [attacks[name] for name in part.black_box] if part.audit else []
        for attack in (attacks[name] for name in part.audit if attacks[name].applies(classifier)):
            if attack.knowledge == "none":
                continue
            with attempt(f"audit of {model.name} under {attack.name}"):
                for plan in [plan for each in options for plan in matrix.plan(model, attack, source, each)]:
                    matrix.judged.append((plan, black_box, part.until_decided))
                    run = auditable(plan)
                    for needed in runs_of(run, comparisons(run, black_box)):
                        matrix.add(needed, number, listed=False)
