"""Between the blocks of a run and its record: what becomes of one, and whether one lies there already."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.blocks import Block, BlockStore, differences
from robustbench_lpm.execution.keeping import kept_below
from robustbench_lpm.execution.machine import hardware
from robustbench_lpm.protocol.attacking import Arrays, stored
from robustbench_lpm.protocol.plan import Plan, execution
from robustbench_lpm.records.runs import COLUMNS, RECORD, Picture, RunRecord, group_pictures, read, write
from robustbench_lpm.versions import versions

PROGRESS = ".partial"
FEWEST_FOR_CHANCE = 4  # images
Tell = Callable[[str], None]  # given a line for the reader


def to_nobody(_: str) -> None: ...


def empty_record(plan: Plan) -> RunRecord:
    import pandas as pd

    return RunRecord(
        configuration=plan.configuration,
        command=plan.command(),
        execution=execution(plan),
        versions=versions(),
        outcomes=pd.DataFrame(),
        code=plan.code,
        notes=list(plan.notes),
    )


def fill(record: RunRecord, plan: Plan, blocks: Sequence[Block]) -> None:
    """Let a record hold what came of the blocks."""
    parts = [block.arrays for block in blocks]
    record.outcomes = _outcomes([part for part in parts if "index" in part], plan.candidates)
    record.adversarials = group_pictures(_pictures(parts))
    record.class_names = _class_names(record.outcomes, plan.data.classes)
    record.failures = [failure for block in blocks for failure in block.failures]
    if note := chance_note(record, plan.classes):
        record.notes.append(note)
    record.timing = {"seconds": float(sum(part["seconds"] for part in parts)), "hardware": hardware()}
    notes: dict[str, str] = {}
    for block in blocks:  # of one subject the first block's reason stands for all
        notes = {**block.notes, **notes}
    record.notes += [f"{subject}: {reason}" for subject, reason in sorted(notes.items())]
    if halved := [str(number) for number, block in enumerate(blocks) if block.halved]:
        record.notes.append(
            f"Memory ran out: block(s) {', '.join(halved)} were computed in parts, so that outcomes may differ by "
            "rounding from those of whole blocks."
        )


def chance_note(record: RunRecord, classes: int) -> str:
    """What must be said loudly of a model that is right no more often than one that guesses; "" where it is.

    Guessing one of K classes is right on n images 1/K ± sqrt(1/K (1 - 1/K) / n) of the time; below the upper end of its
    one-sided 95 % interval nothing tells a model from it. Of fewer than 10 images only none right is told, from 4.
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
    """What the labels that occur in outcomes are called, as far as their data set tells."""
    if not classes or not len(outcomes):
        return {}
    columns = [outcomes["label"], outcomes["target"], *outcomes["clean_predictions"], *outcomes["predictions"]]
    occurring = sorted({int(label) for column in columns for label in column})
    return {label: classes[label] for label in occurring if 0 <= label < len(classes)}


def _pictures(parts: list[Arrays]) -> list[Picture]:
    found = []
    for part in parts:
        groups = [name.removeprefix("picture.index.") for name in part if name.startswith("picture.index.")]
        for group in groups:
            arrays = (part[f"picture.{kind}.{group}"] for kind in ("index", "clean", "adversarial"))
            found += [Picture(int(i), clean, attacked) for i, clean, attacked in zip(*arrays, strict=True)]
    return found


def write_down(record: RunRecord, plan: Plan, out: Path | None) -> None:
    """Write a record, or take note of the equal one that another process has written just now."""
    if out is None:
        return
    folder = out / record.folder_name
    lying = _lying(plan, out)
    if lying is not None and (lying.timing, lying.failures) == (record.timing, record.failures):
        record.path = lying.path
        return
    with kept_below(folder):
        for leftover in folder.glob(".*.*") if folder.is_dir() else ():  # of a process that was killed as it wrote
            leftover.unlink(missing_ok=True)
        write(record, out)


def finished_run(plan: Plan, out: Path, tell: Tell = to_nobody) -> RunRecord | None:
    """The record of this plan in `out`, if it lies there whole, made by the same versions in the same way.

    One of which some examples failed is not finished. tell: given a line where one lies there that is not used.
    """
    record = _lying(plan, out, tell)
    return record if record is not None and not record.failures else None


def _lying(plan: Plan, out: Path, tell: Tell = to_nobody) -> RunRecord | None:
    """The record of this plan in `out`, whether or not some of its examples failed."""
    expected = empty_record(plan)
    folder = out / expected.folder_name
    if not (folder / RECORD).is_file():
        return None
    try:
        record = read(folder)
    except LpmbenchError as error:
        tell(f"not used, and run again: {error}")
        return None
    if record.id != expected.id:
        return None
    made, wanted = map(_made_with, (record, expected))
    if made != wanted:
        tell(f"run again, for what lies there was made with other {differences(made, wanted)}")
        return None
    return record if keeps_enough(record, plan) else None


def _made_with(record: RunRecord) -> dict[str, Any]:
    """What decides the bits of a record beyond its configuration, by the names in which a difference is told."""
    names = {"answers": "answers of the model"}
    code = {names.get(part, f"code of the {part}"): digest for part, digest in record.code.items()}
    return {**record.execution, "versions": record.versions, **code}


def keeps_enough(record: RunRecord, plan: Plan) -> bool:
    """Whether a record of this plan stores as many images as the plan asks for: the id does not say."""
    failed = sum(len(failure["indices"]) for failure in record.failures)
    return len(record.pictures()) >= min(stored(plan), len(plan.indices)) - failed


def forget_progress(plan: Plan, out: Path) -> None:
    """Remove what a finished run has left of its blocks: it was killed between its record and their removal."""
    BlockStore(out / PROGRESS / empty_record(plan).folder_name).close()


def blocks_kept(plan: Plan, out: Path) -> int:
    """How many blocks of an unfinished run lie in `out`, whatever their manifest."""
    return len(list((out / PROGRESS / empty_record(plan).folder_name).glob("block-*.safetensors")))
