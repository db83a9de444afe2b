"""lpmbench run: a matrix of models, attacks and budgets, from one card."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli.attack import complain_of_failures, draw_single_images
from robustbench_lpm.cli.audit import judge_result
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.cli.options import force_option, machine_options, prepare_machine, trust_option
from robustbench_lpm.errors import Interrupted, LpmbenchError
from robustbench_lpm.options import words_of
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.cli.board import Board
    from robustbench_lpm.execution.cluster import RayWorkers
    from robustbench_lpm.execution.matrix import Cell, Matrix
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
    help="The directory of the data, if some part needs one; NAME=DIR, repeated, for each data set its own.",
)
@machine_options
@click.option("--out", type=click.Path(path_type=Path), help="Where records go; by default runs/NAME.")
@force_option
@click.option("--workers", type=click.IntRange(1), help="Compute in so many processes of this machine (needs Ray).")
@click.option("--ray", "address", metavar="ADDRESS", help="Compute on the Ray cluster there: auto, HOST:PORT.")
@click.option("--dry-run", is_flag=True, help="Only show what would be run, what it costs and how long it takes.")
@trust_option
@click.pass_context
def run(
    context: click.Context, /, name: str, folders: Sequence[str], workers: int | None, address: str | None, **rest: Any
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

            rest["threads"] = rest["threads"] or (threads_for(workers) if workers else 1)
            if context.get_parameter_source("device") is click.core.ParameterSource.DEFAULT:
                rest["device"] = device_of(pool)
        prepare_machine(rest["device"], rest["threads"])
        if pool is not None:
            pool.use_threads(rest["threads"])
        data = folders_of(folders)
        command = _command(name, data, rest | {"workers": workers, "ray": address})
        _run(suite, data, command, rest, pool)


def _command(name: str, data: dict[str, Path] | Path | None, options: Mapping[str, Any]) -> str:
    """The command that goes on with a suite."""
    folders = [f"{key}={place}" for key, place in data.items()] if isinstance(data, dict) else [data] if data else []
    words = [f"--data {shlex.quote(str(folder))}" for folder in folders]
    given = {option: options[option] for option in ("device", "threads", "out", "workers", "ray", "trust")}
    words += words_of({option: value for option, value in given.items() if value not in (None, False, "cpu")})
    return " ".join(["lpmbench run", shlex.quote(name), *words])


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
    suite: SuiteCard, data: dict[str, Path] | Path | None, command: str, given: Mapping[str, Any],
    workers: RayWorkers | None,
) -> None:  # fmt: skip
    """The command, once the machine is ready."""
    from robustbench_lpm import reporting
    from robustbench_lpm.cli.board import Board, show_plan
    from robustbench_lpm.cli.console import LONG, console, duration, say, shown_path
    from robustbench_lpm.execution.estimates import estimate_seconds
    from robustbench_lpm.execution.matrix import resolve_suite

    folder = given["out"] if given["out"] is not None else Path("runs") / suite.name
    failures = Failures(alone=False)
    matrix = resolve_suite(suite, data=data, device=given["device"], trust=given["trust"], attempt=failures.of)
    for dataset, reason in matrix.left_out.items():
        say(f"Left out, for want of data: {dataset}. {reason}")
    for note in matrix.notes:
        say(note)
    if matrix.left_out:
        say(f"Several directories are given as --data {next(iter(matrix.left_out))}=DIR, for each data set its own.")
    if not matrix.cells:
        failures.complain("planned")
        raise LpmbenchError(f"Nothing of '{suite.name}' can be run without its data.")
    seconds = partial(estimate_seconds, timed={})
    for cell in matrix.cells:
        cell.look_ahead(folder, seconds, force=given["force"])
    if given["dry_run"]:
        show_plan(matrix.cells)
        return
    left = [cell for cell in matrix.cells if not cell.finished]
    in_all = sum(cell.seconds or 0.0 for cell in left)
    about = f", about {duration(in_all)} at most" if in_all >= LONG else ""
    say(f"{suite.name}: {len(matrix.cells)} runs, {len(left)} of them to be made{about}")
    with Board(matrix.cells) as board:
        try:
            found = run_cells(matrix.cells, folder, board, failures, force=given["force"], workers=workers)
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
    cells: Sequence[Cell],
    out: Path,
    board: Board,
    failures: Failures,
    *,
    force: bool,
    workers: RayWorkers | None = None,
) -> dict[str, RunRecord]:
    """The record of every cell that does not fail, by the id of its run; what is finished in `out` is read.

    With workers many cells are under way at the same time: some are small. Without, a cell that other processes work on
    comes last: there may be others to do meanwhile.
    """
    from robustbench_lpm.execution.runner import TakenByOthers, run

    made: dict[str, RunRecord] = {}
    later: list[Plan] = []

    def one(plan: Plan, *, wait: bool = True) -> None:
        with failures.of(f"{plan.model.name} under {plan.attack.name}"):
            job = workers.job if workers is not None else None
            made[plan.id] = run(plan, out, board, again=force, workers=job, wait=wait)

    if workers is None:
        for cell in cells:
            try:
                one(cell.plan, wait=False)
            except TakenByOthers:
                board.postpone(cell.plan)
                later.append(cell.plan)
        for plan in later:
            one(plan)
        return made
    at_once = min(MOST_AT_ONCE, 2 * max(workers.slots(cell.plan.options.device) for cell in cells))
    with ThreadPoolExecutor(at_once) as threads:
        try:
            for future in as_completed([threads.submit(one, cell.plan) for cell in cells]):
                future.result()
            return made
        except BaseException:
            workers.stop()  # threads that wait for blocks end, those that wait for their turn never start
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def judge_all(matrix: Matrix, found: dict[str, RunRecord], out: Path, failures: Failures) -> None:
    """Audit what the card says, from the records of the runs."""

    def obtain(plan: Plan) -> RunRecord:
        if plan.id not in found:  # it was told why
            raise LpmbenchError(f"its run, {plan.attack.name} at eps {plan.options.eps:.6g}, has failed.")
        return found[plan.id]

    for plan, black_box in matrix.judged:
        with failures.of(f"audit of {plan.model.name} under {plan.attack.name}"):
            judge_result(plan, black_box, obtain, out)


def draw_pictures(matrix: Matrix, found: dict[str, RunRecord]) -> None:
    """Pictures of runs on a single image."""
    for number, source in matrix.sources.items():
        cells = [cell for cell in matrix.cells if cell.part == number and cell.listed and cell.plan.id in found]
        draw_single_images([found[cell.plan.id] for cell in cells], source)
