"""lpmbench report and publish: from records to what people read."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--results", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where records lie."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; by default beside the records.")
def report(results: Path, out: Path | None) -> None:
    """Make leaderboard.csv, .md, .tex and .html (one file that needs no network) from all records below a folder.

    \b
    lpmbench report --results runs
    lpmbench report --results results --out /tmp/report
    """
    from robustbench_lpm import records, reporting
    from robustbench_lpm.cli.console import console, say, shown_path

    found = records.read_all(results)
    paths = reporting.write_report(found, out if out is not None else results)
    reporting.terminal_table(found, console)
    for path in paths:
        say(shown_path(path))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True)
@click.option(
    "--pictures", type=click.IntRange(min=0), default=16, show_default=True,
    help="How many stored examples of each run go along, at most; of the probes of an audit published with them, 1.",
)  # fmt: skip
def publish(runs: tuple[Path, ...], results: Path, pictures: int) -> None:
    """Copy finished runs (their folders, or folders of them) into the published results and renew the leaderboard.

    Each is checked first; a run with failed blocks is refused. The audit of a run, where there is one, goes with it.
    A run made only for an audit (a probe) keeps one picture.
    """
    from robustbench_lpm import audits, records, reporting
    from robustbench_lpm.cli.console import say, shown_path

    found = [record for run in runs for record in records.read_all(run)]
    probes = audits.probes(found, audits.read_for(found))
    for record in found:
        kept = min(pictures, 1) if record.id in probes else pictures
        say(f"Published {shown_path(records.publish(record, results, kept))}")
        if audit := audits.publish(record, results):
            say(f"Published {shown_path(audit)}")
    for path in reporting.write_report(records.read_all(results), results):
        say(f"Renewed {shown_path(path)}")
