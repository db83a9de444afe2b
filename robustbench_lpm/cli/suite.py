"""lpmbench run: a matrix of models, attacks and budgets, from one card."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli.attack import complain_of_failures, draw_single_images
from robustbench_lpm.cli.audit import Obtain, judge_results
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.options import machine_options, prepare_machine, trust_option
from robustbench_lpm.errors import Interrupted, LpmbenchError
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.cli.board import Board
    from robustbench_lpm.execution.cluster import RayWorkers
    from robustbench_lpm.execution.matrix import Cell, Forecast, Matrix
    from robustbench_lpm.execution.runner import Workers
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.cards import SuiteCard

MOST_AT_ONCE = 64  # cells under way with many workers


@click.command()
@click.argument("name")
@click.option(
    "--data",
    "folders",
    metavar="[NAME=]DIR",
    multiple=True,
    help="The folder that holds the data, if some part needs one; NAME=DIR, repeated, for each data set its own.",
)
@machine_options
@click.option("--out", type=click.Path(path_type=Path), help="Where records go; by default runs/NAME.")
@click.option("--force", is_flag=True, help="Run again what has been run.")
@click.option("--workers", type=click.IntRange(1), help="Compute in so many processes of this machine (needs Ray).")
@click.option("--ray", "address", metavar="ADDRESS", help="Compute on the Ray cluster there: auto, HOST:PORT.")
@click.option("--dry-run", is_flag=True, help="Only show what would be run, what it costs and how long it takes.")
@trust_option
@click.pass_context
def run(
    context: click.Context,
    name: str,
    folders: Sequence[str],
    device: str,
    threads: int | None,
    out: Path | None,
    force: bool,
    workers: int | None,
    address: str | None,
    dry_run: bool,
    trust: bool,
) -> None:
    """Run every cell of the suite NAME (or of the card at that path), then make its leaderboard.

    Parts of a suite whose data do not come along may be optional: without their data they are left out, and named.

    Interrupted or killed, it goes on where it stopped when it is called again, to the same bytes. Examples that could
    not be computed (memory, NaN) are listed in their record, and the same command tries them again. Several such
    commands on one --out share the work.

    With --workers or --ray the blocks of all runs are computed side by side, each with --threads threads (by default
    the cores shared out among the workers), on GPUs where Ray has some. With the same --threads and device the records
    are the same as without.

    \b
    lpmbench run demo
    lpmbench run full --dry-run
    lpmbench run full --workers 4
    lpmbench run full --data sim2mnist=DIR --data fashion-mnist=DIR
    """
    suite = cards.suite(name)
    if workers is not None and address is not None:
        raise LpmbenchError("--workers is for this machine and --ray for a cluster: give one of them.")
    with cluster(workers, address) as pool:
        if pool is not None:
            from robustbench_lpm.execution.cluster import threads_for

            threads = threads or (threads_for(workers) if workers else 1)
            chosen = context.get_parameter_source("device") is not click.core.ParameterSource.DEFAULT
            device = device if chosen else device_of(pool)
        prepare_machine(device, threads)
        if pool is not None and threads is not None:
            pool.use_threads(threads)
        options = {
            "data": folders_of(folders),
            "device": device,
            "threads": threads,
            "out": out,
            "workers": workers,
            "ray": address,
        }
        _run(suite, name, options, force=force, dry_run=dry_run, trust=trust, workers=pool)


def folders_of(words: Sequence[str]) -> dict[str, Path] | Path | None:
    """Where the data lie, from the words of --data: one folder for all, or one for each data set by name.

    Raises LpmbenchError where the words are of both kinds, or name a data set twice.
    """
    known = cards.names("dataset")
    pairs = [word.partition("=") for word in words]
    if not any(equals and name in known for name, equals, _ in pairs):
        if len(words) > 1:
            raise LpmbenchError(
                f"--data {words[1]}: of several folders each needs its data set, as in NAME={words[1]}."
            )
        return Path(words[0]) if words else None
    folders: dict[str, Path] = {}
    for word, (name, equals, folder) in zip(words, pairs, strict=True):
        if not equals or not folder:
            raise LpmbenchError(f"--data {word} must be NAME=DIR, as the others are.")
        if name in folders:
            raise LpmbenchError(f"--data gives two folders for '{name}'.")
        folders[name] = Path(folder)
    return folders


@contextmanager
def cluster(workers: int | None, address: str | None) -> Iterator[RayWorkers | None]:
    """Ray's workers, if some are asked for."""
    if workers is None and address is None:
        yield None
        return
    from robustbench_lpm.execution.cluster import RayWorkers

    with RayWorkers(workers, address) as pool:
        yield pool


def device_of(pool: RayWorkers) -> str:
    """A GPU where Ray has some, and this process too: plans are made here."""
    import torch

    return "cuda" if pool.gpus and torch.cuda.is_available() else "cpu"


def _run(
    suite: SuiteCard,
    name: str,
    options: dict[str, Any],
    *,
    force: bool,
    dry_run: bool,
    trust: bool,
    workers: RayWorkers | None,
) -> None:
    """The command, once the machine is ready."""
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.board import Board, show_plan
    from robustbench_lpm.cli.console import LONG, console, duration, say, shown_path
    from robustbench_lpm.execution.estimates import Clock
    from robustbench_lpm.execution.matrix import forecast, resolve_suite

    out, data, device = options["out"], options["data"], options["device"]
    folder = out if out is not None else Path("runs") / suite.name
    given = {option: value for option, value in options.items() if value is not None and value != "cpu"}
    where = given.pop("data", {})
    places = [f"{key}={place}" for key, place in where.items()] if isinstance(where, dict) else [str(where)]
    words = [f"--data {shlex.quote(place)}" for place in places]
    words += [f"--{option} {shlex.quote(str(value))}" for option, value in given.items()]
    command = " ".join(["lpmbench run", shlex.quote(name), *words, *["--trust"] * trust])
    failures = Failures(alone=False)
    matrix = resolve_suite(suite, data=data, device=device, trust=trust, attempt=failures.of)
    for dataset, reason in matrix.left_out.items():
        say(f"Left out, for want of data: {dataset}. {reason}")
    for note in matrix.notes:
        say(note)
    if matrix.left_out:
        say(f"Several folders are given as --data {next(iter(matrix.left_out))}=DIR, for each data set its own.")
    if not matrix.cells:
        failures.complain("planned")
        raise LpmbenchError(f"Nothing of '{suite.name}' can be run without its data.")
    seconds = Clock().seconds
    forecasts = [forecast(cell, folder, seconds, force=force) for cell in matrix.cells]
    if dry_run:
        show_plan(forecasts)
        return
    left = [found for found in forecasts if not found.finished]
    in_all = sum(found.seconds or 0.0 for found in left)
    about = f", about {duration(in_all)} at most" if in_all >= LONG else ""
    say(f"{suite.name}: {len(matrix.cells)} runs, {len(left)} of them to be made{about}")
    with Board(forecasts) as board:
        try:
            found = run_cells(forecasts, folder, board, failures, force=force, workers=workers)
        except KeyboardInterrupt:
            kept = f"{board.finished} of {len(matrix.cells)} runs are finished, and what is done of others is kept"
            raise Interrupted(f"Interrupted: {kept}. Go on with: {command}") from None
    judge_all(matrix, found, folder, failures)
    records = [found[cell.plan.id] for cell in matrix.cells if cell.listed and cell.plan.id in found]
    if not records:
        failures.complain("run")
    draw_pictures(matrix, found)
    say("")
    reporting.terminal_table(records, console)
    *others, page = reporting.write_report(records, folder)
    tables = ", ".join(path.name for path in others if path.parent == folder)
    say(f"Records: {shown_path(folder)}    Tables: {tables}")
    say(f"Leaderboard: {page.resolve()}")
    failures.complain("run")
    complain_of_failures(found.values())


def run_cells(
    forecasts: Sequence[Forecast],
    out: Path,
    board: Board,
    failures: Failures,
    *,
    force: bool,
    workers: RayWorkers | None = None,
) -> dict[str, RunRecord]:
    """The record of every cell that does not fail, by the id of its run; what lies finished in `out` is read.

    With workers many cells are under way at the same time: some are small. Without, a cell at which other processes are
    comes last: there may be others to do meanwhile.
    """
    from robustbench_lpm.execution.runner import TakenByOthers

    made: dict[str, RunRecord] = {}
    later: list[Forecast] = []

    def one(found: Forecast, *, wait: bool = True) -> None:
        plan = found.cell.plan
        try:
            with failures.of(f"{plan.model.name} under {plan.attack.name}"):
                made[plan.id] = run_cell(found.cell, out, board, force=force, workers=workers, wait=wait)
        finally:
            board.leave(plan)

    if workers is None:
        for found in forecasts:
            try:
                one(found, wait=False)
            except TakenByOthers:
                board.postpone(found.cell.plan)
                later.append(found)
        for found in later:
            one(found)
        return made
    at_once = min(MOST_AT_ONCE, 2 * max(workers.slots(found.cell.plan.device) for found in forecasts))
    with ThreadPoolExecutor(at_once) as threads:
        try:
            for future in as_completed([threads.submit(one, found) for found in forecasts]):
                future.result()
            return made
        except BaseException:
            workers.stop()  # threads that wait for blocks end, those that wait for their turn never start
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def run_cell(
    cell: Cell, out: Path, board: Board, *, force: bool, workers: Workers | None = None, wait: bool = True
) -> RunRecord:
    """Run one cell, or read it."""
    from robustbench_lpm.execution.recording import finished_run, forget_progress
    from robustbench_lpm.execution.runner import FailedBlocks, run

    plan = cell.plan

    def tell(line: str) -> None:
        board.tell(plan, line)

    record = None if force else finished_run(plan, out, tell)
    if record is not None:
        forget_progress(plan, out)
        board.end(plan, record, read=True)
        return record
    progress = board.begin(plan)
    try:
        record = run(plan, out, progress, again=force, tell=tell, workers=workers, wait=wait)
    except FailedBlocks as error:
        record = error.record
    board.end(plan, record, read=False)
    return record


def judge_all(matrix: Matrix, found: dict[str, RunRecord], out: Path, failures: Failures) -> None:
    """Audit what the card says."""
    fallback, planned = Obtain(out), {cell.plan.id for cell in matrix.cells}

    def obtain(plan: Plan) -> RunRecord:
        from robustbench_lpm.execution.recording import keeps_enough

        record = found.get(plan.id)
        if record is None and plan.id in planned:  # it was told why
            raise LpmbenchError(f"its run, {plan.attack.name} at eps {plan.eps:.6g}, has failed.")
        if record is None or not keeps_enough(record, plan):
            return fallback(plan)
        complain_of_failures([record])
        return record

    for judged in matrix.judged:
        judge_results(
            judged.model, judged.attacks, judged.source, judged.budgets, black_box=judged.black_box, out=out,
            planning=judged.planning, obtain=obtain, failures=failures,
        )  # fmt: skip


def draw_pictures(matrix: Matrix, found: dict[str, RunRecord]) -> None:
    """Pictures of runs on a single image."""
    for number, source in matrix.sources.items():
        cells = [cell for cell in matrix.cells if cell.part == number and cell.listed and cell.plan.id in found]
        draw_single_images([found[cell.plan.id] for cell in cells], source)
