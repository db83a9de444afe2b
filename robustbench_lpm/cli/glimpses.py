"""lpmbench glimpses: what each glimpse of a model that looks in glimpses contributes, clean and under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.cli import options
from robustbench_lpm.cli.attack import complain_of_failures, resolve
from robustbench_lpm.cli.console import LONG, ConsoleWatcher, bar, console, duration, say, shown_eps, shown_path
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.studies import default_directory, whole_numbers

if TYPE_CHECKING:
    from robustbench_lpm.options import Options
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.tasks import Attack, Data
    from robustbench_lpm.studies.glimpses import Looks


@click.command()
@options.models("MODEL")
@options.checkpoint
@click.option(
    "--attack", "attack_name", default="momentum", show_default=True, help="An attack, or the path of its card."
)
@options.data
@options.budget
@options.attack
@options.of_settings("target", "gradient_mode", "draws", "seed")
@click.option("--mc", "averages", default="1,2,3", show_default=True,
              help="Values of M, the runs whose mean logits decide; 1 is always among them.")  # fmt: skip
@click.option("--no-adaptive", is_flag=True,
              help="Leave out the attacks on the model of fewer glimpses (T - 1 of them).")  # fmt: skip
@click.option("--pictures", type=click.IntRange(0), default=3, show_default=True,
              help="Images whose scanpaths are drawn.")  # fmt: skip
@options.passes
@options.machine
@options.path("--out", "Where everything goes; default: runs/glimpses/MODEL-DATASET-ATTACK-...")
@options.force
@options.trust
def glimpses(model: str, attack_name: str, averages: str, out: Path | None, force: bool, **given: Any) -> None:
    """What each glimpse of MODEL contributes, clean and under attack.

    Accuracy after 1, 2, ... glimpses; what averaging M runs brings at the same number of glimpses; how far the attack
    moves the fixations; and pictures of where the model looks. The attack runs against all T glimpses, and anew
    against the same weights at each smaller number of glimpses, so that no classifier is spared an attack of its own.

    \b
    lpmbench glimpses ramlpm --limit 32 --steps 10
    lpmbench glimpses ram --attack pgd --eps 0.1 --limit 100 --mc 1,2,3,6 --no-adaptive
    lpmbench glimpses ramlpm-imagenet --checkpoint best.safetensors --dataset panda --size 224
    """
    runs = sorted({1, *whole_numbers("--mc", averages)})
    (asked,) = options.read_settings(given | {"save_adversarials": True}, one=True)
    (attack,) = resolve([attack_name], given)
    options.prepare_machine(given["device"], given["threads"], given["precision"])
    source = options.read_source(given)
    with Failures(alone=True).of(model):
        plans = make_plans(model, attack, source, asked, given)
    plan = plans[max(plans)]
    words = [plan.model.name, plan.data.name, plan.attack.name, shown_eps(plan)]
    directory = out if out is not None else default_directory("glimpses", words)
    records = attack_all(plans, directory, force)
    record = records[max(plans)]
    clean, still, moved = look(plan, record, runs)
    names = tabulate(plan, clean, still, moved, {} if given["no_adaptive"] else records, directory)
    names += draw_scanpaths(plan, still, moved, record, given["pictures"], directory)
    say(f"Written to {shown_path(directory)}: {', '.join(names)}, and the records of the attacks")


def make_plans(name: str, attack: Attack, source: Data, asked: Options, given: Mapping[str, Any]) -> dict[int, Plan]:
    """By number of glimpses, falling: the attack on the whole model and, if it is adaptive, on it with fewer glimpses.

    Raises LpmbenchError for a model that sees images whole.
    """
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.studies.glimpses import check_glimpsing, truncated

    whole = options.read_model(name, given)
    check_glimpsing(whole)
    total = whole.classifier.glimpses
    plans = {total: make_plan(whole, attack, source, asked)}
    attack = replace(attack, command="glimpses")  # which repeats the runs on fewer glimpses
    for t in range(0 if given["no_adaptive"] else total - 1, 0, -1):
        plans[t] = make_plan(truncated(whole, name, t, **options.loading(given)), attack, source, asked)
    return plans


def attack_all(plans: Mapping[int, Plan], out: Path, force: bool) -> dict[int, RunRecord]:
    """The record of every plan."""
    from robustbench_lpm.execution.estimates import estimate_seconds
    from robustbench_lpm.execution.recording import finished_run
    from robustbench_lpm.execution.runner import run

    seconds = [estimate_seconds(plan) or 0.0 for plan in plans.values() if force or finished_run(plan, out) is None]
    if len(seconds) > 1 and sum(seconds) >= LONG:
        say(f"{len(seconds)} attacks to run, about {duration(sum(seconds))} at most in all")
    watcher = ConsoleWatcher(shorter=True)
    records = {t: run(plan, out, watcher, again=force) for t, plan in plans.items()}
    complain_of_failures(records.values())
    return records


def look(plan: Plan, record: RunRecord, runs: Sequence[int]) -> tuple[Looks, Looks, Looks]:
    """How the clean images are looked at, the same on the noise of the attacked ones, and how the attacked ones are."""
    from robustbench_lpm.studies.glimpses import adversarials, looks, looks_cost

    found = adversarials(record)
    # In the record's chunks: so the predictions are the record's, to the bit.
    plan = replace(plan, chunk=record.execution["chunk"])
    passes = len(found) * (2 * looks_cost(plan, runs) + looks_cost(plan, [1]))
    say(f"Looking at the images, clean and attacked: {passes:,} forwards")
    with bar("  looking", passes) as move:
        seen = partial(looks, plan, spent=lambda number: move(advance=number))
        return seen(purpose="clean", runs=runs), seen(purpose="grade"), seen(found, purpose="grade", runs=runs)


def tabulate(
    plan: Plan, clean: Looks, still: Looks, moved: Looks, adaptive: Mapping[int, RunRecord], out: Path
) -> list[str]:
    """Print the tables of accuracies and of fixations; write them as CSV, and the figure of both; the files' names."""
    import pandas as pd

    from robustbench_lpm.records.runs import write_atomically
    from robustbench_lpm.reporting.exports import to_csv
    from robustbench_lpm.reporting.studies.glimpses import glimpse_figure, glimpse_tables
    from robustbench_lpm.studies.glimpses import accuracy_table, fixation_table

    asked = plan.options
    run = {"model": plan.model.name, "dataset": plan.data.name, "size": plan.data.identity["size"]}
    run |= {"attack": plan.attack.name, "norm": asked.norm, "eps": asked.eps, "seed": asked.seed}
    accuracies, fixations = (
        pd.DataFrame(run, index=table.index).join(table)
        for table in (accuracy_table(clean, moved, adaptive), fixation_table(still, moved))
    )
    say("")
    glimpse_tables(accuracies, fixations, console)
    images, draws = len(moved.indices), moved.fixations.shape[1]
    say(f"\n{images} image(s), {draws} held-out draw(s); intervals (95 %) are over images, from 20 images on.")
    contents = {"glimpses.csv": to_csv(accuracies).encode(), "fixations.csv": to_csv(fixations).encode()}
    contents |= glimpse_figure(accuracies, fixations, headline(plan))
    for name, content in contents.items():
        write_atomically(out / name, content)
    return list(contents)


def headline(plan: Plan) -> str:
    """Which model under which attack, for the head of a picture."""
    from robustbench_lpm.reporting import cells

    norm, eps = cells.norm(plan.options.norm), format_eps(plan.options.eps)
    return f"{plan.model.name} under {plan.attack.name}, {norm} eps {eps}"


def draw_scanpaths(plan: Plan, still: Looks, moved: Looks, record: RunRecord, count: int, out: Path) -> list[str]:
    """Write scanpath-INDEX.png and .gif of the first images whose prediction the attack changed; their names."""
    from robustbench_lpm.records.runs import write_atomically
    from robustbench_lpm.reporting.scanpaths import Scanpath, Scene, scanpath_animation, scanpath_picture
    from robustbench_lpm.studies import glimpses as evaluation

    pictures = {picture.index: picture for picture in record.pictures()}
    cells, names = evaluation.cells(plan), []
    for row, draw in evaluation.turned(still, moved, count):
        picture = pictures[moved.indices[row]]
        both = [evaluation.trace(plan, picture.index, image, draw) for image in (picture.clean, picture.adversarial)]
        before, after = (Scanpath(**trace) for trace in both)
        scene = Scene(
            picture.index, int(moved.labels[row]), before, after, cells, headline(plan),
            footnote(still, moved, row, draw), tuple(plan.data.classes),
        )  # fmt: skip
        for suffix, content in (("png", scanpath_picture(scene)), ("gif", scanpath_animation(scene))):
            names.append(f"scanpath-{picture.index}.{suffix}")
            write_atomically(out / names[-1], content)
    return names


def footnote(still: Looks, moved: Looks, row: int, draw: int) -> str:
    """Which draw a picture shows, and how many draws are right: one look is not the whole of a stochastic model."""
    draws, glimpses = moved.fixations.shape[1:3]
    if draws == 1:
        return ""
    clean, attacked = (int(looks.correct(1, glimpses)[row].sum()) for looks in (still, moved))
    return (
        f"Shown: draw {draw + 1} of {draws}, the same noise on both; right: {clean} draws clean, {attacked} attacked."
    )
