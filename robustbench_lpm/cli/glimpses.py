"""lpmbench glimpses: what each glimpse of a model that looks in glimpses contributes, clean and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli.attack import complain_of_failures, with_budgets
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.options import (
    attack_options,
    budget_options,
    checkpoint_option,
    data_options,
    force_option,
    machine_options,
    of_settings,
    passes_options,
    prepare_machine,
    read_budget,
    read_options,
    read_settings,
    read_source,
    trust_option,
)
from robustbench_lpm.errors import LpmbenchError

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_lpm.options import Options
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.tasks import Attack, Data
    from robustbench_lpm.studies.glimpses import Looks


@click.command()
@click.argument("model")
@checkpoint_option
@click.option("--attack", "attack_name", default="pgd", show_default=True, help="An attack, or the path of its card.")
@data_options
@budget_options
@attack_options
@of_settings("target", "gradient_mode", "draws", "seed")
@click.option(
    "--mc",
    "averages",
    default="1,2,3",
    show_default=True,
    help="Values of M, the runs whose mean logits decide; 1 is always among them.",
)
@click.option(
    "--no-adaptive", is_flag=True, help="Leave out the attacks on the model of fewer glimpses (T - 1 of them)."
)
@click.option(
    "--pictures", type=click.IntRange(0), default=3, show_default=True, help="Images whose scanpaths are drawn."
)
@passes_options
@machine_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where everything goes; default: runs/glimpses/MODEL-DATASET-ATTACK-...",
)
@force_option
@trust_option
def glimpses(
    model: str,
    checkpoint: Path | None,
    attack_name: str,
    dataset: str,
    eps: tuple[str, ...],
    settings: tuple[str, ...],
    averages: str,
    out: Path | None,
    force: bool,
    **rest: Any,
) -> None:
    """What each glimpse of MODEL contributes, clean and under attack.

    Accuracy after 1, 2, ... glimpses; what averaging M runs brings at the same number of glimpses; how far the attack
    moves the fixations; and pictures of where the model looks. The attack runs against all T glimpses, and anew
    against the same weights at each smaller number of glimpses, so that no classifier is spared an attack of its own.

    \b
    lpmbench glimpses ramlpm --limit 32 --steps 10
    lpmbench glimpses ram --attack pgd --eps 0.1 --limit 100 --mc 1,2,3,6 --no-adaptive
    lpmbench glimpses ramlpm-imagenet --checkpoint best.safetensors --dataset panda --size 224
    """
    runs = parse_runs(averages)
    options = read_options(rest, eps=read_budget(eps, dataset, rest["norm"]), save_adversarials=True)
    from robustbench_lpm.registry.tasks import resolve_attack

    trust, adaptive = rest["trust"], not rest["no_adaptive"]
    (attack,) = with_budgets(
        [resolve_attack(attack_name, parameters=read_settings(settings), trust=trust)],
        {"steps": rest["steps"], "eot": rest["eot"]},
    )
    prepare_machine(rest["device"], rest["threads"], rest["precision"])
    source = read_source(dataset, rest)
    with Failures(alone=True).of(model):
        loading = {"checkpoint": checkpoint, "trust": trust, "device": rest["device"]}
        plans = make_plans(model, attack, source, options, adaptive=adaptive, loading=loading)
    plan = plans[max(plans)]
    folder = out if out is not None else default_folder(plan)
    records = attack_all(plans, folder, force)
    clean, still, moved = look(plan, records[max(plans)], runs)
    tables = tabulate(plan, clean, still, moved, records if adaptive else {})
    tell(tables, moved)
    names = write_tables(plan, tables, folder)
    names += draw_scanpaths(plan, still, moved, records[max(plans)], rest["pictures"], folder)
    tell_where(names, folder)


def parse_runs(text: str) -> list[int]:
    """The values of M in '1,2,3', 1 among them. Raises LpmbenchError unless they are whole numbers from 1."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise LpmbenchError(f"--mc '{text}' must be whole numbers from 1, separated by commas, like 1,2,3.")
    return sorted({1, *map(int, parts)})


def make_plans(
    name: str, attack: Attack, source: Data, options: Options, *, adaptive: bool, loading: dict[str, Any]
) -> dict[int, Plan]:
    """By number of glimpses, the attack on the whole model and, if it is to be adaptive, on it with fewer glimpses.

    Raises LpmbenchError for a model that sees images whole.
    """
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.tasks import resolve_model
    from robustbench_lpm.studies.glimpses import check_glimpsing, truncated

    whole = resolve_model(name, **loading)
    check_glimpsing(whole)
    total = whole.classifier.glimpses
    plans = {total: make_plan(whole, attack, source, options)}
    attack = replace(attack, command="glimpses")  # which repeats the runs on fewer glimpses
    for t in range(1, total) if adaptive else ():
        plans[t] = make_plan(truncated(whole, name, t, **loading), attack, source, options)
    return dict(sorted(plans.items()))


def default_folder(plan: Plan) -> Path:
    """A directory of its own for each model, data set, attack and budget."""
    import re

    from robustbench_lpm.cli.console import shown_eps

    words = [plan.model.name, plan.data.name, plan.attack.name, shown_eps(plan)]
    return Path("runs") / "glimpses" / re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")


def attack_all(plans: dict[int, Plan], out: Path, force: bool) -> dict[int, RunRecord]:
    """The record of every plan, the whole model's first."""
    from robustbench_lpm.cli.console import LONG, ConsoleWatcher, duration, say
    from robustbench_lpm.execution.estimates import estimate_seconds
    from robustbench_lpm.execution.recording import finished_run
    from robustbench_lpm.execution.runner import run

    order = sorted(plans, reverse=True)
    seconds = [estimate_seconds(plans[t]) or 0.0 for t in order if force or finished_run(plans[t], out) is None]
    if len(seconds) > 1 and sum(seconds) >= LONG:
        say(f"{len(seconds)} attacks to run, about {duration(sum(seconds))} at most in all")
    watcher = ConsoleWatcher()
    records = {t: run(plans[t], out, watcher, again=force) for t in order}
    complain_of_failures(records.values())
    return records


def look(plan: Plan, record: RunRecord, runs: Sequence[int]) -> tuple[Looks, Looks, Looks]:
    """How the clean images are looked at, the same on the noise of the attacked ones, and how the attacked ones are."""
    from robustbench_lpm.cli.console import bar, say
    from robustbench_lpm.studies.glimpses import adversarials, looks, looks_cost

    found = adversarials(record)
    passes = len(found) * (2 * looks_cost(plan, runs) + looks_cost(plan, [1]))
    say(f"Looking at the images, clean and attacked: {passes:,} forwards")
    with bar("  looking", passes) as move:

        def spent(number: int) -> None:
            move(advance=number)

        clean = looks(plan, purpose="clean", runs=runs, spent=spent)
        still = looks(plan, purpose="grade", spent=spent)
        moved = looks(plan, found, purpose="grade", runs=runs, spent=spent)
    return clean, still, moved


def tabulate(
    plan: Plan, clean: Looks, still: Looks, moved: Looks, adaptive: dict[int, RunRecord]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracies and fixations, each row with the run that it belongs to."""
    from robustbench_lpm.studies.glimpses import accuracy_table, fixation_table

    run = {
        "model": plan.model.name,
        "dataset": plan.data.name,
        "size": plan.data.identity["size"],
        "attack": plan.attack.name,
        "norm": plan.options.norm,
        "eps": plan.options.eps,
        "seed": plan.options.seed,
    }
    tables = accuracy_table(clean, moved, adaptive), fixation_table(still, moved)
    for table in tables:
        for position, (name, value) in enumerate(run.items()):
            table.insert(position, name, value)
    return tables


def tell(tables: tuple[pd.DataFrame, pd.DataFrame], moved: Looks) -> None:
    """The tables, and what the reader needs to read them."""
    from robustbench_lpm.cli.console import console, say
    from robustbench_lpm.reporting.studies import glimpse_tables

    say("")
    glimpse_tables(*tables, console)
    images, draws = len(moved.indices), moved.fixations.shape[1]
    say(f"\n{images} image(s), {draws} held-out draw(s); intervals (95 %) are over images, from 20 images on.")


def write_tables(plan: Plan, tables: tuple[pd.DataFrame, pd.DataFrame], out: Path) -> list[str]:
    """Write glimpses.csv, fixations.csv and the figure of both; their names."""
    from robustbench_lpm.records.runs import write_atomically
    from robustbench_lpm.reporting.studies import glimpse_figure

    contents = {
        f"{name}.csv": table.to_csv(index=False, lineterminator="\n").encode()
        for name, table in zip(("glimpses", "fixations"), tables, strict=True)
    }
    contents |= glimpse_figure(*tables, headline(plan))
    for name, content in contents.items():
        write_atomically(out / name, content)
    return list(contents)


def headline(plan: Plan) -> str:
    """Which model under which attack, for the head of a picture."""
    from robustbench_lpm.budgets import format_eps
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


def tell_where(names: Sequence[str], out: Path) -> None:
    """Where everything was written."""
    from robustbench_lpm.cli.console import say, shown_path

    say(f"Written to {shown_path(out)}: {', '.join(names)}, and the records of the attacks")
