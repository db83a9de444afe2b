"""lpmbench converge: accuracy against the length of an attack, and the limit that it tends to."""

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
from robustbench_lpm.errors import LpmbenchError


@click.command()
@options.models()
@options.checkpoint
@click.option("--attack", "attack_name", default="momentum", show_default=True,
              help="An attack with steps, or the path of its card.")  # fmt: skip
@click.option("--doublings", type=click.IntRange(1, 10), default=3, show_default=True,
              help="How often its steps are doubled; with two or more there is a limit.")  # fmt: skip
@options.attacked_study
@options.path("--out", "Where everything goes; default: runs/converge/MODEL-DATASET-ATTACK-NORM-EPS.")
@options.force
@options.trust
def converge(
    models: Sequence[str], attack_name: str, doublings: int, out: Path | None, force: bool, **given: Any
) -> None:
    """How accurate each MODEL stays as an attack gets longer: does a longer one still lower it, and where does it end?

    The attack runs with its steps (--steps), then with twice as many, and so on. Each doubling is judged image by
    image: whether it lowers accuracy by more than one point, by less, or neither is certain. The limit is extrapolated
    from a power law; its 95 % interval is over images. An accuracy says something of the model where its curve is flat.

    \b
    lpmbench converge cnn --eps 0.1 --limit 200
    lpmbench converge ramlpm ram --steps 100 --doublings 4 --eps 0.1 --limit 100 --gradient-mode detached
    """
    settings = options.read_settings(given)
    if len(settings) != 1:
        raise LpmbenchError("Give one --eps: a curve is of one budget.")
    if given["checkpoint"] is not None and len(models) != 1:
        raise LpmbenchError("--checkpoint goes with exactly one MODEL.")
    (attack,) = resolve([attack_name], given)
    options.prepare_machine(given["device"], given["threads"], given["precision"])
    source = options.read_source(given)
    import pandas as pd

    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.reporting.exports import to_csv
    from robustbench_lpm.reporting.studies.converge import converge_figure, converge_table
    from robustbench_lpm.studies import convergence
    from robustbench_lpm.studies.curve import write

    failures, watcher, plans = Failures(alone=len(models) == 1), ConsoleWatcher(shorter=True), {}
    for name in models:
        with failures.of(name):
            loaded = options.read_model(name, given)
            plans[loaded.name] = convergence.doubled(loaded, attack, source, settings[0], doublings)
    if not plans:
        failures.complain("attacked")
    words = [*list(plans)[:4], source.name, attack.name, settings[0].norm, str(settings[0].eps)]
    directory = out if out is not None else default_directory("converge", words)
    rows, limits = [], {}
    for name, of_model in plans.items():
        with failures.of(name):
            wanted = [part for plan in of_model for part in (*plan.members, plan)]
            by_id = {part.id: run(part, directory, watcher, again=force) for part in wanted}
            complain_of_failures(by_id.values())
            records = [by_id[plan.id] for plan in of_model]
            rows += convergence.rows_of(of_model, records)
            limits[name] = convergence.limit_of(records)
    if not limits:
        failures.complain("attacked")
    every = [plan for name in limits for plan in plans[name]]
    ends = pd.DataFrame([{"model": name} | vars(limit) for name, limit in limits.items() if limit is not None])
    table = pd.DataFrame(rows)
    numbers = [name for name in map(str, table) if name.startswith(("accuracy", "gain"))]
    table = table.astype(dict.fromkeys(numbers, float))  # a missing end is NaN
    title = f"{attack.name} on {source.name}, eps {settings[0].eps:g}, {len(every[0].indices):,} images"
    files = {"converge.csv": to_csv(table).encode()} | converge_figure(table, ends, title)
    write("converge", options.as_given(), every, {"limits": ends, "table": table}, files, directory)
    say("")
    converge_table(table, ends, console)
    for name in limits:
        say(convergence.told_end(name, [row for row in rows if row["model"] == name]))
    say(f"\nWritten to {shown_path(directory)}: {', '.join([*files, 'converge.json'])}, and the records of all runs")
    failures.complain("attacked")
