"""lpmbench attack: one model, or all that fit, under one attack at some budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.options import (
    attack_options,
    attacking_options,
    budget_options,
    checkpoint_option,
    data_options,
    force_option,
    of_settings,
    prepare_machine,
    read_budgets,
    read_names,
    read_options,
    read_settings,
    read_source,
    trust_option,
)
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.tasks import Attack, Data


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A model, or the path of its card; may be given again. Default: all that fit.",
)
@checkpoint_option
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    default=("pgd",),
    show_default=True,
    help="An attack, or the path of its card; several with commas between, or given again.",
)
@data_options
@budget_options
@attack_options
@attacking_options
@of_settings("save_adversarials")
@force_option
@trust_option
def attack(
    models: tuple[str, ...],
    checkpoint: Path | None,
    attacks: tuple[str, ...],
    dataset: str,
    eps: tuple[str, ...],
    settings: tuple[str, ...],
    surrogates: tuple[str, ...],
    out: Path,
    force: bool,
    **rest: Any,
) -> None:
    """Attack one model, or every registered model that fits the data set, and record what happens.

    Of several attacks each takes the --steps, --eot and --set that it knows; what none of them knows is an error. A
    model or a run that fails does not stop the others: it is named, and the status at the end is not zero.

    \b
    lpmbench attack --model ramlpm --attack pgd --eps 1/255,2/255,0.1 --limit 200
    lpmbench attack --model cnn --attack pgd,square --attack fgsm --eps 0.05 --eps 0.1
    lpmbench attack --attack spsa --size 224 --dataset panda
    lpmbench attack --dataset panda --image photo.jpg --label 388 --attack pgd --target random
    lpmbench attack --model ramlpm --attack apgd-margin --eot 20 --noise first_fixation=frozen
    lpmbench attack --model ramlpm --attack worst-case --set apgd-margin.steps=100
    """
    budgets = read_budgets(eps, dataset, rest["norm"])
    wanted = read_names("--attack", attacks)
    from robustbench_lpm.cli.console import ConsoleWatcher
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.tasks import resolve_attacks, resolve_model

    options = [read_options(rest, eps=budget) for budget in budgets]
    trust, device = rest["trust"], rest["device"]
    parameters, of_attacks = split_settings(read_settings(settings))
    chosen = resolve_attacks(
        wanted, parameters=parameters, settings=of_attacks, surrogates=surrogates or None, trust=trust
    )
    check_names(of_attacks, wanted, [member.name for each in chosen for member in each.members])
    chosen = with_budgets(chosen, {"steps": rest["steps"], "eot": rest["eot"]})
    prepare_machine(rest["device"], rest["threads"], rest["precision"])
    source = read_source(dataset, rest)
    if checkpoint is not None and len(models) != 1:
        raise LpmbenchError("--checkpoint goes with exactly one --model.")
    for name in models:
        cards.model(name)  # a misspelt name is told before hours are spent on the others
    names = list(dict.fromkeys(models)) or fitting_models(dataset)
    records: list[RunRecord] = []
    watcher = ConsoleWatcher()
    failures = Failures(alone=len(names) * len(chosen) == 1)
    for name in names:
        with failures.of(name):
            model = resolve_model(name, checkpoint=checkpoint, trust=trust, device=device)
            for each in chosen:
                with failures.of(name if len(chosen) == 1 else f"{name} under {each.name}"):
                    for plan in [make_plan(model, each, source, one) for one in options]:
                        for part in (*plan.members, plan):
                            records.append(run(part, out, watcher, again=force))
    if records:
        finish(records, source, out)
    failures.complain("attacked", f" of {len(names)} models" if len(chosen) == 1 else "")
    complain_of_failures(records)


def with_budgets(attacks: Sequence[Attack], options: dict[str, int | None], *, strict: bool = True) -> list[Attack]:
    """Attacks with --steps and --eot laid over their parameters; of a worst case, over those of its members.

    Raises LpmbenchError where nothing knows such a parameter.
    """
    from robustbench_lpm.registry.tasks import with_parameters

    changes: dict[str, int] = {}
    parts = [part for attack in attacks for part in attack.members or (attack,)]
    for option, value in options.items():
        if value is None:
            continue
        names = {name for part in parts for name in part.declaration.steps} if option == "steps" else {option}
        if strict and not any(name in part.parameters for part in parts for name in names):
            named = ", ".join(f"'{attack.name}'" for attack in attacks)
            raise LpmbenchError(f"Attack {named} takes no {option}.")
        changes |= dict.fromkeys(names, value)

    def known(attack: Attack) -> dict[str, int]:
        names = [name for part in attack.members or (attack,) for name in part.parameters]
        return {name: value for name, value in changes.items() if name in names}

    return [with_parameters(attack, known(attack)) for attack in attacks]


def split_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parameters of an attack, and those of a worst case's members, by member ("apgd-ce.steps")."""
    own: dict[str, Any] = {}
    of_members: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        member, dot, parameter = name.partition(".")
        if dot:
            of_members.setdefault(member, {})[parameter] = value
        else:
            own[name] = value
    return own, of_members


def check_names(given: Iterable[str], attacks: Sequence[str], members: Sequence[str]) -> None:
    """Raise LpmbenchError for the first attack that is given parameters ("pdg.steps") and does not take part."""
    for name in given:
        if name not in (*attacks, *members):
            raise unknown("attack", name, [*attacks, *members])


def fitting_models(dataset: str) -> list[str]:
    """The registered models that fit a data set and have weights, without controls; others are told, with why."""
    from robustbench_lpm.cli.console import say
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
        raise LpmbenchError(f"No registered model with weights fits '{card.name}'; name one with --model.")
    return found


def complain_of_failures(records: Iterable[RunRecord]) -> None:
    """Raise LpmbenchError, with what to do next, where examples of some runs failed."""
    from robustbench_lpm.execution.runner import told_failures

    failed = {record.id: record for record in records if record.failures}
    if failed:
        said = "; ".join(told_failures(record) for record in list(failed.values())[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise LpmbenchError(f"{len(failed)} run(s) are not whole: {said}{more}. The same command tries them again.")


def finish(records: list[RunRecord], source: Data, out: Path) -> None:
    """The table of what was run, a picture of a single image, and what to do next."""
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.console import console, say, shown_path

    say("")
    reporting.terminal_table(records, console)
    draw_single_images(records, source)
    say(f"Records: {shown_path(out)}    Leaderboard: lpmbench report --results {shown_path(out)}")


def draw_single_images(records: list[RunRecord], source: Data) -> None:
    """For runs on one image a picture: original, amplified perturbation, adversarial image, and what was predicted."""
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.console import say, shown_path
    from robustbench_lpm.records.runs import write_atomically

    for record in records:
        if len(record.outcomes) == 1 and record.path is not None and record.adversarials:
            path = record.path / "picture.png"
            write_atomically(path, reporting.attack_picture(record, 0, source.classes))
            say(f"Picture: {shown_path(path)}")
