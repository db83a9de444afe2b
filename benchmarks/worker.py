"""A process that does one job at a time: JSON lines in, JSON lines out.

Asked {"job": NAME, "parameters": {...}, "only_warm": bool}, it answers {"seconds": ..., "cpu_seconds": ...,
"facts": {...}}, or {"skipped": WHY}. A job is prepared and warmed up when it is first asked for.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
import warnings
from typing import Any

import click
import torch

from benchmarks.jobs import JOBS, Job, Unavailable, resident
from benchmarks.peers import PACKAGES
from benchmarks.subjects import Layout, Place
from robustbench_lpm.allocator import keep_freed_memory


class Worker:
    """Prepared jobs and the place where they run."""

    def __init__(self, place: Place) -> None:
        self._place, self._jobs = place, dict[str, Job]()
        self._on_gpu = torch.device(place.device).type == "cuda"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked for."""
        key = json.dumps([request["job"], request["parameters"]], sort_keys=True)
        try:
            if key not in self._jobs:
                job = JOBS[request["job"]](self._place, **request["parameters"])
                if request.get("memory"):
                    return _peak(job)
                if job.warm is not None:
                    job.warm()
                else:
                    job.facts(job.work())
                self._jobs[key] = job
            return {} if request.get("only_warm") else self._time(self._jobs[key])
        except ImportError as error:
            name = request["parameters"].get("peer", "")
            return {"skipped": f"{PACKAGES.get(name, name)} cannot be imported ({error})"}
        except Unavailable as error:
            return {"skipped": str(error)}
        except Exception as error:  # a contestant that fails is told of in the table
            traceback.print_exc()
            return {"skipped": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}

    def _time(self, job: Job) -> dict[str, Any]:
        torch.manual_seed(0)
        gc.collect()
        self._wait()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._place.device)
        start, cpu = time.perf_counter(), time.process_time()
        result = job.work()
        self._wait()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        peak = {"peak_mib": torch.cuda.max_memory_allocated(self._place.device) / 2**20} if self._on_gpu else {}
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "facts": peak | job.facts(result)}

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._place.device)


def _peak(job: Job) -> dict[str, Any]:
    """What the first run of a job adds to the memory of a fresh process."""
    before, peak_before = resident()
    start = time.perf_counter()
    result = job.work()
    seconds, (_, peak) = time.perf_counter() - start, resident()
    memory = {"peak_bytes": peak - before, "bytes_before": before, "peak_bytes_before": peak_before - before}
    return {"seconds": seconds, "facts": memory | job.facts(result)}


@click.command()
@click.argument("layout", type=click.Choice(["system", "ours"]))
@click.option("--threads", type=int, required=True)
@click.option("--device", required=True)
def main(layout: Layout, threads: int, device: str) -> None:
    """Serve on stdin and stdout until stdin ends."""
    # Libraries print: stdout is kept for answers, and whatever else is written to it goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    if layout == "ours" and not keep_freed_memory():
        print("freed memory cannot be kept here", file=sys.stderr)
    torch.set_num_threads(threads)
    worker = Worker(Place(layout, device))
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
