"""lpmbench run: a matrix of models, attacks and budgets, from one card."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm import cards
from robustbench_lpm.cli.attack import attack_model, draw_single_images
from robustbench_lpm.cli.audit import judge_results
from robustbench_lpm.cli.options import machine_options, prepare_machine, trust_option

if TYPE_CHECKING:
    from robustbench_lpm.cards import SuiteCard
    from robustbench_lpm.records import RunRecord


@click.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="The folder that holds the data, if some part needs one.")
@machine_options
@click.option("--out", type=click.Path(path_type=Path), help="Where records go; by default runs/NAME.")
@click.option("--force", is_flag=True, help="Run again what has been run.")
@trust_option
def run(
    name: str, data: Path | None, device: str, threads: int | None, out: Path | None, force: bool, trust: bool
) -> None:
    """Run every cell of the suite NAME (or of the card at that path), then make its leaderboard.

    Interrupted, it goes on where it stopped when it is called again.

    \b
    lpmbench run demo
    """
    suite = cards.suite(name)
    prepare_machine(device, threads)
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.console import console, say, shown_path

    folder = out if out is not None else Path("runs") / suite.name
    records = run_suite(suite, folder, data=data, device=device, force=force, trust=trust)
    say("")
    reporting.terminal_table(records, console)
    *others, page = reporting.write_report(records, folder)
    tables = ", ".join(path.name for path in others if path.parent == folder)
    say(f"Records: {shown_path(folder)}    Tables: {tables}")
    say(f"Leaderboard: {page.resolve()}")


def run_suite(
    suite: SuiteCard, out: Path, *, data: Path | None, device: str, force: bool, trust: bool
) -> list[RunRecord]:
    """Every cell of a suite, in the order of its card."""
    from robustbench_lpm.budgets import parse_eps
    from robustbench_lpm.evaluation.tasks import resolve_attack, resolve_data, resolve_model

    records: list[RunRecord] = []
    for part in suite.part:
        done = len(records)
        source = resolve_data(part.dataset, size=part.size, data=data, trust=trust)
        budgets = [parse_eps(text) for text in part.eps]
        planning: dict[str, Any] = {
            "norm": part.norm, "limit": part.limit, "draws": part.draws, "seed": part.seed, "device": device,
            "precision": part.precision,
            "save_adversarials": part.save_adversarials,
        }  # fmt: skip
        attacks = {
            name: resolve_attack(name, parameters=part.parameters.get(name), settings=part.parameters, trust=trust)
            for name in dict.fromkeys([*part.attacks, *part.audit, *(part.black_box if part.audit else [])])
        }
        for model in part.models:
            loaded = resolve_model(model, trust=trust, device=device)
            classifier = loaded.classifier
            # What only stochastic or glimpsing models have is asked of them alone: one part may hold all models.
            runs = part.mc if classifier.stochastic else [1]
            modes = part.gradient_modes if classifier.gradient_modes else [None]
            noise = part.noise if classifier.stochastic else []
            for mc, mode in itertools.product(runs, modes):
                own = planning | {"mc": mc, "gradient_mode": mode, "noise": noise}
                for name in part.attacks:
                    if attacks[name].applies(classifier):
                        records += attack_model(
                            loaded, attacks[name], source, budgets, out=out, force=force, planning=own
                        )
                judge_results(
                    loaded, [attacks[name] for name in part.audit], source, budgets,
                    black_box=[attacks[name] for name in part.black_box if part.audit], out=out, planning=own,
                )  # fmt: skip
        draw_single_images(records[done:], source)
    return records
