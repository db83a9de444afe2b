"""Who runs when: two workers, one of them busy at a time, contestants interleaved round by round. Needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

Kind = Literal["peer", "tuned peer", "peer in our memory", "ours", "floor"]


@dataclass(frozen=True)
class Contestant:
    """One row of a table.

    worker: "system" (the C allocator as it comes, networks in torch's own layout) or "ours".
    kind: "peer" as it comes, "tuned peer", "peer in our memory", "ours"; "floor" is what could not be faster.
    against: the row that its ratio is to; None for the fastest peer.
    """

    name: str
    worker: str
    kind: Kind
    job: str
    parameters: dict[str, Any]
    against: str | None = None


@dataclass
class Row:
    """A contestant and what it did."""

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def median_seconds(self) -> float | None:
        return median(self.seconds) if self.seconds else None


class WorkerProcess:
    """A worker, started when it is first needed."""

    def __init__(self, layout: str, threads: int, device: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "benchmarks.worker",
            layout,
            f"--threads={threads}",
            f"--device={device}",
        ]
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the worker)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises RuntimeError when the worker dies of it."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                env=self._environment,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"a worker ended ({self._process.wait()}):\n{self._log.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        if self._process is not None:
            self._process.communicate()
            self._process = None
        self._log.close()


@dataclass
class Bench:
    """The settings of a whole run, and its workers."""

    small: bool
    rounds: int
    threads: int
    device: str
    imagenet: str | None
    tell: Callable[[str], None]
    workers: dict[str, WorkerProcess] = field(default_factory=dict)

    def ask(self, contestant: Contestant, **options: Any) -> dict[str, Any]:
        """Let a contestant run once in its worker; the other worker sleeps."""
        if contestant.worker not in self.workers:
            self.workers[contestant.worker] = WorkerProcess(contestant.worker, self.threads, self.device)
        return self.workers[contestant.worker].ask(_request(contestant) | options)

    def ask_fresh(self, contestant: Contestant, **options: Any) -> dict[str, Any]:
        """The same in a process of its own."""
        worker = WorkerProcess(contestant.worker, self.threads, self.device)
        try:
            return worker.ask(_request(contestant) | options)
        finally:
            worker.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()


@contextmanager
def closing(bench: Bench) -> Iterator[Bench]:
    """End the workers in any case."""
    try:
        yield bench
    finally:
        bench.close()


def interleave(
    bench: Bench,
    contestants: Sequence[Contestant],
    late: Callable[[list[Row]], list[Contestant]] = lambda _: [],
    *,
    rounds: int | None = None,
) -> list[Row]:
    """Warm all contestants up, then round by round each once.

    late: who joins at the end of the first round, by what has been seen until then (the fastest peer in our memory).
    """
    rows = [Row(contestant) for contestant in contestants]
    _warm(bench, rows)
    rounds = rounds or bench.rounds
    for number in range(rounds):
        for row in rows:
            _run(bench, row)
        if number == 0:
            joining = [Row(contestant) for contestant in late(rows)]
            _warm(bench, joining)
            for row in joining:
                _run(bench, row)
            rows += joining
        bench.tell(f"round {number + 1} of {rounds}")
    return rows


def fastest_peer_in_our_memory(rows: Sequence[Row], *, batch: int | None = None) -> list[Contestant]:
    """The fastest peer so far once more, in our memory: what is left of its distance is not the memory's."""
    finished = [row for row in rows if row.contestant.kind == "peer" and row.seconds]
    if not finished:
        return []
    best = min(finished, key=lambda row: row.seconds[0]).contestant
    settings: list[tuple[str, dict[str, Any]]] = [("with our memory", {})]
    if batch is not None:
        settings.append((f"with our memory and batches of {batch}", {"batch": batch}))
    return [
        Contestant(f"{best.name}, {how}", "ours", "peer in our memory", best.job, best.parameters | more)
        for how, more in settings
    ]


def _warm(bench: Bench, rows: Sequence[Row]) -> None:
    for row in rows:
        if row.skipped is None:
            row.skipped = bench.ask(row.contestant, only_warm=True).get("skipped")


def _run(bench: Bench, row: Row) -> None:
    if row.skipped is not None:
        return
    answer = bench.ask(row.contestant)
    row.skipped = answer.get("skipped")
    if row.skipped is None:
        row.seconds.append(answer["seconds"])
        row.cpu_seconds.append(answer["cpu_seconds"])
        row.facts = answer["facts"]


def _request(contestant: Contestant) -> dict[str, Any]:
    return {"job": contestant.job, "parameters": contestant.parameters}
