"""Make the record of a run from its blocks, write it, and find finished ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.blocks import Block, BlockStore, differences
from robustbench_lpm.execution.keeping import kept_below
from robustbench_lpm.execution.machine import hardware
from robustbench_lpm.protocol.attacking import Arrays, images_kept
from robustbench_lpm.protocol.plan import Plan, execution
from robustbench_lpm.records.runs import COLUMNS, RECORD, RunRecord, group_pictures, pictures_in, read, write
from robustbench_lpm.versions import versions

PROGRESS = ".partial"
FEWEST_FOR_CHANCE = 4  # images
Tell = Callable[[str], None]  # called with a line for the reader


def empty_record(plan: Plan) -> RunRecord:
    """The record of a plan, without outcomes."""
    import pandas as pd

    return RunRecord(
        configuration=plan.configuration, command=plan.command(), execution=execution(plan), versions=versions(),
        outcomes=pd.DataFrame(), code=plan.code, notes=list(plan.notes),
    )  # fmt: skip


def fill(record: RunRecord, plan: Plan, blocks: Sequence[Block]) -> None:
    """Put the results of the blocks into a record."""
    parts = [block.arrays for block in blocks]
    record.outcomes = _outcomes([part for part in parts if "index" in part], plan.candidates)
    record.adversarials = group_pictures([picture for part in parts for picture in pictures_in(part, "picture.")])
    record.class_names = _class_names(record.outcomes, plan.data.classes)
    record.failures = [failure for block in blocks for failure in block.failures]
    if note := chance_note(record, plan.classes):
        record.notes.append(note)
    record.timing = {
        "seconds": float(sum(part["seconds"] for part in parts)),
        "hardware": hardware(plan.options.device),
    }
    # Of each subject the first block's reason.
    notes = {subject: reason for block in reversed(blocks) for subject, reason in block.notes.items()}
    record.notes += [f"{subject}: {reason}" for subject, reason in sorted(notes.items())]
    if halved := [str(number) for number, block in enumerate(blocks) if block.halved]:
        record.notes.append(
            f"Memory ran out: block(s) {', '.join(halved)} were computed in parts, so that outcomes may differ by "
            "rounding from those of whole blocks."
        )


def chance_note(record: RunRecord, classes: int) -> str:
    """A warning for a model that is right no more often than guessing, "" otherwise.

    Guessing one of K classes is right on n images 1/K ± sqrt(1/K (1 - 1/K) / n) of the time; the limit is the upper end
    of its one-sided 95 % interval. Of 4 to 9 images the limit is none right; fewer say nothing.
    """
    images = len(record.outcomes)
    if images < FEWEST_FOR_CHANCE:
        return ""
    found, chance = record.clean_accuracy.value, 1 / classes
    guessed = chance + 1.645 * math.sqrt(chance * (1 - chance) / images)
    if found > guessed or (images < 10 and found > 0):
        return ""
    return (
        f"clean accuracy {100 * found:.1f} % is no better than chance ({classes} classes): do the labels, the "
        "normalisation and the size of the images fit the model?"
    )


def _outcomes(parts: list[Arrays], candidates: Sequence[str]) -> Any:
    import pandas as pd

    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    names = [name for name in parts[0] if not name.startswith("picture.") and name != "seconds"]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    columns["input_sha256"] = np.array([bytes(row).hex() for row in columns["input_sha256"]])
    columns["choice"] = np.array(candidates if len(candidates) > 1 else [""], dtype=object)[columns["choice"]]
    listed = {name: list(values) if values.ndim > 1 else values for name, values in columns.items()}
    return pd.DataFrame(listed)


def _class_names(outcomes: Any, classes: Sequence[str]) -> dict[int, str]:
    """The names of the labels that occur in outcomes, as far as they are known."""
    if not classes or not len(outcomes):
        return {}
    columns = [outcomes["label"], outcomes["target"], *outcomes["clean_predictions"], *outcomes["predictions"]]
    occurring = sorted({int(label) for column in columns for label in column})
    return {label: classes[label] for label in occurring if 0 <= label < len(classes)}


def write_record(record: RunRecord, plan: Plan, out: Path | None) -> None:
    """Write a record, unless another process has just written an equal one."""
    if out is None:
        return
    directory = out / record.folder_name
    stored = _stored(plan, out)
    if stored is not None and (stored.timing, stored.failures) == (record.timing, record.failures):
        record.path = stored.path
        return
    with kept_below(directory):
        for leftover in directory.glob(".*.*") if directory.is_dir() else ():  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
        write(record, out)


def finished_run(plan: Plan, out: Path, tell: Tell = lambda _: None) -> RunRecord | None:
    """The finished record of this plan in `out`: whole, without failed examples, of the same versions, code and device.

    tell: called with a line where there is a record that is not used.
    """
    record = _stored(plan, out, tell)
    return record if record is not None and not record.failures else None


def _stored(plan: Plan, out: Path, tell: Tell = lambda _: None) -> RunRecord | None:
    """The record of this plan in `out`, whether or not some of its examples failed."""
    expected = empty_record(plan)
    directory = out / expected.folder_name
    if not (directory / RECORD).is_file():
        return None
    try:
        record = read(directory)
    except LpmbenchError as error:
        tell(f"not used, and run again: {error}")
        return None
    if plan.measured:
        expected = empty_record(replace(plan, chunk=record.execution.get("chunk", plan.chunk)))
    if record.id != expected.id:
        return None
    made, wanted = map(_made_with, (record, expected))
    if made != wanted:
        tell(f"run again, for the stored record was made with other {differences(made, wanted)}")
        return None
    return record if keeps_enough(record, plan) else None


def _made_with(record: RunRecord) -> dict[str, Any]:
    """What decides the bits of a record beyond its configuration, by the names that messages use."""
    names = {"answers": "answers of the model"}
    code = {names.get(part, f"code of the {part}"): digest for part, digest in record.code.items()}
    return {**record.execution, "versions": record.versions, **code}


def keeps_enough(record: RunRecord, plan: Plan) -> bool:
    """Whether a record of this plan stores as many images as the plan wants, which is not part of the id."""
    failed = sum(len(failure["indices"]) for failure in record.failures)
    return len(record.pictures()) >= min(images_kept(plan), len(plan.indices)) - failed


def remove_progress(plan: Plan, out: Path) -> None:
    """Remove the blocks of a finished run that was killed between writing its record and removing them."""
    BlockStore(out / PROGRESS / empty_record(plan).folder_name).close()


def blocks_kept(plan: Plan, out: Path) -> int:
    """How many finished blocks of an unfinished run are in `out`, whatever their manifest."""
    return len(list((out / PROGRESS / empty_record(plan).folder_name).glob("block-*.safetensors")))
