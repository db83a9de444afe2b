"""lpmbench audit: do a model's results say how robust it is, or only that the attacks were blind?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli.attack import check_names, complain_of_failures, split_settings, with_budgets
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.options import (
    attack_options,
    attacking_options,
    budget_options,
    checkpoint_option,
    data_options,
    prepare_machine,
    read_budgets,
    read_names,
    read_options,
    read_settings,
    read_source,
    trust_option,
)
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.audits import Audit
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.tasks import Attack

IMAGES = 200  # with fewer than 195, no difference can be bounded by one point


@click.command()
@click.argument("model")
@checkpoint_option
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    help="A result to judge; several with commas between, or given again. Default: worst-case, and every attack among "
    "its members.",
)
@click.option(
    "--black-box",
    "black_box",
    multiple=True,
    default=("square", "transfer"),
    show_default=True,
    help="The attacks without gradients that a white-box result is compared with, likewise.",
)
@data_options
@budget_options
@attack_options
@attacking_options
@trust_option
def audit(
    model: str,
    checkpoint: Path | None,
    attacks: tuple[str, ...],
    black_box: tuple[str, ...],
    dataset: str,
    eps: tuple[str, ...],
    settings: tuple[str, ...],
    surrogates: tuple[str, ...],
    out: Path,
    **rest: Any,
) -> None:
    """Judge the results of MODEL: is it robust, or were the attacks blind?

    Each result, an attack or the worst case over several, is compared, example by example, with what must not be
    stronger: one step, random noise, attacks without gradients, twice the steps, draws and restarts, a larger eps,
    frozen noise. A check fails when the 95 % interval of the paired difference lies above one point, passes when it
    lies below, and is undecided otherwise: more images decide it. The verdicts are written beside the records;
    `report` shows them, and a result that fails gets no rank. Runs that lie finished in --out are not repeated. Without
    --limit the first 200 examples are judged.

    \b
    lpmbench audit cnn --dataset digits --eps 0.1
    lpmbench audit ramlpm --attack worst-case --eps 0.1 --eot 20
    lpmbench audit mymodel.toml --trust --attack pgd --set pgd.steps=100
    """
    rest["limit"] = rest["limit"] or IMAGES
    options = [read_options(rest, eps=budget) for budget in read_budgets(eps, dataset, rest["norm"])]
    if any(one.eps == 0 for one in options):
        raise LpmbenchError("An audit needs an eps above 0: without a budget there is nothing to judge.")
    parameters, of_attacks = split_settings(read_settings(settings))
    names = read_names("--attack", attacks) or ["worst-case", *cards.attack("worst-case").members]
    against = read_names("--black-box", black_box)
    prepare_machine(rest["device"], rest["threads"], rest["precision"])
    from robustbench_lpm.cli.console import ConsoleWatcher, say
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.tasks import LeftOut, resolve_attacks, resolve_model

    trust, source = rest["trust"], read_source(dataset, rest)
    with Failures(alone=True).of(model):
        loaded = resolve_model(model, checkpoint=checkpoint, trust=trust, device=rest["device"])

    def resolve(names: Sequence[str], given: dict[str, Any]) -> list[Attack]:
        parts = [part for name in names for part in (name, *cards.attack(name).members)]
        carried = any(cards.attack(part).surrogates is not None for part in parts)
        return resolve_attacks(
            names, parameters=given, settings=of_attacks, surrogates=surrogates if surrogates and carried else None,
            trust=trust,
        )  # fmt: skip

    check_names(of_attacks, [*names, *against], [part for n in (*names, *against) for part in cards.attack(n).members])
    others = resolve(against, {}) if against else []
    budgets = {"steps": rest["steps"], "eot": rest["eot"]}
    chosen = [
        attack
        for attack in with_budgets(resolve(names, parameters), budgets, strict=bool(attacks))
        if attack.applies(loaded.classifier) and attack.knowledge != "none"
    ]
    failures, watcher = Failures(alone=len(chosen) * len(options) == 1), ConsoleWatcher()
    found: list[Audit] = []
    records: dict[str, RunRecord] = {}  # audits of one model share runs; each is announced once

    def obtain(plan: Plan) -> RunRecord:
        from robustbench_lpm.execution.recording import keeps_enough

        if plan.id not in records or not keeps_enough(records[plan.id], plan):
            for part in (*plan.members, plan):
                records[part.id] = run(part, out, watcher)
        return records[plan.id]

    for attack in chosen:
        for one in options:
            with failures.of(f"audit of {loaded.name} under {attack.name}"):
                try:
                    plan = make_plan(loaded, attack, source, one)
                except LeftOut as error:
                    if len(chosen) == 1:
                        raise
                    say(f"Left out: {attack.name} on {loaded.name}. {error}")
                    break
                found.append(judge_result(plan, others, obtain, out))
    if failed := [result for result in found if result.verdict == "fail"]:
        said = ", ".join(f"{result.attack}" for result in failed)
        say(
            f"{len(failed)} of {len(found)} results fail their audit ({said}): they do not say how robust the model is."
        )
    failures.complain("judged")


def judge_result(plan: Plan, black_box: Sequence[Attack], obtain: Callable[[Plan], RunRecord], out: Path) -> Audit:
    """Audit one result, print the evidence, and write it below `out`. obtain: gives the record of a run."""
    from robustbench_lpm.cli.console import say, shown_path
    from robustbench_lpm.protocol.audit import auditable, comparisons, judge, runs_of
    from robustbench_lpm.records import audits

    judged = auditable(plan)
    wanted = comparisons(judged, black_box)
    records = {run.id: obtain(run) for run in runs_of(judged, wanted)}
    complain_of_failures(records.values())  # what is compared example by example must be whole
    result = judge(judged, black_box, wanted, records)
    path = audits.write(result, out)
    _print(result, plan)
    say(f"Audit: {shown_path(path)}\n")
    return result


def _print(result: Audit, plan: Plan) -> None:
    """The checks of one result as a table, the verdict below."""
    from rich.console import Console
    from rich.table import Table

    from robustbench_lpm.cli.console import say, shown_eps
    from robustbench_lpm.reporting.cells import evidence

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has room
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("Check", "Against", "Verdict", "Judged", "Reference", "Difference, 95 %"):
        grid.add_column(heading, justify="right" if heading in ("Judged", "Reference") else "left")
    for check in result.checks:
        judged, reference, difference, _ = evidence(check)
        told = difference if check.judged is not None else check.note
        grid.add_row(check.name, check.against, check.verdict, judged, reference, told)
    console.print(grid)
    where = f"{result.model} under {result.attack}, {shown_eps(plan)}, {len(plan.indices)} images"
    say(f"Verdict on {where}: {result.verdict.upper()}")
