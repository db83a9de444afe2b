"""lpmbench attack: one model, or all that fit, under some attacks at some budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.console import ConsoleWatcher, console, quoted_path, say, show_plan, shown_path
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.execution.matrix import Cell
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.tasks import Attack, Data


@click.command()
@options.models(required=False)
@options.checkpoint
@click.option("--attack", "attacks", multiple=True, default=("momentum",), show_default=True,
              help="An attack, the path of its card, or LIBRARY:NAME as in art:HopSkipJump; several with commas "
                   "between, or given again.")  # fmt: skip
@options.data
@options.budget
@options.attack
@options.attacking
@options.of_settings("patch", "patch_at", "save_adversarials")
@options.force
@options.dry_run
@options.trust
def attack(models: Sequence[str], attacks: Sequence[str], out: Path, force: bool, dry_run: bool, **given: Any) -> None:
    """Attack each MODEL, or every registered one that fits the dataset, and record what happens.

    Of several attacks each takes the --steps, --eot and --set that it knows; what none of them knows is an error. A
    model or a run that fails does not stop the others: it is named, and the status at the end is not zero.

    \b
    lpmbench attack ramlpm --eps 1/255,2/255,0.1 --limit 200
    lpmbench attack cnn --attack pgd,square --attack fgsm --eps 0.05 --eps 0.1
    lpmbench attack ramlpm --attack pgd --dry-run
    lpmbench attack --attack spsa --size 224 --dataset panda
    lpmbench attack --dataset panda --image photo.jpg --label 388 --attack pgd --target random
    lpmbench attack ramlpm --attack apgd-margin --eot 20 --noise first_fixation=frozen
    lpmbench attack cnn --attack art:HopSkipJump --norm l2 --eps 1 --set max_iter=10
    lpmbench attack ramlpm --attack worst-case --set momentum.steps=400
    lpmbench attack ramlpm cnn --attack pgd --patch 0.1
    """
    settings = options.read_settings(given)
    wanted = options.read_names("--attack", attacks)
    from robustbench_lpm import reporting
    from robustbench_lpm.execution.matrix import Matrix
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan

    chosen = resolve(wanted, given)
    if dry_run:
        options.prepare_dry_run(given)
        settings = options.read_settings(given)
    else:
        options.prepare_machine(given["device"], given["threads"], given["precision"])
    source = options.read_source(given)
    if given["checkpoint"] is not None and len(models) != 1:
        raise LpmbenchError("--checkpoint goes with exactly one MODEL.")
    for name in models:
        cards.model(name)  # a misspelt name is an error before hours are spent on the others
    names = list(models) or fitting_models(given["dataset"])
    records: list[RunRecord] = []
    matrix, failures = Matrix(), Failures(alone=len(names) * len(chosen) == 1)
    watcher = ConsoleWatcher(shorter=True)
    for name in names:
        with failures.of(name):
            model = options.read_model(name, given)
            for each in chosen:
                with failures.of(name if len(chosen) == 1 else f"{name} under {each.name}"):
                    for plan in [make_plan(model, each, source, one) for one in settings]:
                        if dry_run:
                            matrix.add(plan, 0, listed=True)
                            continue
                        records += [run(part, out, watcher, again=force) for part in (*plan.members, plan)]
    if matrix.cells:
        look_ahead(matrix.cells, out, force=force)
        show_plan(matrix.cells)
    if records:
        say("")
        reporting.terminal_table(records, console)
        draw_single_images(records, source)
        say(f"Records: {shown_path(out)}    Leaderboard: lpmbench report --results {quoted_path(out)}")
    failures.complain("attacked", f" of {len(names)} models" if len(chosen) == 1 else "")
    complain_of_failures(records)


def look_ahead(cells: Iterable[Cell], out: Path, *, force: bool) -> None:
    """Set what of each run is finished in `out`, and how long it takes; passes alike are timed once."""
    from robustbench_lpm.execution.estimates import estimate_seconds

    seconds = partial(estimate_seconds, timed={})
    for cell in cells:
        cell.look_ahead(out, seconds, force=force)


def resolve(names: Sequence[str], given: Mapping[str, Any]) -> list[Attack]:
    """The attacks of these names with what a command's options say of their parameters.

    Raises LpmbenchError where none of them knows a parameter.
    """
    from robustbench_lpm.registry.tasks import resolve_attacks

    parameters, of_attacks = options.read_parameters(given)
    chosen = resolve_attacks(
        names, parameters=parameters, settings=of_attacks, surrogates=given.get("surrogates") or None,
        trust=given["trust"],
    )  # fmt: skip
    check_names(of_attacks, [*names, *(member.name for each in chosen for member in each.members)])
    return with_steps(chosen, given)


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise LpmbenchError for the first attack that is given parameters ("pdg.steps") and does not take part."""
    for name in given:
        if name not in known:
            raise unknown("attack", name, known)


def with_steps(attacks: Sequence[Attack], given: Mapping[str, Any], *, strict: bool = True) -> list[Attack]:
    """Attacks with --steps and --eot laid over their parameters; of a worst case, over those of its members.

    Raises LpmbenchError where nothing knows such a parameter, unless it is not `strict`.
    """
    from robustbench_lpm.registry.tasks import with_parameters

    changes: dict[str, int] = {}
    parts = [part for attack in attacks for part in attack.members or (attack,)]
    for option in ("steps", "eot"):
        if given[option] is None:
            continue
        names = {name for part in parts for name in part.declaration.steps} if option == "steps" else {option}
        if strict and not any(name in part.parameters for part in parts for name in names):
            named = ", ".join(f"'{attack.name}'" for attack in attacks)
            raise LpmbenchError(f"Attack {named} takes no {option}.")
        changes |= dict.fromkeys(names, given[option])

    known = [
        {name: value for name, value in changes.items() if attack.members or name in attack.parameters}
        for attack in attacks
    ]
    return list(map(with_parameters, attacks, known))


def fitting_models(dataset: str) -> list[str]:
    """The registered models that fit a dataset and have weights, without controls; says which are skipped, and why."""
    from robustbench_lpm.registry import zoo

    card = cards.dataset(dataset)
    found = []
    for model in map(cards.model, cards.names("model")):
        if not zoo.fits(model, card) or model.control_of is not None:  # controls run when they are named
            continue
        if reason := zoo.weights_missing(model):
            say(f"Skipping {model.name}: {reason}.")
        else:
            found.append(model.name)
    if not found:
        raise LpmbenchError(f"No registered model with weights fits '{card.name}'; name one.")
    return found


def complain_of_failures(records: Iterable[RunRecord]) -> None:
    """Raise LpmbenchError, with what to do next, where examples of some runs failed."""
    from robustbench_lpm.execution.runner import told_failures

    failed = {record.id: record for record in records if record.failures}
    if failed:
        said = "; ".join(told_failures(record) for record in list(failed.values())[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise LpmbenchError(f"{len(failed)} run(s) are not whole: {said}{more}. The same command tries them again.")


def draw_single_images(records: Iterable[RunRecord], source: Data) -> None:
    """For runs on one image a picture: original, amplified perturbation, adversarial image, and what was predicted."""
    from robustbench_lpm import reporting
    from robustbench_lpm.records.runs import write_atomically

    for record in records:
        if len(record.outcomes) == 1 and record.path is not None and record.adversarials:
            path = record.path / "picture.png"
            write_atomically(path, reporting.attack_picture(record, 0, source.classes))
            say(f"Picture: {shown_path(path)}")
