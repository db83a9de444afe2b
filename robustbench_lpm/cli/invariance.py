"""lpmbench invariance: accuracy of some models against the rotation, scale and translation of the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.studies import carry_out, magnitudes, prepare, study_options
from robustbench_lpm.errors import LpmbenchError

DEFAULTS = {"rotate": "0..360", "scale": "0.5..2", "translate": "-0.5..0.5"}
STEPS = {"rotate": "15", "scale": "0.125", "translate": "0.1"}


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--rotate", metavar="DEGREES", help=f"Turns against the clock, like 0..360:15; step {STEPS['rotate']}.")
@click.option("--scale", metavar="FACTORS", help=f"Magnifications, like 0.5..2 or 0.5,1,2; step {STEPS['scale']}.")
@click.option("--translate", metavar="SHARES",
              help="Shares of the image's side, like -0.5..0.5; each is tried to the right and, by itself, down; their "
                   f"mean is shown; step {STEPS['translate']}.")  # fmt: skip
@study_options(draws=4, mc="1")
def invariance(names: Sequence[str], out: Path | None, force: bool, **shared: Any) -> None:
    """How accurate the models NAME... are on turned, scaled and moved images: a panel for each, a line per model.

    Without --rotate, --scale and --translate all three run, over 0..360, 0.5..2 and -0.5..0.5; naming some runs just
    these. Images are warped about their centre, bilinearly, with zeros coming in from outside. Intervals (95 %) are
    over images.

    \b
    lpmbench invariance ramlpm ram cnn
    lpmbench invariance ramlpm cnn --rotate 0..360:15 --limit 100
    lpmbench invariance ramlpm --scale 0.5..2:0.25 --translate -0.2,0,0.2 --mc 1,5
    """
    given = {name: shared[name] for name in DEFAULTS if shared[name] is not None} or DEFAULTS
    values = {name: magnitudes(f"--{name}", text, STEPS[name]) for name, text in given.items()}
    models = list(dict.fromkeys(names))
    if shared["checkpoint"] is not None and len(models) != 1:
        raise LpmbenchError("--checkpoint goes with exactly one NAME.")
    source, asked = prepare(models, shared)
    from robustbench_lpm.reporting.studies import invariance_figure, invariance_table
    from robustbench_lpm.studies.invariance import make_invariance
    from robustbench_lpm.studies.study import ModelFailed, without

    failures = Failures(alone=len(models) == 1)
    study = make_invariance(models, source, values, attempt=failures.of, **asked)
    title = f"{study.data.name}, {study.images:,} images"
    while True:
        try:
            carry_out(study, out, force, invariance_table, lambda table: invariance_figure(table, title))
            break
        except ModelFailed as error:
            failures.note(error.model.name, error)
            study = without(study, error.model, shared["limit"])
    failures.complain("studied")
