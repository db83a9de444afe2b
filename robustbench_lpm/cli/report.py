"""lpmbench report and publish: from records to what people read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.console import console, say, shown_path
from robustbench_lpm.errors import LpmbenchError

if TYPE_CHECKING:
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.reporting.pictures import Example
    from robustbench_lpm.reporting.scanpaths import Gaze


@click.command()
@options.path("--results", "Directory of the records.", default=Path("runs"), show_default=True)
@options.path("--out", "Directory of the report; by default --results.")
@click.option("--scanpaths", "look", is_flag=True,
              help="Draw where models look at the examples of the page, here and in later reports.")  # fmt: skip
@options.trust
def report(results: Path, out: Path | None, look: bool, trust: bool) -> None:
    """Make leaderboard.csv, .json, .md, .tex and .html (one file without a network) from all records below a directory.

    Beside them: the plots, and a file for each model as RobustBench keeps them (robustbench/DATASET/NORM/MODEL.json).

    \b
    lpmbench report --results runs
    lpmbench report --results results --out /tmp/report
    lpmbench report --results results --scanpaths
    """
    from robustbench_lpm import reporting
    from robustbench_lpm.records import runs as records
    from robustbench_lpm.reporting import scanpaths

    found = records.read_all(results)
    target = out if out is not None else results
    if look:
        say(shown_path(scanpaths.write(look_at_gallery(found, trust), target)))
    paths = reporting.write_report(found, target)
    reporting.terminal_table(found, console)
    for path in paths:
        say(shown_path(path))


def look_at_gallery(found: Sequence[RunRecord], trust: bool) -> list[Gaze]:
    """Where the models that look in glimpses look at the examples that the page shows; others are left out."""
    from robustbench_lpm.reporting import page, pictures, table, tables

    gazes = []
    records = tables.in_order(found)
    for record, example in pictures.gallery(records, table(records), page.GALLERY_EXAMPLES):
        try:
            gazes.append(look_at(record, example, trust))
        except LpmbenchError as error:
            say(f"No scanpath of {record.folder_name}: {error}")
    return [gaze for gaze in gazes if gaze is not None]


def look_at(record: RunRecord, example: Example, trust: bool) -> Gaze | None:
    """Where one draw looks at an example before and after the attack: the first that is misclassified, or draw 0.

    None for a model that sees images whole, for an average of several runs, and for noise that is not the grader's own.
    Raises LpmbenchError where the registered model is not that of the record.
    """
    import torch

    from robustbench_lpm.execution.verification import as_recorded
    from robustbench_lpm.randomness import Addresses
    from robustbench_lpm.registry import cards, zoo
    from robustbench_lpm.reporting.scanpaths import Gaze

    evaluation = record.configuration["evaluation"]
    if record.model not in cards.names("model") or record.mc > 1 or evaluation.get("noise"):
        return None
    model = zoo.load_model(record.model, trust=trust)
    if not model.classifier.glimpsing:
        return None
    if model.weights_sha256 != record.configuration["model"]["weights_sha256"]:
        raise LpmbenchError("its weights are not those of the card")
    picture = example.picture
    row = record.outcomes["index"].to_list().index(picture.index)
    draw = int((~record.correct[row]).argmax())
    noise = as_recorded(record, model.classifier).sample_noise(
        Addresses.of(evaluation["seed"], [picture.index], "grade", draw)
    )
    paths = []
    for image, said in ((picture.clean, None), (picture.adversarial, int(record.predictions[row, draw]))):
        with torch.no_grad():
            trajectory = model.classifier.look(torch.from_numpy(image)[None], noise or None)
        if said is not None and int(trajectory.logits[-1, 0].argmax()) != said:
            raise LpmbenchError(f"its model predicts another class of image {picture.index} than the record")
        paths.append([(float(x), float(y)) for x, y in trajectory.fixations[:, 0]])
    return Gaze(record.id, picture.index, draw, *paths)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=options.PATH, metavar="RUN...")
@options.path("--results", default=Path("results"), show_default=True)
@click.option("--pictures", type=click.IntRange(min=0), default=16, show_default=True,
              help="Stored examples of each run that are published, at most; of an audit's runs, 1.")  # fmt: skip
def publish(runs: tuple[Path, ...], results: Path, pictures: int) -> None:
    """Copy finished runs (directories of records) into the published results and renew the leaderboard.

    Each is checked first; a run with failed blocks is refused. The audit of a run, where there is one, goes with it.
    A run made only for an audit (a probe) keeps one picture.
    """
    from robustbench_lpm import reporting
    from robustbench_lpm.records import audits
    from robustbench_lpm.records import runs as records

    found = [record for run in runs for record in records.read_all(run)]
    probes = audits.probes(found, audits.read_for(found))
    for record in found:
        kept = min(pictures, 1) if record.id in probes else pictures
        say(f"Published {shown_path(records.publish(record, results, kept))}")
        if audit := audits.publish(record, results):
            say(f"Published {shown_path(audit)}")
    for path in reporting.write_report(records.read_all(results), results):
        say(f"Renewed {shown_path(path)}")
