"""lpmbench sweep: accuracy for every number of glimpses and of averaged runs, in one pass over the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm import cards
from robustbench_lpm.cli.options import prepare_machine
from robustbench_lpm.cli.studies import carry_out, dataset_for, study_options, whole_numbers

if TYPE_CHECKING:
    import pandas as pd

MOST_GLIMPSES = 1000


@click.command()
@click.argument("name")
@click.option("--glimpses", default="1..14", show_default=True,
              help="Numbers of glimpses, like 1..14 or 1,2,4; also more than the model's card says.")  # fmt: skip
@study_options(draws=1, mc="1,5,10,20")
def sweep(
    name: str,
    glimpses: str,
    mc: str,
    dataset: str | None,
    data: Path | None,
    split: str,
    size: str | None,
    device: str,
    threads: int | None,
    out: Path | None,
    force: bool,
    trust: bool,
    **rest: Any,
) -> None:
    """How accurate the glimpsing model NAME is after each number of glimpses, averaged over M runs.

    Kiritani and Ono's inference sweep: one table and one figure. A run of T glimpses answers after each of them, and
    the same runs, taken M at a time, serve every M. Intervals (95 %) are over images.

    \b
    lpmbench sweep ramlpm
    lpmbench sweep ram --glimpses 1,2,4,8 --mc 1..4 --limit 100
    lpmbench sweep ramlpm-sim2mnist --checkpoint best.safetensors --data DIR --glimpses 1..20
    """
    numbers = whole_numbers("--glimpses", glimpses, MOST_GLIMPSES)
    averages = whole_numbers("--mc", mc, MOST_GLIMPSES)
    named = dataset_for([cards.model(name)], dataset)
    cards.dataset(named)
    prepare_machine(device, threads)
    from robustbench_lpm.cli.console import console, say
    from robustbench_lpm.evaluation.sweep import make_sweep
    from robustbench_lpm.evaluation.tasks import resolve_data
    from robustbench_lpm.reporting.exports import to_csv
    from robustbench_lpm.reporting.sweep import sweep_figure, terminal_table

    source = resolve_data(named, size=size, data=data, split=split, trust=trust)
    study, usual = make_sweep(name, source, glimpses=numbers, mc=averages, device=device, trust=trust, **rest)
    model = study.models[0]
    if not model.classifier.stochastic and averages != [1]:
        say(f"{model.name} answers the same in every run: M = 1 says it all.")

    def draw(table: pd.DataFrame) -> dict[str, bytes]:
        title = f"Inference sweep of {model.name} on {study.data.name}, {study.images:,} images"
        return {"sweep.csv": to_csv(table).encode()} | sweep_figure(table, title, usual)

    carry_out(study, out, force, lambda table: terminal_table(table, console), draw)
