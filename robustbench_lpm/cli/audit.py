"""lpmbench audit: do a model's results say how robust it is, or only that the attacks were blind?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.attack import check_names, complain_of_failures, with_steps
from robustbench_lpm.cli.console import ConsoleWatcher, grid, say, show_wide, shown_eps, shown_path
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.audits import Audit
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.tasks import Attack

IMAGES = 200  # they bound a difference by two points if one image of them differs; with fewer than 96 nothing can


@click.command()
@options.models("MODEL")
@options.checkpoint
@click.option("--attack", "attacks", multiple=True,
              help="A result to judge; several with commas between, or given again. Default: worst-case, and every "
                   "attack among its members.")  # fmt: skip
@click.option("--black-box", "black_box", multiple=True, default=("square", "transfer"), show_default=True,
              help="The attacks without gradients that a white-box result is compared with, likewise.")  # fmt: skip
@click.option(
    "--until-decided",
    is_flag=True,
    help="Go on with more images or draws where checks are undecided, with more work where that lowers accuracy.",
)
@options.data
@options.budget
@options.attack
@options.attacking
@options.trust
def audit(
    model: str, attacks: Sequence[str], black_box: Sequence[str], until_decided: bool, out: Path, **given: Any
) -> None:
    """Judge the results of MODEL: is it robust, or were the attacks too weak?

    Each result, an attack or the worst case over several, is compared, example by example, with what must not be
    stronger: one step, random noise, attacks without gradients, twice the steps, draws and restarts, a larger eps,
    frozen noise. And the model must answer the same whatever it was asked before. A check fails when the paired
    difference is certainly (95 %) above one point, passes when it is certainly below two, and is undecided otherwise:
    more images decide it. With --until-decided those are used, and where twice the work lowers accuracy further, the
    stronger attack is judged in place of the weaker one. The verdicts are written beside the records; `report` shows
    them, and only results that pass have a rank. Runs that are finished in --out are not repeated. Without --limit the
    first 200 examples are judged.

    \b
    lpmbench audit cnn --dataset digits --eps 0.1
    lpmbench audit ramlpm --attack worst-case --eps 0.1 --eot 20
    lpmbench audit mymodel.toml --trust --attack pgd --set pgd.steps=100
    """
    given["limit"] = given["limit"] or IMAGES
    settings = options.read_settings(given)
    if any(one.eps == 0 for one in settings):
        raise LpmbenchError("An audit needs an eps above 0: without a budget there is nothing to judge.")
    names = options.read_names("--attack", attacks) or ["worst-case", *cards.attack("worst-case").members]
    against = options.read_names("--black-box", black_box)
    options.read_parameters(given)  # a mistake in them is an error at once
    options.prepare_machine(given["device"], given["threads"], given["precision"])
    from robustbench_lpm.execution.recording import keeps_enough
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.tasks import LeftOut

    source = options.read_source(given)
    with Failures(alone=True).of(model):
        loaded = options.read_model(model, given)
    judged, others = _resolve(names, against, given, strict=bool(attacks))
    judged = [attack for attack in judged if attack.applies(loaded.classifier) and attack.knowledge != "none"]
    failures, watcher = Failures(alone=len(judged) * len(settings) == 1), ConsoleWatcher(shorter=True)
    found: list[Audit] = []
    records: dict[str, RunRecord] = {}  # audits of one model share runs; each is announced once

    def obtain(plan: Plan) -> RunRecord:
        if plan.id not in records or not keeps_enough(records[plan.id], plan):
            records.update({part.id: run(part, out, watcher) for part in (*plan.members, plan)})
        return records[plan.id]

    for attack in judged:
        for one in settings:
            with failures.of(f"audit of {loaded.name} under {attack.name}"):
                try:
                    plan = make_plan(loaded, attack, source, one)
                except LeftOut as error:
                    if len(judged) == 1:
                        raise
                    say(f"Left out: {attack.name} on {loaded.name}. {error}")
                    break
                found.append(judge_result(plan, others, obtain, out, until_decided=until_decided))
    if failed := [result.attack for result in found if result.verdict == "fail"]:
        fate = f"fail their audit ({', '.join(failed)}): they do not say how robust the model is."
        say(f"{len(failed)} of {len(found)} results {fate}")
    failures.complain("judged")


def _resolve(
    names: Sequence[str], against: Sequence[str], given: dict[str, Any], *, strict: bool
) -> tuple[list[Attack], list[Attack]]:
    """The attacks to judge, and those without gradients. strict: a --steps or --eot that none takes is an error."""
    from robustbench_lpm.registry.tasks import resolve_attacks

    parameters, of_attacks = options.read_parameters(given)
    members = {name: [name, *cards.attack(name).members] for name in (*names, *against)}
    check_names(of_attacks, [part for parts in members.values() for part in parts])

    def resolve(chosen: Sequence[str], parameters: dict[str, Any]) -> list[Attack]:
        carried = any(cards.attack(part).surrogates is not None for name in chosen for part in members[name])
        surrogates = (given["surrogates"] or None) if carried else None
        return resolve_attacks(
            chosen, parameters=parameters, settings=of_attacks, surrogates=surrogates, trust=given["trust"]
        )

    others = resolve(against, {}) if against else []
    return with_steps(resolve(names, parameters), given, strict=strict), others


def judge_result(
    plan: Plan, black_box: Sequence[Attack], obtain: Callable[[Plan], RunRecord], out: Path, *,
    until_decided: bool = False,
) -> Audit:  # fmt: skip
    """Audit one result, print the evidence, and write it below `out`; the last audit. obtain: gives a run's record."""
    from robustbench_lpm.protocol.audit import auditable, looks
    from robustbench_lpm.records import audits

    def whole(run: Plan) -> RunRecord:
        record = obtain(run)
        complain_of_failures([record])  # what is compared example by example must be whole
        return record

    for judged, result in looks(auditable(plan), black_box, whole, until_decided=until_decided):
        path = audits.write(result, out)
        _print(result, judged)
        say(f"Audit: {shown_path(path)}\n")
    return result


def _print(result: Audit, plan: Plan) -> None:
    """The checks of one result as a table, the verdict below."""
    from robustbench_lpm.registry.tasks import changed_parameters
    from robustbench_lpm.reporting.cells import evidence

    table = grid(
        "Check", "Against", "Verdict", "Judged", "Reference", "Difference, 95 %", right=("Judged", "Reference")
    )
    for check in result.checks:
        judged, reference, difference, _ = evidence(check)
        shown = difference if check.judged is not None else check.note
        table.add_row(check.name, check.against, check.verdict, judged, reference, shown)
    show_wide(table)
    for check in result.checks:
        if check.verdict == "undecided" and check.note:
            say(f"{check.name}: {check.note}.")
    budget = changed_parameters(plan.attack)
    settings = f" ({', '.join(f'{name}={value}' for name, value in budget.items())})" * bool(budget)
    where = f"{result.model} under {result.attack}{settings}, {shown_eps(plan)}, {len(plan.indices)} images"
    say(f"Verdict on {where}: {result.verdict.upper()}")
