"""The files that a training leaves in its folder, each written whole or not at all.

last.ckpt         everything needed to go on, after every epoch and as often as asked; tensors and plain values only
best.safetensors  the network of the best epoch so far
log.csv           one row for each epoch; curves.png shows it
tensorboard/      the same rows for TensorBoard, where asked for
card.toml, NAME.safetensors   at the end: a model card and its weights
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records.runs import write_atomically
from robustbench_lpm.training.plans import completed

LAST, BEST, LOG, CARD, CURVES = "last.ckpt", "best.safetensors", "log.csv", "card.toml", "curves.png"
FORMAT = 2
Row = dict[str, float]


@dataclass
class Journal:
    """How far a training got: finished epochs, their rows of the log, the best of them, seconds spent.

    batches of the epoch after those, with `totals` of the objective's terms, where it was saved in the middle of one.
    """

    epoch: int = 0
    rows: list[Row] = field(default_factory=list)
    best_epoch: int = 0  # 0: none yet
    seconds: float = 0.0
    batches: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    batch_seconds: float = 0.0  # spent on those batches


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises LpmbenchError where the disk is full or does not take it."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise LpmbenchError(
            f"{path} cannot be written: {error.strerror}. What was saved before is whole: mend that, then go on with "
            "--resume."
        ) from None


def refuse_to_overwrite(out: Path) -> None:
    """Raises LpmbenchError when a training lies in the folder already; one without a finished epoch is no loss."""
    if found := [name for name in (CARD, LOG, BEST) if (out / name).exists()]:
        resumable = (out / LAST).exists()
        advice = "add --resume to go on with it, or choose another --out" if resumable else "choose another --out"
        raise LpmbenchError(f"{out} already holds a training ({found[0]}); {advice}.")


def save_last(out: Path, identity: dict[str, Any], journal: Journal, states: dict[str, dict[str, Any]]) -> None:
    """Write last.ckpt. The network comes under "model", so that the file also loads as --checkpoint."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "plan": identity, "journal": asdict(journal), **states}, buffer)
    write(out / LAST, buffer.getvalue())


def load_last(out: Path, identity: dict[str, Any]) -> tuple[Journal, dict[str, Any]]:
    """What last.ckpt holds. Raises LpmbenchError when it is missing, damaged, or of another plan."""
    path = out / LAST
    if not path.is_file():
        raise LpmbenchError(f"There is no {LAST} in {out} to resume from; leave out --resume to start there.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        written, journal = content["plan"], Journal(**content["journal"])
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
    except Exception as error:  # torch raises many kinds for damaged files
        raise LpmbenchError(f"{path} cannot be resumed: {' '.join(str(error).split())[:200]}.") from None
    if difference := _first_difference(completed(written), identity):
        raise LpmbenchError(f"{path} was made by another training: {difference}. Resume with what it began with.")
    return journal, content


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first key at which two plans part, in words; empty when they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            step = f"{where}.{key}" if where else str(key)
            if difference := _first_difference(old.get(key), new.get(key), step):
                return difference
        return ""
    return "" if old == new else f"{where} was {old!r}, now it is {new!r}"


def save_network(path: Path, network: nn.Module) -> None:
    """Write a network's state as safetensors, floats in float32. Tensors come in the order of their names."""
    write(path, save({name: _plain(value) for name, value in sorted(network.state_dict().items())}))


def _plain(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()


def save_log(out: Path, rows: list[Row]) -> None:
    """Write the whole of log.csv; written whole each time, it agrees with last.ckpt after any kill."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))  # not every epoch is validated
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    write(out / LOG, text.getvalue().encode())
