"""lpmbench verify and grade: check what a record claims, and grade images that someone else made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli.attack import complain_of_failures
from robustbench_lpm.cli.options import (
    budget_options,
    data_options,
    grading_options,
    machine_options,
    prepare_machine,
    read_budget,
    read_options,
    read_source,
    records_option,
    trust_option,
)
from robustbench_lpm.errors import LpmbenchError

if TYPE_CHECKING:
    from robustbench_lpm.registry.zoo import LoadedModel


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORD...")
@click.option("--model", help="The path of the model's card, if the model is not a registered one.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The weights, if they are not those of the card.")
@click.option(
    "--part",
    metavar="I/N",
    callback=lambda _, __, value: parse_part(value),
    help="Only every N-th record, from the I-th.",
)
@click.option(
    "--strict", is_flag=True, help="Fail, too, where a claim cannot be checked, as when a model is not at hand."
)
@machine_options
@trust_option
def verify(
    records: tuple[Path, ...], model: str | None, checkpoint: Path | None, part: tuple[int, int], strict: bool,
    **rest: Any,
) -> None:  # fmt: skip
    """Recompute the claims of each RECORD (a run's folder, or a folder of them) from what is stored beside it.

    Hashes, budgets and distances are checked, and the stored adversarial images are predicted again with the model of
    the record, on the same noise. Of several records only what does not hold is told. Ends with a non-zero status when
    a claim does not hold.

    \b
    lpmbench verify runs/ramlpm--pgd--linf--0.1--digits--mc1--8766c2dc7087
    lpmbench verify results
    """
    prepare_machine(rest["device"], rest["threads"])
    from robustbench_lpm.cli.console import say
    from robustbench_lpm.execution.verification import verify as check

    folders = [folder for record in records for folder in record_folders(record)]
    first, step = part
    wanted, failed, unchecked = folders[first - 1 :: step], 0, 0
    loaded: dict[str, LoadedModel] = {}
    for folder in wanted:
        findings = check(
            folder, model=model, checkpoint=checkpoint, device=rest["device"], trust=rest["trust"], loaded=loaded
        )
        failed += sum(verdict == "FAILS" for _, verdict, _ in findings)
        unchecked += any(verdict == "not checked" for _, verdict, _ in findings)
        for claim, verdict, evidence in findings:
            if len(folders) == 1:
                say(f"{verdict:<12} {claim}: {evidence}")
            elif verdict != "holds":
                say(f"{verdict:<12} {folder.name}: {claim}: {evidence}")
    if len(folders) > 1:
        left = f", of {unchecked} not everything could be checked" if unchecked else ""
        say(f"{len(wanted)} of {len(folders)} records verified{left}")
    if failed:
        named = str(records[0]) if len(records) == 1 else f"{len(folders)} records"
        raise LpmbenchError(f"{failed} claim(s) of {named} do not hold.")
    if strict and unchecked:
        raise LpmbenchError(f"{unchecked} record(s) could not be checked in full, which --strict asks for.")


def record_folders(path: Path) -> list[Path]:
    """The record at a path, or every record below it, in a stable order; what holds none is left to be refused."""
    from robustbench_lpm.records.runs import RECORD

    if path.name == RECORD or (path / RECORD).is_file() or not path.is_dir():
        return [path]
    return sorted(found.parent for found in path.rglob(RECORD)) or [path]


def parse_part(text: str | None) -> tuple[int, int]:
    """Which part of several, (I, N) with 1 <= I <= N, in "I/N"; all of them without a text. Raises LpmbenchError."""
    first, slash, parts = (text or "1/1").partition("/")
    if slash and all(word.isascii() and word.isdigit() for word in (first, parts)) and 1 <= int(first) <= int(parts):
        return int(first), int(parts)
    raise LpmbenchError(f"--part '{text}' must be like 1/2: the first of two parts.")


@click.command()
@click.option("--adversarials", type=click.Path(path_type=Path), required=True, help="A folder of images, see below.")
@click.option("--model", required=True, help="A model, or the path of its card.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of those of the model's card.")
@click.option("--name", default="submitted", show_default=True, help="What to call the attack that made them.")
@data_options
@budget_options
@grading_options
@machine_options
@records_option
@trust_option
def grade(
    adversarials: Path,
    model: str,
    checkpoint: Path | None,
    name: str,
    dataset: str,
    eps: tuple[str, ...],
    out: Path,
    **rest: Any,
) -> None:
    """Grade adversarial images that someone else made, as our own attacks are graded.

    The folder holds adversarials.npz (arrays `index` (N,) and `adversarial` (N, C, H, W) in [0, 1]),
    adversarials.safetensors as a run of ours leaves it, or 8-bit PNG files named by index: 17.png. An index counts in
    the data set's pinned order, at the --size of the images. --eps is the budget that they claim to keep, by default
    that of the data set's card. An image beyond it is an error: nothing is pulled back.
    """
    options = read_options(rest, eps=read_budget(eps, dataset, rest["norm"]))
    prepare_machine(rest["device"], rest["threads"])
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.console import console, say, shown_path
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.submissions import as_attack, check_budget, read_submission
    from robustbench_lpm.registry.tasks import resolve_model

    source = read_source(dataset, rest)
    images = read_submission(adversarials, source)
    graded = resolve_model(model, checkpoint=checkpoint, trust=rest["trust"], device=rest["device"])
    plan = make_plan(graded, as_attack(images, name), source, options, indices=sorted(images)[: options.limit])
    check_budget(images, source, options.norm, options.eps, plan.indices)
    record = run(plan, out, again=True)
    reporting.terminal_table([record], console)
    say(f"Record: {shown_path(record.path or out)}")
    complain_of_failures([record])
