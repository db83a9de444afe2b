"""One training on several devices: each process takes its share of every batch, and what they count is added up.

The gradient is that of the whole batch, whatever the shares. Batch norms normalise each device's share alone, and the
running statistics are those of the first device; so other numbers of devices train other networks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from robustbench_lpm.errors import LpmbenchError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Team:
    """The processes of one training, seen from one of them."""

    fabric: Fabric

    @property
    def size(self) -> int:
        """How many there are."""
        return int(self.fabric.world_size)

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files."""
        return bool(self.fabric.is_global_zero)

    def share(self, parts: Sequence[Found]) -> list[Found]:
        """This process's part: parts of a list are as equal as can be."""
        rank, count = int(self.fabric.global_rank), len(parts)
        return list(parts[rank * count // self.size : (rank + 1) * count // self.size])

    def weight(self, mine: int, batch: int) -> float:
        """What a mean loss over `mine` of a batch's images counts, so that the mean over processes is the batch's."""
        return mine * self.size / batch

    def sums(self, found: dict[str, float]) -> dict[str, float]:
        """Numbers by name, each the sum over all processes; a process may lack some."""
        if self.size == 1:
            return found
        total: dict[str, float] = {}
        for part in self._gathered(found):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def together(self, action: Callable[[], Found]) -> Found:
        """Do what may fail in one process alone. Raises its LpmbenchError in all of them, so that none waits."""
        problem, result = "", None
        try:
            result = action()
        except LpmbenchError as error:
            problem = str(error)
        if self.size > 1:
            problem = next((told for told in self._gathered(problem) if told), "")
        if problem:
            raise LpmbenchError(problem)
        return result  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all have come here."""
        self.fabric.barrier()

    def _gathered(self, mine: Found) -> list[Found]:
        everyone: list[Found] = [mine] * self.size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone


def assemble(device: str, devices: int = 1) -> Team:
    """The team on `devices` devices of a kind: "cpu", "cuda", "mps", or a single one such as "cuda:1".

    Several start this very command in as many processes (lightning-fabric's strategy "ddp").
    Raises LpmbenchError for a device that is not there.
    """
    kind, _, number = device.partition(":")
    if number and devices > 1:
        raise LpmbenchError(f"--device {device} is one device; for several of them give the kind, --device {kind}.")
    wanted: list[int] | int = [int(number)] if number else devices
    # RAM-LPM has parts that some losses leave out, such as a baseline or the where path of a single glimpse.
    strategy = DDPStrategy(find_unused_parameters=True) if devices > 1 else "auto"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells how it starts processes
    try:
        fabric = Fabric(accelerator=kind, devices=wanted, strategy=strategy)
        if devices > 1:
            fabric.launch()
        return Team(fabric)
    except Exception as error:  # fabric and torch raise many kinds for a missing device
        raise LpmbenchError(f"Device '{device}' cannot be used: {' '.join(str(error).split())[:200]}") from None
