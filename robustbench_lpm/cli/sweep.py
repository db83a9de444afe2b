"""lpmbench sweep: accuracy for every number of glimpses and of averaged runs, in one pass over the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robustbench_lpm.cli.console import say
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.studies import carry_out, prepare, study_options, whole_numbers

MOST_GLIMPSES = 1000


@click.command()
@click.argument("name")
@click.option("--glimpses", default="1..14", show_default=True,
              help="Numbers of glimpses, like 1..14 or 1,2,4; also more than the model's card says.")  # fmt: skip
@study_options(draws=1, mc="1,5,10,20")
def sweep(name: str, glimpses: str, out: Path | None, force: bool, **shared: Any) -> None:
    """How accurate the glimpsing model NAME is after each number of glimpses, averaged over M runs.

    Kiritani and Ono's inference sweep: one table and one figure. A run of T glimpses answers after each of them, and
    the same runs, taken M at a time, serve every M. Intervals (95 %) are over images.

    \b
    lpmbench sweep ramlpm
    lpmbench sweep ram --glimpses 1,2,4,8 --mc 1..4 --limit 100
    lpmbench sweep ramlpm-sim2mnist --checkpoint best.safetensors --data DIR --glimpses 1..20
    """
    numbers = whole_numbers("--glimpses", glimpses, MOST_GLIMPSES)
    source, asked = prepare([name], shared)
    from robustbench_lpm.reporting.studies import sweep_figure, sweep_table
    from robustbench_lpm.studies.sweep import make_sweep

    with Failures(alone=True).of(name):
        study, usual = make_sweep(name, source, glimpses=numbers, **asked)
    model = study.models[0]
    if not model.classifier.stochastic and asked["mc"] != [1]:
        say(f"{model.name} answers the same in every run: M = 1 says it all.")
    title = f"Inference sweep of {model.name} on {study.data.name}, {study.images:,} images"
    with Failures(alone=True).of(name):
        carry_out(study, out, force, sweep_table, lambda table: sweep_figure(table, title, usual))
