"""lpmbench audit: do a model's results say how robust it is, or only that the attacks were blind?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from robustbench_lpm import cards
from robustbench_lpm.cli.attack import check_names, complain_of_failures, run_plan, split_settings, with_budgets
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.options import (
    attacking_options,
    budget_options,
    data_options,
    prepare_machine,
    read_budgets,
    read_names,
    read_settings,
    trust_option,
)
from robustbench_lpm.errors import LpmbenchError

if TYPE_CHECKING:
    from robustbench_lpm.audits import Audit
    from robustbench_lpm.evaluation.planning import Plan
    from robustbench_lpm.evaluation.tasks import Attack, Data
    from robustbench_lpm.records import RunRecord
    from robustbench_lpm.zoo import LoadedModel

IMAGES = 200  # with fewer than 195, no difference can be bounded by one point


@click.command()
@click.argument("model")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of those of the model's card.")
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
@click.option("--steps", type=click.IntRange(1), help="Steps (or iterations, or queries) of the attacks.")
@click.option("--eot", type=click.IntRange(1), help="Draws of noise for each gradient of a stochastic model.")
@click.option(
    "--set", "settings", multiple=True, metavar="[ATTACK.]NAME=VALUE", help="A parameter of the attacks, or of one."
)
@attacking_options
@trust_option
def audit(
    model: str,
    checkpoint: Path | None,
    attacks: tuple[str, ...],
    black_box: tuple[str, ...],
    dataset: str,
    eps: tuple[str, ...],
    norm: Literal["linf", "l2"],
    steps: int | None,
    eot: int | None,
    settings: tuple[str, ...],
    surrogates: tuple[str, ...],
    device: str,
    threads: int | None,
    out: Path,
    trust: bool,
    data: Path | None,
    size: str | None,
    image: Path | None,
    label: int | None,
    limit: int | None,
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
    budgets = read_budgets(eps, dataset, norm)
    if any(budget == 0 for budget in budgets):
        raise LpmbenchError("An audit needs an eps above 0: without a budget there is nothing to judge.")
    parameters, of_attacks = split_settings(read_settings(settings))
    names = read_names("--attack", attacks) or ["worst-case", *cards.attack("worst-case").members]
    against = read_names("--black-box", black_box)
    prepare_machine(device, threads, rest["precision"])
    from robustbench_lpm.cli.console import say
    from robustbench_lpm.evaluation.tasks import resolve_attacks, resolve_data, resolve_model

    source = resolve_data(dataset, size=size, data=data, trust=trust, image=image, label=label)
    with Failures(alone=True).of(model):
        loaded = resolve_model(model, checkpoint=checkpoint, trust=trust, device=device)

    def resolve(names: Sequence[str], given: dict[str, Any]) -> list[Attack]:
        parts = [part for name in names for part in (name, *cards.attack(name).members)]
        carried = any(cards.attack(part).surrogates is not None for part in parts)
        return resolve_attacks(
            names, parameters=given, settings=of_attacks, surrogates=surrogates if surrogates and carried else None,
            trust=trust,
        )  # fmt: skip

    check_names(of_attacks, [*names, *against], [part for n in (*names, *against) for part in cards.attack(n).members])
    others = resolve(against, {}) if against else []
    chosen = with_budgets(resolve(names, parameters), {"steps": steps, "eot": eot}, strict=bool(attacks))
    planning = {"norm": norm, "device": device, "limit": limit or IMAGES} | rest
    failures = Failures(alone=len(chosen) * len(budgets) == 1)
    found = judge_results(
        loaded, chosen, source, budgets, black_box=others, out=out, planning=planning, failures=failures
    )
    if failed := [result for result in found if result.verdict == "fail"]:
        said = ", ".join(f"{result.attack}" for result in failed)
        say(
            f"{len(failed)} of {len(found)} results fail their audit ({said}): they do not say how robust the model is."
        )
    failures.complain("judged")


def judge_results(
    model: LoadedModel,
    attacks: Sequence[Attack],
    source: Data,
    budgets: Sequence[float],
    *,
    black_box: Sequence[Attack],
    out: Path,
    planning: dict[str, Any],
    failures: Failures,
    obtain: Callable[[Plan], RunRecord] | None = None,
) -> list[Audit]:
    """Audit the results of some attacks on one model, print the evidence, and write it below `out`.

    failures: where it is noted what cannot be judged, while the others are. obtain: how records come about; by default
    they are run, or read from `out`.
    """
    from robustbench_lpm import audits
    from robustbench_lpm.cli.console import say, shown_path
    from robustbench_lpm.evaluation.audit import judge
    from robustbench_lpm.evaluation.planning import make_plan
    from robustbench_lpm.evaluation.tasks import LeftOut

    obtain = obtain or Obtain(out)
    found: list[Audit] = []
    for attack in attacks:
        if not attack.applies(model.classifier) or attack.knowledge == "none":
            continue
        for eps in budgets:
            with failures.of(f"audit of {model.name} under {attack.name}"):
                try:
                    plan = make_plan(model, attack, source, eps=eps, **planning)
                except LeftOut as error:
                    if len(attacks) == 1:
                        raise
                    say(f"Left out: {attack.name} on {model.name}. {error}")
                    break
                result = judge(plan, obtain, black_box=black_box)
                path = audits.write(result, out)
                _print(result, plan)
                say(f"Audit: {shown_path(path)}\n")
                found.append(result)
    return found


class Obtain:
    """Runs plans, or reads what lies finished; what has been obtained once in this audit is not announced again."""

    def __init__(self, out: Path) -> None:
        self._out, self._records = out, dict[str, "RunRecord"]()

    def __call__(self, plan: Plan) -> RunRecord:
        from robustbench_lpm.evaluation.recording import keeps_enough

        if plan.id not in self._records or not keeps_enough(self._records[plan.id], plan):
            *members, record = run_plan(plan, self._out)
            complain_of_failures([record])  # what is compared example by example must be whole
            self._records |= {member.id: member for member in members} | {plan.id: record}
        return self._records[plan.id]


def _print(result: Audit, plan: Plan) -> None:
    """The checks of one result as a table, the verdict below."""
    from rich.console import Console
    from rich.table import Table

    from robustbench_lpm.budgets import format_eps
    from robustbench_lpm.cli.console import say
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
    where = f"{result.model} under {result.attack}, {plan.norm} {format_eps(plan.eps)}, {len(plan.indices)} images"
    say(f"Verdict on {where}: {result.verdict.upper()}")
