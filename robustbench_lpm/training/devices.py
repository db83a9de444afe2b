"""One training on several devices: each process takes its share of every batch, and their results are summed.

The gradient is that of the whole batch, whatever the shares. Batch norms normalise each device's share alone, and the
running statistics are those of the first device; so other numbers of devices train other networks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.devices import resolve_device
from robustbench_lpm.errors import LpmbenchError

Found = TypeVar("Found")


def start(device: str, devices: int = 1) -> Fabric:
    """The processes of a training on `devices` devices of a kind: "auto", "cpu", "cuda"; or on one such as "cuda:1".

    Several start this very command in as many processes (lightning-fabric's strategy "ddp").
    Raises LpmbenchError for a device that is not there.
    """
    kind, _, number = device.partition(":")
    if number and devices > 1:
        raise LpmbenchError(f"--device {device} is one device; for several of them give the kind, --device {kind}.")
    kind = resolve_device(device).partition(":")[0]
    # RAM-LPM has parts that some losses leave out, such as a baseline or the where path of a single glimpse.
    strategy = DDPStrategy(find_unused_parameters=True) if devices > 1 else "auto"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # lightning-fabric prints how it starts processes
    try:
        fabric = Fabric(accelerator=kind, devices=[int(number)] if number else devices, strategy=strategy)
        if devices > 1:
            fabric.launch()
        return fabric
    except Exception as error:  # fabric and torch raise many kinds for a missing device
        raise LpmbenchError(f"Device '{device}' cannot be used: {' '.join(str(error).split())[:200]}") from None


def share(fabric: Fabric | None, parts: Sequence[Found]) -> list[Found]:
    """This process's part of a list; parts are as equal as possible. The whole list without a fabric."""
    rank, size, count = (fabric.global_rank, fabric.world_size, len(parts)) if fabric else (0, 1, len(parts))
    return list(parts[rank * count // size : (rank + 1) * count // size])


class Totals:
    """Weighted sums of numbers on a device, by name. Only `read` waits for the device."""

    def __init__(self, sums: dict[str, float]) -> None:
        self._sums = dict(sums)
        self._unread: list[tuple[str, Tensor, float]] = []

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add a scalar, times its weight."""
        self._unread.append((name, value, weight))

    def read(self) -> dict[str, float]:
        """The sums of all that was added, in double precision and in the order in which it was added."""
        if self._unread:
            device = self._unread[0][1].device
            values = torch.stack([to_device(value.reshape(()), device) for _, value, _ in self._unread])
            for (name, _, weight), value in zip(self._unread, values.cpu().tolist(), strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._unread.clear()
        return dict(self._sums)


def sums(fabric: Fabric | None, found: dict[str, float]) -> dict[str, float]:
    """Numbers by name, each the sum over all processes; a process may lack some."""
    total: dict[str, float] = {}
    for part in _gathered(fabric, found):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def together(fabric: Fabric, action: Callable[[], Found]) -> Found:
    """Do something that may fail in one process only. Raises its LpmbenchError in all of them, so that none waits."""
    problem, result = "", None
    try:
        result = action()
    except LpmbenchError as error:
        problem = str(error)
    if problems := [told for told in _gathered(fabric, problem) if told]:
        raise LpmbenchError(problems[0])
    return result  # type: ignore[return-value]


def _gathered(fabric: Fabric | None, mine: Found) -> list[Found]:
    """The objects of all processes, in the order of their ranks."""
    everyone = [mine] * (fabric.world_size if fabric else 1)
    if len(everyone) > 1:
        torch.distributed.all_gather_object(everyone, mine, group=_hosts())
    return everyone


@cache
def _hosts() -> Any:
    """The processes, connected without their devices: a GPU's own connection would wait for all of its work."""
    return torch.distributed.new_group(backend="gloo")
