"""Kill a suite again and again, at random moments, and see whether its records come out the same.

    python -m benchmarks.kills --times 60

A small suite runs once without interruption. Then it is started, killed with SIGKILL at a random moment, started again
by the same command, and so on; whenever it comes to its end its records are compared, byte by byte but for timings,
with those of the first run, and it starts anew in another folder. Ends with status 1 if anything differs.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import click

from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.records import runs as records

# Deterministic and stochastic models, several blocks in a run, restarts, a worst case with its members.
SUITE = """
name = "killed"
summary = "a little of everything, to be killed"

[[part]]
dataset = "digits"
models = ["cnn", "ram"]
attacks = ["pgd", "square", "worst", "spsa"]
eps = ["0.1"]
limit = 160
draws = 3
gradient_modes = ["detached"]

[part.parameters]
pgd = { steps = 3, restarts = 2, eot = 2 }
square = { queries = 6, draws = 2 }
spsa = { iterations = 2, pairs = 4 }
"""
WORST = """
name = "worst"
summary = "the worst of three"
members = ["noise", "pgd", "square"]
knowledge = "white-box"
norms = ["linf", "l2"]
targeted = true
"""
PRELOADED = ["torch", "robustbench_lpm.cli.suite", "robustbench_lpm.execution.matrix", "robustbench_lpm.reporting"]
SHARE = 0.5  # of the time of a whole suite: until then it is killed


@dataclass
class Tally:
    """What came of it."""

    kills: int = 0
    before_anything: int = 0  # kills before the process had written anything of its own
    inside_blocks: int = 0  # kills that found a block's journal
    between_blocks: int = 0  # kills that found finished blocks of an unfinished run
    ends: int = 0  # runs that came to their end and were compared
    differing: list[str] = field(default_factory=list)

    @property
    def hits(self) -> int:
        """Kills inside a run."""
        return self.inside_blocks + self.between_blocks


def contents(out: Path) -> dict[str, bytes]:
    """All files of the records below a folder but their timings, and whatever else lies in the records' folders."""
    folders = {path.parent for path in out.rglob(records.RECORD)}
    files = (path for folder in folders for path in folder.iterdir() if path.name != records.TIMING)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def work(card: str, out: str, log: str) -> None:
    """What the killed process does: the command itself."""
    import torch

    from robustbench_lpm.cli import run
    from robustbench_lpm.execution import journal

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.set_num_threads(1)
    journal.WRITE_EVERY = 0.2  # seconds: its blocks are short, and shall be cut in their middle
    sys.exit(run(["run", card, "--threads", "1", "--out", out]))


def survive(
    times: int, folder: Path, *, seed: int = 0, suite: str = SUITE, tell: Callable[[str], None] = print
) -> Tally:
    """Kill the suite so many times, and up to three times as often until it was hit inside a run.

    Raises RuntimeError if it fails when it is left alone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    (folder / "worst.toml").write_text(WORST)
    card = folder / "killed.toml"
    card.write_text(suite.replace('"worst"', f'"{folder / "worst.toml"}"'))
    log = folder / "log"

    def start(out: Path) -> BaseProcess:
        process = context.Process(target=work, args=(str(card), str(out), str(log)))
        process.start()
        return process

    def whole(out: Path) -> float:
        began = time.monotonic()
        process = start(out)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"the suite ended with status {process.exitcode}: {log.read_text()[-2000:]}")
        return time.monotonic() - began

    whole(folder / "warm-up")
    seconds = whole(folder / "straight")
    expected = contents(folder / "straight")
    tell(f"left alone it takes {seconds:.1f} s and writes {len(expected)} files")
    moments, tally, out = random.Random(seed), Tally(), folder / "broken-0"
    while tally.kills < times or (not tally.hits and tally.kills < 3 * times):
        began, process = time.monotonic(), start(out)
        process.join(moments.uniform(0, SHARE * seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            tally.kills += 1
            _look(out, tally)
        if process.exitcode != -9:
            _compare(out, expected, process.exitcode, tally)
            out = folder / f"broken-{tally.ends}"
            seconds = min(seconds, time.monotonic() - began + SHARE * seconds)  # the machine may have become quieter
        if tally.kills % 10 == 0 and process.exitcode == -9:
            tell(f"{tally.kills} kills, {tally.ends} ends, {len(tally.differing)} differences")
    whole(out)
    _compare(out, expected, 0, tally)
    return tally


def _look(out: Path, tally: Tally) -> None:
    """Where it was killed."""
    unfinished = {path.name.split("-")[0] for path in (out / PROGRESS).rglob("*.safetensors")}
    tally.before_anything += not out.exists()
    tally.inside_blocks += "journal" in unfinished
    tally.between_blocks += "block" in unfinished


def _compare(out: Path, expected: dict[str, bytes], status: int | None, tally: Tally) -> None:
    tally.ends += 1
    found = contents(out)
    if status != 0:
        tally.differing.append(f"{out.name}: status {status}")
    tally.differing += [
        f"{out.name}: {name}" for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)
    ]
    if (out / PROGRESS).exists():
        tally.differing.append(f"{out.name}: blocks are left over")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--times", type=click.IntRange(min=1), default=60, show_default=True, help="Kills.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments.")
def main(times: int, seed: int) -> None:
    """Kill a small suite at random moments, start it again, and compare its records with those of a quiet run."""
    with tempfile.TemporaryDirectory() as folder:
        tally = survive(times, Path(folder), seed=seed, tell=click.echo)
    click.echo(
        f"{tally.kills} kills survived: {tally.inside_blocks} with a block begun, {tally.between_blocks} with blocks "
        f"finished, {tally.before_anything} before anything was written; {tally.ends} suites came to their end, "
        f"{len(tally.differing)} difference(s)"
    )
    for line in tally.differing[:20]:
        click.echo(f"  {line}")
    sys.exit(bool(tally.differing))


if __name__ == "__main__":
    main()
