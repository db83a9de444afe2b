"""How a run scales: measured with workers on this machine, and simulated for many from the block times measured here.

    python -m benchmarks.scaling --workers 1,2 --model ram --limit 256

Each number of workers computes the same plan from the start in a folder of its own; the records are compared byte by
byte. What the asking process spends on one block (sending it off, taking it back, writing it down) is measured with
blocks of no work. The simulation hands blocks to whichever worker is free, one after the other as that process does
it: so it shows where that process, or the number of blocks, becomes the limit.
"""

from __future__ import annotations

import heapq
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch

from robustbench_lpm.execution.cluster import RayWorkers
from robustbench_lpm.execution.runner import run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model

SIMULATED = (1, 10, 100, 1_000, 10_000)
OVERHEAD_BLOCKS = 64


def simulate(blocks: Sequence[float], workers: int, handling: float) -> float:
    """Seconds until the last block is back: each goes to the first free worker, when the asking process has the time.

    blocks: the seconds that each takes. handling: seconds of the asking process for each block.
    """
    free = [0.0] * min(workers, len(blocks))
    asking = 0.0
    for seconds in blocks:
        asking = max(asking, heapq.heappop(free)) + handling
        heapq.heappush(free, asking + seconds)
    return max(free)


def timed(plan: Plan, out: Path, workers: int) -> tuple[float, dict[str, bytes], float]:
    """Seconds of a run with so many workers, its files, and the seconds that its blocks took together."""
    with RayWorkers(workers) as pool:
        run(replace(plan, indices=plan.indices[: plan.chunk * workers]), out / "warm-up", workers=pool.job)
        start = time.perf_counter()
        record = run(plan, out / str(workers), workers=pool.job)
        seconds = time.perf_counter() - start
    assert record.path is not None
    files = {path.name: path.read_bytes() for path in record.path.iterdir() if path.name != records.TIMING}
    return seconds, files, float(record.timing["seconds"])


def handling_seconds(plan: Plan, out: Path) -> float:
    """Seconds of the asking process for each block, from a run whose blocks are no work."""
    noise = make_plan(
        plan.model, resolve_attack("noise"), plan.data, Options(eps=plan.options.eps, limit=OVERHEAD_BLOCKS, draws=1)
    )
    with RayWorkers(1) as pool:
        run(replace(noise, chunk=1), out / "first", workers=pool.job)
        start = time.perf_counter()
        record = run(replace(noise, chunk=1), out / "second", workers=pool.job)
        seconds = time.perf_counter() - start
    return max(0.0, seconds - float(record.timing["seconds"])) / OVERHEAD_BLOCKS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workers", "numbers", default="1,2", show_default=True, help="Numbers of workers to measure.")
@click.option("--model", default="ram", show_default=True)
@click.option("--limit", type=click.IntRange(1), default=256, show_default=True, help="Images.")
@click.option("--block", type=click.IntRange(1), default=8, show_default=True, help="Images in a block.")
@click.option("--images", type=click.IntRange(1), default=50_000, show_default=True, help="Images of the simulation.")
def main(numbers: str, model: str, limit: int, block: int, images: int) -> None:
    """Measure a run with some numbers of workers, and simulate it with many."""
    torch.set_num_threads(1)
    attack = resolve_attack("pgd", parameters={"steps": 10, "eot": 5})
    plan = make_plan(resolve_model(model), attack, resolve_data("digits"), Options(eps=0.1, limit=limit))
    plan = replace(plan, chunk=block)
    click.echo(f"{model} under pgd, {limit} images in {len(plan.blocks)} blocks; one thread each")
    baseline, first, each = 0.0, dict[str, bytes](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in map(int, numbers.split(",")):
            seconds, files, in_blocks = timed(plan, Path(folder), number)
            if not first:
                baseline, first, each = seconds * number, files, in_blocks / len(plan.blocks)
            same = "the same bytes" if files == first else "OTHER BYTES"
            click.echo(
                f"{number:6} worker(s): {seconds:8.1f} s, {baseline / seconds:5.2f} times as fast, "
                f"{baseline / seconds / number:4.0%} of ideal; {same}"
            )
            if files != first:
                sys.exit(1)
        handling = handling_seconds(plan, Path(folder))
    click.echo(f"A block takes {each:.2f} s; the asking process spends {1000 * handling:.1f} ms on it")
    spread = random.Random(0)
    times = [each * spread.uniform(0.8, 1.2) for _ in range(-(-images // block))]
    alone = sum(times)
    click.echo(f"Simulated: {images:,} images in {len(times):,} blocks of {each:.2f} s, give or take a fifth")
    for number in SIMULATED:
        seconds = simulate(times, number, handling)
        click.echo(f"{number:6} worker(s): {seconds:10.1f} s, {alone / seconds:8.1f} times as fast, "
                   f"{alone / seconds / number:4.0%} of ideal")  # fmt: skip


if __name__ == "__main__":
    main()
