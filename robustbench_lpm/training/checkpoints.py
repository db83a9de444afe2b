"""The files that a training leaves in its directory, each written whole or not at all.

last.ckpt         everything needed to resume, after every epoch and --save-every; tensors and plain values only
best.safetensors  the network of the best epoch so far
log.csv           one row for each epoch; curves.png shows it
tensorboard/      the same rows for TensorBoard, with --tensorboard: pip install 'robustbench-lpm[tensorboard]'
card.toml, NAME.safetensors   at the end: a model card and its weights
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import save
from torch import nn

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.records.runs import write_atomically
from robustbench_lpm.registry.cards import ModelCard
from robustbench_lpm.training.plans import completed

LAST, BEST, LOG, CARD, CURVES, BOARD = (
    "last.ckpt", "best.safetensors", "log.csv", "card.toml", "curves.png", "tensorboard",
)  # fmt: skip
FORMAT = 3
Row = dict[str, float]  # of the log: what was measured in one epoch
Unfinished = tuple[int, dict[str, float], float]  # of an epoch: batches that are done, sums of their terms, seconds


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises LpmbenchError if the disk is full or the write fails."""
    with _write_errors(path):
        write_atomically(path, content)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LpmbenchError(
            f"{path} cannot be written: {error.strerror}. What was saved before is whole: mend that, then go on with "
            "--resume."
        ) from None


def refuse_to_overwrite(out: Path) -> None:
    """Raises LpmbenchError when the directory holds a training; one without a finished epoch is no loss."""
    if found := [name for name in (CARD, LOG, BEST) if (out / name).exists()]:
        resumable = (out / LAST).exists()
        advice = "add --resume to go on with it, or choose another --out" if resumable else "choose another --out"
        raise LpmbenchError(f"{out} already holds a training ({found[0]}); {advice}.")


def save_last(
    out: Path, identity: dict[str, Any], rows: list[Row], unfinished: Unfinished, states: dict[str, dict[str, Any]]
) -> None:
    """Write last.ckpt. The network comes under "model", so that the file also loads as --checkpoint."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "plan": identity, "rows": rows, "unfinished": unfinished, **states}, buffer)
    write(out / LAST, buffer.getvalue())


def load_last(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What last.ckpt holds. Raises LpmbenchError when it is missing, damaged, or of another plan."""
    path = out / LAST
    if not path.is_file():
        raise LpmbenchError(f"There is no {LAST} in {out} to resume from; leave out --resume to start there.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        written = content["plan"]
    except Exception as error:  # torch raises many kinds for damaged files
        raise LpmbenchError(f"{path} cannot be resumed: {' '.join(str(error).split())[:200]}.") from None
    if difference := _first_difference(completed(written), identity):
        raise LpmbenchError(f"{path} was made by another training: {difference}. Resume with what it began with.")
    return dict(content)


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first key at which two plans differ, in words; empty when they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = (_first_difference(old.get(key), new.get(key), f"{where}.{key}".lstrip(".")) for key in old | new)
        return next(filter(None, found), "")
    return "" if old == new else f"{where} was {old!r}, now it is {new!r}"


def save_network(path: Path, network: nn.Module) -> None:
    """Write a network's state as safetensors, floats in float32. Tensors come in the order of their names."""
    state = {
        name: value.float() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    write(path, save({name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}))


def save_log(out: Path, rows: list[Row]) -> None:
    """Write the whole of log.csv; written whole each time, it agrees with last.ckpt after any kill."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))  # not every epoch is validated
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    write(out / LOG, text.getvalue().encode())


def summary_writer() -> Any:
    """torch's class for TensorBoard's files. Raises LpmbenchError where the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise LpmbenchError(
            "--tensorboard needs the package tensorboard: pip install 'robustbench-lpm[tensorboard]'"
        ) from None
    return SummaryWriter


def open_board(out: Path, rows: list[Row]) -> Any:
    """A SummaryWriter for OUT/tensorboard that holds these rows alone: a resumed training shows every epoch once.

    Raises LpmbenchError where the disk does not take it.
    """
    with _write_errors(out / BOARD):
        for old in (out / BOARD).glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step: a running TensorBoard drops the steps that it has read.
        writer = summary_writer()(str(out / BOARD), purge_step=1)
    for row in rows:
        add_to_board(writer, row)
    return writer


def add_to_board(writer: Any, row: Row) -> None:
    """Write one epoch's row as scalars. Raises LpmbenchError where the disk does not take it."""
    with _write_errors(Path(writer.log_dir)):
        for name, value in row.items():
            if name != "epoch" and math.isfinite(value):
                writer.add_scalar(_tag(name), value, int(row["epoch"]))
        writer.flush()


def _tag(name: str) -> str:
    """A column as TensorBoard groups it: "validation_accuracy" becomes "accuracy/validation"."""
    for split in ("train", "validation"):
        if name.startswith(f"{split}_"):
            return f"{name.removeprefix(f'{split}_')}/{split}"
    return name.replace("learning_rate_", "learning_rate/")


def write_card(card: ModelCard, weights: Path, trained: dict[str, Any], path: Path) -> None:
    """Write `card` to `path`, with the weights beside it and how they were made."""
    content = card.model_copy(update={"hint": ""}).model_dump(mode="json", exclude_defaults=True)
    content |= {"weights": {"file": weights.name, "sha256": sha256_of(weights)}, "trained": trained}
    write(path, tomli_w.dumps(content).encode())


def weights_file(card: ModelCard) -> str:
    """The name of the file for a card's weights."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", card.name).strip("-.") + ".safetensors"
