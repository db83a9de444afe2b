"""The rows of the log for TensorBoard, an optional extra: pip install 'robustbench-lpm[tensorboard]'."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.training.checkpoints import Row

FOLDER = "tensorboard"


def summary_writer() -> Any:
    """torch's class for event files. Raises LpmbenchError where the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise LpmbenchError(
            "--tensorboard needs the package tensorboard: pip install 'robustbench-lpm[tensorboard]'"
        ) from None
    return SummaryWriter


class Board:
    """Writes every row of the log as scalars to OUT/tensorboard, one step for each epoch.

    It begins with the rows of the finished epochs, in the place of whatever an earlier part of the training wrote: a
    training that was resumed shows every epoch once. Raises LpmbenchError where the package tensorboard is missing, or
    the folder cannot be written.
    """

    def __init__(self, out: Path, rows: list[Row]) -> None:
        self._folder, writer = out / FOLDER, summary_writer()
        with self._told():
            for old in self._folder.glob("events.out.tfevents.*"):
                old.unlink()
            # purge_step: a TensorBoard that is watching forgets the steps that it has seen.
            self._writer = writer(str(self._folder), purge_step=1)
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """One finished epoch. Raises LpmbenchError where the disk does not take it."""
        with self._told():
            for name, value in row.items():
                if name != "epoch" and math.isfinite(value):
                    self._writer.add_scalar(_tag(name), value, int(row["epoch"]))
            self._writer.flush()

    def close(self) -> None:
        """Everything is on the disk. Raises LpmbenchError where it is not."""
        with self._told():
            self._writer.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LpmbenchError(f"{self._folder} cannot be written: {error.strerror}.") from None


def _tag(name: str) -> str:
    """A column as TensorBoard groups it: "validation_accuracy" becomes "accuracy/validation"."""
    for split in ("train", "validation"):
        if name.startswith(f"{split}_"):
            return f"{name.removeprefix(f'{split}_')}/{split}"
    return name.replace("learning_rate_", "learning_rate/")
