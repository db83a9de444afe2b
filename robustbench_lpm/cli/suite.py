"""lpmbench run: a matrix of models, attacks and budgets, from one card."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.attack import complain_of_failures, draw_single_images, look_ahead
from robustbench_lpm.cli.audit import judge_result
from robustbench_lpm.cli.console import ConsoleWatcher, about, console, say, show_plan, shown, shown_path
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.devices import AUTO
from robustbench_lpm.errors import Interrupted, LpmbenchError, unknown
from robustbench_lpm.options import words_of
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.execution.cluster import RayWorkers
    from robustbench_lpm.execution.matrix import Matrix
    from robustbench_lpm.execution.runner import Watcher
    from robustbench_lpm.protocol.plan import Plan
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.registry.cards import SuiteCard

MOST_AT_ONCE = 64  # cells under way with many workers
Directories = dict[str, Path] | Path | None  # of the data: by dataset, or one for all


@click.command()
@click.argument("name")
@click.option("--data", "directories", metavar="[NAME=]DIR", multiple=True,
              help="The directory of the data, if a part needs one; NAME=DIR, repeated, for several.")  # fmt: skip
@options.machine
@options.path("--out", "Where records go; by default runs/NAME.")
@options.force
@click.option("--workers", type=click.IntRange(1), help="Compute in so many processes of this machine (needs Ray).")
@click.option("--ray", metavar="ADDRESS", help="Compute on the Ray cluster there: auto, HOST:PORT.")
@click.option("--limit", type=click.IntRange(1),
              help="At most so many images of each part, into runs/NAME-limitN: a smoke test.")  # fmt: skip
@click.option("--only", metavar="MODEL", multiple=True, help="Only this model of the suite; may be given again.")
@options.dry_run
@options.trust
def run(name: str, directories: Sequence[str], **given: Any) -> None:
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
    lpmbench run full --only cnn --limit 8
    lpmbench run full --workers 4
    lpmbench run full --data sim2mnist=DIR --data cifar10=DIR
    """
    suite = part_of(cards.suite(name), given["only"], given["limit"])
    workers, address = given["workers"], given["ray"]
    if workers is not None and address is not None:
        raise LpmbenchError("--workers is for this machine and --ray for a cluster: give one of them.")
    from robustbench_lpm.execution.cluster import RayWorkers, threads_for

    with nullcontext() if workers is None and address is None else RayWorkers(workers, address) as pool:
        if pool is not None:
            given["threads"] = given["threads"] or (threads_for(workers) if workers else 1)
        data = directories_of(directories)
        command = _command(name, data, given)
        if given["device"] == AUTO and pool is not None and not pool.gpus:  # this process may have one
            given["device"] = "cpu"
        if given["dry_run"]:
            options.prepare_dry_run(given)
        else:
            given["device"] = options.prepare_machine(given["device"], given["threads"])
        if pool is not None:
            pool.use_threads(given["threads"])
        few = f"-limit{given['limit']}" if given["limit"] else ""
        given["out"] = given["out"] or Path("runs") / f"{suite.name}{few}"
        _run(suite, data, command, given, pool)


def _command(name: str, data: Directories, given: Mapping[str, Any]) -> str:
    """The command that continues a suite."""
    found = [f"{key}={place}" for key, place in data.items()] if isinstance(data, dict) else [data] if data else []
    words = [f"--data {shlex.quote(str(directory))}" for directory in found]
    names = ("limit", "only", "device", "threads", "out", "workers", "ray", "trust")
    words += words_of({name: given[name] for name in names if given[name] not in (None, False, AUTO)})
    return " ".join(["lpmbench run", shlex.quote(name), *words])


def part_of(suite: SuiteCard, only: Sequence[str], limit: int | None) -> SuiteCard:
    """A suite with these of its models alone (all without names), and with at most `limit` images of each part.

    Raises LpmbenchError for a model that it does not have.
    """
    known = {_called(name) for part in suite.part for name in part.models}
    wanted = [_called(name) for name in only]
    if strangers := [name for name in wanted if name not in known]:
        raise unknown(f"model of suite '{suite.name}'", strangers[0], known)
    parts = []
    for part in suite.part:
        # An audit that goes on until it is decided would take more images.
        fewer = {"limit": min(limit, part.limit or limit), "until_decided": False} if limit is not None else {}
        models = [name for name in part.models if _called(name) in wanted or not only]
        parts += [part.model_copy(update={"models": models, **fewer})] if models else []
    return suite.model_copy(update={"part": parts})


def _called(name: str) -> str:
    """A model's name; of one that goes by the path of its card, that of the file."""
    return Path(name).stem if name.endswith(".toml") else name


def directories_of(words: Sequence[str]) -> Directories:
    """The directories of the data in the words of --data: DIR for all datasets, or NAME=DIR for each.

    Raises LpmbenchError where the words are of both kinds, or name a dataset twice.
    """
    pairs = [word.partition("=") for word in words]
    if len(words) < 2 and not any(equals and name in cards.names("dataset") for name, equals, _ in pairs):
        return Path(words[0]) if words else None
    found: dict[str, Path] = {}
    for word, (name, equals, directory) in zip(words, pairs, strict=True):
        if not equals or not directory:
            raise LpmbenchError(f"--data {word} must be NAME=DIR: of several directories each needs its dataset.")
        if name in found:
            raise LpmbenchError(f"--data gives two directories for '{name}'.")
        found[name] = Path(directory)
    return found


def _run(
    suite: SuiteCard, data: Directories, command: str, given: Mapping[str, Any], workers: RayWorkers | None
) -> None:
    """The command, once the machine is ready."""
    out, failures = given["out"], Failures(alone=False)
    matrix = _planned(suite, data, given, failures)
    if given["dry_run"]:
        show_plan(matrix.cells)
        return
    left = [cell.seconds or 0.0 for cell in matrix.cells if not cell.finished]
    say(
        f"{suite.name}: {len(matrix.cells)} runs, {len(left)} of them to be made on {given['device']}{about(sum(left))}"
    )
    found: dict[str, RunRecord] = {}
    try:
        with shown(matrix.cells) as watcher:
            run_cells(matrix, found, out, watcher, failures, force=given["force"], workers=workers)
    except KeyboardInterrupt:
        kept = f"{len(found)} of {len(matrix.cells)} runs are finished, and what is done of others is kept"
        raise Interrupted(f"Interrupted: {kept}. Go on with: {command}") from None
    decided = judge_all(matrix, found, out, failures, workers)
    if not any(cell.listed and cell.plan.id in found for cell in matrix.cells):
        failures.complain("run")
    report(matrix, found, decided, out)
    failures.complain("run")
    complain_of_failures(found.values())


def _planned(suite: SuiteCard, data: Directories, given: Mapping[str, Any], failures: Failures) -> Matrix:
    """The runs of a suite, with what is done of each and what it costs; says what is left out, and why."""
    from robustbench_lpm.execution.matrix import resolve_suite

    matrix = resolve_suite(suite, data=data, device=given["device"], trust=given["trust"], attempt=failures.of)
    for dataset, reason in matrix.left_out.items():
        say(f"Left out, for want of data: {dataset}. {reason}")
    for note in matrix.notes:
        say(note)
    if matrix.left_out:
        say(f"Several directories are given as --data {next(iter(matrix.left_out))}=DIR, for each dataset its own.")
    if not matrix.cells:
        failures.complain("planned")
        raise LpmbenchError(f"Nothing of '{suite.name}' can be run without its data.")
    look_ahead(matrix.cells, given["out"], force=given["force"])
    return matrix


def run_cells(
    matrix: Matrix, made: dict[str, RunRecord], out: Path, watcher: Watcher, failures: Failures, *, force: bool,
    workers: RayWorkers | None = None,
) -> None:  # fmt: skip
    """Fill in the record of every cell that does not fail, by the id of its run; what is finished in `out` is read.

    With workers many cells are under way at the same time: some are small. Without, a cell that other processes
    compute comes last: there may be others to do meanwhile.
    """
    from robustbench_lpm.execution.runner import TakenByOthers, run

    def one(plan: Plan, *, wait: bool = True) -> None:
        with failures.of(f"{plan.model.name} under {plan.attack.name}"):
            job = workers.job if workers is not None else None
            made[plan.id] = run(plan, out, watcher, again=force, workers=job, wait=wait)

    plans = [cell.plan for cell in matrix.cells]
    if workers is None:
        later: list[Plan] = []
        for plan in plans:
            try:
                one(plan, wait=False)
            except TakenByOthers:
                watcher.tell(plan, "another process computes it; it comes again later")
                later.append(plan)
        for plan in later:
            one(plan)
        return
    at_once = min(MOST_AT_ONCE, 2 * max(workers.slots(plan.options.device) for plan in plans))
    with ThreadPoolExecutor(at_once) as threads:
        try:
            for future in as_completed([threads.submit(one, plan) for plan in plans]):
                future.result()
        except BaseException:
            workers.stop()  # threads that wait for blocks end, those that wait for their turn never start
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def judge_all(
    matrix: Matrix, found: dict[str, RunRecord], out: Path, failures: Failures, workers: RayWorkers | None = None
) -> list[str]:
    """Make the audits that the card asks for, from the records of the runs; the ids of the runs that they judge in the
    end. Runs of audits that go on are added to `found`."""
    from robustbench_lpm.execution.runner import run

    planned, watcher = {cell.plan.id for cell in matrix.cells}, ConsoleWatcher()

    def obtain(plan: Plan) -> RunRecord:
        if plan.id in planned and plan.id not in found:  # why was said before
            raise LpmbenchError(f"its run, {plan.attack.name} at eps {plan.options.eps:.6g}, has failed.")
        for part in (*plan.members, plan):
            if part.id not in found:
                found[part.id] = run(part, out, watcher, workers=workers.job if workers is not None else None)
        return found[plan.id]

    decided = []
    for plan, black_box, until_decided in matrix.judged:
        with failures.of(f"audit of {plan.model.name} under {plan.attack.name}"):
            decided.append(judge_result(plan, black_box, obtain, out, until_decided=until_decided).record)
    return decided


def report(matrix: Matrix, found: Mapping[str, RunRecord], decided: Sequence[str], out: Path) -> None:
    """Pictures of runs on a single image, the table of the results, and the leaderboard.

    decided: the ids of runs that audits judged in the end, which are results, too. The leaderboard knows the other runs
    of audits as well: one that is lower than a result counts.
    """
    from robustbench_lpm import reporting
    from robustbench_lpm.records import audits

    listed = [cell for cell in matrix.cells if cell.listed and cell.plan.id in found]
    for cell in listed:
        draw_single_images([found[cell.plan.id]], matrix.sources[cell.part])
    ids = dict.fromkeys([*(cell.plan.id for cell in listed), *decided])
    records = [found[run] for run in ids]
    say("")
    reporting.terminal_table(records, console)
    probes = audits.probes(list(found.values()), audits.read_for(records))
    sizes = {len(record.outcomes) for record in records}  # audits that went on have probes on other images
    of_audits = [found[run] for run in sorted(probes - ids.keys()) if len(found[run].outcomes) in sizes]
    *others, page = reporting.write_report([*records, *of_audits], out)
    tables = ", ".join(path.name for path in others if path.parent == out)
    say(f"Records: {shown_path(out)}    Tables: {tables}")
    say(f"Leaderboard: {page.resolve()}")
