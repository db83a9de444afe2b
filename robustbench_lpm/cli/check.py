"""lpmbench verify and grade: check what a record claims, and grade images that someone else made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robustbench_lpm import cards
from robustbench_lpm.cli.options import (
    budget_options,
    data_options,
    grading_options,
    machine_options,
    prepare_machine,
    trust_option,
)
from robustbench_lpm.errors import LpmbenchError


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--model", help="The path of the model's card, if the model is not a registered one.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The weights, if they are not those of the card.")
@machine_options
@trust_option
def verify(
    record: Path, model: str | None, checkpoint: Path | None, device: str, threads: int | None, trust: bool
) -> None:
    """Recompute the claims of RECORD (a run's folder) from what is stored beside it.

    Hashes, budgets and distances are checked, and the stored adversarial images are predicted again with the model of
    the record, on the same noise. Ends with a non-zero status when a claim does not hold.
    """
    prepare_machine(device, threads)
    from robustbench_lpm.cli.console import say
    from robustbench_lpm.evaluation.verification import verify as check

    findings = check(record, model=model, checkpoint=checkpoint, device=device, trust=trust)
    for finding in findings:
        say(f"{finding.verdict:<12} {finding.claim}: {finding.evidence}")
    if failed := [finding for finding in findings if finding.verdict == "FAILS"]:
        raise LpmbenchError(f"{len(failed)} claim(s) of {record} do not hold.")


@click.command()
@click.option("--adversarials", type=click.Path(path_type=Path), required=True, help="A folder of images, see below.")
@click.option("--model", required=True, help="A model, or the path of its card.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of those of the model's card.")
@click.option("--name", default="submitted", show_default=True, help="What to call the attack that made them.")
@data_options
@budget_options
@grading_options
@machine_options
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where records go."
)
@trust_option
def grade(
    adversarials: Path,
    model: str,
    checkpoint: Path | None,
    name: str,
    dataset: str,
    data: Path | None,
    size: str | None,
    limit: int | None,
    image: Path | None,
    label: int | None,
    eps: str | None,
    device: str,
    threads: int | None,
    out: Path,
    trust: bool,
    **rest: Any,
) -> None:
    """Grade adversarial images that someone else made, as our own attacks are graded.

    The folder holds adversarials.npz (arrays `index` (N,) and `adversarial` (N, C, H, W) in [0, 1]),
    adversarials.safetensors as a run of ours leaves it, or 8-bit PNG files named by index: 17.png. An index counts in
    the data set's pinned order, at the --size of the images. --eps is the budget that they claim to keep, by default
    that of the data set's card. An image beyond it is an error: nothing is pulled back.
    """
    from robustbench_lpm.budgets import parse_eps

    budget = parse_eps(eps if eps is not None else cards.dataset(dataset).default_eps(rest["norm"]))
    prepare_machine(device, threads)
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.console import console, say, shown_path
    from robustbench_lpm.evaluation.planning import make_plan
    from robustbench_lpm.evaluation.runner import run
    from robustbench_lpm.evaluation.submissions import read_submission
    from robustbench_lpm.evaluation.tasks import resolve_data, resolve_model

    source = resolve_data(dataset, size=size, data=data, trust=trust, image=image, label=label)
    submission = read_submission(adversarials, source, name)
    plan = make_plan(
        resolve_model(model, checkpoint=checkpoint, trust=trust, device=device),
        submission.attack(),
        source,
        eps=budget,
        indices=submission.indices[:limit],
        device=device,
        **rest,
    )
    submission.check_budget(source, plan.norm, budget, plan.indices)
    record = run(plan, out)
    reporting.terminal_table([record], console)
    say(f"Record: {shown_path(record.path or out)}")
