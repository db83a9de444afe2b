"""Compute the blocks of plans in Ray's workers: other processes of this machine, or those of a cluster.

A worker is sent a plan with its weights once, and then blocks; it returns their results. Locks, files and records stay
with the process that asks. A worker sets the number of threads of the manifest, so that with the same device and
versions a block has the same bits wherever it is computed. Where a worker dies, Ray starts its block again in another.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import torch

from robustbench_lpm.allocator import keep_freed_memory
from robustbench_lpm.errors import LpmbenchError, Stopped
from robustbench_lpm.execution.blocks import Block
from robustbench_lpm.execution.computing import compute
from robustbench_lpm.execution.journal import Journal
from robustbench_lpm.execution.runner import SILENT, Job
from robustbench_lpm.protocol.attacking import Made, Progress
from robustbench_lpm.protocol.plan import Plan

RETRIES = 5  # times that a block is started again because its worker died
CONNECT = 10.0  # seconds
WAIT = 0.05  # seconds for which a look at what is done may wait
LOOK_EVERY = 5.0  # seconds between two looks at how large the cluster is
KEPT_PLANS = 4  # in a worker's memory


class RayWorkers:
    """Workers of a local cluster of `count` processes, or of the cluster at an address. A context manager.

    Args:
        address: as Ray takes it: "auto", HOST:PORT, ray://HOST:PORT. Every machine needs this package in the same
            version, and the data where --data says.

    Raises:
        LpmbenchError: where Ray is not installed, or no cluster answers.
    """

    def __init__(self, count: int | None = None, address: str | None = None) -> None:
        self._ray = _imported()
        self._count, self._address = count, address
        self._lock = threading.Lock()
        self._running = 0  # blocks
        self._stopped = False
        self._threads = torch.get_num_threads()
        self._sent: dict[str, Any] = {}
        self._looked, self._resources = -math.inf, dict[str, float]()

    def __enter__(self) -> RayWorkers:
        options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if self._address is None:
            options |= {"num_cpus": self._count, "include_dashboard": False}
        else:
            options["address"] = self._address
        try:
            if self._address is not None:
                _check_reachable(self._address)
            self._ray.init(**options)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            where = f" at '{self._address}'" if self._address else ""
            reason = " ".join(str(error).split())[:200]
            raise LpmbenchError(f"Ray does not answer{where}: {reason}") from None
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()
        self._ray.shutdown()

    def stop(self) -> None:
        """End every thread that waits for a block."""
        self._stopped = True

    @property
    def gpus(self) -> int:
        """GPUs that Ray has."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def use_threads(self, threads: int) -> None:
        """Compute each block with so many threads."""
        self._threads = threads

    def slots(self, device: str) -> int:
        """Blocks that can be computed at the same time; a cluster may grow."""
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY:
            self._looked, self._resources = now, dict(self._ray.cluster_resources())
        found = self._resources
        if torch.device(device).type == "cuda":
            return max(1, int(found.get("GPU", 0)))
        return max(1, int(found.get("CPU", 1) / self._processors()))

    def _processors(self) -> int:
        return 1 if self._address is None else self._threads  # a local cluster has as many as workers were asked for

    def job(self, plan: Plan, made: Mapping[str, Made], progress: Progress) -> Job:
        """Computes the blocks of one plan."""
        return _RayJob(self, plan, made, progress)

    def take_slot(self, device: str) -> bool:
        """Whether there is room for one more block, a few waiting in line. Raises Stopped."""
        if self._stopped:
            raise Stopped("The run was stopped.")
        slots = self.slots(device)
        with self._lock:
            return self._running < slots + max(1, slots // 4)

    def submit(self, plan: Plan, number: int, indices: Sequence[int], made: Mapping[str, Made]) -> Any:
        """Send a block to a worker; Ray's reference to its result."""
        on_gpu = torch.device(plan.options.device).type == "cuda"
        task = self._ray.remote(
            num_cpus=self._processors(), num_gpus=1 if on_gpu else 0, max_retries=RETRIES, retry_exceptions=False
        )(_compute)
        own = {name: member.of(indices) for name, member in made.items()}
        paths = [path or os.getcwd() for path in sys.path]  # noqa: PTH109 (Ray wants text)
        with self._lock:
            if plan.id not in self._sent:  # a plan is put into Ray's store once
                self._sent[plan.id] = self._ray.put(_portable(plan))
            self._running += 1
            sent = self._sent[plan.id]
        return task.remote([sent], plan.id, number, list(indices), own, self._threads, paths)

    def ready(self, references: list[Any]) -> list[Any]:
        """Those whose results are there. Raises Stopped."""
        if self._stopped:
            raise Stopped("The run was stopped.")
        return list(self._ray.wait(references, num_returns=len(references), timeout=WAIT)[0]) if references else []

    def fetch(self, reference: Any, number: int, indices: Sequence[int]) -> Block:
        """The result of a block. Raises LpmbenchError where the worker could not do its part."""
        with self._lock:
            self._running -= 1
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError):
            reason = f"its worker was killed {RETRIES + 1} times; it may have run out of memory"
            return Block({"seconds": np.array(0.0)}, ({"block": number, "indices": list(indices), "error": reason},))
        except errors.RayError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise LpmbenchError(f"A worker failed: {reason}") from None

    def cancel(self, references: Sequence[Any]) -> None:
        """Drop blocks that are still being computed."""
        for reference in references:
            self._ray.cancel(reference, force=True)
        with self._lock:
            self._running -= len(references)


class _RayJob(Job):
    """Has the blocks of one plan computed by Ray's workers."""

    def __init__(self, workers: RayWorkers, plan: Plan, made: Mapping[str, Made], progress: Progress) -> None:
        super().__init__(plan, made, progress)
        self._workers = workers
        self._running: dict[Any, tuple[int, Sequence[int], Journal]] = {}

    def free(self) -> bool:
        return self._workers.take_slot(self.plan.options.device)

    def start(self, number: int, indices: Sequence[int], journal: Journal) -> None:
        reference = self._workers.submit(self.plan, number, indices, self.made)
        self._running[reference] = (number, indices, journal)

    def finished(self) -> list[tuple[int, Block, Journal]]:
        found = []
        for reference in self._workers.ready(list(self._running)):
            number, indices, journal = self._running.pop(reference)
            block = self._workers.fetch(reference, number, indices)
            spent = sum(int(block.arrays[name].sum()) for name in ("forwards", "backwards") if name in block.arrays)
            self.progress.spent(spent + len(indices) * self.plan.grading_passes())
            found.append((number, block, journal))
        return found

    def end(self) -> None:
        self._workers.cancel(list(self._running))
        self._running.clear()


_plans: dict[str, Plan] = {}  # of a worker


def _compute(
    references: Sequence[Any], key: str, number: int, indices: Sequence[int], made: Mapping[str, Made], threads: int,
    paths: Sequence[str],
) -> Block:  # fmt: skip
    """Compute a block in a worker."""
    if key not in _plans:
        keep_freed_memory()
        while len(_plans) >= KEPT_PLANS:
            del _plans[next(iter(_plans))]
        sys.path += [path for path in paths if path not in sys.path]  # for code beside a user's card
        _plans[key] = _imported().get(references[0])
    torch.set_num_threads(threads)
    return compute(_plans[key], number, indices, SILENT, made=made)


def _portable(plan: Plan) -> Plan:
    """A plan without what belongs to this process: its GPU, and the cache of hashes."""
    device = torch.device(plan.options.device).type
    data = replace(plan.data, fingerprint=_not_asked)
    options = replace(plan.options, device=device)
    return replace(plan, data=data, options=options, members=tuple(_portable(member) for member in plan.members))


def _not_asked(_: int) -> str:
    raise NotImplementedError("a worker does not name data")


def _check_reachable(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try again for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT).close()


def threads_for(workers: int) -> int:
    """Threads for each of some workers on this machine."""
    return max(1, math.floor((os.cpu_count() or 1) / workers))


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise LpmbenchError(
            "--workers and --ray need Ray, which is not installed: pip install 'robustbench-lpm[ray]'"
        ) from None
    return ray
