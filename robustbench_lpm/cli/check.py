"""lpmbench verify and grade: check what a record claims, and grade images that someone else made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.attack import complain_of_failures
from robustbench_lpm.cli.console import console, say, shown_path
from robustbench_lpm.errors import LpmbenchError

if TYPE_CHECKING:
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.zoo import LoadedModel


@click.command()
@click.argument("records", nargs=-1, required=True, type=options.PATH, metavar="RECORD...")
@click.option("--model", help="The path of the model's card, if the model is not a registered one.")
@options.path("--checkpoint", "The weights, if they are not those of the card.")
@click.option("--part", metavar="I/N", callback=lambda _, __, value: parse_part(value),
              help="Only every N-th record, from the I-th.")  # fmt: skip
@click.option("--strict", is_flag=True,
              help="Fail, too, where a claim cannot be checked, as when a model is not available.")  # fmt: skip
@options.machine
@options.trust
def verify(records: tuple[Path, ...], part: tuple[int, int], strict: bool, threads: int | None, **given: Any) -> None:
    """Recompute the claims of each RECORD (a run's directory, or a directory of them, published ones too).

    Hashes, budgets and distances are checked, and the stored adversarial images are predicted again with the model of
    the record, on the same noise. Of several records only claims that do not hold are printed. The status is not zero
    when a claim does not hold.

    \b
    lpmbench verify runs/ramlpm--pgd--linf--0.1--digits--mc1--8766c2dc7087
    lpmbench verify results
    """
    options.prepare_machine(given["device"], threads)
    from robustbench_lpm.execution.verification import verify as check

    every = [found for record in records for found in _records_at(record)]
    first, step = part
    wanted, failed, unchecked = every[first - 1 :: step], 0, 0
    loaded: dict[str, LoadedModel] = {}
    for found in wanted:
        findings = check(found, loaded=loaded, **given)
        failed += sum(verdict == "FAILS" for _, verdict, _ in findings)
        unchecked += any(verdict == "not checked" for _, verdict, _ in findings)
        for claim, verdict, evidence in findings:
            if len(every) == 1:
                say(f"{verdict:<12} {claim}: {evidence}")
            elif verdict != "holds":
                name = found.name if isinstance(found, Path) else found.folder_name
                say(f"{verdict:<12} {name}: {claim}: {evidence}")
    if len(every) > 1:
        left = f", of {unchecked} not everything could be checked" if unchecked else ""
        say(f"{len(wanted)} of {len(every)} records verified{left}")
    if failed:
        named = str(records[0]) if len(records) == 1 else f"{len(every)} records"
        raise LpmbenchError(f"{failed} claim(s) of {named} do not hold.")
    if strict and unchecked:
        raise LpmbenchError(f"{unchecked} record(s) could not be checked in full, which --strict asks for.")


def _records_at(path: Path) -> list[Path | RunRecord]:
    """The record at a path, or every record below it, in a stable order; the path itself where there is none.

    Raises LpmbenchError for an archive that is not whole.
    """
    from robustbench_lpm.records import archive
    from robustbench_lpm.records.runs import RECORD

    if path.name == RECORD or (path / RECORD).is_file() or not path.is_dir():
        return [path]
    found: list[Path | RunRecord] = [*sorted(each.parent for each in path.rglob(RECORD))]
    for index in sorted(path.rglob(archive.INDEX)):
        found += archive.read(index.parent).records
    return found or [path]


def parse_part(text: str | None) -> tuple[int, int]:
    """Which part of several, (I, N) with 1 <= I <= N, in "I/N"; all of them without a text. Raises LpmbenchError."""
    first, slash, parts = (text or "1/1").partition("/")
    if slash and all(word.isascii() and word.isdigit() for word in (first, parts)) and 1 <= int(first) <= int(parts):
        return int(first), int(parts)
    raise LpmbenchError(f"--part '{text}' must be like 1/2: the first of two parts.")


@click.command()
@options.path("--adversarials", "A directory of images, see above.", required=True)
@options.models("MODEL")
@options.checkpoint
@click.option("--name", default="submitted", show_default=True, help="What to call the attack that made them.")
@options.data
@options.budget
@options.grading
@options.machine
@options.records
@options.trust
def grade(adversarials: Path, model: str, name: str, out: Path, **given: Any) -> None:
    """Grade adversarial images of MODEL that someone else made, as our own attacks are graded.

    The directory holds adversarials.npz (arrays `index` (N,) and `adversarial` (N, C, H, W) in [0, 1]),
    adversarials.safetensors as a run of ours leaves it, or 8-bit PNG files named by index: 17.png. An index counts in
    the dataset's pinned order, at the --size of the images. --eps is the budget that they claim to keep, by default
    that of the dataset's card. An image beyond it is an error: nothing is projected.
    """
    (asked,) = options.read_settings(given, one=True)
    options.prepare_machine(given["device"], given["threads"])
    from robustbench_lpm import reporting
    from robustbench_lpm.execution.runner import run
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.submissions import as_attack, check_budget, read_submission

    source = options.read_source(given)
    images = read_submission(adversarials, source)
    graded = options.read_model(model, given)
    plan = make_plan(graded, as_attack(images, name), source, asked, indices=sorted(images)[: asked.limit])
    check_budget(images, source, asked.norm, asked.eps, plan.indices)
    record = run(plan, out, again=True)
    reporting.terminal_table([record], console)
    say(f"Record: {shown_path(record.path or out)}")
    complain_of_failures([record])
