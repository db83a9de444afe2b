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
    from robustbench_lpm.registry.zoo import LoadedModel
    from robustbench_lpm.reporting.pictures import Example
    from robustbench_lpm.reporting.scanpaths import Gaze


@click.command()
@options.path("--results", "Directory of the records.", default=Path("runs"), show_default=True)
@options.path("--out", "Directory of the report; by default --results.")
@click.option("--scanpaths", "look", is_flag=True,
              help="Draw where models look at the examples of the page, here and in later reports.")  # fmt: skip
@click.option("--layout", type=click.Choice(["attacks", "eps"]),
              help="Also one LaTeX table for a paper, models by attacks or by eps (under the strongest attack), and "
                   "its figure as PDF and SVG.")  # fmt: skip
@click.option("--title", default="", help="With --layout: the caption of the table and the title of the figure.")
@click.option("--intervals", is_flag=True, help="With --layout: 95 % intervals in the table.")
@options.trust
def report(
    results: Path, out: Path | None, look: bool, layout: str | None, title: str, intervals: bool, trust: bool
) -> None:
    """Make leaderboard.csv, .json, .md, .tex and .html (one file without a network) from all records below a directory.

    Beside them: the plots, the runs that were made only for audits (probes.csv), and a file for each model as
    RobustBench keeps them (robustbench/DATASET/NORM/MODEL.json).

    \b
    lpmbench report --results runs
    lpmbench report --results results --out /tmp/report
    lpmbench report --results results --scanpaths
    lpmbench report --layout eps --title "Accuracy of RAM-LPM against eps"
    """
    if layout is None and (title or intervals):
        raise LpmbenchError("--title and --intervals go with --layout attacks or --layout eps.")
    from robustbench_lpm import reporting
    from robustbench_lpm.records import runs as records
    from robustbench_lpm.reporting import scanpaths

    found = records.read_all(results)
    target = out if out is not None else results
    if look:
        say(shown_path(scanpaths.write(look_at_gallery(found, trust), target)))
    paths = reporting.write_report(found, target)
    reporting.terminal_table(found, console)
    if layout is not None:
        more, notes = reporting.write_paper(found, target, layout, title=title, intervals=intervals)
        paths += more
        for note in notes:
            say(note)
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

    from robustbench_lpm.execution.verification import check_random_numbers
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
    check_random_numbers(record, model.classifier)
    noise = model.classifier.sample_noise(Addresses.of(evaluation["seed"], [picture.index], "grade", draw))
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
@click.option("--out", "--results", "results", type=options.PATH, default=Path("results"), show_default=True,
              help="Directory of the published results.")  # fmt: skip
@click.option("--pictures", type=click.IntRange(min=0), default=4, show_default=True,
              help="Stored examples that are published of each run that decides a rank, at most.")  # fmt: skip
def publish(runs: tuple[Path, ...], results: Path, pictures: int) -> None:
    """Add finished runs (directories of records) to the published results and renew the leaderboard.

    Each is checked first; a run with failed blocks is refused. The audit of a run, where there is one, goes with it.
    What is published of one dataset is stored together in results/records/DATASET/: of all runs the outcomes, of those
    that decide a rank a few adversarial images, in 16-bit integers on which the model predicts the same. Of data whose
    card does not allow it, such as photographs, no image is published.
    """
    from robustbench_lpm import reporting
    from robustbench_lpm.records import archive, audits
    from robustbench_lpm.records import runs as records
    from robustbench_lpm.records.archive import Archive

    found = {record.id: record for run in runs for record in records.read_all(run)}
    if failed := next((record for record in found.values() if record.failures), None):
        raise LpmbenchError(f"{failed.path}: {len(failed.failures)} block(s) failed; run the command again first.")
    judged = audits.read_for(list(found.values()))
    before = _published(results)
    earlier = audits.read_for(before)
    everything = {record.id: record for record in before} | found
    ranked = reporting.leaderboard(list(everything.values()), {**earlier, **judged})
    # Of a row that is read from probes of its audit the gallery shows the run that was audited.
    deciding = {record for row in ranked["read_from"] for record in row.split(", ")}
    deciding |= set(ranked["record"]) | set(ranked["audited"])
    loaded: dict[str, LoadedModel] = {}
    for dataset in sorted({record.dataset for record in found.values()}):
        mine = [record for record in found.values() if record.dataset == dataset]
        published = [_as_published(record, pictures if record.id in deciding else 0, loaded) for record in mine]
        folder = results / "records" / records.as_file_name(dataset)
        archive.add(folder, Archive(published, [judged[r.id] for r in mine if r.id in judged]), deciding)
        say(f"Published {len(mine)} run(s) in {shown_path(folder)}")
    for path in reporting.write_report(records.read_all(results), results):
        say(f"Renewed {shown_path(path)}")


def _published(results: Path) -> list[RunRecord]:
    from robustbench_lpm.records import runs as records

    try:
        return records.read_all(results)
    except LpmbenchError:
        if results.is_dir() and any(results.rglob("record*.json*")):
            raise
        return []  # the first that are published


def _as_published(record: RunRecord, pictures: int, loaded: dict[str, LoadedModel]) -> RunRecord:
    """A record with as many of its stored examples as may be published, up to a number."""
    from robustbench_lpm.execution.verification import repeating
    from robustbench_lpm.records import archive
    from robustbench_lpm.registry import cards

    stored = record.pictures() if pictures else []
    known = record.dataset in cards.names("dataset") and "--image" not in record.command
    if not stored or not known or not cards.dataset(record.dataset).publish_images:
        return archive.with_pictures(record, [])
    try:
        kept = repeating(record, [archive.rounded(picture) for picture in stored[: 2 * pictures]], loaded)
    except LpmbenchError as error:
        say(f"No images of {record.folder_name} are published: {error}")
        kept = []
    return archive.with_pictures(record, kept[:pictures])
