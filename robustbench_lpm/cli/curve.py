"""lpmbench curve: accuracy against every eps, from one run of an attack that looks for the smallest perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.attack import complain_of_failures, resolve
from robustbench_lpm.cli.console import ConsoleWatcher, console, say, shown_path
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.studies import default_directory


@click.command()
@options.models("MODEL")
@options.checkpoint
@click.option("--attack", "attack_name", default="fmn", show_default=True,
              help="An attack that looks for the smallest perturbation, or the path of its card.")  # fmt: skip
@click.option("--against", multiple=True, default=("apgd-margin",), show_default=True,
              help="With --eps: attacks at one eps, which are compared with the curve.")  # fmt: skip
@options.attacked_study
@options.path("--out", "Where everything goes; default: runs/curve/MODEL-DATASET-ATTACK-NORM.")
@options.force
@options.trust
def curve(model: str, attack_name: str, against: Sequence[str], out: Path | None, force: bool, **given: Any) -> None:
    """How accurate MODEL is at every eps, from one run of an attack that looks for the smallest perturbation.

    With --eps the attacks of --against run at those eps too, and a sentence for each says whether they agree with the
    curve: an attack that leaves more misses something, and if it leaves less the curve does. The band and all
    intervals are 95 %, over images.

    \b
    lpmbench curve cnn --limit 200
    lpmbench curve cnn --attack ddn --norm l2 --eps 0.5,1,2 --limit 200
    lpmbench curve ramlpm --eps 0.05,0.1 --against apgd-margin,momentum --limit 50
    """
    settings = options.read_settings(given)
    names = options.read_names("--against", against) if given["eps"] else []
    searcher, *fixed = resolve([attack_name, *names], given)
    options.prepare_machine(given["device"], given["threads"], given["precision"])
    source = options.read_source(given)
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.reporting.exports import to_csv
    from robustbench_lpm.reporting.studies.curve import curve_figure, curve_table
    from robustbench_lpm.studies import curve as study

    with Failures(alone=True).of(model):
        loaded = options.read_model(model, given)
        searches = study.search_plans(loaded, searcher, source, settings[0])
        grid = [make_plan(loaded, each, source, one) for each in fixed for one in settings]
    plan, watcher = searches[0], ConsoleWatcher(shorter=True)
    words = [plan.model.name, plan.data.name, searcher.name, plan.options.norm]
    directory = out if out is not None else default_directory("curve", words)
    wanted = [part for each in (*searches, *grid) for part in (*each.members, each)]
    by_id = {part.id: run(part, directory, watcher, again=force) for part in wanted}
    complain_of_failures(by_id.values())
    found = study.curve_of([by_id[each.id] for each in searches])
    comparisons = [study.compare(found, by_id[each.id]) for each in grid]
    table, beside = found.table(), study.as_table(comparisons)
    title = f"{plan.model.name} on {plan.data.name}, {len(plan.indices):,} images"
    files = {"curve.csv": to_csv(table).encode()}
    files |= curve_figure(table, beside, title, searcher.name, plan.options.norm)
    study.write(
        "curve", options.as_given(), [*searches, *grid], {"comparisons": beside, "table": table}, files, directory
    )
    say("")
    curve_table(table, beside, console)
    for each in comparisons:
        say(each.told(searcher.name, stochastic=plan.stochastic))
    say(f"\nWritten to {shown_path(directory)}: {', '.join([*files, 'curve.json'])}, and the records of all runs")
